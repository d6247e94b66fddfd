"""Read the nodes of a verb's config."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, model_validator

from s2robot.common.config_errors import key_of
from s2robot.common.errors import UserError
from s2robot.common.paths import cache_dir, shipped_demos
from s2robot.common.progress import bar
from s2robot.core.settings import Settings, invalid, read, shown
from s2robot.demos.formats.convert import as_store
from s2robot.demos.formats.source import Choice
from s2robot.demos.lineage import Lineage
from s2robot.demos.mix import Mix
from s2robot.demos.selection import Episodes, select
from s2robot.demos.store import EpisodeStore, Split
from s2robot.envs.task import TaskSettings
from s2robot.envs.tasks import DEFAULT, register_user_task, settings_class

IN_SECONDS = ("context", "chunk", "execute")  # of a policy: steps, or a time


class Dataset(Settings, at="demos"):
    """One dataset; configs/demos documents each value."""

    name: str | None = None
    path: str | None = None
    episodes: Episodes = None
    split: str | None = None
    mask: str | None = None
    rate_hz: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.path == "":  # an unset variable of a shell
            raise invalid("path", "a dataset, or null for the shipped demos", "")
        if self.split is not None and self.episodes is not None:
            raise invalid("episodes", "null beside split", self.episodes)
        return self

    def folder(self) -> Path:
        """Return the store's path. Other formats are converted once, into the cache.

        Raises:
            UserError: no shipped demos of that name, or several datasets.
            DatasetError: a dataset of another format that cannot be read.
        """
        path = Path(self.path) if self.path else shipped_demos(str(self.name))
        if self.foreign:
            choice = Choice(mask=self.mask, episodes=self.episodes, rate_hz=self.rate_hz)
            with bar("converting demos") as update:
                return as_store(path, cache_dir("demos"), choice, lambda *n: update(*n, "steps"))
        for key in ("mask", "rate_hz"):
            if (value := getattr(self, key)) is not None:
                raise UserError(f"demos.{key}: expected null, since {path} is an episode store, got {value}")
        return path

    def open(self) -> EpisodeStore:
        return EpisodeStore.open(self.folder())

    def select(
        self, store: EpisodeStore, fraction: float, seed: int, ancestors: Lineage | None = None
    ) -> Split:
        """Choose the episodes of `open` to train on and to hold out; of a mix both from each dataset.

        Raises:
            DatasetError: an episode that does not exist, twice or in both, none to train on, a broken split file, or
                one held out that the `ancestors` were trained on.
        """
        ancestors = ancestors or Lineage()
        train, held_out = self._select(store, fraction, seed, ancestors.spent(store) if fraction else [])
        ancestors.check_held_out(store, train, held_out)
        return train, held_out

    def _select(self, store: EpisodeStore, fraction: float, seed: int, spent: list[int]) -> Split:
        episodes = None if self.foreign else self.episodes  # those were chosen during the conversion
        return select(store, episodes, self.split, fraction, seed, spent)

    @property
    def foreign(self) -> bool:
        """Whether it has another format, of which only the chosen episodes are read."""
        return self.path is not None and not (Path(self.path) / "zarr.json").exists()

    @property
    def plain(self) -> bool:
        """Whether the choice is a count of first episodes, which alone identifies them."""
        return self.split is None and (self.episodes is None or isinstance(self.episodes, int))

    def first(self) -> int | None:
        """Return the count of episodes, None for all, for verbs that take no other choice (UserError)."""
        if self.foreign and self.split is None:
            return None
        if not self.plain:
            raise UserError(
                "demos: this verb takes the first episodes of one dataset, expected demos.episodes=<number>"
            )
        return self.episodes

    def elsewhere(self) -> bool:
        """Whether some episodes come from no simulated task of ours: imported, from a user's program, or from an arm."""
        if not self.path or not Path(self.path).exists():
            return False
        store = self.open()
        if not len(store):  # a recording of ours that was killed before its first episode
            return False
        attrs = store.attrs
        return ("source" in attrs or not attrs["env_config"]) and attrs.get("source") != "emulator"

    def usual_validation(self) -> float:
        """Return the default share to hold out: a tenth of ten or more episodes that come from elsewhere."""
        if self.split is not None or not self.elsewhere():
            return 0.0
        return 0.1 if len(self.select(self.open(), 0.0, 0)[0]) >= 10 else 0.0

    def own_world(self) -> dict[str, Any]:
        """Return robot, rate, cameras and action frame of an imported dataset; {} for our own tasks."""
        if not self.path or not Path(self.path).exists():
            return {}
        attrs = self.open().attrs
        if "source" not in attrs:
            return {}
        facts = {name: attrs[name] for name in ("robot", "rate_hz", "action_frame")}
        return facts | {"cameras": tuple(attrs["cameras"])}


class Member(Dataset):
    """One dataset of a mix."""

    weight: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _has_a_path(self) -> Self:
        if not (self.path or self.name):
            raise invalid("path", "a dataset", None)
        return self


class DemosSettings(Dataset):
    """One dataset, or a mix of several."""

    mix: tuple[Member, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _choices_stand_with_the_members(self) -> Self:
        for key in ("path", "episodes", "split", "mask", "rate_hz"):
            if self.mix and (value := getattr(self, key)) is not None:
                raise invalid(key, "null beside demos.mix, whose datasets have their own", value)
        return self

    def folder(self) -> Path:
        if self.mix:
            raise UserError("demos.mix: this verb takes one dataset, expected demos.path")
        return super().folder()

    def open(self) -> EpisodeStore:
        if not self.mix:
            return super().open()
        return Mix([member.open() for member in self.mix], [member.weight for member in self.mix])

    def _select(self, store: EpisodeStore, fraction: float, seed: int, spent: list[int]) -> Split:
        if not isinstance(store, Mix) or not self.mix:
            return super()._select(store, fraction, seed, spent)
        each = [
            [part + at for part in member._select(own, fraction, seed, [i - at for i in spent])]
            for member, own, at in zip(self.mix, store.members, store.firsts, strict=False)
        ]
        train, held_out = (np.concatenate(parts) for parts in zip(*each, strict=True))
        return train, held_out

    @property
    def plain(self) -> bool:
        return not self.mix and super().plain

    def elsewhere(self) -> bool:
        return any(member.elsewhere() for member in self.mix) if self.mix else super().elsewhere()

    def usual_validation(self) -> float:
        if self.mix:
            return min(member.usual_validation() for member in self.mix)
        return super().usual_validation()

    def own_world(self) -> dict[str, Any]:
        return self.mix[0].own_world() if self.mix else super().own_world()


def typed() -> dict[str, str]:
    """Return what was typed for the running verb, key -> value; {} if a program called it."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return {}
    overrides = HydraConfig.get().overrides.task
    return {key_of(override): override.partition("=")[2] for override in overrides}


def in_steps(policy: Mapping[str, Any], rate_hz: float) -> dict[str, Any]:
    """Return a policy's settings with times such as `0.8s` as steps of the demos (UserError: less than one step)."""
    found = dict(policy)
    for key in IN_SECONDS:
        if isinstance(value := found.get(key), str):
            number = re.fullmatch(r"(\d+\.?\d*|\.\d+) ?s", value)
            found[key] = round(float(number[1]) * rate_hz) if number else 0
            if found[key] < 1:
                least = f"{1 / rate_hz:g}s"
                raise UserError(
                    f"policy.{key}: expected steps, or a time such as 0.8s of at least {least}, got {value}"
                )
    return found


def path_of(cfg: DictConfig, key: str) -> Path:
    """Return a path of a config, which may look like a number."""
    found = cfg[key]
    if isinstance(found, bool) or not isinstance(found, str | int | float) or found == "":
        raise UserError(f"{key}: expected a path, got {shown(found)}")
    return Path(str(found))


def plain(cfg: Any) -> Any:
    """Return a config node as dicts and lists."""
    return OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg


def task_settings(cfg: DictConfig, **changes: Any) -> Any:
    """Return the settings of the simulated world of a config; ``changes`` win.

    The default task has them in the groups `env` and `robot`, any other beside its name.
    """
    node = plain(cfg.task) if "task" in cfg else {"name": DEFAULT}
    name, target = node["name"], node.get("class")
    if target is None and name == DEFAULT:
        node = {"robot": cfg.robot.name, **plain(cfg.env)}
    cls = settings_class(name) if target is None else register_user_task(name, target)
    return read(cls, {**node, **changes})


def expert_settings(task: TaskSettings, recording: Any) -> Any:
    """Return the settings of the task's scripted expert: `picker` if the task reads them, else `expert_settings`."""
    if task.Expert is None:
        return dict(recording.expert_settings)
    return read(task.Expert, recording.picker)


def open_demos(cfg: DictConfig) -> EpisodeStore:
    """Open the dataset of a config; that of a task of ours must match robot, rate and action frame."""
    store = EpisodeStore.open(read(DemosSettings, cfg.demos, "demos").folder())
    if "source" in store.attrs:
        return store
    task = task_settings(cfg)
    store.check(robot=task.robot, action_frame=task.action_frame, rate_hz=task.rate_hz)
    return store


def encoder_settings(cfg: DictConfig) -> dict[str, Any]:
    """Return what `build_encoder` needs to build the same encoder again; stored in a checkpoint."""
    scales = plain(cfg.s2.scales)
    some = isinstance(scales, list) and len(scales) > 0
    if not some or not all(isinstance(scale, int | float) and 0 < scale < math.inf for scale in scales):
        raise UserError(f"s2.scales: expected one or more numbers > 0, such as [1,2], got {shown(scales)}")
    settings = {**plain(cfg.encoder), "scales": scales, "resolution": cfg.s2.resolution}
    if cfg.s2.grid is not None:
        settings["grid"] = cfg.s2.grid
    if settings["checkpoint"] == "":
        raise UserError("encoder.checkpoint: expected a weights file or null, got ''")
    if settings["checkpoint"]:  # a checkpoint is used from other folders too
        settings["checkpoint"] = str(Path(settings["checkpoint"]).resolve())
    return settings


def world_of(cfg: DictConfig) -> str:
    """Return where a config evaluates: `simulation`, `arm`, or `recorded` for open loop; UserError if the name differs."""
    expected = "arm" if "live" in cfg else "recorded" if "parallel" in cfg.evaluate else "simulation"
    if (found := cfg.evaluate.world) != expected:
        raise UserError(
            f"evaluate.world: expected {expected}, got {found}; choose evaluate=default for the simulation, "
            "evaluate=arm for the arm, evaluate=recorded for open loop"
        )
    return expected


def only_simulated(cfg: DictConfig) -> None:
    """Reject another evaluation than the simulated one in a verb that evaluates in simulation."""
    if (found := world_of(cfg)) != "simulation":
        raise UserError(f"evaluate: expected default, got {found}; `s2robot evaluate` takes evaluate={found}")
