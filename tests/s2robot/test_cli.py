"""The command line as a user meets it: processes of its own, config composition only (no verb does its work)."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from s2robot.cli import VERBS, main
from s2robot.config import task_settings
from s2robot.core.errors import UserError
from s2robot.core.files import configs_dir
from s2robot.overrides import as_known, take_stored_world
from tests import forks
from tests.inline import do_inline

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def s2robot(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder of this process: its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    do_inline(monkeypatch)

    def run(*words: str) -> tuple[int, str, str]:
        status = main(words)
        return status, *capsys.readouterr()

    return run


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The one line on standard error of a command that must exit with 2."""
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.mark.parametrize("args", [(), ("--help",)])
def test_alone_lists_every_verb(s2robot, args):
    status, out, _ = s2robot(*args)
    assert status == 0
    for verb in VERBS:
        assert any(line.split()[:1] == [verb] and len(line.split()) > 3 for line in out.splitlines())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_prints_its_config(s2robot, tmp_path, verb):
    status, out, _ = s2robot(verb, "--cfg", "job")
    assert status == 0 and "run_dir" in yaml.safe_load(out)
    assert not list(tmp_path.iterdir())  # printing a config leaves nothing behind


def test_overrides_and_groups_reach_the_config(s2robot):
    config = yaml.safe_load(s2robot("run", "--cfg", "job", "policy=rpt", "train.steps=3", "+note=x")[1])
    policy = config["policy"]
    assert policy["kind"] == "transformer" and policy["pooling"]["kind"] == "mean"
    assert policy["context"] == policy["chunk"] == policy["execute"] == 16
    assert config["train"]["steps"] == 3 and config["note"] == "x"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("evalute", "unknown verb 'evalute', did you mean 'evaluate'?"),
        ("train trian.steps=3", "unknown key 'trian.steps', did you mean 'train.steps'?"),
        ("train steps=3", "unknown key 'steps', did you mean 'train.steps'?"),
        ("train policy=transformer policy.network.block=2", "did you mean 'policy.network.blocks'?"),
        ("train polcy=mlp", "unknown key 'polcy', did you mean 'policy'?"),
        ("train train.seed=0 --multirun trian.steps=3,4", "did you mean 'train.steps'?"),
        ("train --cfg job zzz=1", "unknown key 'zzz'"),
        ("train encoder=mvp-tny", "encoder: expected one of dinov2_s, efficientnet_lite0, mvp-small"),
        ("run preset=fats", "preset: expected one of fast, got fats"),
        ("train train.steps=many", "train.steps: "),
        ("run record=3", "record: expected true or false, got 3"),
        ("train task=stack env.cube_size=0.02", "env.cube_size: expected a setting of task=stack"),
        ("evaluate checkpoint=x encoder=mvp-tiny", "encoder: `s2robot evaluate` uses the checkpoint's own"),
        (
            "evaluate checkpoint=x policy.members=1",
            "policy.members: `s2robot evaluate` uses the checkpoint's",
        ),
        ("evaluate checkpoint=x evaluate=arm bridge=emulatr", "bridge: expected one of default, emulator"),
        ("evaluate checkpoint=x evaluate.episode=1", "did you mean 'evaluate.episodes'?"),
        ("evaluate", "checkpoint: expected a value, got nothing"),
        ("train a:b", "cannot read 'a:b'"),
        ("inspect =3", "expected key=value"),
        ("train s2=null", "s2: expected one of s2, single, got null"),
        ("train encoder=0", "encoder: expected one of dinov2_s"),
        ("deploy robot=[1,2]", "robot: expected one of panda, xarm7, got [1,2]"),
        ("deploy bridge.arm=[]", "bridge.arm: expected another kind of value"),
        ("train policy.kind=transformer", "policy.network."),
        ("train demos.path=", "demos.path: expected a dataset"),
        ("train train.from=", "train.from: "),
        (
            "train s2.scales=[1,nan]",
            "s2.scales: expected one or more numbers > 0, such as [1,2], got [1, nan]",
        ),
        ("train s2.scales=null", "s2.scales: expected one or more numbers > 0"),
        ("train data=nope", "nope: does not exist"),
        ("dagger checkpoint=", "recording.checkpoint: "),
        ("inspect data=nope odd=null", "odd: expected keys and values, got null"),
        ("inspect run=2024", "run: expected the run directory"),
        ("train policy.pooling.heads=0", "policy.pooling.heads: "),
        ("train policy.execute=99", "policy.execute"),
        ("train env.cameras=[hand,hand]", "env.cameras: "),
        ("train env.image_size=large", "env.image_size: "),
        ("train +env.side_cameras.top=3", "env.side_cameras.top: expected a list, got 3"),
        ("train env.box_x=[0.1]", "env.box_x[1]: expected a value, got nothing"),
        ("serve checkpoint=x serve=null", "serve: expected keys and values, got null"),
        ("convert data=[a] out=b", "data: expected a path, got ['a']"),
        ("record picker.kicks=[3,1]", "recording.picker.kicks: "),
        ("record task=lift picker.misses=2", "recording.picker.misses: expected <= 1, got 2"),
        ("record recording.picker.misses=2 recording.episodes=0", "recording.episodes: expected >= 1, got 0"),
        ("run record=true recording.episodes=0", "recording.episodes: expected >= 1, got 0"),
        ("run evaluate.episodes=0", "evaluate.episodes: "),
        ("run evaluate.seed=100000", "evaluate.seed: positions 100000 to 100127 hold 120 that the demos of"),
    ],
)
def test_wrong_input_is_one_line(s2robot, words, text):
    status, _, err = s2robot(*words.split())
    (line,) = err.strip().splitlines()
    assert status == 2 and line.startswith("s2robot") and ": error: " in line and text in line


@pytest.mark.parametrize(
    ("verb", "typed", "known"),
    [
        ("train", "data=a", "demos.path=a"),
        ("inspect", "data=a", "demos.path=a"),
        ("convert", "data=a", "data=a"),
        ("dagger", "checkpoint=a", "recording.checkpoint=a"),
        ("record", "recording.checkpoint=a", "checkpoint=a"),
        ("evaluate", "checkpoint=run", "checkpoint=run/checkpoint"),
        ("dagger", "checkpoint=run", "recording.checkpoint=run/checkpoint"),
        ("train", "train.from=run", "train.from=run/checkpoint"),
        ("evaluate", "encoder.checkpoint=run", "encoder.checkpoint=run"),
        ("train", "--multirun", "--multirun"),
        ("inspect", "rate_hz=10", "demos.rate_hz=10"),
        ("convert", "rate_hz=10", "rate_hz=10"),
        ("train", "task.kwargs.obs_type=state", "++task.kwargs.obs_type=state"),
    ],
)
def test_dataset_and_checkpoint_have_one_name_in_all_verbs(tmp_path, monkeypatch, verb, typed, known):
    """A run folder stands for the checkpoint in it."""
    (tmp_path / "run/checkpoint").mkdir(parents=True)
    (tmp_path / "run/checkpoint/policy.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert as_known(verb, typed) == known


def test_what_gymnasium_success_suggests_can_be_typed(s2robot):
    (typed,) = re.findall(r"'(task\.success=.*)'", s2robot("train", "task=gym", "task.id=Pendulum-v1")[2])
    out = s2robot("train", "--cfg", "job", "task=gym", "task.id=Pendulum-v1", typed)[1]
    assert yaml.safe_load(out)["task"]["success"] == "reward>=1"


def test_a_gymnasium_world_is_the_checkpoints_own(tmp_path):
    stored = {
        "task": "gym",
        "id": "Pendulum-v1",
        "success": "terminated",
        "cameras": ["a"],
        "kwargs": {"g": 9.0},
    }
    (tmp_path / "policy.json").write_text(
        json.dumps({"contract": {"env_config": {**stored, "image_size": 8}}})
    )

    def composed(*words):
        with initialize_config_dir(str(configs_dir()), version_base="1.3"):
            config = compose("evaluate", [f"checkpoint={tmp_path}", *words])
        take_stored_world(config, list(words))
        return config

    world = task_settings(composed("task=gym", "task.image_size=16"))
    assert (world.id, world.success, world.cameras, world.kwargs) == (
        "Pendulum-v1",
        "terminated",
        ("a",),
        {"g": 9.0},
    )
    assert world.image_size == 16  # what is typed counts
    assert composed("task=gym", "task.id=Other-v0").task.success == ""
    assert composed("task=stack").task.name == "stack"


def test_the_fast_run_is_one_network_and_what_is_typed_goes_before_it():
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        default, fast, typed = (
            compose("run", words) for words in ([], ["preset=fast"], ["preset=fast", "train.steps=7"])
        )
    assert (default.policy.members, fast.policy.members, typed.policy.members) == (4, 1, 1)
    assert (default.train.steps, fast.train.steps, typed.train.steps) == (2000, 3000, 7)
    fast.policy.members, fast.train.steps = default.policy.members, default.train.steps
    assert OmegaConf.to_container(fast) == OmegaConf.to_container(default)


@pytest.mark.parametrize(
    ("verb", "words", "demos", "steps"),
    [
        ("run", [], 120, 2000),
        ("run", ["task=square"], 200, 10000),
        ("compare", ["task=square"], 200, 10000),
        ("run", ["task=square", "recording.episodes=9", "train.steps=7"], 9, 7),
        ("run", ["task=square", "train=mvp"], 200, 7500),  # a recipe of a paper says its own
        ("dagger", ["task=square"], 128, 10000),  # positions a round, which are no demos
        ("train", ["policy=transformer"], None, 4000),
        ("train", ["policy=transformer", "task=square"], None, 10000),
        ("train", ["policy=rpt"], None, 2000),
        ("compare", ["policy=transformer", "train.steps=7"], 120, 7),
        ("train", ["task=lift"], None, 2000),
        ("record", ["task=lift"], 150, None),
        ("record", ["task=lift", "recording=dagger"], 128, None),
        ("record", ["task=robosuite"], 120, None),
    ],
)
def test_a_task_or_policy_says_how_many_demos_and_steps_it_wants(verb, words, demos, steps):
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        config = compose(verb, words)
    recorded = config.episodes if verb == "record" else config.get("recording", {}).get("episodes")
    assert (recorded, config.get("train", {}).get("steps")) == (demos, steps)


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_flags_and_explains_settings(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert all(flag in text for flag in VERBS[verb].flags)
    config = yaml.safe_load((configs_dir() / f"{verb}.yaml").read_text())
    groups = [str(*each).partition("@")[0] for each in config.pop("defaults") if isinstance(each, dict)]
    for key in [*config, *groups]:
        assert re.search(rf"^ *{key}[:=]", text, re.M), key


def test_help_explains_a_group(capsys):
    assert main(["train", "--help", "train", "policy=transformer"]) == 0
    text = capsys.readouterr().out
    for name in ("train/default", "policy/transformer"):
        assert (configs_dir() / f"{name}.yaml").read_text().strip() in text


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (["--checkpoint", "X"], "checkpoint=X"),
        (["--train-steps=3"], "train_steps=3"),
        (["--live"], "live=<value>"),
    ],
)
def test_an_unknown_flag_says_what_to_type(words, typed, capsys):
    assert main(["train", *words]) == 2
    assert capsys.readouterr().err.rstrip().endswith(f"write {typed}")


def test_answers_without_the_heavy_libraries(tmp_path):
    script = (
        "import sys; from s2robot.cli import main; main([]); main(['run', '--cfg', 'job']);"
        "print([m for m in ('torch', 'mujoco', 'robosuite', 'zarr', 'timm') if m in sys.modules])"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )
    assert result.stdout.splitlines()[-1] == "[]", result.stderr


# --- what a verb raises, and what becomes of it ------------------------------------------------------------

VERB = """
import errno, sys
from s2robot import cli

class Wrong(ValueError):
    user_error = True

def verb(cfg):
    print("argv", sys.argv[1:])
    {body}

sys.modules["fake"] = sys.modules[__name__]
cli.VERBS["inspect"] = cli.Verb("fake:verb", resumes=False)
sys.exit(cli.main())
"""


def raising(body: str, *args: str, cwd: Path, script: str = VERB) -> subprocess.CompletedProcess[str]:
    (cwd / "app.py").write_text(script.format(body=body))
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(cwd / "app.py"), "inspect", "run=here", *args]
    return forks.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def test_verb_gets_the_config_and_the_whole_command_line(tmp_path):
    result = raising("assert cfg.run == 'here' and cfg.run_dir", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "argv ['inspect', 'run=here']" in result.stdout  # DDP ranks are started from sys.argv
    assert (tmp_path / "runs" / "inspect").is_dir()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("raise Wrong('found panda,\\n expected xarm7')", "found panda, expected xarm7"),
        ("raise OSError(errno.ENOSPC, 'No space left on device', 'a/b')", "No space left on device: a/b"),
    ],
)
def test_user_errors_are_one_line(tmp_path, body, text):
    assert text in refused(raising(body, cwd=tmp_path))


def test_interrupt_is_130(tmp_path):
    result = raising("raise KeyboardInterrupt", cwd=tmp_path)
    assert result.returncode == 130
    assert result.stderr.strip() == "s2robot inspect: interrupted"


def test_an_interrupted_verb_says_what_goes_on(tmp_path):
    body = "open(cfg.run_dir + '/state', 'w').close(); raise KeyboardInterrupt"
    script = VERB.replace(", resumes=False", "")
    for args in (["+a='x y'"], ["+a='x y'", "hydra.run.dir=runs/mine"]):
        result = raising(body, *args, cwd=tmp_path, script=script)
        assert result.returncode == 130
        (folder,) = tmp_path.glob("runs/mine" if len(args) > 1 else "runs/inspect/*")
        command = (
            f"s2robot inspect run=here '+a='\"'\"'x y'\"'\"'' hydra.run.dir={folder.relative_to(tmp_path)}"
        )
        assert result.stderr.strip() == f"s2robot inspect: interrupted; resume with: {command}"


def test_runs_of_one_moment_have_folders_of_their_own(tmp_path):
    script = VERB.replace("sys.exit(cli.main())", "for i in range(8):\n    assert cli.main() == 0")
    result = raising("print(cfg.run_dir)", cwd=tmp_path, script=script)  # several within one second
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "runs" / "inspect").iterdir())) == 8


def test_a_named_folder_holds_one_run_at_a_time(tmp_path):
    script = VERB.replace("print(", "import time; print(cfg.run_dir, flush=True); time.sleep(30); print(")
    (tmp_path / "first.py").write_text(script.format(body=""))
    command = [
        sys.executable,
        str(tmp_path / "first.py"),
        "inspect",
        "run=here",
        "hydra.run.dir=two",
        "+who=first",
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    first = forks.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline().strip() == str(tmp_path / "two")
        line = refused(raising("print('never')", "hydra.run.dir=two", "+who=second", cwd=tmp_path))
        assert f"{tmp_path / 'two'}: expected no other process" in line
        assert "first" in (tmp_path / "two/.hydra/config.yaml").read_text()
    finally:
        first.kill()
        first.communicate()


def test_a_verb_that_fails_before_it_writes_leaves_no_folder(tmp_path):
    refused(raising("raise Wrong('no')", cwd=tmp_path))
    assert not list((tmp_path / "runs").iterdir())
    assert raising("", cwd=tmp_path).returncode == 0
    (folder,) = (tmp_path / "runs" / "inspect").iterdir()
    assert sorted(p.name for p in (folder / ".hydra").iterdir()) == [
        "config.yaml",
        "hydra.yaml",
        "overrides.yaml",
    ]
    assert yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text()) == ["run=here"]


def test_a_job_in_the_folder_of_a_comparison_leaves_the_description_there_alone(tmp_path):
    words = ["hydra.run.dir=one", "hydra.output_subdir=.hydra-job"]
    assert raising("", "hydra.run.dir=one", "+who=whole", cwd=tmp_path).returncode == 0
    assert raising("", *words, "+who=job", cwd=tmp_path).returncode == 0
    for name, who in ((".hydra", "whole"), (".hydra-job", "job")):
        assert yaml.safe_load((tmp_path / "one" / name / "config.yaml").read_text())["who"] == who


@pytest.mark.parametrize(
    "variables", [{"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}, {"SLURM_STEP_NUM_TASKS": "2"}]
)
def test_processes_of_torchrun_and_srun_need_a_folder_by_name(tmp_path, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert "hydra.run.dir: expected a folder for all processes" in refused(raising("", cwd=tmp_path))


@pytest.mark.parametrize("body", ["raise RuntimeError('bug')", "cfg.absent", "cfg.run.absent"])
def test_faults_of_the_program_keep_their_traceback(tmp_path, body):
    result = raising(body, cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_a_sweep_with_a_failed_job_fails_and_says_which(tmp_path):
    body = "if cfg.run == 'b': raise Wrong('no such run')"
    result = raising(body, "--multirun", "run=a,b,c", cwd=tmp_path)
    assert result.returncode == 2
    assert "run=b" in result.stderr and result.stderr.strip().endswith("s2robot inspect: error: no such run")
    assert len(list((tmp_path / "runs" / "inspect").glob("*_sweep/*/"))) == 3  # the others ran


def test_a_verb_called_from_python_gives_the_log_back(tmp_path, capsys):
    """Its folder may be gone: a handler that stayed would fail at the next message of any library."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    folder = tmp_path / "gone"
    assert main(["evaluate", "checkpoint=null", f"hydra.run.dir='{folder}'"]) == 2
    assert "checkpoint: found none" in capsys.readouterr().err
    assert (root.handlers, root.level) == before and not folder.exists()
    folder.mkdir()  # by the user, who may be in it
    assert main(["evaluate", "checkpoint=null", f"hydra.run.dir='{folder}'"]) == 2
    assert folder.is_dir() and not list(folder.iterdir())
    logging.getLogger("timm").info("no error")


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", None])
def test_threads_sleep_while_they_wait_unless_the_environment_says_otherwise(name, monkeypatch):
    """Set before torch is imported, by the command line alone, and handed to workers."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
    env = {key: value for key, value in os.environ.items() if key not in names} | (
        {name: "7"} if name else {}
    )
    script = (
        "import json, os, sys, s2robot, s2robot.cli\n"
        f"told = lambda: {{name: os.environ.get(name) for name in {names}}}\n"
        "before = told()\n"
        "assert 'torch' not in sys.modules\n"
        "s2robot.cli.main(['--version'])\n"
        "print(json.dumps([before, told()]))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout.splitlines()[-1])
    own = dict.fromkeys(names) | ({name: "7"} if name else {})
    assert before == own and after == (own if name else own | {"OMP_WAIT_POLICY": "PASSIVE"})


def test_a_group_is_chosen_by_name():
    for chosen in ("3d", "none-x", "'mvp-tiny'", "mvp-tiny,mine"):
        assert as_known("train", f"+encoder={chosen}") == f"+encoder={chosen}"
    for chosen in ("0", "-1.5", "1e3", "[a]", "{a: 1}", "", "Null"):
        with pytest.raises(UserError, match="encoder: expected one of"):
            as_known("train", f"encoder={chosen}")
