"""`s2robot evaluate evaluate=arm` against `s2robot emulate`, with the vendor's SDK and a policy that nobody trained."""

import itertools
import json
import os
import re
import threading
import time
from contextlib import ExitStack, contextmanager
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
from s2robot.envs.errors import EnvError
from s2robot.envs.real.emulator.stand_in import EmulatedOperator
from s2robot.envs.real.operator.prompts import Placing, Stop, TerminalOperator
from s2robot.evaluation.records import read_records

pytest.importorskip("xarm")

ROOT = Path(__file__).resolve().parents[3]
SEED = 10000


@pytest.fixture
def config(slow_policy, arm_config):
    """Makes a config of `s2robot evaluate --live` against the emulator: two episodes of three steps."""
    short = ("live=true", "env.max_steps=3", "evaluate.episodes=2")
    return partial(arm_config, "evaluate", "evaluate=arm", f"checkpoint='{slow_policy}'", *short)


def commands(emulator, begin):
    return emulator("commands", since=begin)["commands"]


def records(folder):
    return read_records(folder / "episodes.jsonl")


def evaluation(stack, cfg, **asked):
    """An evaluation on a connected arm, past the pre-flight."""
    settings = read(ArmEvaluationSettings, cfg.evaluate)
    return ArmEvaluation(Rig(cfg, stack), settings, task_settings(cfg), Path(cfg.run_dir), **asked)


# ---------------------------------------------------------------- end to end


def test_an_evaluation_writes_what_a_simulated_one_writes(config, emulator, slow_policy, tmp_path, capsys):
    begin = time.monotonic()
    verbs.evaluate(config())
    found = commands(emulator, begin)
    assert sum(c["kind"] == "motion" for c in found) > 20 and not any(c["unsafe"] for c in found)
    assert emulator("status")["state"] >= 4  # stopped at the end

    first, second = records(tmp_path)
    for i, r in enumerate((first, second)):
        assert (r["episode"], r["seed"], r["steps"], r["success"]) == (i, SEED + i, 3, False)
        assert (r["stage"], r["fault"], r["world"], r["speed"]) == ("approach", "", "emulated arm", 0.2)
        assert sum(r["verdicts"].values()) == 3 and 0.05 < r["closest_m"] < 0.6
        assert r["video"] == f"videos/episode_000{i}.mp4" and (tmp_path / r["video"]).stat().st_size > 1000
        actions = np.load(tmp_path / f"actions/episode_000{i}.npy")
        assert actions.shape == (3, 8) and actions.dtype == np.float32
    # the cube lies where the simulated episode of that seed has it
    scene = emulator("reset_scene", seed=SEED + 1)
    assert second["cube_xy"] == pytest.approx(scene["cube_pose"][:2], abs=2e-3)

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["episodes"], summary["successes"], summary["faults"]) == (2, 0, 0)
    assert summary["low"] == 0 and summary["high"] == pytest.approx(0.6576, abs=1e-4)  # Wilson, 0 of 2
    assert summary["world"] == "emulated arm" and summary["bridge"]["speed"] == 0.2
    assert summary["success_rule"] == "cube 10 cm up for 0.5 s" and summary["cameras"] == ["hand", "left"]
    assert summary["policy"]["execute"] == 3 and summary["timing"]["wall_s"] > 1
    page = (tmp_path / "report.html").read_text()
    assert "emulated arm" in page and page.count("<video") == 2
    out = capsys.readouterr().out
    assert "ok      robot: xarm7" in out and "episode 2 of 2 (seed 10001): no success, 3 steps" in out

    # one more position is all that a longer one runs
    before = (tmp_path / "actions/episode_0000.npy").stat().st_mtime_ns
    verbs.evaluate(config("evaluate.episodes=3"))
    assert [r["seed"] for r in records(tmp_path)] == [SEED, SEED + 1, SEED + 2]
    assert (tmp_path / "actions/episode_0000.npy").stat().st_mtime_ns == before
    assert [r["video"] is not None for r in records(tmp_path)] == [True] * 3
    with pytest.raises(UserError, match="bridge.speed: expected 0.2 as when the run began, got 0.3"):
        verbs.evaluate(config("bridge.speed=0.3"))


# ---------------------------------------------------------------- what goes wrong


def test_it_holds_where_members_disagree_as_deploy_does(config, emulator, save_untrained, tmp_path):
    pair = save_untrained(tmp_path / "pair", members=2)
    limit = ["bridge.watchdog.disagreement=1e-9", "bridge.watchdog.hold_fault=2"]
    cfg = config(f"checkpoint='{pair}'", "evaluate.episodes=1", "evaluate.videos=false", *limit)
    assert evaluate_on_arm(cfg, tmp_path)["faults"] == 1
    (r,) = records(tmp_path)
    assert r["steps"] == 0 and "members disagree" in r["fault"] and r["disagreement"] > 0


def test_a_fault_fails_its_episode_and_the_next_one_runs(config, emulator, tmp_path, monkeypatch):
    asked = []
    free, looks = (
        EmulatedOperator.free,
        itertools.count(1),
    )  # it looks five times a second while the policy acts
    breaks = lambda self: next(looks) == 8 and not emulator.fault("error", code=31)  # noqa: E731
    monkeypatch.setattr(EmulatedOperator, "free", lambda self, why: asked.append(why) or free(self, why))
    monkeypatch.setattr(EmulatedOperator, "ended", breaks)
    with ExitStack() as stack:
        summary = evaluation(stack, config("env.max_steps=8", "evaluate.videos=false")).run()
    first, second = records(tmp_path)
    assert not first["success"] and re.search("arm error 31|command code", first["fault"])
    assert 1 < first["steps"] < 8
    assert second["fault"] == "" and second["steps"] == 8
    assert summary["faults"] == 1 and summary["episodes"] == 2
    assert asked[-1] == tuple(first["fault"].split("; "))  # told before the arm moved again


def test_an_arm_that_does_not_come_to_the_start_ends_all(config, emulator, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(EmulatedOperator, "free", lambda self, fault: True)  # clears nothing
    emulator.fault("error", code=31)
    with ExitStack() as stack:
        found = evaluation(stack, config())
        with pytest.raises(EnvError, match="error 31 pending"):
            found.run()
    emulator("clear_error")
    assert "0 of 2 episodes are done" in capsys.readouterr().out
    assert not (tmp_path / "summary.json").exists()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["live=false"], "live: expected true"),
        (["bridge.emulator.port=null"], "standard input: expected a terminal"),
        (["evaluate.world=simulation"], "evaluate.world: expected 'arm'"),
        (["evaluate.seed=499"], "positions 499 to 500 hold 1 that the demos"),
        (["env.rate_hz=20"], "the policy acts at 10 Hz, given are 20 Hz"),
        (["env.lighting=2"], "env.lighting: expected 1.0 as the running `s2robot emulate` has it, got 2.0"),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_line_and_nothing_moves(config, emulator, monkeypatch, overrides, text):
    monkeypatch.setattr("sys.stdin", open(os.devnull))
    begin = time.monotonic()
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        verbs.evaluate(config(*overrides))
    assert caught.value.user_error and "\n" not in str(caught.value)
    assert commands(emulator, begin) == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run", "evaluate=arm"], "evaluate: expected one of default"),
        (["compare", "evaluate=arm"], "evaluate: expected one of default"),
        (["evaluate", "checkpoint=x", "evaluate.world=arm"], "evaluate.world: expected 'simulation'"),
        (["evaluate", "checkpoint=null"], "checkpoint: expected a string"),
        (["evaluate", "evaluate=arm", "checkpoint=x"], "live: expected true (`--live`)"),
    ],
)  # fmt: skip
def test_wrong_words_are_one_line(tmp_path, capsys, words, text):
    assert main([*words, f"hydra.run.dir='{tmp_path}'"]) == 2
    assert text in capsys.readouterr().err


# ---------------------------------------------------------------- a person beside the arm


PLACING = Placing(3, (0.05, -0.03), 0.5, np.zeros(7))


class Terminal:
    """A person who answers from a list and presses keys; notes whether keys were read while a question was asked."""

    def __init__(self, *answers):
        self.answers, self.asked, self.press = list(answers), [], None

    @contextmanager
    def keys(self, on_key):
        self.press = on_key
        yield
        self.press = None

    def ask(self, question):
        assert self.press is None  # a question on a terminal whose keys are read gets no answer
        self.asked.append(question)
        return self.answers.pop(0)


def watching(*answers):
    person, stop = Terminal(*answers), Stop()
    return person, stop, WatchingOperator(TerminalOperator(person.ask), stop, read_keys=person.keys)


def test_keys_judge_and_stop_while_the_arm_moves_and_questions_are_for_when_it_stands():
    person, stop, operator = watching("y", "y")
    assert operator.free(()) and stop.moving
    person.press("y")  # on the way to the start: no judgement
    assert operator.place(PLACING) and stop.moving and not operator.ended()
    operator.acting = True  # the loop has begun
    person.press("n")
    assert operator.ended() and operator.t_end is not None
    assert not operator.success() and not stop.moving and person.press is None
    person.answers = ["", "x", "2"]  # asked until it is answered
    assert operator.stage() == "lift" and len(person.asked) == 5
    operator.begin()
    person.answers = ["y", "maybe", "Y"]
    assert operator.place(PLACING) and operator.t_end is None
    assert operator.success() and operator.closest is None  # the steps were over
    operator.begin()
    operator.trouble = "move: found arm error 31"
    person.answers = ["y", "y", "n"]
    assert operator.free(()) and "FAULT: move: found arm error 31" in person.asked[-2]
    person.press(" ")
    assert stop.asked()
    assert not operator.place(PLACING) and not stop.moving


def test_a_person_evaluates(config, emulator, tmp_path, monkeypatch, capsys):
    """Questions on the terminal; the key y in the middle of the first episode, and a no to the second."""
    person = Terminal()
    scene = EmulatedOperator(emulator)

    def ask(question):
        person.asked.append(question)
        return "n" if sum("Place the cube" in q for q in person.asked) == 2 else "y"

    person.ask = ask

    class Person(TerminalOperator):
        def place(self, placing):
            scene.place(placing)
            return super().place(placing)

    @contextmanager
    def keys(on_key):
        timer = threading.Timer(4.0, on_key, "y")
        timer.start()
        yield
        timer.cancel()

    with ExitStack() as stack:
        cfg = config("env.max_steps=200", "evaluate.videos=false")
        found = evaluation(stack, cfg, operator=Person(person.ask), read_keys=keys)
        with pytest.raises(UserError, match="operator: expected a yes"):
            found.run()
    (r,) = records(tmp_path)
    assert r["success"] and r["steps"] < 100 and 1 < r["time_to_success_s"] < 30 and r["closest_m"] is None
    assert r["stage"] == "held" and r["video"] is None and not (tmp_path / "videos").exists()
    assert len(np.load(tmp_path / "actions/episode_0000.npy")) == r["steps"]
    assert "Place the cube at" in person.asked[-1] and "opens its gripper and moves" in person.asked[-2]
    assert "1 of 2 episodes are done; hydra.run.dir=" in capsys.readouterr().out
    assert emulator("status")["state"] >= 4


def test_a_real_arm_has_no_scene_to_change():
    check_world(CubePickConfig(cube_size=0.03), None)
    with pytest.raises(UserError, match="env.clutter: expected 0 on an arm"):
        check_world(CubePickConfig(clutter=3), None)
