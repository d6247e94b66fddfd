"""Translate typed overrides into the verb's keys, and report mistakes in one line."""

import errno
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2robot.core.errors import UserError, did_you_mean
from s2robot.core.files import configs_dir
from s2robot.core.settings import yaml_file

if TYPE_CHECKING:
    from omegaconf import DictConfig

# short keys, mapped to `demos.<key>` if needed
_OF_DEMOS = ("data", "rate_hz", "action", "proprio", "cameras", "clip")
_CHECKPOINTS = ("checkpoint", "recording.checkpoint", "train.from", "a", "b")
# Operating system errors that are reported in one line, without a traceback.
_MACHINE_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE,
    errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,  # an unusable path
}  # fmt: skip


def key_of(override: str) -> str:
    """Return `train.seed` of `train.seed=0`, `+train.seed=0` or `~train.seed`."""
    return override.split("=", 1)[0].lstrip("+~").split("@")[0]


def quoted(value: str) -> str:
    """Return a value quoted for Hydra, where a backslash is special only before a quote."""
    return "'{}'".format(re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", "\\'"))


def path_word(path: Path) -> str:
    """Return a path, quoted for Hydra if necessary."""
    return text if re.fullmatch(r"[\w./+-]+", text := str(path), re.ASCII) else quoted(text)


def of_record(override: str) -> str:
    """Return an override of the group `recording` with the top-level key that `record` uses."""
    return re.sub(r"^([+~]*)recording\.", r"\1", override)


def verb_of(verb: str, words: Sequence[str]) -> str:
    """Return the verb to run: `run experiment=...` runs `compare`, from demos to the report."""
    return "compare" if verb == "run" and any(word.startswith("experiment=") for word in words) else verb


def as_known(verb: str, override: str) -> str:
    """Return an override with the verb's own key. UserError for no key, or an option that Hydra rejects, such as `encoder=0`."""
    sign, key, value = re.match(r"([+~]*)([^=]*)(.*)", override, re.DOTALL).groups()  # type: ignore[union-attr]
    if verb == "dagger" and key == "checkpoint":
        key = "recording.checkpoint"
    elif key in _OF_DEMOS and key not in yaml_file(verb) and {"demos"} & {*groups_of(verb), *yaml_file(verb)}:
        key = "demos.path" if key == "data" else f"demos.{key}"
    elif not sign and (key.startswith("task.kwargs.") or (verb == "compare" and key.startswith("encoder."))):
        sign = "++"  # a comparison's config has no encoder; its arms do
    folder = Path(value[1:]) / "checkpoint"
    if key.removeprefix("demos.") in ("action", "proprio") and not re.search("['\"]|^(=(null)?)?$", value):
        names = re.sub(r"[\w./]+\[[\d:,]*\]", lambda found: f"'{found[0]}'", value[1:])  # state[:2]
        value = f"={names}" if names[0] == "[" else f"=[{names}]"
    if key in _CHECKPOINTS and value[1:] and (folder / "policy.json").is_file():
        value = f"={folder}"
    if value == "=" and key in ("hydra.run.dir", "hydra.sweep.dir"):  # an unset shell variable
        raise UserError(f"{key}: expected a folder, got nothing")
    if value and not key:
        raise UserError(f"cannot read '{override}', expected key=value")
    if value and (configs_dir() / (group := key_of(key))).is_dir():
        for option in value[1:].split(","):
            if re.fullmatch(r"null|true|false|[\d.+-]*(e\d+)?|[\[{].*", option.strip(), re.IGNORECASE):
                raise UserError(_unknown_option(group, value[1:]))
    override = f"{sign}{key}{value}"
    return of_record(override) if verb == "record" else override


def one_line(verb: str, overrides: list[str], error: Exception) -> str | None:
    """Return the message for a user error, or None for a bug, which needs a traceback."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf import OmegaConf
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
                return f"{key}: expected an index into the list {key.removesuffix(f'.{name}')}, got '{name}'"
    if not isinstance(error, HydraException | OmegaConfBaseException) or hasattr(error, "verb"):
        return None
    cause = error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.parent_node is not None:
        prefix = str(cause.full_key)
        typed = (key for key in map(key_of, overrides) if key == prefix or key.startswith(f"{prefix}."))
        root = OmegaConf.to_container(cause.parent_node._get_root())
        return _unknown_key(verb, next(typed, prefix), [*_dotted(root)])
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return f"{cause.full_key}: expected a different type ({str(cause.msg).partition(chr(10))[0]})"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return _unknown_option(group, option)
    for key in map(key_of, overrides):  # a config group that the verb does not use
        if f"'{key}'" in str(error) and (configs_dir() / key).is_dir():
            return _unknown_key(verb, key, [*yaml_file(verb)])
    return " ".join([line.strip() for line in str(error).splitlines() if line.strip()][:2])


def _unknown_key(verb: str, key: str, known: list[str]) -> str:
    group = key.split(".")[0]
    if "checkpoint" in known and (configs_dir() / group).is_dir() and (group not in known or key in known):
        return f"{key}: expected no value, because `s2robot {verb}` uses the one in the checkpoint"
    return f"unknown key '{key}'{did_you_mean(key, known)}"


def _unknown_option(group: str, option: str) -> str:
    options = sorted(file.stem for file in (configs_dir() / group).glob("*.yaml"))
    return f"{group}: expected one of {', '.join(options)}, got {option}{did_you_mean(option, options)}"


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    for name, child in node.items():
        yield f"{prefix}{name}"
        if isinstance(child, dict):
            yield from _dotted(child, f"{prefix}{name}.")


def groups_of(verb: str) -> dict[str, str | None]:
    """Return the config groups of a verb with their defaults."""
    found: dict[str, str | None] = {}
    for choice in yaml_file(verb).get("defaults", ()):
        if isinstance(choice, dict):
            found |= {group.partition("@")[0]: name for group, name in choice.items()}
        elif choice != "_self_":  # the groups of another verb
            found |= groups_of(choice)
    return found


def take_stored_world(cfg: "DictConfig", overrides: list[str]) -> None:
    """Fill in the world from the checkpoint's contract: all untyped keys if no task was typed, or those of the
    typed task without `task.id`."""
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
            mine = [key_of(o) for o in overrides if o[0] != "~" and key_of(o).startswith("task.")]
            values = {key: OmegaConf.select(cfg, key) for key in mine}
            for key, value in [("task", {"name": stored["task"], **own}), *values.items()]:
                OmegaConf.update(cfg, key, value, merge=False, force_add=True)
            return
        keys = [key for key in cfg.task if key in stored] if stored["task"] == cfg.task.name else []
    except (OSError, ValueError, KeyError, TypeError):
        return  # loading the checkpoint reports the error
    for key in keys:
        if f"task.{key}" not in typed:
            OmegaConf.update(cfg, f"task.{key}", stored[key], merge=False)


def check_config(cfg: "DictConfig", overrides: list[str]) -> None:
    """Raise UserError for a missing value (`???`), and for settings that the chosen task ignores, before slow work."""
    from omegaconf import OmegaConf

    from s2robot.envs.tasks import DEFAULT

    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise UserError(f"{', '.join(missing)}: expected a value, got nothing; type {missing[0]}=<value>")
    if "task" in cfg and not cfg.task.get("name"):
        raise UserError("task.name: expected a name, got nothing; demos and checkpoints store it")
    if "task" in cfg and cfg.task.name != DEFAULT:
        simulates = "bridge" not in cfg or cfg.get("kind") == "scripted"  # otherwise `robot` is the arm's
        for key in map(key_of, overrides):
            if (group := key.partition(".")[0]) == "env" or (key == "robot" and simulates):
                raise UserError(f"{key}: expected task.<key>, because task={cfg.task.name} ignores {group}")
