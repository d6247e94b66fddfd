"""`s2robot trial`: order, resuming and the end of a trial with manually entered outcomes."""

import json

import numpy as np
import pytest

from s2robot.cli import main
from s2robot.comparison.paired import sequential
from s2robot.comparison.trial import TrialSettings, run_trial
from s2robot.core.errors import UserError
from s2robot.deployment.by_hand import by_hand
from s2robot.envs.real.operator.prompts import TrialOperator


def settings(pairs=20, **changes):
    return TrialSettings(a="good", b="poor", by_hand=True, pairs=pairs, **changes)


class Operator:
    """Enters ``outcome(policy, pair)``; Ctrl-C before attempt ``stop_at``. `tried`: (pair, policy) of each attempt."""

    def __init__(self, capsys, outcome, stop_at=None):
        self.capsys, self.outcome, self.stop_at, self.tried, self.text = capsys, outcome, stop_at, [], ""

    def ask(self, question):
        if "How far" in question:
            return "1" if self.tried[-1][1] == "good" else "0"
        if len(self.tried) == self.stop_at:
            raise KeyboardInterrupt
        self.text += (shown := self.capsys.readouterr().out)
        first, *_, last = shown.split("pair ")[-1].splitlines()
        self.tried.append((int(first.split()[0]) - 1, last.removeprefix("Run ").rstrip(".")))
        return self.outcome(*self.tried[-1][::-1])

    def run(self, out, settings):
        operator = TrialOperator(self.ask)
        status = run_trial(settings, out, lambda folders: by_hand(settings, {}, folders, operator))
        self.text += self.capsys.readouterr().out
        return status


def equal_outcome(policy, pair):
    return "y" if pair % 2 else "n"


@pytest.mark.parametrize("stages", [None, ("missed", "grasped", "held")])
def test_trial_stops_at_a_decision_and_writes_the_figures_of_stats(tmp_path, capsys, stages):
    """By success, or by stage where both policies fail and one gets further."""
    operator = Operator(capsys, lambda policy, pair: "y" if policy == "good" and not stages else "n")
    assert operator.run(tmp_path, settings(stages=stages)) == 0
    needed = next(n for n in range(1, 20) if sequential(np.ones(1), np.array([n]))[0] < 0.05)
    figures = json.loads((tmp_path / "stats.json").read_text())
    (pair,) = figures["pairs"]
    assert len(operator.tried) == 2 * needed and pair["low"] > 0
    assert (pair["a"], pair["difference"]) == ("good", 1.0)
    again, more = tmp_path / "again", [f"stages=[{','.join(stages)}]"] if stages else []
    assert main(["stats", str(tmp_path), "sequential=true", f"hydra.run.dir={again}", *more]) == 0
    assert json.loads((again / "stats.json").read_text()) == figures


def test_fault_of_a_policy_does_not_name_it(monkeypatch):
    asked = []
    operator = TrialOperator(lambda question: asked.append(question) or "n")
    operator.failed("policy: PolicyLate: ws://gpu-b:8765: no answer")
    assert "gpu-b" not in asked[0] and "the policy failed. n: " in asked[0]


def test_pairs_try_both_policies_in_random_order_and_repeat_voids(tmp_path, capsys):
    operator = Operator(capsys, lambda *at: "v" if len(operator.tried) == 1 else equal_outcome(*at))
    assert operator.run(tmp_path, settings()) == 3
    (pair, voided), second, *_ = tried = operator.tried
    assert second == (pair, voided) and f"{voided}, 20 attempts and 1 void" in operator.text
    pairs = [tried[i : i + 2] for i in range(1, 41, 2)]
    assert all(a[0] == b[0] == i and {a[1], b[1]} == {"good", "poor"} for i, (a, b) in enumerate(pairs))
    assert 1 < sum(a[1] == "good" for a, _ in pairs) < 19


@pytest.mark.parametrize("stop_at", [1, 2, 5])
def test_trial_resumes_where_it_stopped_in_the_same_order(tmp_path, capsys, stop_at):
    stopped, complete = tmp_path / "stopped", tmp_path / "complete"
    first, second, all_at_once = (Operator(capsys, equal_outcome, stop) for stop in (stop_at, None, None))
    with pytest.raises(KeyboardInterrupt):
        first.run(stopped, settings(4))
    stored = [line for file in stopped.glob("*/episodes.jsonl") for line in file.read_text().splitlines()]
    assert len(stored) == stop_at  # each outcome is stored before the next question
    assert second.run(stopped, settings(4)) == 3
    complete.mkdir()
    (complete / "order.json").write_bytes((stopped / "order.json").read_bytes())
    all_at_once.run(complete, settings(4))
    assert first.tried + second.tried == all_at_once.tried
    with pytest.raises(UserError, match="seed: expected 10000 as when the run began, got 5"):
        second.run(stopped, settings(4, seed=5))


def test_custom_placements_and_wrong_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "places.txt").write_text("Bowl left, spoon right\n\nBowl right, spoon left\n")
    operator = Operator(capsys, equal_outcome)
    assert operator.run(tmp_path / "out", settings(2, places="places.txt")) == 3
    assert operator.text.count("spoon left") == 2
    (tmp_path / "places.txt").write_text("New\nBowl left, spoon right\n")
    with pytest.raises(UserError, match="^places.txt: expected pair 1 at 'Bowl left, .*, got 'New'"):
        operator.run(tmp_path / "out", settings(2, places="places.txt"))
    with pytest.raises(UserError, match="pairs: expected <= 2 \\(lines of places.txt\\), got 3"):
        operator.run(tmp_path / "more", settings(3, places="places.txt"))
    monkeypatch.setattr("sys.stdin", open("/dev/null"))
    for words, text in (
        (["b=x"], "b: expected a policy other than a"),
        (["b=y"], "live: expected true"),
        (["b=y", "--live", "judge=scene"], "judge: expected person, except with bridge=emulator"),
        (["b=y", "--live", "robot.ip=10.0.0.1"], "standard input: expected a terminal"),
    ):
        assert main(["trial", "a=x", *words]) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1 and not [*tmp_path.glob("runs/*")]
