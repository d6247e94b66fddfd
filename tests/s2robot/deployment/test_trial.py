"""`s2robot trial` against `s2robot emulate` and a simulated arm, with scripted answers and policies that nobody trained."""

import json
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from s2robot.comparison.trial import TrialSettings, run_trial
from s2robot.core.files import configs_dir
from s2robot.core.parts import plain
from s2robot.core.settings import read_some
from s2robot.deployment.trial import on_arm
from s2robot.envs.real.emulator.stand_in import EmulatedOperator
from s2robot.envs.real.operator.prompts import TrialOperator
from tests.envs.real.home import OWN, described
from tests.envs.real.virtual import Calls

pytest.importorskip("xarm")


@pytest.fixture(scope="module")
def policies(save_untrained, slow_policy, tmp_path_factory):
    """Two of different cameras and seeds."""
    other = tmp_path_factory.mktemp("other") / "checkpoint"
    return str(slow_policy), str(save_untrained(other, {"cameras": ["left"]}, 0.002, cameras=["left"]))


def words(policies):
    a, b = policies
    return [f"a='{a}'", f"b='{b}'", "live=true", "env.max_steps=3", "videos=false"]


def run(cfg, ask, scene=None, prepare=lambda arms: None):
    """A whole trial in this process, with a person who answers by `ask`."""
    settings, out = read_some(TrialSettings, cfg), Path(cfg.run_dir)
    with ExitStack() as stack:

        def connect(folders):
            quiet = {"read_keys": lambda on_key: nullcontext()}
            arms = on_arm(cfg, folders, stack, TrialOperator(ask, scene), **quiet)
            prepare(arms)
            return arms

        return run_trial(settings, out, connect)


def answers(outcomes):
    """`y` to all but the outcome, which comes from `outcomes`; KeyboardInterrupt when there are none."""

    def ask(question):
        if "Did it succeed" in question or "FAULT: " in question and "failure" in question:
            try:
                return next(outcomes)
            except StopIteration:
                raise KeyboardInterrupt from None
        return "0" if "How far" in question else "y"

    return ask


def test_a_trial_on_the_emulator_is_blind_survives_a_crash_and_counts_voids(
    arm_config, emulator, policies, tmp_path, capsys
):
    cfg = arm_config("trial", *words(policies), "pairs=1")
    scene = EmulatedOperator(emulator)
    with suppress(KeyboardInterrupt):
        run(cfg, answers(iter("yv")), scene)
    shown = capsys.readouterr().out
    assert "0 of at most 1 pairs are done" in shown and shown.count("void: it is repeated") == 1
    assert len(list(tmp_path.glob("[12]/actions/*.npy"))) == 1
    assert emulator("status")["state"] >= 4
    assert run(cfg, answers(iter("n")), scene) == 3
    found = json.loads((tmp_path / "stats.json").read_text())
    assert [arm["trials"] for arm in found["arms"]] == [1, 1]
    assert {arm["label"] for arm in found["arms"]} == {*policies}
    shown, _, end = capsys.readouterr().out.partition("The trial has ended.")
    attempts = shown.partition("pair 1 of")[2]
    assert "attempt 2 of 2" in attempts and not any(
        name in attempts for name in (*policies, "folder 1", "folder 2", "policy a:")
    )
    assert "1 void" in end and "0 void" in end
    for folder in "12":
        assert json.loads((tmp_path / folder / "summary.json").read_text())["episodes"] == 1
    assert sum(c["kind"] == "motion" for c in emulator("commands", since=0)["commands"]) > 40
    assert not any(c["unsafe"] for c in emulator("commands", since=0)["commands"])


def test_a_fault_of_one_policy_is_cleared_by_the_operator_before_the_other_moves(
    arm_config, emulator, policies, tmp_path
):
    asked, scene, broken = [], EmulatedOperator(emulator), []

    def breaks(arms):
        for arm in arms:
            step = lambda step: broken or broken.append(emulator.fault("error", code=31))  # noqa: E731
            arm.session.runtime.loop.subscribers.append(Calls(step=step))

    ask = answers(iter("ny"))
    cfg = arm_config("trial", *words(policies), "pairs=1")
    assert run(cfg, lambda question: (asked.append(question), ask(question))[1], scene, breaks) == 3
    fault, cleared = (
        next(i for i, q in enumerate(asked) if text in q) for text in ("n: it counts", "Cleared?")
    )
    assert fault < cleared and "Place the cube" in asked[cleared + 2] and broken
    records = [json.loads((tmp_path / folder / "episodes.jsonl").read_text()) for folder in "12"]
    assert sorted(bool(record["fault"]) for record in records) == [False, True]
    assert all(not record["success"] for record in records if record["fault"])


def test_a_simulated_arm_of_ones_own_is_judged_by_a_person(calm, pictures, save_untrained, tmp_path):
    """Six joints, which no simulated task has: its start is its own."""
    arm = described("ur5e")
    parts = {f"{key}_parts": plain(arm.parts(key)) for key in ("action", "proprio")}
    contract = {"robot": arm.name, "joint_names": list(arm.joint_names), "camera_geometry": {}, **parts}
    own = [
        str(save_untrained(tmp_path / name, contract, 0.003, **parts, action_dim=7, proprio_dim=7))
        for name in "ab"
    ]
    box = ["bridge=simulated", f"run_dir='{tmp_path}'", f"demos.path='{pictures}'", *calm]
    box += ["robot=ur5e", f"hydra.searchpath=[file://{OWN}/configs]"]
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        cfg = compose("trial", [*box, *words(own), "pairs=1"])
    assert run(cfg, answers(iter("yn"))) == 3
    found = json.loads((tmp_path / "stats.json").read_text())
    assert sorted(arm["successes"] for arm in found["arms"]) == [0, 1]
