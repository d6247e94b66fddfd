"""The arms of a comparison: what each one trains and evaluates, checked before anything runs.

    arm = Arm(name="base", label="Base", overrides="encoder=mvp-tiny s2=single")
    known = look_up(arm, common)                        # encoder, world, what compare.json says of it
    value_of(arm, common, "env.lighting")               # of any setting of `s2robot train`

An arm is a set of Hydra overrides, the same that `s2robot train` and `s2robot evaluate` take.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import StringConstraints, field_validator

from s2robot.config import encoder_settings, open_demos, task_settings
from s2robot.core.errors import UserError
from s2robot.core.files import configs_dir
from s2robot.core.settings import Settings
from s2robot.demos.errors import DatasetError
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.build import build_encoder
from s2robot.envs.frames import at_height
from s2robot.envs.task import TaskSettings
from s2robot.overrides import key_of, of_record

# the groups of settings that each verb of a comparison reads
READS = {
    "record": ("task", "robot", "env", "recording"),
    "encode": ("task", "robot", "env", "demos", "encoder", "s2", "features"),
    "train": ("task", "robot", "env", "demos", "encoder", "s2", "features", "policy", "train"),
    "evaluate": ("task", "robot", "env", "demos", "evaluate"),
}
GROUPS = tuple(dict.fromkeys(group for groups in READS.values() for group in groups))
# what is the same for all arms, or they could not be compared
_COMMON = ("task", "robot", "demos", "recording", "train.seed", "evaluate.seed", "evaluate.episodes")
_NOTHING = object()


class Arm(Settings):
    """One of the things compared: a name for its folder, a label for people, and overrides as a list or as typed."""

    name: Annotated[str, StringConstraints(pattern=r"^[\w.+-]+$")]
    label: str
    overrides: tuple[str, ...] = ()

    @field_validator("overrides", mode="before")
    @classmethod
    def _as_typed(cls, overrides: Any) -> Any:
        return tuple(shlex.split(overrides)) if isinstance(overrides, str) else overrides

    @field_validator("overrides")
    @classmethod
    def _differ_between_arms(cls, overrides: tuple[str, ...]) -> tuple[str, ...]:
        for override in overrides:
            key = key_of(override)
            if any(key == common or key.startswith(f"{common}.") for common in _COMMON):
                raise ValueError(
                    f"expected the same {key} for all arms, as an override of compare, got {override}"
                )
            if group_of(override) not in GROUPS:
                raise ValueError(f"expected overrides of {', '.join(GROUPS)}, got {override}")
        return overrides


@dataclass(frozen=True)
class Known:
    """An arm before it runs, from the settings that its stages will get."""

    about: Mapping[str, Any]  # for compare.json
    encoder: str  # fingerprint
    world: TaskSettings  # of its evaluation, at the size of a video
    device: str
    threads: int | None


def group_of(override: str) -> str:
    """`train` of `train.seed=0`."""
    return re.split(r"[./]", key_of(override))[0]


def read_by(verb: str, overrides: Sequence[str]) -> list[str]:
    """Return those of the overrides that the verb has a key for, in the verb's own words; of one key the last."""
    last = {key_of(override): override for override in overrides}
    found = [o for o in overrides if last[key_of(o)] is o and group_of(o) in READS[verb]]
    if verb == "record":  # has the group at its top level
        found = [of_record(o) for o in found if key_of(o) != "recording"]
    return found


@contextmanager
def about(where: str) -> Iterator[None]:
    """Turn a user's errors into one line that begins with what they are about."""
    try:
        yield
    except (UserError, DatasetError) as error:
        raise UserError(f"{where}: {error}") from None
    except (HydraException, OmegaConfBaseException) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{where}: {' '.join(lines[:2])}") from None


def settings_of(verb: str, overrides: Sequence[str]) -> DictConfig:
    """Return the config that the verb would get. Raises UserError for a value that is missing, Hydra's for others."""
    words = [
        "run_dir=unused",
        *(["checkpoint=unused"] if verb == "evaluate" else []),
        *read_by(verb, overrides),
    ]
    if GlobalHydra.instance().is_initialized():
        cfg = compose(verb, words)
    else:
        with initialize_config_dir(str(configs_dir()), version_base="1.3"):
            cfg = compose(verb, words)
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise UserError(f"no value for {', '.join(missing)}; give one with {missing[0]}=<value>")
    return cfg


def look_up(arm: Arm, common: Sequence[str]) -> Known:
    """Check an arm's settings and weights. Raises UserError that names the arm."""
    with about(f"arm '{arm.name}'"):
        words = [*common, *arm.overrides]
        train, e = settings_of("train", words), settings_of("evaluate", words)
        encoder, world = build_encoder(encoder_settings(train)), task_settings(e)
        world = world.replace(image_size=at_height(world.image_size, world.cameras, e.evaluate.video_size))
    facts = {
        "name": arm.name,
        "label": arm.label,
        "encoder": encoder.name,
        "scales": [float(s) if s % 1 else int(s) for s in train.s2.scales],
        "policy": f"{train.policy.kind}, {train.policy.pooling.kind}, {train.policy.head.kind}",
        "overrides": list(arm.overrides),
        "parameters": encoder.num_parameters,
        "gflops_per_frame": round(encoder.gflops_per_image, 3),
    }
    return Known(facts, encoder.fingerprint, world, e.evaluate.device, e.evaluate.threads)


def demos_of(arm: Arm, common: Sequence[str]) -> EpisodeStore:
    """Return the demos that all arms learn from."""
    with about("all arms"):
        return open_demos(settings_of("train", [*common, *arm.overrides]))


def value_of(arm: Arm, common: Sequence[str], key: str) -> Any:
    """Return the main comparison's value of an axis's key; UserError for a key that no stage has."""
    with about("axes"):
        cfg = settings_of("evaluate" if key.startswith("evaluate.") else "train", [*common, *arm.overrides])
        found = OmegaConf.select(cfg, key, default=_NOTHING)
    if found is _NOTHING:
        raise UserError(f"axes: expected a key that training or evaluation has, got {key}")
    return found
