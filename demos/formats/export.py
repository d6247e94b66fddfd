"""Our episodes out to other people's formats: LeRobot, robomimic, diffusion_policy.

    export(EpisodeStore.open("demos.zarr"), Path("demos"), "lerobot", ExportSettings())

A writer is `write_<name>.py` with `write(store, target, settings, progress)`: it makes the file or folder `target`, which
is a temporary name that becomes the final one when the writer returns, so that nothing half-written is ever found. It
takes the episodes from `pieces`, which draws the pictures of those that hold states alone. What it returns are notes for
the user: what was left out.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.formats.convert import Progress, silent, whole
from s2robot.demos.formats.source import Piece, finite, steps_of
from s2robot.demos.replay import camera_sizes, episode_frames
from s2robot.demos.store import EpisodeStore
from s2robot.envs.frames import as_image_size

WRITERS: dict[str, str] = {  # format -> "module:function", called with (store, target, settings, progress)
    "lerobot": "s2robot.demos.formats.write_lerobot:write",
    "lerobot_v21": "s2robot.demos.formats.write_lerobot:write_v21",
    "robomimic": "s2robot.demos.formats.write_robomimic:write",
    "diffusion_policy": "s2robot.demos.formats.write_diffusion_policy:write",
}
ENDINGS = {".hdf5": "robomimic", ".h5": "robomimic", ".zarr.zip": "diffusion_policy"}
PICTURES = ("h264", "av1", "png")
RANGES = ("limits", "clip", "data")


@dataclass(frozen=True)
class ExportSettings:
    """configs/convert.yaml says what each is."""

    pictures: str = "h264"
    crf: int | None = None
    instruction: str | None = None
    action_range: str = "limits"
    valid: float = 0.1
    image_size: int | None = None

    def __post_init__(self) -> None:
        if self.pictures not in PICTURES:
            raise DatasetError(f"pictures: found '{self.pictures}', expected one of {', '.join(PICTURES)}")
        if self.crf is not None and not 0 <= self.crf <= 63:
            raise DatasetError(f"crf: found {self.crf}, expected 0 to 63, or null")
        if self.action_range not in RANGES:
            raise DatasetError(
                f"action_range: found '{self.action_range}', expected one of {', '.join(RANGES)}"
            )
        if not 0 <= self.valid < 1:
            raise DatasetError(f"valid: found {self.valid}, expected a share from 0 to below 1")
        if self.image_size is not None and self.image_size < 1:
            raise DatasetError(f"image_size: found {self.image_size}, expected 1 or more")


def format_for(out: Path, to: str | None) -> str | None:
    """The format that `to` or, where it is None, the ending of `out` asks for; None for an episode store.

    Raises:
        DatasetError: no such format.
    """
    if to is None:
        return next((name for ending, name in ENDINGS.items() if out.name.endswith(ending)), None)
    if to not in WRITERS:
        raise DatasetError(f"to: found '{to}', expected one of {', '.join(WRITERS)}, or null")
    return to


def export(
    store: EpisodeStore, out: Path, to: str, settings: ExportSettings, progress: Progress = silent
) -> list[str]:
    """Write a store as `out`, in the format `to`; returns what the user should know of it.

    Raises:
        DatasetError: `out` is there already, the store holds what the format cannot, or a disk that refuses. Nothing
            is left under the name `out` then.
    """
    if os.path.lexists(out):
        raise DatasetError(f"{out}: exists already, expected a new path; nothing was overwritten")
    if not len(store):
        raise mismatch(store.path, "no episodes", "at least one")
    if settings.image_size is not None:
        store = _in_size(store, settings.image_size)
    module, _, function = WRITERS[to].partition(":")
    with whole(out) as part:
        return getattr(import_module(module), function)(store, part, settings, progress) or []


class Drawn(EpisodeStore):
    """Simulated demos, to read only, whose pictures are drawn at another size than their world's."""

    def __init__(self, path: Path, side: int):
        super().__init__(path, "r")
        self._attrs["env_config"]["image_size"] = side
        for about in self._attrs["camera_geometry"].values():
            about["size"] = [side, side]


def _in_size(store: EpisodeStore, side: int) -> EpisodeStore:
    """The store with pictures of side x side px; DatasetError where it has others."""
    if store.attrs["kind"] == "states":
        return Drawn(store.path, side)
    for name, size in camera_sizes(store, store.cameras).items():
        if size != (side, side):
            found = f"{side} for {store.path}, whose camera {name} has {size[0]} x {size[1]} px"
            raise mismatch("image_size", found, "null: only what is drawn from states has a size to choose")
    return store


def pieces(store: EpisodeStore, i: int) -> Iterator[Piece]:
    """The arrays of episode ``i``, a few of its steps at a time, with an `images_<camera>` for each camera of the store.

    Those of simulated demos without pictures are drawn, at the size that the store tells.

    Raises:
        DatasetError: a number that is none, or pictures that cannot be drawn.
    """
    rows = store.episode_slice(i)
    step = steps_of(sum(height * width * 3 for height, width in camera_sizes(store, store.cameras).values()))
    drawn = _drawn(store, i)
    for at in range(rows.start, rows.stop, step):
        stop = min(at + step, rows.stop)
        piece = {key: store.read(key, at, stop) for key in store.keys}
        piece |= {key: frames[at - rows.start : stop - rows.start] for key, frames in drawn.items()}
        yield finite(piece, f"{store.path}: episode {i}", at - rows.start)


def _drawn(store: EpisodeStore, i: int) -> dict[str, np.ndarray]:
    """The pictures of an episode that the store holds states of."""
    if store.attrs["kind"] == "images" or not store.cameras:
        return {}
    sizes = as_image_size(camera_sizes(store, store.cameras))
    frames = episode_frames(store.path, i, store.cameras, sizes)
    return {f"images_{name}": seen for name, seen in zip(store.cameras, frames, strict=True)}
