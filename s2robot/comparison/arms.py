"""The arms of a comparison: what each one trains and evaluates, checked before anything runs.

    arms = choose_arms(experiment.arms, ["base", "base-s2"])
    known = look_up(arms[0], common)                        # encoder, world, what compare.json says of it
    value_of(arms[0], common, "env.lighting")               # of any setting of `s2robot train`

An arm is a name, a label and Hydra overrides, such as [encoder=mvp-tiny, s2=single, policy=rpt]. They are the same
words that `s2robot train` and `s2robot evaluate` take, so a comparison is nothing that a user could not type.
"""

import difflib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s2robot.common.config_errors import key_of, of_record
from s2robot.common.errors import UserError
from s2robot.common.paths import configs_dir
from s2robot.common.settings import encoder_settings, open_demos, task_settings
from s2robot.demos.errors import DatasetError
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.build import build_encoder
from s2robot.envs.frames import at_height
from s2robot.envs.task import TaskSettings

# the groups of settings that each verb of a comparison reads
READS = {
    "record": ("task", "robot", "env", "recording"),
    "encode": ("task", "robot", "env", "demos", "encoder", "s2", "features"),
    "train": ("task", "robot", "env", "demos", "encoder", "s2", "features", "policy", "train"),
    "evaluate": ("task", "robot", "env", "demos", "evaluate"),
}
GROUPS = tuple(dict.fromkeys(group for groups in READS.values() for group in groups))
_NOTHING = object()
# what is the same for all arms, or they could not be compared
_COMMON = ("task", "robot", "demos", "recording", "train.seed", "evaluate.seed", "evaluate.episodes")


@dataclass(frozen=True)
class Arm:
    """One of the things compared."""

    name: str  # a folder is called so
    label: str  # for people
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """What is known of an arm before it runs, from the settings that its stages will get."""

    about: Mapping[str, Any]  # what compare.json says of it
    encoder: str  # fingerprint
    world: TaskSettings  # it is evaluated in, drawn as large as a video
    device: str
    threads: int | None


def read_by(verb: str, overrides: Sequence[str]) -> list[str]:
    """Those of the overrides that the verb has a key for, in the verb's own words; of one key the last."""
    last = {key_of(override): i for i, override in enumerate(overrides)}
    kept = [o for i, o in enumerate(overrides) if last[key_of(o)] == i]
    kept = [o for o in kept if re.split(r"[./]", key_of(o))[0] in READS[verb]]
    if verb == "record":  # has the group at its top level
        kept = [of_record(o) for o in kept if key_of(o) != "recording"]
    return kept


def choose_arms(known: Mapping[str, Any], names: Sequence[str] | None = None) -> tuple[Arm, ...]:
    """The experiment's arms, or those named, in that order.

    Raises:
        UserError: an arm that the experiment does not have, or overrides that no arm may have.
    """
    known = {name: given for name, given in known.items() if given is not None}
    names = tuple(known) if names is None else names
    if len(set(names)) < 2:
        raise UserError(f"arms: found {', '.join(names) or 'none'}, expected at least 2")
    arms = tuple(_arm(known, name) for name in names)
    if len(arms) != len({arm.name for arm in arms}):
        raise UserError(f"arms: found {', '.join(names)}, expected every arm once")
    return arms


def _arm(known: Mapping[str, Any], name: str) -> Arm:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f", did you mean '{near[0]}'?" if near else ""
        raise UserError(f"arms: found '{name}', expected some of {', '.join(known)}{hint}")
    if not re.fullmatch(r"[\w.+-]+", name):
        raise UserError(f"arm '{name}': expected letters, digits and . _ + - in its name")
    given = known[name]
    if isinstance(given, str):  # as one types it: '+experiment.arms.mine="encoder=mvp-tiny s2=single"'
        try:
            arm = Arm(name, name, tuple(shlex.split(given)))
        except ValueError as error:  # a quotation that does not end
            raise UserError(f"arm '{name}': found {given}: {error}, expected overrides") from None
    elif isinstance(given, Mapping) and not isinstance(given.get("overrides"), int | float):
        words = given.get("overrides") or ()
        words = shlex.split(words) if isinstance(words, str) else words
        arm = Arm(name, str(given.get("label") or name), tuple(map(str, words)))
    else:
        raise UserError(f"arm '{name}': found {given}, expected a label and overrides")
    for override in arm.overrides:
        key = key_of(override)
        if any(key == c or key.startswith(f"{c}.") for c in _COMMON):
            raise UserError(
                f"arm '{name}': found {override}, expected it to be the same for all arms: give it to compare"
            )
        if re.split(r"[./]", key)[0] not in GROUPS:
            raise UserError(f"arm '{name}': found {override}, expected overrides of {', '.join(GROUPS)}")
    return arm


@contextmanager
def about(where: str) -> Iterator[None]:
    """Errors of the user's, in one line that begins with what they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except DatasetError as error:
        raise UserError(f"{where}: {error}") from None
    except (HydraException, OmegaConfBaseException) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{where}: {' '.join(lines[:2])}") from None


def settings_of(verb: str, overrides: Sequence[str]) -> DictConfig:
    """The config that the verb would get. Raises UserError for a value that is missing, Hydra's for others."""
    words = ["run_dir=unused", *read_by(verb, overrides)]
    if verb == "evaluate":
        words = ["checkpoint=unused", *words]
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
        train, evaluation = settings_of("train", words), settings_of("evaluate", words)
        encoder = build_encoder(encoder_settings(train))
        world = task_settings(evaluation)
        shapes = at_height(world.image_size, world.cameras, evaluation.evaluate.video_size)
        world = world.replace(image_size=shapes)
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
    e = evaluation.evaluate
    return Known(facts, encoder.fingerprint, world, device=e.device, threads=e.threads)


def demos_of(arm: Arm, common: Sequence[str]) -> EpisodeStore:
    """The demos that all arms learn from."""
    with about("all arms"):
        return open_demos(settings_of("train", [*common, *arm.overrides]))


def value_of(arm: Arm, common: Sequence[str], key: str) -> Any:
    """What the main comparison has at an axis's key; UserError for a key that no stage has."""
    with about("axes"):
        cfg = settings_of("evaluate" if key.startswith("evaluate.") else "train", [*common, *arm.overrides])
        found = OmegaConf.select(cfg, key, default=_NOTHING)
    if found is _NOTHING:
        raise UserError(f"axes: found the key {key}, expected one that training or evaluation has")
    return found


def demos_there(arm: Arm, common: Sequence[str], recorded: bool) -> int:
    """How many demos the arms may learn from; `recorded`: by this comparison, later."""
    if recorded:
        return int(settings_of("record", common).episodes)
    return len(demos_of(arm, common))
