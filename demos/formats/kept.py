"""What a writer of ours leaves beside a format's own fields, so that reading the file back gives the store that went out.

    group.attrs["s2robot"] = of_store(store).text()
    kept = Kept.of(group.attrs["s2robot"], "mine.hdf5: s2robot")

Another program ignores it. Where it stands, names, types, order of the cameras and what the numbers are come from it
instead of from the format's habits.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.formats.source import Choice, chosen
from s2robot.demos.replay import camera_sizes
from s2robot.demos.store import EpisodeStore

NAME = "s2robot"  # of the attribute
EXACT = f"{NAME}/action"  # in robomimic's files: actions that the way to -1..1 and back would change
SCALE = f"{NAME}_scale"  # there: ours = theirs * [0] + [1]
Types = dict[str, tuple[str, list[int]]]  # key -> dtype, shape of a row


@dataclass(frozen=True)
class Kept:
    """Attributes of a store, and the types of what it holds."""

    attributes: dict[str, Any]
    arrays: Types  # over time
    values: Types  # one an episode
    places: dict[str, list[str]]  # array -> the file's arrays whose columns, end to end, it is

    def text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: Any, where: str) -> "Kept":
        """What was written; DatasetError where that is not what stands there."""
        try:
            given = json.loads(text)
            arrays, values = (
                {k: (str(np.dtype(d)), [int(n) for n in row]) for k, (d, row) in given[name].items()}
                for name in ("arrays", "values")
            )
            places = {key: [str(p) for p in found] for key, found in given["places"].items()}
            kept = cls(dict(given["attributes"]), arrays, values, places)
            if not places or kept.arrays.keys() != places.keys():
                raise ValueError("no place for each array")
        except (KeyError, TypeError, ValueError) as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise mismatch(where, f"text that cannot be read ({text})", "what s2robot wrote") from None
        return kept

    def fits(self, choice: Choice) -> bool:
        """Whether it says all that is asked for: it knows one action and one state alone."""
        return choice.action is None and choice.proprio is None

    def as_asked(self, choice: Choice, path: Path) -> "Kept":
        """With the cameras that are asked for alone, in their order.

        Raises:
            DatasetError: no such camera; a rate or a kind of action other than what was written.
        """
        rate, kinds = self.attributes.get("rate_hz"), self._action_kinds()
        if choice.rate_hz not in (None, rate):
            raise mismatch(f"{path}: rate_hz", f"{choice.rate_hz:g}", f"{rate:g} as the file says, or null")
        if choice.action_kind == "delta" and "delta" not in kinds:
            raise mismatch(f"{path}: action_kind", "delta", f"none: the file says {', '.join(kinds)}")
        names = choice.cameras
        if names is None:
            return self
        taken = chosen(names, self.attributes["cameras"], "cameras", path)
        left_out = {f"images_{n}" for n in self.attributes["cameras"] if n not in taken}
        return Kept(
            {**self.attributes, "cameras": taken},
            {key: types for key, types in self.arrays.items() if key not in left_out},
            self.values,
            {key: found for key, found in self.places.items() if key not in left_out},
        )

    def _action_kinds(self) -> list[str]:
        parts = self.attributes.get("action_parts") or []
        return sorted({str(part["kind"]) for part in parts}) or [f"{self.attributes.get('action_frame')}"]

    def array(self, key: str, columns: Sequence[np.ndarray]) -> np.ndarray:
        """An array of the store, of the file's.  # (t, ...)"""
        dtype, row = self.arrays[key]
        joined = columns[0] if len(columns) == 1 else np.concatenate(columns, 1)
        return np.asarray(joined).reshape(len(joined), *row).astype(dtype, copy=False)

    def episode_values(self, found: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
        """One value a key, of the file's values by their names here; DatasetError where one is missing."""
        for key in self.values:
            if key not in found:
                raise mismatch(where, f"no {key}", "one")
        try:
            return {k: np.asarray(found[k], d).reshape(s) for k, (d, s) in self.values.items()}
        except (TypeError, ValueError) as error:
            raise DatasetError(f"{where}: {error}") from None


def of_store(store: EpisodeStore, places: Mapping[str, Sequence[str]]) -> Kept:
    """Of a store that goes out; `places` tells of each of its arrays where it lies. Pictures drawn from states are
    pictures from then on."""
    attributes = {k: v for k, v in store.attrs.items() if k != "schema_version"} | {"kind": "images"}
    arrays: Types = {}
    sizes = camera_sizes(store, store.cameras)
    for key in places:
        if key in store.keys:
            arrays[key] = str(store.read(key, 0, 1).dtype), list(store.shape(key))
        else:
            arrays[key] = "uint8", [*sizes[key.removeprefix("images_")], 3]
    values = {k: (str(v.dtype), list(v.shape[1:])) for k in store.meta_keys for v in [store.meta(k)]}
    return Kept(attributes, arrays, values, {k: list(v) for k, v in places.items()})
