"""Write robomimic files: ARISE-Initiative/robomimic, docs/datasets/overview.md.

Demos of robosuite worlds include states, the scene and the world's arguments, so that robomimic's scripts can render
and replay them. `data/demo_N/s2robot` and attributes of that name hold everything else: see `source.Sidecar`.
"""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from s2robot.core.parts import BEYOND, parts_of, plain, slices
from s2robot.demos.errors import mismatch
from s2robot.demos.formats.export import ExportSettings, all_pieces, array_keys, check_names, rate_of
from s2robot.demos.formats.robomimic import EXACT, Scale
from s2robot.demos.formats.source import NAME, Progress, Sidecar
from s2robot.demos.replay import task_of, world_of_demos
from s2robot.demos.store import EpisodeStore
from s2robot.envs.robosuite_config import RobosuiteSettings
from s2robot.envs.tasks import make


def write(store: EpisodeStore, target: Path, settings: ExportSettings, progress: Progress) -> None:
    """Write a store as one file (UserError: actions that do not fit in -1..1, or non-finite numbers)."""
    import h5py

    (scale, offset), world = scaling(store, settings.action_range), _world(store)
    places = {key: _place(store, key, world) for key in array_keys(store)}
    check_names([(key, name) for key, names in places.items() for name in names], store.path)
    columns = dict(zip(places["proprio"], slices(parts_of(store.attrs, "proprio")), strict=True))
    with _Disk(target) as disk, h5py.File(disk, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = store.num_steps
        data.attrs["env_args"] = json.dumps(_env_args(store, world))
        data.attrs[NAME] = Sidecar.of_store(store, places).model_dump_json()
        for i, at, piece in all_pieces(store, progress):
            demo = data.require_group(f"demo_{i}")
            if at == 0:
                _write_episode_values(demo, store, i, world)
            rows = {name: piece[key] for key, names in places.items() for name in names}
            rows |= {name: piece["proprio"][:, part] for name, part in columns.items()}
            rows["actions"] = np.clip((piece["action"].astype(np.float64) - offset) / scale, -1, 1)
            if settings.action_range == "clip":
                rows[EXACT] = (rows["actions"] * scale + offset).astype(piece["action"].dtype)
            if world is not None and "state" in piece:
                rows["states"] = piece["state"][:, : 1 + world.model.nq + world.model.nv]
            for name, values in rows.items():
                if at == 0:
                    how = {"chunks": (1, *values.shape[1:]), "compression": "lzf"}
                    how = how if name.endswith("_image") else {}
                    demo.create_dataset(name, (store.lengths[i], *values.shape[1:]), values.dtype, **how)
                demo[name][at : at + len(values)] = values
            disk.check()
        masks = store.split(settings.valid if len(store) > 1 else 0, 0)
        for name, episodes in zip(("train", "valid"), masks, strict=True):
            if len(episodes):
                file[f"mask/{name}"] = np.array([f"demo_{i}" for i in episodes], "S")


class _Disk(io.FileIO):
    """A file that stores write errors for `check` to raise, because hdf5 crashes the process on an error."""

    def __init__(self, path: Path):
        super().__init__(path, "w+")
        self.error: OSError | None = None

    @contextmanager
    def _store_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error

    def write(self, data: Any) -> int:
        remaining = memoryview(data).cast("B")
        with self._store_error():
            while remaining:
                remaining = remaining[super().write(remaining) :]
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        with self._store_error():
            super().truncate(size)
        return size or 0

    def check(self) -> None:
        if self.error:
            raise self.error from None

    def __exit__(self, *_: Any) -> None:
        self.close()
        self.check()


def scaling(store: EpisodeStore, how: str) -> Scale:
    """Return the scale and offset of actions in -1..1, from the limits of the parts or the data (how="data").

    A part without limits is not scaled. Actions beyond the limits raise DatasetError, or are clipped (how="clip").
    """
    actions, parts = store["action"], parts_of(store.attrs, "action")
    lows, highs = list[np.ndarray](), list[np.ndarray]()
    for part, at in zip(parts, slices(parts), strict=True):
        x = actions[:, at].astype(np.float64)
        smallest, largest = x.min(0), x.max(0)
        known = part.low is not None or part.kind == "binary"
        low, high = part.limits if known else (-np.ones(part.size), np.ones(part.size))
        room = BEYOND * (high - low)
        beyond = ((smallest < low - room) | (largest > high + room)).any()
        if how == "data" and (beyond or not known):
            low, high = smallest, np.where(largest > smallest, largest, smallest + 1)
        elif beyond and how == "limits":
            expected = f"{low.min():g} to {high.max():g} (action_range=data rescales, =clip clips)"
            got = f"{smallest.min():.4g} to {largest.max():.4g}"
            raise mismatch(f"{store.path}: action: {part.name}", expected, got)
        lows.append(low)
        highs.append(high)
    low, high = np.concatenate(lows), np.concatenate(highs)
    return (high - low) / 2, (high + low) / 2


def _place(store: EpisodeStore, key: str, world: Any) -> list[str]:
    """Return the names of a demo's arrays for an array of the store."""
    if key == "proprio":
        return [f"obs/{part.name}" for part in parts_of(store.attrs, key)]
    if key == "action":
        return [EXACT]  # `actions` are scaled
    if key == "state" and world is None:
        return ["states"]
    if key.startswith("images_"):
        return [f"obs/{quote(key.removeprefix('images_'), safe=' :')}_image"]
    return [f"{NAME}/{quote(key, safe=' :')}"]


def _write_episode_values(demo: Any, store: EpisodeStore, i: int, world: Any) -> None:
    values = {key: store.meta(key)[i] for key in store.meta_keys}
    last = np.arange(store.lengths[i]) == store.lengths[i] - 1
    demo["rewards"] = last * float(np.any(values.get("success", False)))
    demo["dones"] = last.astype(np.int64)
    demo.attrs.update({"num_samples": len(last)} | {f"{NAME}:{key}": value for key, value in values.items()})
    if world is not None and "state" in store.keys:
        demo.attrs["model_file"] = world.raw.sim.model.get_xml()


def _world(store: EpisodeStore) -> Any:
    """Return the robosuite world of simulated demos; None for other demos, or without robosuite."""
    if not issubclass(task_of(store), RobosuiteSettings) or find_spec("robosuite") is None:
        return None
    return make(world_of_demos(store), draw=False)


def _env_args(store: EpisodeStore, world: Any) -> dict[str, Any]:
    """Return robomimic's description of the world, or only its name if the world is not available."""
    about = store.attrs
    if "env_args" in about:
        return about["env_args"]  # the controllers in it describe the action
    parts = {"action_parts": plain(parts_of(about, "action"))}  # before scaling
    if world is None:  # type 2: a gym environment
        rate = {"control_freq": rate_of(store)}
        return {"env_name": about["env_version"], "env_version": "", "type": 2, "env_kwargs": rate, **parts}
    return {"env_name": world.settings.env, "type": 1, **world.arguments(), **parts}
