"""What a user typed: overrides under the verb's own keys, and one line for what is wrong with them."""

import errno
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2robot.core.errors import UserError, did_you_mean
from s2robot.core.files import configs_dir

if TYPE_CHECKING:
    from omegaconf import DictConfig

_OF_DEMOS = ("data", "rate_hz", "action", "proprio", "clip")  # keys that a verb may lack and `demos` has
_CHECKPOINTS = ("checkpoint", "recording.checkpoint", "train.from", "a", "b")
# Errors of the machine that a traceback explains no better than one line.
_MACHINE_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,  # an unusable path
}  # fmt: skip


def key_of(override: str) -> str:
    """Return `train.seed` of `train.seed=0`, `+train.seed=0` or `~train.seed`."""
    return override.split("=", 1)[0].lstrip("+~").split("@")[0]


def of_record(override: str) -> str:
    """Return an override of the group `recording` as `record` knows it, at the top level."""
    return re.sub(r"^([+~]*)recording\.", r"\1", override)


def verb_of(verb: str, words: Sequence[str]) -> str:
    """Return the verb that does what was typed: `run` of an experiment compares its arms, from demos to the report."""
    return "compare" if verb == "run" and any(word.startswith("experiment=") for word in words) else verb


def as_known(verb: str, override: str) -> str:
    """Return an override under the verb's own key. UserError: no key, or a choice that Hydra cannot name, as `encoder=0`."""
    sign, key, value = re.match(r"([+~]*)([^=]*)(.*)", override, re.DOTALL).groups()  # type: ignore[union-attr]
    if verb == "dagger" and key == "checkpoint":
        key = "recording.checkpoint"
    elif key in _OF_DEMOS and key not in _file(verb) and {"demos"} & {*groups_of(verb), *_file(verb)}:
        key = "demos.path" if key == "data" else f"demos.{key}"
    elif not sign and (key.startswith("task.kwargs.") or (verb == "compare" and key.startswith("encoder."))):
        sign = "++"  # a comparison's own config has no encoder: its arms have
    folder = Path(value[1:]) / "checkpoint"
    if key.removeprefix("demos.") in ("action", "proprio") and not re.search("['\"]|^(=(null)?)?$", value):
        names = re.sub(r"[\w./]+\[[\d:,]*\]", lambda found: f"'{found[0]}'", value[1:])  # state[:2]
        value = f"={names}" if names[0] == "[" else f"=[{names}]"
    if key in _CHECKPOINTS and (folder / "policy.json").is_file():
        value = f"={folder}"
    if value and not key:
        raise UserError(f"cannot read '{override}', expected key=value")
    if value and (configs_dir() / (group := key_of(key))).is_dir():
        for option in value[1:].split(","):
            if re.fullmatch(r"null|true|false|[\d.+-]*(e\d+)?|[\[{].*", option.strip(), re.IGNORECASE):
                raise UserError(_unknown_option(group, value[1:]))
    override = f"{sign}{key}{value}"
    return of_record(override) if verb == "record" else override


def one_line(verb: str, overrides: list[str], error: Exception) -> str | None:
    """Return the message for the user, or None if `error` is a bug, which needs a traceback."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
    from PIL.Image import DecompressionBombError

    if isinstance(error, MemoryError | DecompressionBombError):
        return f"not enough memory: {error}"
    if getattr(type(error), "user_error", False):
        return str(error)
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
        return ": ".join(filter(None, [error.strerror, str(error.filename or "")]))
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}', expected key=value (quote a value with spaces or signs)"
    found = re.search(r"int\(\) .*'(.*)'", str(error))
    if found and isinstance(error, ValueError):  # from OmegaConf
        name = found[1]
        for key in (key_of(o) for o in overrides):
            if key.endswith(f".{name}"):
                return f"{key}: {key.removesuffix(f'.{name}')} is a list, expected the place of a value, got '{name}'"
    if not isinstance(error, HydraException | OmegaConfBaseException) or hasattr(error, "verb"):
        return None
    cause = error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.parent_node is not None:
        begin = str(cause.full_key)
        typed = (key for key in map(key_of, overrides) if key == begin or key.startswith(f"{begin}."))
        return _unknown_key(verb, next(typed, begin), _dotted(cause.parent_node._get_root()))
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return f"{cause.full_key}: expected another kind of value ({str(cause.msg).partition(chr(10))[0]})"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return _unknown_option(group, option)
    for key in map(key_of, overrides):  # a group from which the verb does not choose
        if f"'{key}'" in str(error) and (configs_dir() / key).is_dir():
            return _unknown_key(verb, key, [*_file(verb)])
    return " ".join([line.strip() for line in str(error).splitlines() if line.strip()][:2])


def _unknown_key(verb: str, key: str, known: list[str]) -> str:
    group = key.split(".")[0]
    if "checkpoint" in known and (configs_dir() / group).is_dir() and (group not in known or key in known):
        return f"{key}: `s2robot {verb}` uses the checkpoint's own, expected nothing"
    return f"unknown key '{key}'{did_you_mean(key, known)}"


def _unknown_option(group: str, option: str) -> str:
    options = sorted(file.stem for file in (configs_dir() / group).glob("*.yaml"))
    return f"{group}: expected one of {', '.join(options)}, got {option}{did_you_mean(option, options)}"


def _dotted(node: Any, prefix: str = "") -> list[str]:
    from omegaconf import DictConfig

    keys: list[str] = []
    for name in node:
        keys.append(f"{prefix}{name}")
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            keys += _dotted(child, f"{prefix}{name}.")
    return keys


@cache
def _file(verb: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(configs_dir() / f"{verb}.yaml"))  # type: ignore[return-value]


def groups_of(verb: str) -> dict[str, str | None]:
    """Return the groups from which a verb's config chooses, with their defaults."""
    found: dict[str, str | None] = {}
    for choice in _file(verb).get("defaults", ()):
        if isinstance(choice, dict):
            found |= {group.partition("@")[0]: name for group, name in choice.items()}
        elif choice != "_self_":  # another verb's choices
            found |= groups_of(choice)
    return found


def take_stored_world(cfg: "DictConfig", overrides: list[str]) -> None:
    """Take the world from the checkpoint's contract: all of it if no task was typed, without `task.id` what was not typed of it."""
    from omegaconf import OmegaConf

    from s2robot.envs.tasks import OTHERS

    typed = {".".join(key_of(override).split(".")[:2]) for override in overrides}
    is_default = "live" not in cfg and "task" not in typed
    is_open = is_default or ("task" in cfg and OmegaConf.is_missing(cfg.task, "id"))
    if not (is_open and "task" in cfg and cfg.get("checkpoint")):
        return
    try:
        text = (Path(str(cfg.checkpoint)) / "policy.json").read_text(encoding="utf-8")
        stored = json.loads(text)["contract"]["env_config"]
        if is_default and stored.get("task") in OTHERS:
            own = {key: value for key, value in stored.items() if key not in ("task", "target")}
            OmegaConf.update(cfg, "task", {"name": stored["task"], **own}, merge=False, force_add=True)
            return
        keys = [key for key in cfg.task if key in stored] if stored["task"] == cfg.task.name else []
    except (OSError, ValueError, KeyError, TypeError):
        return  # the reader of checkpoints reports what is wrong
    for key in keys:
        if f"task.{key}" not in typed:
            OmegaConf.update(cfg, f"task.{key}", stored[key], merge=False)


def check_config(cfg: "DictConfig", overrides: list[str]) -> None:
    """Reject (UserError) a `???` in a config, and settings of `env` that another task ignores, before anything slow."""
    from omegaconf import OmegaConf

    from s2robot.envs.tasks import DEFAULT

    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise UserError(f"{', '.join(missing)}: expected a value, got nothing; type {missing[0]}=<value>")
    if "task" in cfg and not cfg.task.get("name"):
        raise UserError("task.name: expected a name, which demos and checkpoints store, got nothing")
    if "task" in cfg and cfg.task.name != DEFAULT:
        for key in (key for key in map(key_of, overrides) if key.startswith("env.")):
            expected = f"a setting of task={cfg.task.name}, task.<key>, which ignores env"
            raise UserError(f"{key}: expected {expected}")
