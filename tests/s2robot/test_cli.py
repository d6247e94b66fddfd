"""The command line: composed configs, help, one-line errors, and the ways in which a verb ends."""

import errno
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from omegaconf import OmegaConf

from s2robot.cli import VERBS, Verb, main, summary_of
from s2robot.config import task_settings
from s2robot.core.files import configs_dir
from s2robot.overrides import as_known, take_stored_world
from tests.configs import composed
from tests.errors import refuses


@pytest.fixture
def s2robot(inline, tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder of this process: its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        return main(words), *capsys.readouterr()

    return run


@pytest.mark.parametrize("args", [(), ("--help",)])
def test_command_without_arguments_lists_every_verb(s2robot, args):
    status, out, _ = s2robot(*args)
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert status == 0 and all(lines[verb].endswith(summary_of(verb)) for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_prints_its_config_and_explains_it(s2robot, tmp_path, verb):
    status, out, _ = s2robot(verb, "--cfg", "job")
    assert status == 0 and "run_dir" in yaml.safe_load(out)
    status, out, _ = s2robot(verb, "--help")
    assert status == 0 and all(flag in out for flag in VERBS[verb].flags)
    config = yaml.safe_load((configs_dir() / f"{verb}.yaml").read_text())
    groups = [str(*each).partition("@")[0] for each in config.pop("defaults") if isinstance(each, dict)]
    for key in [*config, *groups]:
        assert re.search(rf"^ *{key}[:=]", out, re.M), key
    assert not list(tmp_path.iterdir())  # neither creates a file


def test_help_explains_a_group(s2robot):
    status, out, _ = s2robot("train", "--help", "train", "policy=transformer", "preset=fast")
    assert status == 0 and "preset=null" in out and "preset=fast: type <key>=<value>" in out
    for name in ("train/default", "policy/transformer"):
        assert (configs_dir() / f"{name}.yaml").read_text().strip() in out
    assert "host=default: type policy.<key>=<value>" in s2robot("deploy", "--help", "host")[1]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("evalute", "unknown verb 'evalute', did you mean 'evaluate'?"),
        ("train trian.steps=3", "unknown key 'trian.steps', did you mean 'train.steps'?"),
        ("train policy=transformer policy.network.block=2", "did you mean 'policy.network.blocks'?"),
        ("train train.seed=0 --multirun trian.steps=3,4", "did you mean 'train.steps'?"),
        ("train -m hydra.run.dir=runs/a", "hydra.run.dir: expected hydra.sweep.dir in a sweep"),
        ("train encoder=mvp-tny", "encoder: expected one of dinov2_s, efficientnet_lite0, mvp-small"),
        ("run record=3", "record: expected true or false, got 3"),
        ("evaluate checkpoint=x task=lift env=lift", "env: expected task.<key>, because task=lift"),
        ("evaluate checkpoint=x encoder=mvp-tiny", "encoder: expected no value, because `s2robot evaluate`"),
        ("evaluate", "checkpoint: expected a value, got nothing"),
        ("train a:b", "cannot read 'a:b'"),
        ("pretrain crop.min=1 data=a out=b", "crop.min: expected an index into the list crop, got"),
        ("evaluate checkpoint=x evaluate=arm bridge=emulatr", "bridge: expected one of default, emulator"),
        ("inspect =3", "expected key=value"),
        ("inspect data=nope anomalies=null", "anomalies: expected keys and values, got null"),
        ("train policy.kind=transformer", "policy.network."),
        ("convert data=[a] out=b", "data: expected a string, got ['a']"),
        ("train train.from=none", "train.from: checkpoint none: no such folder"),
        ("deploy robot=[1,2]", "robot: expected one of lerobot, panda, xarm7, got [1,2]"),
        ("train demos.path=", "demos.path: expected "),
        ("train s2.scales=[1,nan]", "s2.scales[1]: expected a finite number, got nan"),
        ("train data=nope", "nope: expected a dataset folder"),
        ("inspect run=2024", "run: expected the run directory"),
        ("train +env.side_cameras.top=3", "env.side_cameras.top: expected a list, got 3"),
        ("train env.box_x=[0.1]", "env.box_x[1]: expected a value, got nothing"),
        ("record recording.picker.misses=2 recording.episodes=0", "recording.episodes: expected >= 1, got 0"),
        ("run evaluate.seed=100000", "evaluate.seed: positions 100000 to 100127 hold 120 that the demos of"),
        ("train --checkpoint X", "write checkpoint=X"),
        ("train --live", "write live=<value>"),
        ("evaluate checkpoint=none", "checkpoint none: no such folder"),
        ("encode encoder.name=mvp-tine", "encoder.name: expected one of mvp-tiny, "),
        ("train hydra.run.dir=", "hydra.run.dir: expected a folder, got nothing"),
        ("train features.cache=", "features.cache: expected "),
        ("train engine.name=foo", "engine.name: expected 'local', got 'foo'"),
        ("train s2=fovea s2.fovea.zoom=null", "s2.fovea.zoom: expected a number, got null"),
        ("train s2.fovea=5", "s2.fovea: expected "),
        ("train encoder.checkpoint=5", "5: expected an encoder file"),
        ("convert data=a out=b clip=maybe", "clip: expected true or false, got 'maybe'"),
        ("encode env.cameras=[hand,top]", "cameras: expected 'top' among them"),
    ],
)
def test_wrong_input_is_one_error_line(s2robot, words, text):
    status, _, err = s2robot(*words.split())
    (line,) = err.strip().splitlines()
    assert status == 2 and line.startswith("s2robot") and ": error: " in line and text in line


@pytest.mark.parametrize(
    ("verb", "typed", "known"),
    [
        ("train", "data=a", "demos.path=a"),
        ("convert", "data=a", "data=a"),
        ("evaluate", "checkpoint=run", "checkpoint=run/checkpoint"),
        ("dagger", "checkpoint=run", "recording.checkpoint=run/checkpoint"),
        ("train", "train.from=run", "train.from=run/checkpoint"),
        ("train", "train.from=", "train.from="),  # an unset shell variable is not this folder
        ("evaluate", "encoder.checkpoint=run", "encoder.checkpoint=run"),
        ("inspect", "rate_hz=10", "demos.rate_hz=10"),
        ("train", "task.kwargs.obs_type=state", "++task.kwargs.obs_type=state"),
        ("compare", "encoder.checkpoint=a", "++encoder.checkpoint=a"),
    ],
)
def test_dataset_and_checkpoint_keys_work_in_all_verbs(tmp_path, monkeypatch, verb, typed, known):
    """A run folder is accepted in place of its checkpoint."""
    (tmp_path / "run/checkpoint").mkdir(parents=True)
    (tmp_path / "run/checkpoint/policy.json").write_text("{}")
    (tmp_path / "checkpoint").symlink_to("run/checkpoint")
    monkeypatch.chdir(tmp_path)
    assert as_known(verb, typed) == known


def test_run_with_an_experiment_is_a_comparison(s2robot):
    status, out, _ = s2robot("run", "experiment=pusht", "encoder.block=3", "--cfg", "job")
    config = yaml.safe_load(out)
    assert status == 0 and config["encoder"] == {"block": 3} and len(config["experiment"]["seeds"]) == 3


def test_suggested_gymnasium_success_is_a_valid_override(s2robot):
    (typed,) = re.findall(r"'(task\.success=[^']*)'", s2robot("train", "task=gym", "task.id=Pendulum-v1")[2])
    out = s2robot("train", "--cfg", "job", "task=gym", "task.id=Pendulum-v1", typed)[1]
    assert yaml.safe_load(out)["task"]["success"] == "reward>=1"


def test_gymnasium_world_comes_from_the_checkpoint(tmp_path):
    stored = {"id": "Pendulum-v1", "success": "terminated", "cameras": ["a"], "kwargs": {"g": 9.0}}
    own = {"env_config": {"task": "gym", **stored, "image_size": 8}}
    (tmp_path / "policy.json").write_text(json.dumps({"contract": own}))

    def config_of(*words):
        config = composed("evaluate", f"checkpoint={tmp_path}", *words)
        take_stored_world(config, list(words))
        return config

    world = task_settings(config_of("task=gym", "task.image_size=16"))
    assert {key: getattr(world, key) for key in stored} == stored | {"cameras": ("a",)}
    assert world.image_size == 16  # an override wins
    assert config_of("task=gym", "task.id=Other-v0").task.success == ""
    assert config_of("task=stack").task.name == "stack"
    refuses("task.name: expected a string", task_settings, composed("evaluate", "task.name=[1]"))
    typed = config_of("++task.kwargs.h=1", "++task.kwargs.g=0.5", "+task.max_steps=7").task
    assert (typed.name, typed.kwargs, typed.max_steps) == ("gym", {"g": 0.5, "h": 1}, 7)


def test_presets_set_their_values_and_overrides_win_over_them():
    default, fast = composed("run"), composed("run", "preset=fast")
    typed = composed("run", "preset=fast", "train.steps=7")
    assert (default.policy.members, fast.policy.members, typed.policy.members) == (4, 1, 1)
    assert (default.train.steps, fast.train.steps, typed.train.steps) == (2000, 3000, 7)
    fast.policy.members, fast.train.steps = default.policy.members, default.train.steps
    assert OmegaConf.to_container(fast) == OmegaConf.to_container(default)
    gmm, rpt = composed("run", "preset=bc_rnn_gmm"), composed("run", "policy=rpt")  # as in their papers
    assert gmm.train.batch_size == 16 * gmm.policy.context and not rpt.policy.network.causal


@pytest.mark.parametrize(
    ("verb", "words", "demos", "steps"),
    [
        ("run", [], 120, 2000),
        ("run", ["task=square"], 200, 10000),
        ("run", ["task=square", "train=mvp"], 200, 7500),  # a paper's recipe has its own number
        ("dagger", ["task=square"], 128, 10000),  # positions per round, not demos
        ("train", ["policy=transformer"], None, 4000),
        ("compare", ["policy=transformer", "train.steps=7"], 120, 7),
        ("record", ["task=robosuite"], 120, None),
    ],
)
def test_default_demos_and_steps_come_from_the_task_or_policy(verb, words, demos, steps):
    config = composed(verb, *words)
    recorded = config.episodes if verb == "record" else config.get("recording", {}).get("episodes")
    assert (recorded, config.get("train", {}).get("steps")) == (demos, steps)


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", None])
def test_help_loads_no_heavy_library_and_sets_openmp_to_sleep(name, tmp_path):
    """Only the command line sets OpenMP's variables, before importing torch, unless the user set them."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
    own = {name: "7"} if name else {}
    env = {key: value for key, value in os.environ.items() if key not in names}
    script = f"""
import json, os, sys, s2robot, s2robot.cli
variables = lambda: {{name: os.environ[name] for name in {names} if name in os.environ}}
before = variables()
s2robot.cli.main([]); s2robot.cli.main(["run", "--cfg", "job"])
heavy = [m for m in ("torch", "mujoco", "robosuite", "zarr", "timm") if m in sys.modules]
print(json.dumps([before, variables(), heavy]))
"""
    options = {"cwd": tmp_path, "env": env | own, "text": True}
    line = subprocess.check_output([sys.executable, "-c", script], **options).splitlines()[-1]
    assert json.loads(line) == [own, own or {"OMP_WAIT_POLICY": "PASSIVE"}, []]


# --- how the command ends when a verb raises ---------------------------------------------------------------


@pytest.fixture
def inspect(s2robot, monkeypatch):
    """`inspect(function, *words)`: run `s2robot inspect run=here`, with the function as the verb."""

    def run(function, *words, **about):
        monkeypatch.setitem(sys.modules, "fake", SimpleNamespace(verb=function))
        monkeypatch.setitem(VERBS, "inspect", Verb("fake:verb", **{"resumes": False} | about))
        return s2robot("inspect", "run=here", *words)

    return run


def raises(error: BaseException):
    def verb(cfg):
        raise error

    return verb


class Wrong(ValueError):
    user_error = True


def test_verb_receives_the_config_and_the_full_command_line(inspect, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", typed := ["s2robot", "inspect", "run=here", "--multirun"])

    def verb(cfg):
        assert cfg.run == "here" and Path(cfg.run_dir).parent == tmp_path / "runs/inspect"
        assert sys.argv is typed  # the ranks of DDP are started with it

    assert [inspect(verb)[0] for _ in range(4)] == [0] * 4  # several within one second
    assert len(list((tmp_path / "runs/inspect").iterdir())) == 4


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Wrong("found panda,\n expected xarm7"), "found panda, expected xarm7"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "No space left on device: a/b"),
    ],
)
def test_verb_that_fails_before_writing_leaves_one_line_and_no_folder(inspect, tmp_path, error, text):
    status, _, err = inspect(raises(error))
    assert (status, err) == (2, f"s2robot inspect: error: {text}\n")
    assert not list((tmp_path / "runs").iterdir())
    assert inspect(lambda cfg: None)[0] == 0
    (folder,) = (tmp_path / "runs/inspect").iterdir()
    names = ["config.yaml", "hydra.yaml", "overrides.yaml"]
    assert sorted(p.name for p in (folder / ".hydra").iterdir()) == names
    assert yaml.safe_load((folder / ".hydra/overrides.yaml").read_text()) == ["run=here"]


@pytest.mark.parametrize("words", [(), ("hydra.run.dir=runs/mine",), ("hydra.run.dir='runs/é=1'",)])
def test_interrupted_verb_prints_its_resume_command(inspect, tmp_path, words):
    status, _, err = inspect(raises(KeyboardInterrupt()), "+a='x y'", *words)
    assert (status, err) == (130, "s2robot inspect: interrupted\n") and not [*tmp_path.glob("runs/*/*")]

    def verb(cfg):
        (Path(cfg.run_dir) / "state").touch()
        raise KeyboardInterrupt

    status, _, err = inspect(verb, "+a='x y'", *words, resumes=True)
    (folder,) = tmp_path.glob("runs/*" if words else "runs/inspect/*")
    where = words[0] if words else f"hydra.run.dir={folder.relative_to(tmp_path)}"
    command = shlex.join(["s2robot", "inspect", "run=here", "+a='x y'", where])
    assert (status, err) == (130, f"s2robot inspect: interrupted; resume with: {command}\n")


def test_job_in_a_comparison_folder_keeps_its_config_separate(inspect, tmp_path):
    for name, origin in ((".hydra", "comparison"), (".hydra-job", "job")):
        words = ("hydra.run.dir=one", f"hydra.output_subdir={name}", f"+origin={origin}")
        assert inspect(lambda cfg: None, *words)[0] == 0
    for name, origin in ((".hydra", "comparison"), (".hydra-job", "job")):
        assert yaml.safe_load((tmp_path / "one" / name / "config.yaml").read_text())["origin"] == origin


@pytest.mark.parametrize(
    "variables", [{"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}, {"SLURM_STEP_NUM_TASKS": "2"}]
)
def test_torchrun_and_srun_require_an_explicit_folder(inspect, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    status, _, err = inspect(lambda cfg: None)
    assert status == 2 and "hydra.run.dir: expected one folder for all processes" in err


@pytest.mark.parametrize("verb", [raises(RuntimeError()), lambda cfg: cfg.absent, lambda cfg: cfg.run.absent])
def test_program_errors_keep_their_traceback(inspect, verb):
    with pytest.raises((RuntimeError, AttributeError)):
        inspect(verb)


def test_output_that_nobody_reads_is_no_success(tmp_path):
    words = [sys.executable, "-m", "s2robot", "stats", "1/2", "1/3"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        process.stdout.close()
    assert process.returncode == 141


def test_sweep_with_a_failed_job_fails_and_names_it(inspect, tmp_path):
    def verb(cfg):
        if cfg.run != "a":
            raise Wrong(f"no such run {cfg.run}")

    status, out, err = inspect(verb, "--multirun", "run=a,b,c")
    assert status == 2 and "run=b" in out + err and err.endswith("s2robot inspect: error: no such run b\n")
    assert all(f"inspect: job {i}: error: no such run {run}" in err for i, run in ((1, "b"), (2, "c")))
    assert len(list((tmp_path / "runs/inspect").glob("*_sweep/*/"))) == 3  # the other jobs ran
    assert inspect(lambda cfg: 3 * (cfg.run == "a"), "--multirun", "run=a,b")[0] == 3


@pytest.mark.parametrize("users", [False, True])
def test_verb_called_from_python_restores_the_logging(s2robot, tmp_path, users):
    """Its folder may be deleted: a remaining handler would fail at the next message of any library."""
    root, folder = logging.getLogger(), tmp_path / "gone"
    if users:  # the user's own folder, possibly the working directory
        folder.mkdir()
    before = root.handlers[:], root.level
    assert s2robot("evaluate", "checkpoint=null", f"hydra.run.dir='{folder}'")[0] == 2
    assert (root.handlers, root.level) == before
    assert folder.exists() is users and not list(folder.glob("*"))
    logging.getLogger("timm").info("no error")
