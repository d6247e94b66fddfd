"""Read the nodes of a verb's config."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from omegaconf import DictConfig
from pydantic import Field

from s2robot.core.errors import UserError, one_of
from s2robot.core.files import cache_dir, shipped_demos
from s2robot.core.progress import bar
from s2robot.core.settings import Settings, plain, read
from s2robot.demos.binding import bound, names_no_world
from s2robot.demos.formats.convert import as_store
from s2robot.demos.formats.robomimic import world_of_file
from s2robot.demos.formats.source import Choice
from s2robot.demos.lineage import Lineage
from s2robot.demos.mix import Mix
from s2robot.demos.selection import Episodes, select
from s2robot.demos.store import EpisodeStore, Split
from s2robot.envs.tasks import DEFAULT, OTHERS, register_user_task, settings_class, settings_of

CHOSEN = ("mask", "rate_hz", "action", "proprio", "cameras")  # of a dataset in another format


class DemosSettings(Settings, at="demos"):
    """One dataset, or with `mix` several; configs/demos documents each value."""

    name: str | None = None
    path: str | None = Field(default=None, min_length=1)  # "": an unset variable of a shell
    episodes: Episodes = None
    split: str | None = None
    mask: str | None = None
    rate_hz: float | None = Field(default=None, gt=0)
    action: tuple[str, ...] | None = None
    proprio: tuple[str, ...] | None = None
    cameras: tuple[str, ...] | None = None
    clip: bool = False
    mix: tuple["DemosSettings", ...] | None = Field(default=None, min_length=1)
    weight: float = Field(default=1.0, gt=0)  # in a mix

    def rules(self) -> Iterator[tuple[Any, ...]]:
        yield "episodes", self.split is None or self.episodes is None, "null beside split"
        for key in ("path", "episodes", "split", *CHOSEN) if self.mix else ():
            yield key, getattr(self, key) is None, "null beside demos.mix, whose datasets have their own"
        for i, member in enumerate(self.mix or ()):
            yield f"mix[{i}].path", member.path is not None, "a dataset", None

    @property
    def members(self) -> "tuple[DemosSettings, ...]":
        return self.mix or (self,)

    def folder(self, world: Any = None) -> Path:
        """Return the store's path; other formats are converted once, into the cache (DatasetError). UserError: several datasets, a
        choice that an episode store does not have, or a ``world`` that a dataset to convert does not fit."""
        if self.mix:
            raise UserError("demos.mix: this verb takes one dataset, expected demos.path")
        path = Path(self.path) if self.path else shipped_demos(str(self.name))
        if self.foreign:
            choice = Choice(episodes=self.episodes, **{key: getattr(self, key) for key in CHOSEN})
            with bar("converting demos") as update:
                progress = lambda *n: update(*n, "steps")  # noqa: E731
                return as_store(path, cache_dir("demos"), choice, progress, world=world)
        for key in CHOSEN:
            if (value := getattr(self, key)) is not None:
                raise UserError(f"demos.{key}: expected null, since {path} is an episode store, got {value}")
        return path

    def open(self, world: Any = None) -> EpisodeStore:
        """Return the store, which is a `Mix` with `mix`, in ``world`` if it names none (UserError: it does not fit)."""
        stores = [one.open_one(world, one.clip or self.clip) for one in self.members]
        return Mix(stores, [member.weight for member in self.members]) if self.mix else stores[0]

    def open_one(self, world: Any = None, clip: bool | None = None) -> EpisodeStore:
        """As :meth:`open`; UserError for several datasets."""
        clip = self.clip if clip is None else clip
        return bound(EpisodeStore.open(self.folder(world)), world, clip, self.path)

    def select(
        self, store: EpisodeStore, fraction: float, seed: int, ancestors: Lineage | None = None
    ) -> Split:
        """Choose the episodes of `open` to train on and to hold out, from each dataset of a mix. DatasetError: episodes that do not
        exist, twice or in both, none, a broken split file, or one held out that the `ancestors` were trained on."""
        ancestors = ancestors or Lineage()
        spent = ancestors.spent(store) if fraction else []
        stores, firsts = (store.members, store.firsts) if isinstance(store, Mix) else ([store], [0])
        each = []
        for member, own, at in zip(self.members, stores, firsts, strict=False):
            episodes = None if member.foreign else member.episodes  # else chosen during the conversion
            found = select(own, episodes, member.split, fraction, seed, [i - at for i in spent])
            each.append([part + at for part in found])
        train, held_out = (np.concatenate(parts) for parts in zip(*each, strict=True))
        ancestors.check_held_out(store, train, held_out)
        return train, held_out

    @property
    def foreign(self) -> bool:
        """Whether the dataset is in another format; only the chosen episodes are converted."""
        return self.path is not None and not (Path(self.path) / "zarr.json").exists()

    @property
    def plain(self) -> bool:
        """Whether the episodes are chosen by a count of the first ones only."""
        return not self.mix and self.split is None and isinstance(self.episodes, int | None)

    def first(self) -> int | None:
        """Return the count of episodes, None for all, for verbs that take no other choice (UserError)."""
        if self.foreign and self.split is None:
            return None
        if not self.plain:
            why = "this verb takes a count of first episodes"
            raise UserError(f"demos: {why}, expected demos.episodes=<number>")
        return self.episodes

    def elsewhere(self) -> bool:
        """Whether some episodes come from no simulated task of ours: imported, from a user's program, or from an arm."""
        known = [found for member in self.members if (found := member._attributes)]
        others = [found for found in known if "source" in found or not found["env_config"]]
        return any(found.get("source") != "emulator" for found in others)

    def usual_validation(self) -> float:
        """Return the default share to hold out: a tenth of ten or more episodes that come from elsewhere."""
        found = (one for one in self.members if one.split is None and one.elsewhere())
        enough = [one for one in found if len(one.select(one.open(), 0.0, 0)[0]) >= 10]
        return 0.1 if len(enough) == len(self.members) else 0.0

    def stored_world(self, world: Any, acts: bool) -> Any:
        """Return the world that an imported dataset names in place of the default one; else ``world``. Only what ``acts`` makes one."""
        found = self.members[0]._attributes if world.task == DEFAULT else {}
        own = found.get("env_config", {}) if "source" in found else {}
        if own.get("task") in OTHERS:
            return settings_of(own, f"{self.path}: env_config")
        return (world_of_file(found) if acts and found and names_no_world(found) else None) or world

    def own_world(self, world: Any = None) -> dict[str, Any]:
        """Return robot, rate, cameras and action frame of an imported dataset, in ``world`` if it names none; {} for our own tasks."""
        found = self.members[0]._attributes_in(world)
        if "source" not in found:
            return {}
        facts = {name: found[name] for name in ("robot", "rate_hz", "action_frame")}
        return facts | {"cameras": tuple(found["cameras"])}

    @cached_property
    def _attributes(self) -> Mapping[str, Any]:
        return self._attributes_in(None)

    def _attributes_in(self, world: Any) -> Mapping[str, Any]:
        """Return the attributes of the dataset at `path`, bound as by :meth:`open`; {} if it is missing or has no episodes yet."""
        if not self.path or not Path(self.path).exists():
            return {}
        store = self.open_one(world)
        return store.attrs if len(store) else {}


def path_of(cfg: DictConfig, key: str) -> Path:
    """Return a path of a config, which may look like a number."""
    return Path(read(Annotated[str, Field(min_length=1)], cfg[key], key))


def task_settings(cfg: DictConfig, **changes: Any) -> Any:
    """Return the settings of the simulated world of a config, the default task's from `env` and `robot`; ``changes`` win."""
    node = plain(cfg.task) if "task" in cfg else {"name": DEFAULT}
    name, target = node["name"], node.get("class")
    if target is None and name == DEFAULT:
        node = {"robot": cfg.robot.name, **plain(cfg.env)}
    cls = settings_class(name) if target is None else register_user_task(name, target)
    return read(cls, {**node, **changes})


def chosen_world(cfg: DictConfig) -> Any:
    """Return the settings of the world that was chosen in place of the default one, which needs more than `task`; else None."""
    return task_settings(cfg) if cfg.task.name != DEFAULT or "class" in cfg.task else None


def open_demos(cfg: DictConfig) -> EpisodeStore:
    """Open the dataset of a config; that of a task of ours must match robot, rate and action frame."""
    task = task_settings(cfg)
    demos = read(DemosSettings, cfg.demos, "demos")
    store = demos.open_one(task)
    if "source" not in store.attrs:
        store.check(robot=task.robot, action_frame=task.action_frame, rate_hz=task.rate_hz)
    return store


def encoder_settings(cfg: DictConfig) -> dict[str, Any]:
    """Return what `build_encoder` needs to build the same encoder again; stored in a checkpoint."""
    scales = plain(cfg.s2.scales)
    read(Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)], scales, "s2.scales")
    settings = {**plain(cfg.encoder), "scales": scales, "resolution": cfg.s2.resolution}
    if cfg.s2.grid is not None:
        settings["grid"] = cfg.s2.grid
    if settings["checkpoint"]:  # a checkpoint is used from other folders too
        settings["checkpoint"] = str(Path(settings["checkpoint"]).resolve())
    return settings


def world_of(cfg: DictConfig) -> str:
    """Return where a config evaluates: `default` (simulation), `arm`, or `recorded` for open loop."""
    return "arm" if "live" in cfg else "recorded" if "parallel" in cfg.evaluate else "default"


def only_simulated(cfg: DictConfig) -> None:
    one_of("evaluate", world_of(cfg), ("default",), " (`s2robot evaluate` takes the others)")
