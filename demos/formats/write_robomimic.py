"""Write robomimic files.

    write(store, Path("mine.hdf5"), ExportSettings(), progress)

Format: ARISE-Initiative/robomimic, docs/datasets/overview.md. Demos of robosuite's worlds keep states, scene and the
world's arguments, so that robomimic's scripts can draw and replay them. What the format has no place for goes into
`data/demo_N/s2robot` and attributes of that name: see sidecar.py.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.formats.export import ExportSettings, array_keys, check_names, pieces, rate_of
from s2robot.demos.formats.sidecar import EXACT, NAME, SCALE, Sidecar
from s2robot.demos.formats.source import Progress, require
from s2robot.demos.replay import world_of_demos
from s2robot.demos.schema import parts_of
from s2robot.demos.store import EpisodeStore
from s2robot.envs.parts import BEYOND
from s2robot.envs.robosuite_config import RobosuiteSettings
from s2robot.envs.tasks import make

Plan = dict[str, list[tuple[str, slice]]]  # array -> arrays of a demo, each for these columns


def write(store: EpisodeStore, target: Path, settings: ExportSettings, progress: Progress) -> None:
    """Write a store as one file.

    Raises:
        DatasetError: actions that do not fit into -1..1, or a number that is none.
    """
    require("h5py")
    import h5py

    scaling, world, done = Scaling.of(store, settings.action_range), _world(store), 0
    plan = {key: _places(store, key, world) for key in array_keys(store)}
    places = {key: [name for name, _ in columns] for key, columns in plan.items()}
    check_names([(key, name) for key, names in places.items() for name in names], store.path)
    sidecar = Sidecar.of_store(store, places)
    with _Disk(target) as disk, h5py.File(disk, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = store.num_steps
        data.attrs["env_args"] = json.dumps(_env_args(store, world))
        data.attrs[NAME], data.attrs[SCALE] = sidecar.text(), np.stack([scaling.scale, scaling.offset])
        for i, count in enumerate(store.lengths.tolist()):
            demo, at = data.create_group(f"demo_{i}"), 0
            _begin(demo, store, i, world)
            exact = scaling.is_lossy(store.episode(i)["action"]) and settings.action_range != "clip"
            for piece in pieces(store, i):
                steps = len(piece["action"])
                if exact:
                    piece[EXACT] = piece["action"]
                if world is not None and "state" in piece:
                    piece["states"] = piece["state"][:, : 1 + world.model.nq + world.model.nv]
                piece["action"] = scaling.to_unit(piece["action"])
                _put(demo, plan, piece, at, count)
                disk.check()
                at, done = at + steps, done + steps
                progress(done, store.num_steps)
        _masks(file, store, settings.valid)


class _Disk(io.FileIO):
    """A file for hdf5, which crashes the process when a write fails: errors are stored, and raised by `check`."""

    def __init__(self, path: Path):
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = self.error or error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def check(self) -> None:
        if self.error:
            raise self.error from None

    def __exit__(self, *_: Any) -> None:
        self.close()
        self.check()


@dataclass(frozen=True)
class Scaling:
    """Actions to -1..1 and back: ours = theirs * scale + offset."""

    scale: np.ndarray  # float64 (A,)
    offset: np.ndarray

    @classmethod
    def of(cls, store: EpisodeStore, how: str) -> "Scaling":
        """By the limits of the store's parts; a part without is as it is, or by its data (how="data").

        Raises:
            DatasetError: actions beyond it, unless they are to be cut (how="clip") or stretched.
        """
        actions, at, halves, middles = store["action"], 0, list[np.ndarray](), list[np.ndarray]()
        for part in parts_of(store.attrs, "action"):
            x = actions[:, at : at + part["size"]].astype(np.float64)
            at += part["size"]
            least, most = x.min(0), x.max(0)
            known = part.get("low") is not None or part["kind"] == "binary"
            low = np.asarray(part.get("low") or [0.0 if known else -1.0] * part["size"], np.float64)
            high = np.asarray(part.get("high") or [1.0] * part["size"], np.float64)
            room = BEYOND * (high - low)
            beyond = ((least < low - room) | (most > high + room)).any()
            if how == "data" and (beyond or not known):
                low, high = least, np.where(most > least, most, least + 1)
            elif beyond and how == "limits":
                found = f"part '{part['name']}' from {least.min():.4g} to {most.max():.4g}"
                limits = f"{low.min():g} to {high.max():g}"
                raise mismatch(
                    f"{store.path}: action", found, f"{limits}: action_range=data stretches, =clip cuts it"
                )
            halves.append((high - low) / 2)
            middles.append((high + low) / 2)
        return cls(np.concatenate(halves), np.concatenate(middles))

    def to_unit(self, actions: np.ndarray) -> np.ndarray:
        return np.clip((actions.astype(np.float64) - self.offset) / self.scale, -1, 1)

    def is_lossy(self, actions: np.ndarray) -> bool:
        """Whether scaling and back changes an action."""
        back = (self.to_unit(actions) * self.scale + self.offset).astype(actions.dtype)
        return back.tobytes() != actions.tobytes()


# -------------------------------------------------------------------- what goes where


def _places(store: EpisodeStore, key: str, world: Any) -> list[tuple[str, slice]]:
    if key == "proprio":
        parts = parts_of(store.attrs, key)
        ends = np.cumsum([part["size"] for part in parts]).tolist()
        return [(f"obs/{p['name']}", slice(e - p["size"], e)) for p, e in zip(parts, ends, strict=True)]
    name = f"{NAME}/{quote(key, safe=' :')}"
    if key == "action":
        name = "actions"
    elif key == "state" and world is None:
        name = "states"
    elif key.startswith("images_"):
        name = f"obs/{quote(key.removeprefix('images_'), safe=' :')}_image"
    return [(name, slice(None))]


def _put(demo: Any, plan: Plan, piece: Mapping[str, np.ndarray], at: int, count: int) -> None:
    """The steps of a piece, from step `at` on of `count`."""
    for key, array in piece.items():
        for name, columns in plan.get(key, [(key, slice(None))]):
            rows = array if columns == slice(None) else array[:, columns]
            if at == 0:
                picture = name.endswith("_image")
                how: Any = {"chunks": (1, *rows.shape[1:]), "compression": "lzf"} if picture else {}
                demo.create_dataset(name, (count, *rows.shape[1:]), rows.dtype, **how)
            demo[name][at : at + len(rows)] = rows


def _begin(demo: Any, store: EpisodeStore, i: int, world: Any) -> None:
    """What is known of an episode besides its arrays over time."""
    count = int(store.lengths[i])
    values = {key: store.meta(key)[i] for key in store.meta_keys}
    last = np.arange(count) == count - 1
    demo["rewards"] = last * float(np.any(values.get("success", False)))
    demo["dones"] = last.astype(np.int64)
    demo.attrs["num_samples"] = count
    if world is not None and "state" in store.keys:
        demo.attrs["model_file"] = world.raw.sim.model.get_xml()
    for key, value in values.items():
        demo.attrs[f"{NAME}:{key}"] = value


def _masks(file: Any, store: EpisodeStore, valid: float) -> None:
    """Filter keys train and valid; a single episode is to train on."""
    for name, episodes in zip(
        ("train", "valid"), store.split(valid if len(store) > 1 else 0, 0), strict=True
    ):
        if len(episodes):
            file[f"mask/{name}"] = np.array([f"demo_{i}" for i in episodes], "S")


# -------------------------------------------------------------------- robosuite


def _world(store: EpisodeStore) -> Any:
    """The robosuite world that simulated demos were recorded in; None of others, and where robosuite is missing."""
    if not store.attrs["env_config"] or find_spec("robosuite") is None:
        return None
    try:
        settings = world_of_demos(store)
    except DatasetError:  # of a task that is not known here
        return None
    return make(settings, draw=False) if isinstance(settings, RobosuiteSettings) else None


def _env_args(store: EpisodeStore, world: Any) -> dict[str, Any]:
    """What makes the world again in robomimic, or its name alone."""
    about = store.attrs
    if "env_args" in about:
        return about["env_args"]  # its controllers say what an action is
    parts = {"action_parts": parts_of(about, "action")}  # before scaling
    if world is None:  # a gym's
        rate = {"control_freq": rate_of(store)}
        return {"env_name": about["env_version"], "env_version": "", "type": 2, "env_kwargs": rate, **parts}
    return {"env_name": world.settings.env, "type": 1, **world.arguments(), **parts}
