"""Export a store to LeRobot, robomimic or diffusion_policy.

    export(EpisodeStore.open("demos.zarr"), Path("demos"), "lerobot", ExportSettings())

A writer is `write_<format>.py` with `write(store, target, settings, progress)`. It writes the file or folder `target`, a
temporary name that is renamed when the writer returns, so no partial output is ever found. It reads the episodes through
`pieces`, which draws the images of episodes that hold states only. It returns notes for the user.
"""

from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from s2robot.core.parts import default_parts, plain, words
from s2robot.core.settings import Settings, from_yaml
from s2robot.demos.arrays import new_path
from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.formats.source import NEEDS, Piece, Progress, piece_slices, require, silent
from s2robot.demos.replay import camera_sizes, episode_frames
from s2robot.demos.schema import check_finite, parts_of
from s2robot.demos.store import EpisodeStore
from s2robot.envs.cube_config import ACTION_FRAME, ENV_VERSION
from s2robot.envs.frames import as_image_size

FORMATS = ("lerobot", "robomimic", "diffusion_policy")  # each with a module write_<format>
ENDINGS = {".hdf5": "robomimic", ".h5": "robomimic", ".zarr.zip": "diffusion_policy"}
Pictures = Literal["h264", "av1", "png"]
PICTURES = get_args(Pictures)
DELTAS = (
    "action_raw",
    "action_sent",
)  # of an arm's recording: deltas too, so not kept beside absolute targets


class ExportSettings(Settings, file="convert"):
    """Settings of the writers; configs/convert.yaml documents each value."""

    pictures: Pictures = from_yaml()
    crf: int | None = from_yaml(ge=0, le=63)
    instruction: str | None = from_yaml()
    action_range: Literal["limits", "clip", "data"] = from_yaml()
    valid: float = from_yaml(ge=0, lt=1)
    image_size: int | None = from_yaml(ge=1)
    actions: Literal["recorded", "absolute"] = from_yaml()


def format_for(out: Path, to: str | None) -> str | None:
    """Return the format that `to`, or without it the ending of `out`, specifies; None for an episode store.

    Raises:
        DatasetError: no such format.
    """
    if to is None:
        return next((name for ending, name in ENDINGS.items() if out.name.endswith(ending)), None)
    if to not in FORMATS:
        raise DatasetError(f"to: found '{to}', expected one of {', '.join(FORMATS)}, or null")
    return to


def export(
    store: EpisodeStore, out: Path, to: str, settings: ExportSettings, progress: Progress = silent
) -> list[str]:
    """Write a store as `out`, in the format `to`; returns notes for the user.

    Raises:
        DatasetError: `out` exists, the format cannot hold something of the store, or a disk that rejects the write.
            Nothing is left under the name `out` then.
    """
    if not len(store):
        raise mismatch(store.path, "no episodes", "at least one")
    if settings.image_size is not None or settings.actions == "absolute":
        store = ModifiedStore(store.path, settings.image_size, settings.actions == "absolute")
    require(*NEEDS.get(to, ()))
    write = import_module(f"s2robot.demos.formats.write_{to}").write
    with new_path(out) as part:
        return write(store, part, settings, progress) or []


class ModifiedStore(EpisodeStore):
    """A store to read, with images of another size or absolute actions.

    Args:
        side: px, of images drawn from states; None: the size of their world.
        absolute: joint targets instead of deltas.

    Raises:
        DatasetError: recorded images of another size; actions that are no joint deltas.
    """

    _targets: np.ndarray | None = None  # float64 (steps, 7), rad

    def __init__(self, path: Path, side: int | None, absolute: bool):
        super().__init__(path, "r")
        if side is not None:
            self._set_image_size(side)
        if absolute:
            self._make_absolute()

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        values = super().read(key, start, stop)
        if self._targets is None or key not in ("action", "expert"):
            return values
        rows = slice(start, start + len(values))
        if key == "action":
            return np.append(self._targets[rows], values[:, 7:], 1).astype(values.dtype)
        deltas = values[..., :7].astype(np.float64)  # (t, K, 7), from where the episode's own action began
        begin = self._targets[rows] - super().read("action", start, stop)[:, :7]
        return np.append(begin[:, None] + deltas.cumsum(1), values[..., 7:], 2).astype(values.dtype)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(k for k in super().keys if self._targets is None or k not in DELTAS)

    def _set_image_size(self, side: int) -> None:
        if self._attrs["kind"] == "states":
            self._attrs["env_config"]["image_size"] = side
            for geometry in self._attrs["camera_geometry"].values():
                geometry["size"] = [side, side]
        for name, size in camera_sizes(self, self.cameras).items():
            if size != (side, side):
                found = f"{side} for {self.path}, whose camera {name} has {size[0]} x {size[1]} px"
                raise mismatch(
                    "image_size", found, "null: only images drawn from states have a size to choose"
                )

    def _make_absolute(self) -> None:
        """Add each delta to the last commanded joints where the state holds them, else sum up from the first measured ones."""
        attrs = self._attrs
        if attrs["action_frame"] != ACTION_FRAME or "action_parts" in attrs:
            found = f"absolute for {self.path}, whose actions are {words(parts_of(attrs, 'action'))}"
            raise mismatch("actions", found, f"recorded, or joint deltas ({ACTION_FRAME})")
        deltas = self["action"][:, :7].astype(np.float64)
        if attrs["env_version"] == ENV_VERSION and "state" in self.keys:
            self._targets = self["state"][:, -7:] + deltas
        else:
            rows = [self.episode_slice(i) for i in range(len(self))]
            first = self["proprio"][:, :7]
            self._targets = np.concatenate([first[r.start] + deltas[r].cumsum(0) for r in rows])
        joints, gripper = default_parts("action_parts", 7)
        attrs |= {
            "action_frame": "parts",
            "action_parts": plain([joints.replace(kind="absolute", names=attrs["joint_names"]), gripper]),
            "proprio_parts": plain(default_parts("proprio_parts", 7)),
            "source": {"format": "s2robot", "name": self.path.name, "of": attrs.get("source")},
        }


def rates_of(store: EpisodeStore) -> np.ndarray:
    """Return the real steps per second of each episode: an arm may run slower than `rate_hz`.  # (episodes,)"""
    attrs = store.attrs
    each = "speed" in store.meta_keys
    speeds = store.meta("speed") if each else np.full(len(store), attrs.get("speed", 1.0))
    return np.round(attrs["rate_hz"] * speeds, 6)


def rate_of(store: EpisodeStore) -> float:
    """Return the one rate of all episodes; DatasetError if they differ."""
    rates = np.unique(rates_of(store))
    if len(rates) > 1:
        found = f"episodes at {rates[0]:g} and at {rates[-1]:g} Hz"
        raise mismatch(f"{store.path}: speed", found, "one rate, which this format has for all episodes")
    return float(rates[0])


def array_keys(store: EpisodeStore) -> list[str]:
    """All arrays of an exported store, drawn images included."""
    images = [f"images_{name}" for name in store.cameras]
    return [*images, *(key for key in store.keys if key not in images)]


def check_names(names: Iterable[tuple[str, str]], path: Path) -> None:
    """Refuse two arrays of one name (DatasetError); ``names``: array and its name in the format."""
    seen: dict[str, str] = {}
    for key, name in names:
        if name in seen:
            raise mismatch(path, f"{seen[name]} and {key}, both '{name}' there", "different names")
        seen[name] = key


def pieces(store: EpisodeStore, i: int) -> Iterator[Piece]:
    """Yield the arrays of an episode, a few steps at a time, with an `images_<camera>` for each camera.

    Images of simulated episodes without them are drawn, at the size that the store specifies.

    Raises:
        DatasetError: a number that is not finite, or images that cannot be drawn.
    """
    steps = store.episode_slice(i)
    sizes = camera_sizes(store, store.cameras)
    drawn: dict[str, np.ndarray] = {}
    if store.attrs["kind"] != "images" and store.cameras:
        frames = episode_frames(store.path, i, store.cameras, as_image_size(sizes))
        drawn = {f"images_{name}": images for name, images in zip(store.cameras, frames, strict=True)}
    for rows in piece_slices(
        steps.start, steps.stop, sum(height * width * 3 for height, width in sizes.values())
    ):
        first = rows.start - steps.start
        piece = {key: store.read(key, rows.start, rows.stop) for key in store.keys}
        piece |= {key: frames[first : rows.stop - steps.start] for key, frames in drawn.items()}
        for key, array in piece.items():
            check_finite(f"{store.path}: episode {i}: {key}", array, first)
        yield piece
