"""What lies at a path: our store, LeRobot, robomimic or diffusion_policy, by looking and never by the name alone."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from s2robot.demos.errors import mismatch
from s2robot.demos.formats.source import Choice, Chosen, Piece, Source, readable, steps_of
from s2robot.demos.store import EpisodeStore

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"


def format_of(path: Path) -> str:
    """One of s2robot, lerobot, robomimic, diffusion_policy.

    Raises:
        DatasetError: nothing is there, or something else.
    """
    if path.is_dir():
        if (path / "zarr.json").is_file():
            return "s2robot"
        if (path / "meta/info.json").is_file():
            return "lerobot"
        if (path / ".zgroup").is_file() or (path / "replay_buffer.zarr/.zgroup").is_file():
            return "diffusion_policy"
    elif path.is_file():
        with path.open("rb") as file:
            head = file.read(8)
        if head == _HDF5:
            return "robomimic"
        if head.startswith(_ZIP):
            return "diffusion_policy"
    expected = (
        "a data set of s2robot (.zarr), LeRobot (meta/info.json), robomimic (.hdf5) or diffusion_policy"
    )
    raise mismatch(path, "something else" if path.exists() else "no such file or folder", expected)


def read(path: Path, choice: Choice) -> Source:
    """The data set at a path.

    Raises:
        DatasetError: it is none, cannot be read, or leaves open what `choice` does not say.
    """
    kind = format_of(path)
    with readable(path, kind):
        return Chosen(_read(path, kind, choice), choice.episodes)


def _read(path: Path, kind: str, choice: Choice) -> Source:
    if choice.mask is not None and kind not in ("robomimic", "lerobot"):
        raise mismatch(
            "mask", f"'{choice.mask}' for {path}", "null: robomimic and LeRobot have filter keys and splits"
        )
    states = kind == "robomimic" and not _has_observations(path, choice)
    if choice.image_size is not None and not states:
        raise mismatch("image_size", f"{choice.image_size} for {path}", "null: its pictures have their size")
    if states:
        from s2robot.demos.formats.robosuite_states import RobosuiteStates

        return RobosuiteStates(path, choice)
    if kind == "lerobot":
        from s2robot.demos.formats.lerobot import LeRobot

        return LeRobot(path, choice)
    if kind == "robomimic":
        from s2robot.demos.formats.robomimic import Robomimic

        return Robomimic(path, choice)
    if kind == "diffusion_policy":
        from s2robot.demos.formats.diffusion_policy import ReplayBuffer

        return ReplayBuffer(path, choice)
    if choice.episodes is None:
        raise mismatch(path, "an episode store already", "a data set of another format, or episodes=[...]")
    for key, value in asdict(choice).items():
        if key != "episodes" and value != getattr(Choice(), key):
            raise mismatch(key, value, "nothing: of an episode store only episodes can be chosen")
    return Stored(path)


class Stored(Source):
    """An episode store, to take some episodes of."""

    def __init__(self, path: Path):
        self._store = EpisodeStore.open(path)
        super().__init__(path, {k: v for k, v in self._store.attrs.items() if k != "schema_version"})

    def __len__(self) -> int:
        return len(self._store)

    def length(self, i: int) -> int:
        return int(self._store.lengths[i])

    def values(self, i: int) -> dict[str, Any]:
        return {key: self._store.meta(key)[i] for key in self._store.meta_keys}

    def pieces(self, i: int) -> Iterator[Piece]:
        store, rows = self._store, self._store.episode_slice(i)
        step = steps_of(
            sum(
                math.prod(store.shape(f"images_{name}"))
                for name in store.cameras
                if f"images_{name}" in store.keys
            )
        )
        for start in range(rows.start, rows.stop, step):
            yield {key: store.read(key, start, min(start + step, rows.stop)) for key in store.keys}


def _has_observations(path: Path, choice: Choice) -> bool:
    from s2robot.demos.formats.robomimic import has_observations

    return has_observations(path, choice)
