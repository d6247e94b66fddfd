"""Read the sections of a verb's config."""

import re
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
from s2robot.policies.spec import PolicySettings

CHOSEN = ("mask", "rate_hz", "action", "proprio", "cameras")  # import options for datasets in other formats


class DemosSettings(Settings, at="demos"):
    """One dataset, or several with `mix`; configs/demos documents each value."""

    name: str | None = None
    path: str | None = Field(default=None, min_length=1)  # "" comes from an unset shell variable
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
        yield "episodes", self.split is None or self.episodes is None, "null with split"
        for key in ("path", "episodes", "split", *CHOSEN) if self.mix else ():
            yield key, getattr(self, key) is None, "null with demos.mix; set it per dataset"
        for i, member in enumerate(self.mix or ()):
            yield f"mix[{i}].path", member.path is not None, "a dataset", None

    @property
    def members(self) -> "tuple[DemosSettings, ...]":
        """The datasets of a mix, whose `clip` applies to all of them, or this one."""
        members = self.mix or (self,)
        return tuple(one.replace(clip=True) for one in members) if self.mix and self.clip else members

    def folder(self, world: Any = None) -> Path:
        """Return the store's path. Other formats are converted once, into the cache (DatasetError). UserError for several
        datasets, for import options on an episode store, or if a dataset to convert does not fit ``world``."""
        if self.mix:
            raise UserError("demos.mix: expected null, since this verb supports one dataset; use demos.path")
        path = Path(self.path) if self.path else shipped_demos(str(self.name))
        if self.foreign:
            choice = Choice(episodes=self.episodes, **{key: getattr(self, key) for key in CHOSEN})
            with bar("converting demos", "steps") as update:
                return as_store(path, cache_dir("demos"), choice, update, world=world)
        for key in CHOSEN:
            if (value := getattr(self, key)) is not None:
                raise UserError(f"demos.{key}: expected null, since {path} is an episode store, got {value}")
        return path

    def open(self, world: Any = None) -> EpisodeStore:
        """Return the store, or a `Mix` if `mix` is set, bound to ``world`` if it names none (UserError if it does not fit)."""
        stores = [one.open_one(world) for one in self.members]
        return Mix(stores, [member.weight for member in self.members]) if self.mix else stores[0]

    def open_one(self, world: Any = None) -> EpisodeStore:
        """Open as :meth:`open` does; UserError for several datasets."""
        return bound(EpisodeStore.open(self.folder(world)), world, self.clip, self.path)

    def select(
        self, store: EpisodeStore, fraction: float, seed: int, ancestors: Lineage | None = None
    ) -> Split:
        """Choose the training and held-out episodes from each dataset of a mix. DatasetError if an episode does not exist, occurs
        twice or in both, if there is none, if the split file is broken, or if `ancestors` were trained on a held-out episode."""
        ancestors = ancestors or Lineage()
        spent = ancestors.spent(store) if fraction else []
        stores, firsts = (store.members, store.firsts) if isinstance(store, Mix) else ([store], [0])
        each = []
        for member, own, at in zip(self.members, stores, firsts, strict=False):
            episodes = None if member.foreign else member.episodes  # a conversion has already chosen them
            found = select(own, episodes, member.split, fraction, seed, [i - at for i in spent])
            each.append([part + at for part in found])
        train, held_out = (np.concatenate(parts) for parts in zip(*each, strict=True))
        ancestors.check_held_out(store, train, held_out)
        return train, held_out

    @property
    def foreign(self) -> bool:
        """Whether the dataset is in another format, of which only the chosen episodes are converted."""
        return self.path is not None and not (Path(self.path) / "zarr.json").exists()

    @property
    def plain(self) -> bool:
        """Whether the choice of episodes is only a count of the first ones."""
        return not self.mix and self.split is None and isinstance(self.episodes, int | None)

    def first(self) -> int | None:
        """Return the number of first episodes, None for all. UserError for any other choice, which some verbs do not support."""
        if self.foreign and self.split is None:
            return None
        if not self.plain:
            raise UserError("demos: expected demos.episodes=<number>, as this verb uses only the first ones")
        return self.episodes

    def is_external(self) -> bool:
        """Whether some episodes are imported, from a user's program or from an arm, not from a built-in simulated task."""
        known = [attrs for member in self.members if (attrs := member._attributes)]
        others = [attrs for attrs in known if "source" in attrs or not attrs["env_config"]]
        return any(attrs.get("source") != "emulator" for attrs in others)

    def default_validation(self) -> float:
        """Return the default share to hold out: a tenth if every dataset has ten or more external episodes, else none."""
        external = (one for one in self.members if one.split is None and one.is_external())
        enough = [one for one in external if len(one.select(one.open(), 0.0, 0)[0]) >= 10]
        return 0.1 if len(enough) == len(self.members) else 0.0

    def stored_world(self, world: Any, acts: bool) -> Any:
        """Return the world that the dataset names, if ``world`` is the default one; else ``world``. ``acts``: the policy
        will act in simulation, so a world is also derived from a source file if necessary."""
        attrs = self.members[0]._attributes if world.task == DEFAULT else {}
        stored = attrs.get("env_config", {})
        if stored.get("task") in OTHERS:
            return settings_of(stored, f"{self.path}: env_config")
        return (world_of_file(attrs) if acts and attrs and names_no_world(attrs) else None) or world

    def imported_space(self, world: Any = None) -> dict[str, Any]:
        """Return robot, rate, cameras and action frame of an imported dataset, bound to ``world`` if it names none; else {}."""
        attrs = self.members[0]._attributes_in(world)
        if "source" not in attrs:
            return {}
        facts = {name: attrs[name] for name in ("robot", "rate_hz", "action_frame")}
        return facts | {"cameras": tuple(attrs["cameras"])}

    @cached_property
    def _attributes(self) -> Mapping[str, Any]:
        return self._attributes_in(None)

    def _attributes_in(self, world: Any) -> Mapping[str, Any]:
        """Return the attributes of the dataset at `path`, bound as in :meth:`open`; {} if it is missing or still empty."""
        if not self.path or not Path(self.path).exists():
            return {}
        store = self.open_one(world)
        return store.attrs if len(store) else {}


def path_of(cfg: DictConfig, key: str) -> Path:
    """Return a path setting; YAML may have parsed it as a number."""
    return Path(read(Annotated[str, Field(min_length=1)], cfg[key], key))


def task_settings(cfg: DictConfig, **changes: Any) -> Any:
    """Return the settings of a config's simulated world with ``changes``; the default task reads `env` and `robot`."""
    node = plain(cfg.task) if "task" in cfg else {"name": DEFAULT}
    name, target = read(str, node["name"], "task.name"), node.get("class")
    if target is None and name == DEFAULT:
        node = {"robot": cfg.robot.name, **plain(cfg.env)}
    cls = settings_class(name) if target is None else register_user_task(name, target)
    return read(cls, {**node, **changes})


def chosen_world(cfg: DictConfig) -> Any:
    """Return the settings of the chosen world, or None for the default one, which needs more than `task`."""
    return task_settings(cfg) if cfg.task.name != DEFAULT or "class" in cfg.task else None


def open_demos(cfg: DictConfig) -> EpisodeStore:
    """Open the dataset of a config; unless it is imported, it must match robot, rate and action frame."""
    task = task_settings(cfg)
    store = read(DemosSettings, cfg.demos, "demos").open_one(task)
    if "source" not in store.attrs:
        store.check(robot=task.robot, action_frame=task.action_frame, rate_hz=task.rate_hz)
    return store


def encoder_settings(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings from which `build_encoder` rebuilds the same encoder; checkpoints store them."""
    scales = plain(cfg.s2.scales)
    read(Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)], scales, "s2.scales")
    settings = {**plain(cfg.encoder), "scales": scales, "resolution": cfg.s2.resolution}
    if cfg.s2.grid is not None:
        settings["grid"] = cfg.s2.grid
    if fovea := read(dict | None, plain(cfg.s2.fovea), "s2.fovea"):
        zoom, gaze = read(Annotated[float, Field(gt=1)], fovea["zoom"], "s2.fovea.zoom"), str(fovea["gaze"])
        settings |= {"zoom": zoom, "gaze": str(Path(gaze).resolve()) if Path(gaze).exists() else gaze}
    if settings["checkpoint"]:  # absolute, because a checkpoint may be used from another folder
        settings["checkpoint"] = str(Path(str(settings["checkpoint"])).resolve())
    return settings


def policy_settings(cfg: DictConfig, rate_hz: float) -> PolicySettings | None:
    """Read the policy of a config, if it has one, with times such as `0.8s` as steps."""
    values = plain(cfg.policy) if "policy" in cfg else {}
    for key in ("context", "chunk", "execute"):
        if number := re.fullmatch(r"(\d+\.?\d*|\.\d+) ?s", str(values.get(key))):
            values[key] = round(float(number[1]) * rate_hz)
    return read(PolicySettings, values, "policy") if values else None


def world_of(cfg: DictConfig) -> str:
    """Return where a config evaluates a policy: `default` (simulation), `arm` or `recorded` (open loop)."""
    return "arm" if "live" in cfg else "recorded" if "parallel" in cfg.evaluate else "default"


def only_simulated(cfg: DictConfig) -> None:
    one_of("evaluate", world_of(cfg), ("default",), " (`s2robot evaluate` supports the others)")
