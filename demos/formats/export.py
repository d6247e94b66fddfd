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
from s2robot.demos.schema import parts_of
from s2robot.demos.store import EpisodeStore
from s2robot.envs.cube_config import ACTION_FRAME, ENV_VERSION
from s2robot.envs.frames import as_image_size
from s2robot.envs.parts import usual, words

WRITERS: dict[str, str] = {  # format -> "module:function", called with (store, target, settings, progress)
    "lerobot": "s2robot.demos.formats.write_lerobot:write",
    "robomimic": "s2robot.demos.formats.write_robomimic:write",
    "diffusion_policy": "s2robot.demos.formats.write_diffusion_policy:write",
}
ENDINGS = {".hdf5": "robomimic", ".h5": "robomimic", ".zarr.zip": "diffusion_policy"}
PICTURES = ("h264", "av1", "png")
RANGES = ("limits", "clip", "data")
ACTIONS = ("recorded", "absolute")
DELTAS = ("action_raw", "action_sent")  # of an arm's recording, which absolute targets do not go with


@dataclass(frozen=True)
class ExportSettings:
    """configs/convert.yaml says what each is."""

    pictures: str = "h264"
    crf: int | None = None
    instruction: str | None = None
    action_range: str = "limits"
    valid: float = 0.1
    image_size: int | None = None
    actions: str = "recorded"

    def __post_init__(self) -> None:
        if self.actions not in ACTIONS:
            raise DatasetError(f"actions: expected {' or '.join(ACTIONS)}, got '{self.actions}'")
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
    if settings.image_size is not None or settings.actions == "absolute":
        store = Changed(store.path, settings.image_size, settings.actions == "absolute")
    module, _, function = WRITERS[to].partition(":")
    with whole(out) as part:
        return getattr(import_module(module), function)(store, part, settings, progress) or []


class Changed(EpisodeStore):
    """Episodes, to read only, as they go out.

    side: px, pictures drawn from states at another size than their world's.
    absolute: joint targets instead of deltas.

    Raises:
        DatasetError: pictures that are there already, of another size; actions that are no joint deltas.
    """

    _targets: np.ndarray | None = None  # float64 (steps, 7), rad

    def __init__(self, path: Path, side: int | None, absolute: bool):
        super().__init__(path, "r")
        if side is not None:
            self._draw_at(side)
        if absolute:
            self._make_absolute()

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        found = super().read(key, start, stop)
        if self._targets is None or key not in ("action", "expert"):
            return found
        at = slice(start, start + len(found))
        if key == "action":
            return np.append(self._targets[at], found[:, 7:], 1).astype(found.dtype)
        deltas = found[..., :7].astype(np.float64)  # (t, K, 7) on top of where the episode's own action began
        begin = self._targets[at] - super().read("action", start, stop)[:, :7]
        return np.append(begin[:, None] + deltas.cumsum(1), found[..., 7:], 2).astype(found.dtype)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(k for k in super().keys if self._targets is None or k not in DELTAS)

    def _draw_at(self, side: int) -> None:
        if self._attrs["kind"] == "states":
            self._attrs["env_config"]["image_size"] = side
            for about in self._attrs["camera_geometry"].values():
                about["size"] = [side, side]
            return
        for name, size in camera_sizes(self, self.cameras).items():
            if size != (side, side):
                found = f"{side} for {self.path}, whose camera {name} has {size[0]} x {size[1]} px"
                raise mismatch(
                    "image_size", found, "null: only what is drawn from states has a size to choose"
                )

    def _make_absolute(self) -> None:
        """A delta is added to the last commanded joints, which our simulated worlds record; elsewhere they are the first
        measured joints and the deltas before."""
        about = self._attrs
        if about["action_frame"] != ACTION_FRAME or "action_parts" in about:
            found = f"absolute for {self.path}, whose actions are {words(parts_of(about, 'action'))}"
            raise mismatch("actions", found, f"recorded, or joint deltas ({ACTION_FRAME})")
        deltas = self["action"][:, :7].astype(np.float64)
        if about["env_version"] == ENV_VERSION and "state" in self.keys:
            self._targets = self["state"][:, -7:] + deltas
        else:
            first = [self["proprio"][self.episode_slice(i).start, :7] for i in range(len(self))]
            summed = [deltas[self.episode_slice(i)].cumsum(0) for i in range(len(self))]
            self._targets = np.concatenate([a + b for a, b in zip(first, summed, strict=True)])
        joints, gripper = usual("action_parts", 7)
        about |= {
            "action_frame": "parts",
            "action_parts": [{**joints, "kind": "absolute", "names": about["joint_names"]}, gripper],
            "proprio_parts": usual("proprio_parts", 7),
            "source": {"format": "s2robot", "name": self.path.name, "of": about.get("source")},
        }


def rates_of(store: EpisodeStore) -> np.ndarray:
    """Steps a second of each episode as time passed: an arm may have been slower than `rate_hz`.  # (episodes,)"""
    about = store.attrs
    each = "speed" in store.meta_keys
    speeds = store.meta("speed") if each else np.full(len(store), about.get("speed", 1.0))
    return np.round(about["rate_hz"] * speeds, 6)


def rate_of(store: EpisodeStore) -> float:
    """That of all episodes; DatasetError where they differ."""
    rates = np.unique(rates_of(store))
    if len(rates) > 1:
        found = f"episodes at {rates[0]:g} and at {rates[-1]:g} Hz"
        raise mismatch(f"{store.path}: speed", found, "one rate, which this format has for all episodes")
    return float(rates[0])


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
