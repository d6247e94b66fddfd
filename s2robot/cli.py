"""The command line: `s2robot <verb> [hydra overrides]`.

    s2robot                                          # list the verbs
    s2robot run                                      # demos -> features -> policy -> evaluation -> report
    s2robot train policy=transformer train.epochs=50
    s2robot train --cfg job                          # print the resolved config, do nothing
    s2robot train --multirun train.seed=0,1,2        # three runs

    s2robot deploy --live --episodes 5 checkpoint=<folder> robot.ip=192.168.1.200

Every verb is a Hydra app over `configs/<verb>.yaml`. What a verb does is imported only when it runs, so
listing, help and `--cfg` answer at once. Exit codes: 0 done, 2 the user's input is wrong (one line says how),
130 interrupted, 1 anything else, a fault of an arm among it.
"""

import errno
import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from s2robot import __version__
from s2robot.common.errors import UserError
from s2robot.common.extras import require_simulator
from s2robot.common.paths import configs_dir

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Verb:
    """One verb: where its function is (`module:function`, called with the DictConfig) and what it does."""

    target: str
    summary: str
    flags: Mapping[str, str] = field(
        default_factory=dict
    )  # flag -> override; `{}` in it stands for its value
    word: str = ""  # what may stand after the verb: the one thing that it does
    simulates: bool = False  # whatever its settings; the others ask for the simulator where they need it


_LIVE = {"--live": "live=true", "--episodes": "episodes={}", "--record": "record={}"}

VERBS = {
    "run": Verb(
        "s2robot.pipeline:run",
        "the whole pipeline: demos, features, policy, evaluation, report",
        simulates=True,
    ),
    "record": Verb(
        "s2robot.verbs:record", "record demonstrations: scripted in simulation, or by a person on an arm"
    ),
    "replay": Verb(
        "s2robot.verbs:replay",
        "play recorded actions back and say whether they still succeed",
        simulates=True,
    ),
    "inspect": Verb("s2robot.verbs:inspect", "print and picture a dataset: ranges, positions, frames"),
    "scenes": Verb("s2robot.verbs:scenes", "render scenes for pre-training an encoder", simulates=True),
    "pretrain": Verb("s2robot.verbs:pretrain", "pre-train a small encoder by masked autoencoding on scenes"),
    "encode": Verb("s2robot.verbs:encode", "encode a dataset's images into the feature cache"),
    "train": Verb("s2robot.verbs:train", "train a policy on cached features by behaviour cloning"),
    "evaluate": Verb(
        "s2robot.verbs:evaluate",
        "measure a policy's success over seeded cube positions, simulated or on an arm",
        {"--live": "live=true"},
    ),
    "serve": Verb("s2robot.serving.server:run_serve", "host a policy for an arm on another machine"),
    "emulate": Verb(
        "s2robot.deployment.emulate:run_emulate",
        "emulate an xArm7 with its cameras, to rehearse a deployment",
    ),
    "robot": Verb(
        "s2robot.deployment.deploy:check",
        "`robot check`: does this policy fit this robot? moves nothing",
        word="check",
    ),
    "deploy": Verb(
        "s2robot.deployment.deploy:deploy", "let a policy act on an arm: a dry run, or `--live`", _LIVE
    ),
    "compare": Verb(
        "s2robot.comparison.compare:compare",
        "compare encoders and policies on the same cube positions",
        simulates=True,
    ),
    "readout": Verb(
        "s2robot.probing.readout:run_readout",
        "read cube, depth and segments out of frozen features, linearly",
        simulates=True,
    ),
    "information": Verb(
        "s2robot.probing.information:run_information", "find one encoder in another, linearly", simulates=True
    ),
    "report": Verb("s2robot.verbs:report", "write report.html of an evaluation or a comparison"),
}

# Errors of the machine that a traceback explains no better than one line.
_MACHINE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the process's exit code. `argv` defaults to the process's own arguments."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if args[0] == "--version":
        print(f"s2robot {__version__}")
        return 0
    verb = args[0]
    if verb not in VERBS:
        return _fail("s2robot", f"unknown verb '{verb}'{_did_you_mean(verb, VERBS)}; `s2robot` lists them")
    program = f"s2robot {verb}"
    overrides: list[str] = []
    try:
        overrides = _translated(VERBS[verb], args[1:])
        status = _hydra_app(verb, overrides)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `s2robot inspect | head`: the reader has gone, and that is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = _one_line(verb, overrides, error)
        if message is None:
            raise
        return _fail(program, message)
    return status


def _translated(verb: Verb, args: list[str]) -> list[str]:
    """A verb's own flags and its word as Hydra knows them; the rest as it is."""
    if verb.word and args and args[0][0] != "-" and "=" not in args[0]:
        if args[0] != verb.word:
            raise UserError(f"found '{args[0]}', expected '{verb.word}'")
        args = args[1:]
    given, overrides = iter(args), []
    for arg in given:
        flag, equals, value = arg.partition("=")
        if flag in verb.flags:
            override = verb.flags[flag]
            if "{}" in override:
                if not equals and (value := next(given, "")) in ("", *verb.flags):
                    raise UserError(f"{flag}: found no value, expected one")
                quoted = value.replace("\\", "\\\\").replace("'", "\\'")
                override = override.format(value if value.isdigit() else f"'{quoted}'")
            elif equals:
                raise UserError(f"{flag}: found a value '{value}', expected none")
            overrides.append(override)
        else:
            overrides.append(arg)
    return overrides


def _usage() -> str:
    width = max(map(len, VERBS)) + 2
    return "\n".join(
        ["usage: s2robot <verb> [key=value ...] [--cfg job] [--multirun] [--help]", ""]
        + [f"  {name:<{width}}{verb.summary}" for name, verb in VERBS.items()]
        + ["", "`s2robot <verb> --help` shows a verb's settings; `key=value` changes one of them."]
    )


def _fail(program: str, message: str) -> int:
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _hydra_app(verb: str, overrides: list[str]) -> int:
    """Run a verb; the exit code that it returned, 0 if it returned none."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions come to main() instead of ending the process
    process_argv = sys.argv
    failure: list[Exception] = []
    status = 0

    def task(cfg: "DictConfig") -> Any:
        # Fabric starts its DDP ranks by repeating sys.argv, which has to hold the verb again by then.
        nonlocal status
        sys.argv = process_argv
        try:
            _check_complete(cfg)
            _check_types(verb, cfg, list(HydraConfig.get().overrides.task))
            result = _call(verb, cfg)
            status = result if isinstance(result, int) else 0
            return result
        except Exception as error:
            # In a sweep Hydra's own line says which job failed; in a single run it is noise before ours.
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            failure.append(error)
            return None

    # Hydra wants its flags before the overrides; a user may type them in any order.
    later = [a for a in overrides if a[:1] != "-" and (a[:1] == "~" or "=" in a)]
    sys.argv = [f"s2robot {verb}", *(a for a in overrides if a not in later), *later]
    try:
        hydra.main(version_base="1.3", config_path=str(configs_dir()), config_name=verb)(task)()
    finally:
        sys.argv = process_argv
    if failure:
        raise failure[0]
    return status


def _call(verb: str, cfg: "DictConfig") -> Any:
    module, _, function = VERBS[verb].target.partition(":")
    try:
        if VERBS[verb].simulates:
            require_simulator()
        return getattr(importlib.import_module(module), function)(cfg)
    except Exception as error:
        error.verb = verb  # type: ignore[attr-defined]  # a config error raised here is not the user's
        raise


# --- errors in one line ------------------------------------------------------------------------------------


def _one_line(verb: str, overrides: list[str], error: Exception) -> str | None:
    """What to tell the user about `error`; None if it is a fault of the program, which needs a traceback."""
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

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
        return f"unknown key '{key}'{_did_you_mean(key, _known_keys(verb, overrides, key))}"
    absent = re.search(r"Could not find '([^']+)'", message)
    if absent:
        return _unknown_option(absent[1])
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines[:2])


def _unknown_option(path: str) -> str:
    group, _, option = path.rpartition("/")
    options = sorted(file.stem for file in (configs_dir() / group).glob("*.yaml"))
    return f"{group}: found '{option}', expected one of: {', '.join(options)}{_did_you_mean(option, options)}"


def _known_keys(verb: str, overrides: list[str], bad: str) -> list[str]:
    """Dotted keys of the verb's config, with the groups that the good overrides chose."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    good = [o for o in overrides if "=" in o and not o.startswith("-") and _key(o) != bad and "," not in o]
    for chosen in (good, []):
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(configs_dir()), version_base="1.3"):
                cfg = compose(verb, chosen, return_hydra_config=bad.startswith("hydra"))
            return _dotted(cfg)
        except HydraException:  # a second wrong override: fall back to the verb as it stands
            continue
    return []


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~").split("@")[0]


def _dotted(node: Any, prefix: str = "") -> list[str]:
    from omegaconf import DictConfig

    keys: list[str] = []
    for name in node:
        keys.append(f"{prefix}{name}")
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            keys += _dotted(child, f"{prefix}{name}.")
    return keys


def _did_you_mean(word: str, candidates: Any) -> str:
    """`, did you mean 'x'?` with the nearest candidate, or nothing where none is near."""

    def likeness(candidate: str) -> float:
        whole = SequenceMatcher(None, word, candidate).ratio()
        # `epochs` or `trian.epochs` should find `train.epochs`: the last part tells most.
        last = SequenceMatcher(None, word.split(".")[-1], candidate.split(".")[-1]).ratio()
        return max(whole, (whole + 2 * last) / 3)

    best = max(candidates, key=likeness, default=None)
    return f", did you mean '{best}'?" if best and likeness(best) >= 0.6 else ""


# --- values that are missing or of the wrong type ----------------------------------------------------------


def _check_complete(cfg: "DictConfig") -> None:
    """Refuse a config with a `???` in it before anything heavy starts.

    Raises:
        UserError: names the keys.
    """
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"no value for {', '.join(missing)}; give one with {missing[0]}=<value>")


def _check_types(verb: str, cfg: "DictConfig", overrides: list[str]) -> None:
    """Refuse `train.epochs=many`: an override must have the type of the value that it replaces.

    Raises:
        UserError: names the key, what was found and what was expected.
    """
    from hydra import compose
    from omegaconf import OmegaConf

    values = [o for o in overrides if o[0] not in "+~" and not (configs_dir() / _key(o)).is_dir()]
    if not values:
        return
    plain = compose(verb, [o for o in overrides if o not in values])
    for key in map(_key, values):
        if key.startswith("hydra."):
            continue
        default, given = OmegaConf.select(plain, key), OmegaConf.select(cfg, key)
        expected = _expected(default, given)
        if expected:
            raise UserError(f"{key}: found '{given}', expected {expected} such as {default}")


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
