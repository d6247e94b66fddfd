"""`s2robot trial` against `s2robot emulate` and a simulated arm, with scripted answers and untrained policies."""

import json
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest

from s2robot.comparison.trial import TrialSettings, run_trial
from s2robot.core.settings import read_some
from s2robot.deployment.trial import on_arm
from s2robot.envs.real.operator.prompts import TrialOperator
from tests.configs import composed
from tests.envs.real.home import OWN, described
from tests.envs.real.virtual import Calls

pytest.importorskip("xarm")


def words(a, b):
    return [f"a='{a}'", f"b='{b}'", "live=true", "env.max_steps=3", "videos=false", "pairs=1"]


def run(cfg, outcomes, prompts, prepare=lambda arms: None):
    """Run a trial whose operator confirms every motion, judges by `outcomes`, and presses Ctrl-C after the last one."""
    settings, remaining = read_some(TrialSettings, cfg), iter(outcomes)

    def ask(question):
        prompts.append(question)
        if "v: void" in question and (answer := next(remaining, None)) is None:
            raise KeyboardInterrupt
        return answer if "v: void" in question else "0" if "How far" in question else "y"

    with ExitStack() as stack:

        def connect(folders):
            no_keys = {"read_keys": lambda on_key: nullcontext()}
            prepare(arms := on_arm(cfg, settings, stack, folders, TrialOperator(ask), **no_keys))
            return arms

        return run_trial(settings, Path(cfg.run_dir), connect)


def test_blind_trial_with_fault_and_void(arm_config, emulator, save_untrained, slow_policy, tmp_path, capsys):
    """An arm error ends the first attempt; the second is void and its repetition interrupted. Two cameras, then one."""
    other = save_untrained(tmp_path / "other", {"cameras": ["left"]}, 0.002, cameras=["left"])
    cfg, faults, prompts = arm_config("trial", *words(slow_policy, other)), [], []

    def break_arm(arms):
        for arm in arms:
            step = lambda step: faults or faults.append(emulator.fault("error", code=31))  # noqa: E731
            arm.session.runtime.loop.subscribers.append(Calls(step=step))

    with pytest.raises(KeyboardInterrupt):
        run(cfg, "nv", prompts, break_arm)
    shown = capsys.readouterr().out
    assert "0 of at most 1 pairs are done" in shown and emulator("status")["state"] >= 4
    (record,) = [json.loads(f.read_text()) for f in tmp_path.glob("[12]/episodes.jsonl") if f.stat().st_size]
    assert not record["success"] and "31" in record["fault"] + "command code 31"
    texts = "n: count it", "Is the fault cleared?"
    judged, cleared = (next(i for i, q in enumerate(prompts) if text in q) for text in texts)
    # the other policy moves the arm only after the operator has cleared the fault of the first
    assert judged < cleared and "move to its start" in prompts[cleared + 1]
    assert "Place the cube" in prompts[cleared + 2]

    assert run(cfg, "n", []) == 3
    found = json.loads((tmp_path / "stats.json").read_text())
    assert {arm["label"]: arm["trials"] for arm in found["arms"]} == {str(slow_policy): 1, str(other): 1}
    again, _, end = capsys.readouterr().out.partition("The trial has ended.")
    for attempts in (shown.partition("pair 1 of")[2], again.partition("pair 1 of")[2]):
        assert "attempt 2 of 2" in attempts
        assert not any(name in attempts for name in (str(slow_policy), str(other), "policy a:", "policy b:"))
    assert "2 void" in end and "0 void" in end  # an interrupted attempt counts, too
    assert all(json.loads((tmp_path / f / "summary.json").read_text())["episodes"] == 1 for f in "12")
    commands = emulator.commands(0)
    assert sum(c["kind"] == "motion" for c in commands) > 40 and not any(c["unsafe"] for c in commands)


def test_operator_judges_a_simulated_custom_arm(calm, pictures, save_for, tmp_path, monkeypatch):
    """An arm with six joints, unlike any simulated task, starts at its own home."""
    arm = described("ur5e")
    own = [save_for(arm, tmp_path / name) for name in "ab"]
    box = ["bridge=simulated", f"run_dir='{tmp_path}'", f"demos.path='{pictures}'", *calm]
    box += ["robot=ur5e", f"hydra.searchpath=[file://{OWN}/configs]"]
    cfg = composed("trial", *box, *words(*own))
    monkeypatch.setenv("S2ROBOT_TOKEN", "secret" * 3)
    with pytest.raises(RuntimeError, match="^ws://127.0.0.1:9: "), ExitStack() as stack:
        on_arm(cfg, read_some(TrialSettings, cfg).replace(a="ws://127.0.0.1:9"), stack, [], TrialOperator())
    assert run(cfg, "yn", []) == 3
    found = json.loads((tmp_path / "stats.json").read_text())
    assert sorted(arm["successes"] for arm in found["arms"]) == [0, 1]
