"""What our writers store beside a format's own fields, so that reading the file back restores the same store.

    group.attrs["s2robot"] = Sidecar.of_store(store, places).text()
    sidecar = Sidecar.parse(group.attrs["s2robot"], "mine.hdf5: s2robot")

Other programs ignore it. Where it exists, names, types, the order of cameras and the parts come from it instead of from the
format's conventions.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from s2robot.core.settings import Stored, read
from s2robot.demos.errors import DatasetError, mismatch, one_line
from s2robot.demos.formats.source import Choice, chosen
from s2robot.demos.replay import camera_sizes
from s2robot.demos.store import EpisodeStore

NAME = "s2robot"  # of the attribute
EXACT = f"{NAME}/action"  # in robomimic's files: actions that scaling to -1..1 and back would change
SCALE = f"{NAME}_scale"  # there: ours = theirs * [0] + [1]


def _numbers(dtype: str) -> str:
    try:
        return str(np.dtype(dtype))
    except TypeError as error:
        raise ValueError(str(error)) from None


Types = dict[
    str, tuple[Annotated[str, AfterValidator(_numbers)], tuple[int, ...]]
]  # key -> dtype, shape of a row


class Sidecar(Stored):
    """Attributes of a store, and the types of its arrays and values."""

    attributes: dict[str, Any]
    arrays: Types  # over time
    values: Types  # one per episode
    places: dict[str, tuple[str, ...]] = Field(
        min_length=1
    )  # array -> the file's arrays whose columns it joins

    @model_validator(mode="after")
    def _each_array_has_a_place(self) -> "Sidecar":
        if self.arrays.keys() != self.places.keys():
            raise ValueError("places: expected one for each array")
        return self

    @classmethod
    def parse(cls, text: Any, where: str) -> "Sidecar":
        """Read what `text` returned (DatasetError)."""
        try:
            return read(cls, json.loads(text), f"{where}: ")
        except (TypeError, ValueError) as error:
            found = f"text that cannot be read ({one_line(error)})"
            raise mismatch(where, found, "what s2robot wrote") from None

    @classmethod
    def of_store(cls, store: EpisodeStore, places: Mapping[str, Sequence[str]]) -> "Sidecar":
        """Describe a store; ``places`` maps each array to its place. Frames drawn from states count as images."""
        attributes = {k: v for k, v in store.attrs.items() if k != "schema_version"} | {"kind": "images"}
        sizes = camera_sizes(store, store.cameras)
        arrays: dict[str, Any] = {
            key: (str(store.read(key, 0, 1).dtype), store.shape(key))
            if key in store.keys
            else ("uint8", (*sizes[key.removeprefix("images_")], 3))
            for key in places
        }
        values = {k: (str(v.dtype), v.shape[1:]) for k in store.meta_keys for v in [store.meta(k)]}
        tuples = {key: tuple(place) for key, place in places.items()}
        return cls(attributes=attributes, arrays=arrays, values=values, places=tuples)

    def text(self) -> str:
        return json.dumps(self.model_dump())

    def for_choice(self, choice: Choice, path: Path) -> "Sidecar | None":
        """Keep the chosen cameras; None if the user chooses another action or state.

        Raises:
            DatasetError: no such camera; a rate or a kind of action other than the stored one.
        """
        if choice.action is not None or choice.proprio is not None:
            return None
        rate = self.attributes.get("rate_hz")
        if choice.rate_hz not in (None, rate):
            raise mismatch(f"{path}: rate_hz", f"{choice.rate_hz:g}", f"{rate:g} as the file says, or null")
        parts = self.attributes.get("action_parts") or []
        kinds = sorted({str(part["kind"]) for part in parts}) or [str(self.attributes.get("action_frame"))]
        if choice.action_kind == "delta" and "delta" not in kinds:
            raise mismatch(f"{path}: action_kind", "delta", f"none: the file says {', '.join(kinds)}")
        if choice.cameras is None:
            return self
        cameras = chosen(choice.cameras, self.attributes["cameras"], "cameras", path)
        dropped = {f"images_{n}" for n in self.attributes["cameras"] if n not in cameras}
        return self.replace(
            attributes={**self.attributes, "cameras": cameras},
            arrays={key: types for key, types in self.arrays.items() if key not in dropped},
            places={key: place for key, place in self.places.items() if key not in dropped},
        )

    def array(self, key: str, columns: Sequence[np.ndarray]) -> np.ndarray:
        """Join columns of the file to an array of the store.  # (t, ...)"""
        dtype, row = self.arrays[key]
        joined = columns[0] if len(columns) == 1 else np.concatenate(columns, 1)
        return np.asarray(joined).reshape(len(joined), *row).astype(dtype, copy=False)

    def episode_values(self, stored: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
        """Return an episode's values with their types; DatasetError where one is missing."""
        for key in self.values:
            if key not in stored:
                raise mismatch(where, f"no {key}", "one")
        try:
            return {k: np.asarray(stored[k], d).reshape(s) for k, (d, s) in self.values.items()}
        except (TypeError, ValueError) as error:
            raise DatasetError(f"{where}: {error}") from None
