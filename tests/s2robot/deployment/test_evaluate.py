"""`s2robot evaluate evaluate=arm` against `s2robot emulate`, with the vendor's SDK and an untrained policy."""

import itertools
import json
import os
import re
import time
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from s2robot import verbs
from s2robot.cli import main
from s2robot.config import task_settings
from s2robot.core.errors import UserError
from s2robot.core.settings import read
from s2robot.deployment.evaluate import ArmEvaluation, ArmEvaluationSettings, check_world, evaluate_on_arm
from s2robot.deployment.operator import WatchingOperator
from s2robot.deployment.session import Rig
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.real.emulator.stand_in import EmulatedOperator
from s2robot.envs.real.operator.prompts import Stop, TerminalOperator
from s2robot.evaluation.records import read_records, read_summary
from tests.envs.real.virtual import Calls
from tests.errors import refuses

pytest.importorskip("xarm")

SEED = 10000


@pytest.fixture
def config(slow_policy, arm_config):
    """Make a config of `s2robot evaluate --live` against the emulator: two episodes of three steps."""
    short = ("live=true", "env.max_steps=3", "evaluate.episodes=2")
    return partial(arm_config, "evaluate", "evaluate=arm", f"checkpoint='{slow_policy}'", *short)


def records(folder):
    return read_records(folder / "episodes.jsonl")


def evaluation(stack, cfg, **options):
    """Return an evaluation on a connected arm, after the pre-flight."""
    settings = read(ArmEvaluationSettings, cfg.evaluate)
    return ArmEvaluation(Rig(cfg, stack), settings, task_settings(cfg), Path(cfg.run_dir), **options)


def test_evaluation_writes_the_same_files_as_in_simulation_and_resumes(config, emulator, tmp_path, capsys):
    begin = time.monotonic()
    verbs.evaluate(config())
    found = emulator.commands(begin)
    assert sum(c["kind"] == "motion" for c in found) > 20 and not any(c["unsafe"] for c in found)
    assert emulator("status")["state"] >= 4  # stopped at the end

    for i, r in enumerate(records(tmp_path)):
        assert (r["episode"], r["seed"], r["steps"], r["success"]) == (i, SEED + i, 3, False)
        assert (r["stage"], r["fault"], r["world"], r["speed"]) == ("approach", "", "emulated arm", 0.2)
        assert sum(r["verdicts"].values()) == 3 and 0.05 < r["closest_m"] < 0.6
        assert r["video"] == f"videos/episode_000{i}.mp4" and (tmp_path / r["video"]).stat().st_size > 1000
        actions = np.load(tmp_path / f"actions/episode_000{i}.npy")
        assert actions.shape == (3, 8) and actions.dtype == np.float32
    # the cube lies where the simulated episode with that seed places it
    assert r["cube_xy"] == pytest.approx(emulator("reset_scene", seed=SEED + 1)["cube_pose"][:2], abs=2e-3)

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["episodes"], summary["successes"], summary["faults"]) == (2, 0, 0)
    assert summary["low"] == 0 and summary["high"] == pytest.approx(0.6576, abs=1e-4)  # Wilson, 0 of 2
    assert summary["world"] == "emulated arm" and summary["bridge"]["speed"] == 0.2
    assert summary["success_rule"] == "cube 10 cm up for 0.5 s" and summary["cameras"] == ["hand", "left"]
    assert summary["policy"]["execute"] == 3 and summary["timing"]["wall_s"] > 1
    page = (tmp_path / "report.html").read_text()
    assert "emulated arm" in page and page.count("<video") == 2
    assert "episode 2 of 2 (seed 10001): no success, 3 steps" in capsys.readouterr().out

    # a longer evaluation runs only the one additional position
    before = (tmp_path / "actions/episode_0000.npy").stat().st_mtime_ns
    verbs.evaluate(config("evaluate.episodes=3"))
    assert [r["seed"] for r in records(tmp_path)] == [SEED, SEED + 1, SEED + 2]
    assert (tmp_path / "actions/episode_0000.npy").stat().st_mtime_ns == before
    assert [r["video"] is not None for r in records(tmp_path)] == [True] * 3
    # and a shorter one keeps the others
    verbs.evaluate(config("evaluate.episodes=1"))
    assert len(records(tmp_path)) == 3 and read_summary(tmp_path / "summary.json")["episodes"] == 1
    with pytest.raises(UserError, match="bridge.speed: expected 0.2 as when the run began, got 0.3"):
        verbs.evaluate(config("bridge.speed=0.3"))


def test_evaluation_holds_while_members_disagree(config, emulator, save_untrained, tmp_path):
    pair = save_untrained(tmp_path / "pair", members=2)
    limit = ["bridge.watchdog.disagreement=1e-9", "bridge.watchdog.hold_fault=2"]
    cfg = config(f"checkpoint='{pair}'", "evaluate.episodes=1", "evaluate.videos=false", *limit)
    assert evaluate_on_arm(cfg, tmp_path)["faults"] == 1
    (r,) = records(tmp_path)
    assert r["steps"] == 0 and "members disagree" in r["fault"] and r["disagreement"] > 0


def test_a_fault_fails_its_episode_and_the_next_one_runs(config, emulator, tmp_path, monkeypatch):
    faults, free, steps = [], EmulatedOperator.free, itertools.count(1)
    breaks = Calls(step=lambda step: next(steps) == 3 and emulator.fault("error", code=31))
    noted = lambda self, fault: faults.append(fault) or free(self, fault)  # noqa: E731
    monkeypatch.setattr(EmulatedOperator, "free", noted)
    with ExitStack() as stack:
        found = evaluation(stack, config("env.max_steps=6", "evaluate.videos=false"))
        found.session.runtime.loop.subscribers.append(breaks)
        summary = found.run()
    first, second = records(tmp_path)
    assert not first["success"] and re.search("arm error 31|command code", first["fault"])
    assert 1 < first["steps"] < 6
    assert second["fault"] == "" and second["steps"] == 6
    assert summary["faults"] == 1 and summary["episodes"] == 2
    assert faults[-1] == tuple(first["fault"].split("; "))  # reported before the arm moved again


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["live=false"], "live: expected true"),
        (["bridge.emulator.port=null"], "standard input: expected a terminal"),
        (["evaluate.world=simulation"], "evaluate.world: expected 'arm'"),
        (["evaluate.seed=499"], "positions 499 to 500 hold 1 that the demos"),
        (["env.rate_hz=20"], "the policy acts at 10 Hz, got 20 Hz"),
        (["env.lighting=2"], "env.lighting: expected 1.0 as in the running `s2robot emulate`, got 2.0"),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_error_line_and_nothing_moves(config, emulator, monkeypatch, overrides, text):
    monkeypatch.setattr("sys.stdin", open(os.devnull))
    begin = time.monotonic()
    refuses(re.escape(text), verbs.evaluate, config(*overrides))
    assert emulator.commands(begin) == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        *(([verb, "evaluate=arm"], "evaluate: expected default") for verb in ("run", "compare")),
        (["evaluate", "checkpoint=x", "evaluate.world=arm"], "evaluate.world: expected 'simulation'"),
        (["evaluate", "checkpoint=null"], "checkpoint: expected a string"),
        (["evaluate", "evaluate=arm", "checkpoint=x"], "live: expected true (`--live`)"),
        *((["deploy", *words], f"{words[0].split('=')[0]}: expected ")
          for words in (["--episodes"], ["--record", "--live"], ["--live=yes"])),
    ],
)  # fmt: skip
def test_wrong_command_lines_are_one_error_line(tmp_path, capsys, words, text):
    assert main([words[0], f"hydra.run.dir='{tmp_path}'", *words[1:]]) == 2
    assert text in capsys.readouterr().err


def test_operator_prompts_and_the_keys_that_judge_an_episode():
    """test_bench.py covers keys and prompts at a terminal."""
    prompts, answers, stop = [], ["", "x", "2", "y", "y", "y"], Stop()
    person = TerminalOperator(lambda question: (prompts.append(question), answers.pop(0))[1])
    operator = WatchingOperator(person, stop, read_keys=lambda on_key: nullcontext())
    assert operator.stage() == "lift" and len(prompts) == 3  # repeated until answered
    operator.trouble = "move: found arm error 31"  # from the previous attempt
    assert operator.free(()) and operator.trouble in prompts[3] and stop.moving and len(answers) == 1
    operator.on_key("y")  # ignored on the way to the start
    assert not operator.ended()
    operator.acting = True  # the loop has started
    operator.on_key("n")
    assert operator.ended() and operator.t_end is not None
    assert not operator.success() and not stop.moving
    teleop = WatchingOperator(person, stop, read_keys=lambda on_key: nullcontext(), take_key=answers.append)
    assert teleop.free(()) and (teleop.on_key(" ") or stop.requested) and not answers


def test_operator_evaluates_at_the_terminal(config, emulator, tmp_path, capsys):
    """The operator presses y during the first episode and declines the second."""
    prompts, scene = [], EmulatedOperator(emulator)

    def ask(question):
        prompts.append(question)
        return "n" if sum("Place the cube" in q for q in prompts) == 2 else "y"

    class Person(TerminalOperator):
        def place(self, placing):
            scene.place(placing)
            return super().place(placing)

    with ExitStack() as stack:
        cfg = config("env.max_steps=200", "evaluate.videos=false")
        found = evaluation(stack, cfg, operator=Person(ask), read_keys=lambda on_key: nullcontext())
        press = Calls(step=lambda step: len(found.log.actions) == 3 and found.session.operator.on_key("y"))
        found.session.runtime.loop.subscribers.append(press)
        assert refuses("operator: motion was not permitted", found.run).status == 1
    (r,) = records(tmp_path)
    assert r["success"] and 3 <= r["steps"] <= 5 and r["time_to_success_s"] > 0.4 and r["closest_m"] is None
    assert r["stage"] == "held" and r["video"] is None and not (tmp_path / "videos").exists()
    assert len(np.load(tmp_path / "actions/episode_0000.npy")) == r["steps"]
    assert "Place the cube at" in prompts[-1] and "open its gripper and move" in prompts[-2]
    assert "1 of 2 episodes are done; hydra.run.dir=" in capsys.readouterr().out
    assert emulator("status")["state"] >= 4


def test_scene_changes_are_rejected_on_a_real_arm():
    check_world(CubePickConfig(cube_size=0.03), None)
    refuses("env.clutter: expected 0 on an arm", check_world, CubePickConfig(clutter=3), None)
