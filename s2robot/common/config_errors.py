"""What is wrong with what a user typed, in one line: an unknown key, a value of another type, one that is missing; and the
help of a verb."""

import errno
import json
import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2robot.common.errors import UserError
from s2robot.common.paths import configs_dir

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Errors of the machine that a traceback explains no better than one line.
_MACHINE_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,  # a path that cannot be what it is to be
}  # fmt: skip


def one_line(verb: str, overrides: list[str], error: Exception) -> str | None:
    """What to tell the user about `error`; None if it is a fault of the program, which needs a traceback."""
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException
    from PIL.Image import DecompressionBombError

    if isinstance(error, MemoryError | DecompressionBombError):
        return f"not enough memory: {error}"
    if isinstance(error, UserError) or getattr(type(error), "user_error", False):
        return str(error)
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}', expected key=value (quote a value with spaces or signs)"
    if isinstance(error, HydraException | OmegaConfBaseException) and not hasattr(error, "verb"):
        return _config_error(verb, overrides, str(error))
    return None


def _config_error(verb: str, overrides: list[str], message: str) -> str:
    unknown = re.search(r"Could not override '([^']+)'", message)
    if unknown:
        key = unknown[1].split("@")[0]
        known = _known_keys(verb, overrides, key)
        group = key.split(".")[0]
        elsewhere = (configs_dir() / group).is_dir() and (group not in known or key in known)
        if elsewhere and "checkpoint" in known:  # of training, as `encoder=mvp-tiny`
            return f"{key}: `s2robot {verb}` takes what the checkpoint was trained with, expected none"
        return f"unknown key '{key}'{did_you_mean(key, known)}"
    absent = re.search(r"Could not find '([^']+)'", message)
    if absent:
        group, _, option = absent[1].rpartition("/")
        return _unknown_option(group, option)
    if other := re.match(r"Error merging override ([^=]+)=(\[.*)", message):
        return f"{other[1]}: found '{other[2]}', expected a group of keys"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines[:2])


def _unknown_option(group: str, option: str) -> str:
    options = sorted(file.stem for file in (configs_dir() / group).glob("*.yaml"))
    return f"{group}: found '{option}', expected one of: {', '.join(options)}{did_you_mean(option, options)}"


def _known_keys(verb: str, overrides: list[str], bad: str) -> list[str]:
    """Dotted keys of the verb's config, with the groups that the good overrides chose."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    good = [o for o in overrides if "=" in o and not o.startswith("-") and key_of(o) != bad and "," not in o]
    for chosen in (good, []):
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(configs_dir()), version_base="1.3"):
                cfg = compose(verb, chosen, return_hydra_config=bad.startswith("hydra"))
            return _dotted(cfg)
        except HydraException:  # a second wrong override: fall back to the verb as it stands
            continue
    return []


def key_of(override: str) -> str:
    """`train.seed` of `train.seed=0`, `+train.seed=0` or `~train.seed`."""
    return override.split("=", 1)[0].lstrip("+~").split("@")[0]


def of_record(override: str) -> str:
    """An override of other verbs' group `recording` as `record` knows it, which has that group at its top level."""
    return re.sub(r"^([+~]*)recording\.", r"\1", override)


def _takes_demos(verb: str) -> bool:
    return bool(re.search(r"^(  - )?demos:", (configs_dir() / f"{verb}.yaml").read_text("utf-8"), re.M))


def as_known(verb: str, override: str) -> str:
    """An override under the key that the verb has for it: ``data`` is the dataset, ``rate_hz`` its rate and ``checkpoint``
    the policy (or the run folder that holds it) in every verb that takes one; ``task.kwargs`` takes any key."""
    sign, key, value = re.match(r"([+~]*)([^=]*)(.*)", override, re.DOTALL).groups()  # type: ignore[union-attr]
    if verb == "dagger" and key == "checkpoint":
        key = "recording.checkpoint"
    elif key in ("data", "rate_hz") and _takes_demos(verb):
        key = {"data": "demos.path", "rate_hz": "demos.rate_hz"}[key]
    elif key.startswith("task.kwargs.") and not sign:
        sign = "++"
    folder = Path(value[1:]) / "checkpoint"
    if key in ("checkpoint", "recording.checkpoint", "train.from") and (folder / "policy.json").is_file():
        value = f"={folder}"
    override = f"{sign}{key}{value}"
    return of_record(override) if verb == "record" else override


def _dotted(node: Any, prefix: str = "") -> list[str]:
    from omegaconf import DictConfig

    keys: list[str] = []
    for name in node:
        keys.append(f"{prefix}{name}")
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            keys += _dotted(child, f"{prefix}{name}.")
    return keys


def did_you_mean(word: str, candidates: Any) -> str:
    """`, did you mean 'x'?` with the nearest candidate, or nothing where none is near."""

    def likeness(candidate: str) -> float:
        whole = SequenceMatcher(None, word, candidate).ratio()
        # `epochs` or `trian.epochs` should find `train.epochs`: the last part tells most.
        last = SequenceMatcher(None, word.split(".")[-1], candidate.split(".")[-1]).ratio()
        return max(whole, (whole + 2 * last) / 3)

    best = max(candidates, key=likeness, default=None)
    return f", did you mean '{best}'?" if best and likeness(best) >= 0.6 else ""


_NO_NAME = re.compile(r"(null|none|true|false|nan|inf|[-+]?[\d.]+(e[-+]?\d+)?|[\[{].*|)", re.I | re.DOTALL)


def check_choices(overrides: list[str]) -> None:
    """Refuse `encoder=0` and `encoder=[]`: of a group one chooses by name. Hydra has no line for what is none.

    Raises:
        UserError: names the group and what it has, or what has no key.
    """
    for override in overrides:
        key, equals, chosen = override.partition("=")
        if equals and not key:
            raise UserError(f"cannot read '{override}', expected key=value")
        group = key_of(key)
        if not equals or key[:1] in "-~" or not (configs_dir() / group).is_dir() or "(" in chosen:
            continue  # what has a bracket is a sweep, such as choice(a, b)
        for option in [chosen] if chosen[:1] in ("[", "{") else chosen.split(","):
            if _NO_NAME.fullmatch(option.strip()):
                raise UserError(_unknown_option(group, option.strip() or "null"))


def take_stored_world(cfg: "DictConfig", overrides: list[str]) -> None:
    """With a checkpoint and without `task.id`, the world is that of the checkpoint, as far as nothing else is typed."""
    from omegaconf import OmegaConf

    if "task" not in cfg or not OmegaConf.is_missing(cfg.task, "id") or not cfg.get("checkpoint"):
        return
    try:
        file = Path(str(cfg.get("checkpoint"))) / "policy.json"
        stored = json.loads(file.read_text(encoding="utf-8"))["contract"]["env_config"]
        known = (
            {key: stored[key] for key in cfg.task if key in stored} if stored["task"] == cfg.task.name else {}
        )
    except (OSError, ValueError, KeyError, TypeError):
        return  # what is wrong with a checkpoint, its reader says
    typed = {".".join(key_of(override).split(".")[:2]) for override in overrides}
    for key, value in known.items():
        if f"task.{key}" not in typed:
            OmegaConf.update(cfg, f"task.{key}", value, merge=False)


def check_complete(cfg: "DictConfig") -> None:
    """Refuse a config with a `???` in it before anything heavy starts.

    Raises:
        UserError: names the keys.
    """
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"no value for {', '.join(missing)}; give one with {missing[0]}=<value>")


IN_SECONDS = ("context", "chunk", "execute")  # of a policy: steps, or a time
SECONDS = r"(\d+\.?\d*|\.\d+) ?s"
_ONE_OR_SEVERAL = {"image_size"}  # a number for all cameras, or a list or mapping


def check_types(verb: str, cfg: "DictConfig", overrides: list[str]) -> None:
    """Refuse `train.epochs=many`: an override must have the type of the value that it replaces.

    Raises:
        UserError: names the key, what was found and what was expected.
    """
    from hydra import compose
    from omegaconf import DictConfig, ListConfig, OmegaConf

    values = [o for o in overrides if o[0] not in "+~" and not (configs_dir() / key_of(o)).is_dir()]
    if not values:
        return
    plain = compose(verb, [o for o in overrides if o not in values])
    for key in map(key_of, values):
        if key.startswith("hydra."):
            continue
        default, given = OmegaConf.select(plain, key), OmegaConf.select(cfg, key)
        if key.rpartition(".")[2] in _ONE_OR_SEVERAL and isinstance(given, ListConfig | DictConfig):
            continue  # checked where it is read
        if key in [f"policy.{name}" for name in IN_SECONDS] and re.fullmatch(SECONDS, str(given)):
            continue
        expected = _expected(default, given)
        if expected and (configs_dir() / key.replace(".", "/")).is_dir():
            raise UserError(
                f"{key}: found '{given}'; this one chooses from a group, as {key.replace('.', '/')}={given}"
            )
        if expected:
            raise UserError(f"{key}: found '{given}', expected {expected} such as {default}")
        if key.endswith((".kind", ".name")) and default is not None and given != default:
            _check_whole(verb, plain, key, given)


def _check_whole(verb: str, plain: "DictConfig", key: str, given: Any) -> None:
    """Refuse `policy.kind=transformer`: what stands beside that key is of another choice, whose keys are others."""
    from hydra import compose
    from omegaconf import OmegaConf

    node = key.rpartition(".")[0]
    group = node.replace(".", "/")
    if (configs_dir() / group / f"{given}.yaml").is_file():
        whole = OmegaConf.select(compose(verb, [f"{group}={given}"]), node)
        if set(_dotted(whole)) != set(_dotted(OmegaConf.select(plain, node))):
            raise UserError(f"{key}: found '{given}', which is chosen whole, as {group}={given}")


def check_world(cfg: "DictConfig", overrides: list[str]) -> None:
    """Refuse `task=stack env.rate_hz=20`: the group `env` is the first task's alone, and would say nothing.

    Raises:
        UserError: names the key and where the task's own settings stand, or that a task of one's own has no name.
    """
    from s2robot.envs.tasks import DEFAULT

    if "task" not in cfg:
        return
    if not cfg.task.get("name"):
        raise UserError(
            "task.name: found none, expected a name, which demos and checkpoints keep of the task"
        )
    if cfg.task.name == DEFAULT:
        return
    for key in map(key_of, overrides):
        if key.partition(".")[0] == "env":
            raise UserError(
                f"{key}: task={cfg.task.name} does not read it, expected a setting of its own, task.<name>"
            )


def _expected(default: Any, given: Any) -> str | None:
    """What `given` should have been, or None if it will do; null stands for a choice left to the program."""
    from omegaconf import DictConfig, ListConfig

    if default is None or given is None:
        return None
    for kinds, accepted, words in (
        (bool, bool, "true or false"),
        (int, int, "a whole number"),
        (float, (int, float), "a number"),
        (str, (str, int, float), "a text"),
        (ListConfig, ListConfig, "a list"),
        (DictConfig, DictConfig, "a group of keys"),
    ):
        if isinstance(default, kinds):
            fits = isinstance(given, accepted) and isinstance(given, bool) == (kinds is bool)  # type: ignore[arg-type]
            return None if fits else words
    return None


def explained(verb: str, word: str, flags: Mapping[str, str], summary: str, asked: Sequence[str]) -> str:
    """The help of a verb: its flags, its settings as its config and the comments there explain them, and its groups.

    asked: also explains the settings of the groups among these, ``policy`` or ``policy=transformer``.
    """
    root = configs_dir()
    own = [f"[{flag}{' VALUE' if '{}' in override else ''}]" for flag, override in flags.items()]
    usage = " ".join(["usage: s2robot", verb, *([word] if word else []), "[key=value ...]", *own])
    text = (root / f"{'deploy' if verb == 'robot' else verb}.yaml").read_text(encoding="utf-8")
    defaults, _, settings = text.partition("  - _self_\n")
    groups = dict(re.findall(r"^  - ([a-z0-9/]+)(?:@\w+)?: ([\w-]+)", defaults, re.M))
    if "policy" in groups:
        groups["policy/head"] = "regression"
    lines = [usage, summary]
    if settings.strip():
        lines += ["", "Settings and their defaults:", "", *settings.strip().splitlines()]
    if groups:
        lines += ["", f"Groups of settings (`s2robot {verb} --help <group>` explains them):", ""]
    for group, default in groups.items():
        options = ", ".join(sorted(file.stem for file in (root / group).glob("*.yaml")))
        lines.append(f"  {f'{group}={default}':<22}  {group}: {options}")
    for group, _, chosen in (word.partition("=") for word in asked):
        file = root / group / f"{chosen or groups.get(group)}.yaml"
        if group in groups and file.is_file():
            lines += ["", f"{group}={file.stem}: type {group.replace('/', '.')}.<key>=<value>", ""]
            text = file.read_text(encoding="utf-8").strip()
            for shared in re.findall(r"^  - (common/\w+)@_here_", text, re.M):
                text += "\n\n" + (root / group / f"{shared}.yaml").read_text(encoding="utf-8").strip()
            lines += text.splitlines()
    return "\n".join([*lines, "", f"`--cfg job` prints all values. The files with all settings: {root}"])
