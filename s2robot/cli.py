"""The command line: `s2robot <verb> [hydra overrides]`.

    s2robot                                          # list the verbs
    s2robot train policy=rpt train.steps=8000
    s2robot train --cfg job                          # print the resolved config, do nothing
    s2robot train --multirun train.seed=0,1,2        # three runs
    s2robot deploy --live --episodes 5 checkpoint=<folder> robot.ip=192.168.1.200

Every verb is a Hydra app over `configs/<verb>.yaml`. A verb's implementation is imported only when it runs, so
listing, help and `--cfg` respond at once. Exit codes: 0 done, 2 invalid user input (explained in one line),
130 interrupted, 141 output pipe closed, 3 and 4 verdicts (`stats`, `trial`, `reproduce`), 1 other errors and arm faults.
"""

import importlib
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from s2robot import __version__
from s2robot import overrides as typed
from s2robot.core.errors import UserError, did_you_mean, require
from s2robot.core.files import configs_dir
from s2robot.core.run_folder import is_first, run_folder
from s2robot.core.settings import read
from s2robot.core.workers import Local, prepare, running_on
from s2robot.overrides import groups_of, key_of, path_word, quoted

if TYPE_CHECKING:
    from omegaconf import DictConfig


class Verb(NamedTuple):
    """One verb; the first comment of its config describes it."""

    target: str  # `module:function`, called with the DictConfig
    flags: Mapping[str, str] = {}  # flag -> override; `{}` is replaced by its value
    resumes: bool = True  # the same command in the same folder resumes an interrupted run
    words: str = ""  # the setting for arguments without `=`
    simulates: bool = False  # always needs a world; other verbs load one only if their settings need it


_HYDRA_FLAGS = (
    "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--shell-completion",
    "--config-path", "--config-name", "--config-dir", "--experimental-rerun", "--info",
)  # fmt: skip
_SWEEP = {"-m", "--multirun"}
_LIVE = {"--live": "live=true", "--episodes": "episodes={}", "--record": "record={}"}

VERBS = {
    "run": Verb("s2robot.pipeline:run", simulates=True),
    "record": Verb("s2robot.verbs:record"),
    "dagger": Verb("s2robot.rounds:dagger", simulates=True),
    "convert": Verb("s2robot.verbs:convert"),
    "inspect": Verb("s2robot.verbs:inspect", resumes=False),
    "pretrain": Verb("s2robot.verbs:pretrain"),
    "encode": Verb("s2robot.verbs:encode"),
    "train": Verb("s2robot.verbs:train"),
    "evaluate": Verb("s2robot.verbs:evaluate", {"--live": "live=true"}),
    "serve": Verb("s2robot.serving.server:run_serve", resumes=False),
    "emulate": Verb("s2robot.envs.real.emulator.emulator:run_emulate", resumes=False),
    "deploy": Verb("s2robot.deployment.deploy:deploy", _LIVE, resumes=False),
    "trial": Verb("s2robot.verbs:trial", {"--live": "live=true"}),
    "compare": Verb("s2robot.comparison.compare:compare", simulates=True),
    "doctor": Verb("s2robot.doctor:doctor", resumes=False),
    "stress": Verb("s2robot.evaluation.stress:stress", simulates=True),
    "reproduce": Verb("s2robot.comparison.reproduce:reproduce", simulates=True),
    "stats": Verb("s2robot.comparison.trials:run_stats", resumes=False, words="trials"),
    "probe": Verb("s2robot.probing:run_probe"),
}


def main(argv: Sequence[str] | None = None) -> int:
    yield_while_waiting()
    verb, *args = [*(sys.argv[1:] if argv is None else argv)] or ["help"]
    overrides: list[str] = []
    try:
        if verb in ("-h", "--help", "help", "--version"):
            print(f"s2robot {__version__}" if verb == "--version" else _usage())
        elif verb not in VERBS:
            return _fail("s2robot", f"unknown verb '{verb}'{did_you_mean(verb, VERBS)}; `s2robot` lists them")
        elif {"-h", "--help"} & {*args}:
            print(_help(verb, args))
        else:
            verb = typed.verb_of(verb, args)
            overrides = [typed.as_known(verb, o) for o in _translated(VERBS[verb], args)]
            return _hydra_app(verb, overrides)
    except KeyboardInterrupt as stop:
        print(f"s2robot {verb}: interrupted{_resume(verb, overrides, stop)}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has ended, as in `s2robot inspect | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        message = typed.one_line(verb, overrides, error)
        if message is None:
            raise
        _fail(f"s2robot {verb}", message)
        return getattr(error, "status", 2)
    return 0


def yield_while_waiting() -> None:
    """Let OpenMP threads sleep while they wait for each other, unless the environment sets a policy. Spinning is many times
    slower when another process is busy. Results are bit-identical."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _resume(verb: str, overrides: list[str], stop: KeyboardInterrupt) -> str:
    """Return a hint with the command that resumes an interrupted verb, or "" if it cannot be resumed."""
    folder: Path | None = getattr(stop, "folder", None)
    if not VERBS[verb].resumes or folder is None or not folder.exists() or _SWEEP & {*overrides}:
        return ""
    others = [o for o in overrides if key_of(o) != "hydra.run.dir"]
    path = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    return f"; resume with: {shlex.join(['s2robot', verb, *others, f'hydra.run.dir={path_word(path)}'])}"


def _translated(verb: Verb, args: list[str]) -> list[str]:
    """Return the arguments of a verb as Hydra overrides; UserError for an unknown flag or a wrong value."""
    remaining, overrides, words = iter(args), [], []
    for arg in remaining:
        flag, equals, value = arg.partition("=")
        is_word = verb.words and (not equals or Path(arg).exists())
        if override := verb.flags.get(flag):
            if "{}" in override and not equals:
                value = next(remaining, "")
            if ("{}" in override) != (value not in ("", *verb.flags)):
                raise UserError(f"{flag}: expected {'a' if '{}' in override else 'no'} value, got '{value}'")
            overrides.append(override.format(value if value.isdigit() else quoted(value)))
        elif arg[:2] == "--" and flag not in _HYDRA_FLAGS:
            name, value = flag[2:].replace("-", "_"), value or next(remaining, "<value>")
            raise UserError(f"{flag}: unknown flag; write {name}={value}")
        elif is_word and arg[:1] not in "-~+" and overrides[-1:] != ["--cfg"]:
            words.append(quoted(arg))
        else:
            overrides.append(arg)
    return overrides + ([f"{verb.words}=[{','.join(words)}]"] if words else [])


def summary_of(verb: str) -> str:
    """Return the summary of a verb: the first sentence of its config's first comment, without the verb."""
    text = (configs_dir() / f"{verb}.yaml").read_text(encoding="utf-8")
    about = re.sub(r"\n# ", " ", text.partition(f"# `s2robot {verb}`: ")[2])
    return about.partition("\n")[0].partition(". ")[0].rstrip(".")


def _usage() -> str:
    width = max(map(len, VERBS)) + 2
    return "\n".join(
        ["usage: s2robot <verb> [key=value ...] [--cfg job] [--multirun] [--help]", ""]
        + [f"  {verb:<{width}}{summary_of(verb)}" for verb in VERBS]
        + ["", "`s2robot <verb> --help` shows a verb's settings; `key=value` changes one of them."]
    )


def _help(verb: str, requested: Sequence[str]) -> str:
    """Return the help of a verb: flags, settings with comments, config groups, and the `requested` groups in full."""
    root, read_text = configs_dir(), partial(Path.read_text, encoding="utf-8")
    flags = [f"[{flag}{' VALUE' if '{}' in word else ''}]" for flag, word in VERBS[verb].flags.items()]
    words = [f"{VERBS[verb].words} ..."] if VERBS[verb].words else []
    lines = [" ".join(["usage: s2robot", verb, *words, "[key=value ...]", *flags]), summary_of(verb)]
    text = read_text(root / f"{verb}.yaml")
    if settings := text.partition("  - _self_\n")[2].strip():
        lines += ["", "Settings and their defaults:", "", *settings.splitlines()]
    groups = groups_of(verb)
    if "policy" in groups:
        groups["policy/head"] = "regression"
    if groups:
        lines += ["", f"Config groups (`s2robot {verb} --help <group>` shows their settings):", ""]
    for group, default in groups.items():
        options = ", ".join(sorted(file.stem for file in (root / group).glob("*.yaml")))
        lines.append("  {:<22}  {}: {}".format(f"{group}={default or 'null'}", group, options))
    for group, _, chosen in (word.partition("=") for word in requested):
        file = root / group / f"{chosen or groups.get(group)}.yaml"
        if group in groups and file.is_file():
            text = read_text(file).strip()
            # `recording.<key>` is valid in every verb
            package = re.match("# @package (.*)", text) if group != "recording" else None
            node = package[1] if package else group.replace("/", ".")
            lines += ["", f"{group}={file.stem}: type {node}.<key>=<value>".replace("_global_.", ""), ""]
            for shared in re.findall(r"^  - (common/\w+)@_here_", text, re.M):
                text += "\n\n" + read_text(root / group / f"{shared}.yaml").strip()
            lines += text.splitlines()
    return "\n".join([*lines, "", f"`--cfg job` prints all values. The files with all settings: {root}"])


def _fail(program: str, message: str) -> int:
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _hydra_app(verb: str, overrides: list[str]) -> int:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions reach main() instead of ending the process
    process_argv = sys.argv
    failure: list[Exception] = []
    status, began = 0, time.time()

    def task(cfg: "DictConfig") -> Any:
        # Fabric starts its DDP ranks by rerunning sys.argv, so restore the verb in it.
        nonlocal status
        sys.argv = process_argv
        sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            _check_shared(overrides)
            words = list(HydraConfig.get().overrides.task)
            typed.take_stored_world(cfg, words)
            with run_folder(folder, _about(cfg), keep=sweep, began=began):
                typed.check_config(cfg, words)
                result = _call(verb, cfg)
            status = max(status, result if isinstance(result, int) else 0)  # the jobs of a sweep
            return result
        except KeyboardInterrupt as stop:
            stop.folder = folder  # type: ignore[attr-defined]
            raise
        except Exception as error:
            if sweep:  # Hydra reports the first alone
                message = typed.one_line(verb, overrides, error) or repr(error)
                _fail(f"s2robot {verb}: job {HydraConfig.get().job.num}", message)
                raise
            failure.append(error)
            return None

    if _SWEEP & {*overrides} and "hydra.run.dir" in map(key_of, overrides):
        raise UserError("hydra.run.dir: expected hydra.sweep.dir in a sweep, got hydra.run.dir")
    # Hydra requires flags before overrides; users may type them in any order.
    later = [a for a in overrides if a[:1] != "-" and (a[:1] == "~" or "=" in a)]
    sys.argv = [f"s2robot {verb}", *(a for a in overrides if a not in later), *later]
    try:
        with _restored_logging():
            hydra.main(version_base="1.3", config_path=str(configs_dir()), config_name=verb)(task)()
    finally:
        sys.argv = process_argv
        if tasks := sys.modules.get("s2robot.envs.tasks"):
            tasks.worlds.clear()  # their renderers cannot be freed once MuJoCo is unloaded
    if failure:
        raise failure[0]
    return status


@contextmanager
def _restored_logging() -> Iterator[None]:
    """Undo Hydra's logging setup for Python callers; it logs into the run directory, which a failed verb removes."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        for handler in {*root.handlers} - {*handlers}:
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


def _about(cfg: "DictConfig") -> dict[str, str]:
    """Return the files that Hydra would write, by path; they are written once the run directory is locked."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    hydra = OmegaConf.create({"hydra": HydraConfig.get()})
    # jobs of a comparison share a directory, so each sets its own subdirectory
    folder = HydraConfig.get().output_subdir or ".hydra"
    nodes = {"config": cfg, "hydra": hydra, "overrides": hydra.hydra.overrides.task}
    return {f"{folder}/{name}.yaml": OmegaConf.to_yaml(node) for name, node in nodes.items()}


def _check_shared(overrides: list[str]) -> None:
    named = any(key_of(o) in ("hydra.run.dir", "hydra.sweep.dir") for o in overrides)
    count = "WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_STEP_NUM_TASKS"
    if int(os.environ.get(count, 1)) > 1 and not named:
        raise UserError("hydra.run.dir: expected one folder for all processes; set hydra.run.dir=<folder>")


def _call(verb: str, cfg: "DictConfig") -> Any:
    module, _, function = VERBS[verb].target.partition(":")
    try:
        with engine_of(cfg, soon=VERBS[verb].simulates):
            return getattr(importlib.import_module(module), function)(cfg)
    except Exception as error:
        error.verb = verb  # type: ignore[attr-defined]  # a config error raised inside a verb is a bug
        raise


@contextmanager
def engine_of(cfg: "DictConfig", soon: bool = False) -> Iterator[None]:
    """Run worker pools created in this context on the config's engine, if any. ``soon``: start workers right away."""
    if "engine" not in cfg:
        yield
    elif cfg.engine.name != "ray":
        local = read(Local, cfg.engine)
        if soon and is_first():  # the other processes of a distributed run have no workers
            prepare()
        with running_on(local):
            yield
    else:
        require("ray", extra="ray")
        from s2robot.core.ray import Ray

        with closing(read(Ray, cfg.engine)) as engine, running_on(engine):
            yield
