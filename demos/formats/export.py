"""Export a store to LeRobot, robomimic or diffusion_policy.

A writer is a module with `write(store, target, settings, progress)`. It writes to `target`, a temporary name, which is
renamed when it returns, so no partial output appears under the final name.
"""

from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np

from s2robot.core.errors import require
from s2robot.core.parts import default_parts, plain, words
from s2robot.core.settings import Settings, from_yaml
from s2robot.demos.arrays import new_path
from s2robot.demos.errors import mismatch
from s2robot.demos.formats.source import NEEDS, Piece, Progress, piece_slices, silent
from s2robot.demos.replay import camera_sizes, episode_frames
from s2robot.demos.schema import check_finite, parts_of
from s2robot.demos.store import EpisodeStore
from s2robot.envs.cube_config import ACTION_FRAME, ENV_VERSION
from s2robot.envs.frames import as_image_size

WRITERS = {"lerobot": "write_lerobot", "robomimic": "write_robomimic", "diffusion_policy": "diffusion_policy"}
ENDINGS = {".hdf5": "robomimic", ".h5": "robomimic", ".zarr.zip": "diffusion_policy"}
DELTAS = ("action_raw", "action_sent", "expert", "imitate")  # dropped when actions become absolute targets


class ExportSettings(Settings, file="convert"):
    image_codec: Literal["h264", "png"] = from_yaml()
    crf: int = from_yaml(ge=0, le=51)
    instruction: str | None = from_yaml()
    action_range: Literal["limits", "clip", "data"] = from_yaml()
    valid: float = from_yaml(ge=0, lt=1)
    image_size: int | None = from_yaml(ge=1)
    actions: Literal["recorded", "absolute"] = from_yaml()


def format_for(out: Path, to: str | None) -> str | None:
    """Return the format specified by `to` or the ending of `out`; None for an episode store (DatasetError)."""
    if to is None:
        return next((name for ending, name in ENDINGS.items() if out.name.endswith(ending)), None)
    if to not in WRITERS:
        raise mismatch("to", f"one of {', '.join(WRITERS)}, or null", f"'{to}'")
    return to


def export(
    store: EpisodeStore, out: Path, to: str, settings: ExportSettings, progress: Progress = silent
) -> None:
    """Write a store to `out` in the format `to`; after an error (UserError), `out` does not exist."""
    if not len(store):
        raise mismatch(store.path, "at least one episode", "none")
    if settings.image_size is not None or settings.actions == "absolute":
        store = ModifiedStore(store.path, settings.image_size, settings.actions == "absolute")
    require(*NEEDS.get(to, ()), extra="data")
    write = import_module(f"s2robot.demos.formats.{WRITERS[to]}").write
    with new_path(out) as part:
        write(store, part, settings, progress)


class ModifiedStore(EpisodeStore):
    """Read-only store with images rendered at `side` px, or with joint targets instead of deltas (DatasetError)."""

    _targets: np.ndarray | None = None  # float64 (steps, 7), rad

    def __init__(self, path: Path, side: int | None, absolute: bool):
        super().__init__(path, "r")
        if side is not None and self._attrs["kind"] == "states":
            self._attrs["env_config"]["image_size"] = side
            for geometry in self._attrs["camera_geometry"].values():
                geometry["size"] = [side, side]
        for name, size in camera_sizes(self, self.cameras).items() if side is not None else ():
            if size != (side, side):
                got = f"{side} for images of {name} of {size[0]} x {size[1]} px"
                raise mismatch("image_size", "null", got)
        if absolute:
            self._make_absolute()

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        values = super().read(key, start, stop)
        if self._targets is None or key != "action":
            return values
        return np.append(self._targets[start : start + len(values)], values[:, 7:], 1).astype(values.dtype)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(k for k in super().keys if self._targets is None or k not in DELTAS)

    def _make_absolute(self) -> None:
        """Add each delta to the last commanded joints from the state; without them, sum from the first measured joints."""
        attrs = self._attrs
        if attrs["action_frame"] != ACTION_FRAME or "action_parts" in attrs:
            got = f"absolute for {words(parts_of(attrs, 'action'))} of {self.path}"
            raise mismatch("actions", f"recorded, or a dataset of {ACTION_FRAME}", got)
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
    """Return the real rate of each episode in Hz: an arm may run slower than `rate_hz`.  # (episodes,)"""
    usual = np.full(len(store), store.attrs.get("speed", 1.0))
    speeds = store.meta("speed") if "speed" in store.meta_keys else usual
    return np.round(store.attrs["rate_hz"] * speeds, 6)


def rate_of(store: EpisodeStore) -> float:
    """Return the common rate of all episodes; DatasetError if they differ."""
    rates = np.unique(rates_of(store))
    if len(rates) > 1:
        got = f"{rates[0]:g} and {rates[-1]:g} Hz"
        raise mismatch(f"{store.path}: speed", "one rate for all episodes in this format", got)
    return float(rates[0])


def array_keys(store: EpisodeStore) -> list[str]:
    """Return the keys of all arrays of an exported store, including rendered images."""
    images = [f"images_{name}" for name in store.cameras]
    return [*images, *(key for key in store.keys if key not in images)]


def check_names(names: Iterable[tuple[str, str]], path: Path) -> None:
    """Reject two arrays with the same name (DatasetError); ``names``: (array, its name in the format)."""
    seen: dict[str, str] = {}
    for key, name in names:
        if seen.setdefault(name, key) != key:
            raise mismatch(path, "arrays with different names", f"{seen[name]} and {key}, both '{name}'")


def all_pieces(store: EpisodeStore, progress: Progress = silent) -> Iterator[tuple[int, int, Piece]]:
    """Yield (episode, its first step in the piece, piece) for all episodes, a few steps at a time.

    A piece has recorded or rendered images (UserError)."""
    sizes = camera_sizes(store, store.cameras)
    for i in range(len(store)):
        steps = store.episode_slice(i)
        rendered: dict[str, np.ndarray] = {}
        if store.attrs["kind"] != "images" and store.cameras:
            frames = episode_frames(store.path, i, store.cameras, as_image_size(sizes))
            rendered = {f"images_{name}": own for name, own in zip(store.cameras, frames, strict=True)}
        for rows in piece_slices(steps.start, steps.stop, sum(h * w * 3 for h, w in sizes.values())):
            first = rows.start - steps.start
            piece = {key: store.read(key, rows.start, rows.stop) for key in store.keys}
            piece |= {key: images[first : rows.stop - steps.start] for key, images in rendered.items()}
            for key, array in piece.items():
                check_finite(f"{store.path}: episode {i}: {key}", array, first)
            yield i, first, piece
            progress(rows.stop, store.num_steps)
