"""`s2robot trial`: order, resuming and the end of a trial whose outcomes are typed by hand."""

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


class Person:
    """Types what ``outcome(policy, pair)`` says, and Ctrl-C before attempt ``stop_at``. `tried`: (pair, policy) of each attempt."""

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

    def run(self, out, given):
        operator = TrialOperator(self.ask)
        status = run_trial(given, out, lambda folders: by_hand(given, {}, folders, operator))
        self.text += self.capsys.readouterr().out
        return status


def alike(policy, pair):
    return "y" if pair % 2 else "n"


@pytest.mark.parametrize("stages", [None, ("missed", "grasped", "held")])
def test_it_stops_when_they_are_told_apart_and_ends_as_stats_does(tmp_path, capsys, stages):
    """By success; or by stages, where both fail, and one comes further."""
    person = Person(capsys, lambda policy, pair: "y" if policy == "good" and not stages else "n")
    assert person.run(tmp_path, settings(stages=stages)) == 0
    needed = next(n for n in range(1, 20) if sequential(np.ones(1), np.array([n]))[0] < 0.05)
    found = json.loads((tmp_path / "stats.json").read_text())
    (pair,) = found["pairs"]
    assert (
        len(person.tried) == 2 * needed
        and (pair["a"], pair["difference"]) == ("good", 1.0)
        and pair["low"] > 0
    )
    again, more = tmp_path / "again", [f"stages=[{','.join(stages)}]"] if stages else []
    assert main(["stats", str(tmp_path), "sequential=true", f"hydra.run.dir={again}", *more]) == 0
    assert json.loads((again / "stats.json").read_text()) == found


def test_both_policies_are_tried_in_each_pair_in_random_order_and_voids_are_repeated(tmp_path, capsys):
    person = Person(capsys, lambda policy, pair: "v" if len(person.tried) == 1 else alike(policy, pair))
    assert person.run(tmp_path, settings()) == 3
    (pair, voided), second, *_ = tried = person.tried
    assert second == (pair, voided) and f"{voided}, 20 attempts and 1 void" in person.text
    pairs = [tried[i : i + 2] for i in range(1, 41, 2)]
    assert all(a[0] == b[0] == i and {a[1], b[1]} == {"good", "poor"} for i, (a, b) in enumerate(pairs))
    assert 1 < sum(a[1] == "good" for a, _ in pairs) < 19


@pytest.mark.parametrize("stop_at", [1, 2, 5])
def test_it_resumes_where_it_was_stopped_in_the_same_order(tmp_path, capsys, stop_at):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    first, second, all_at_once = (Person(capsys, alike, stop_at if i == 0 else None) for i in range(3))
    with pytest.raises(KeyboardInterrupt):
        first.run(stopped, settings(4))
    stored = [line for file in stopped.glob("*/episodes.jsonl") for line in file.read_text().splitlines()]
    assert len(stored) == stop_at  # each before the next is asked
    assert second.run(stopped, settings(4)) == 3
    whole.mkdir()
    (whole / "order.json").write_bytes((stopped / "order.json").read_bytes())
    all_at_once.run(whole, settings(4))
    assert first.tried + second.tried == all_at_once.tried
    with pytest.raises(UserError, match="seed: expected 10000 as when the run began, got 5"):
        second.run(stopped, settings(4, seed=5))


def test_places_of_ones_own_and_wrong_settings_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "places.txt").write_text("Bowl left, spoon right\n\nBowl right, spoon left\n")
    person = Person(capsys, alike)
    assert person.run(tmp_path / "out", settings(2, places="places.txt")) == 3
    assert person.text.count("spoon left") == 2
    with pytest.raises(UserError, match="pairs: expected <= 2, the lines of places.txt, got 3"):
        person.run(tmp_path / "more", settings(3, places="places.txt"))
    monkeypatch.setattr("sys.stdin", open("/dev/null"))
    for words, text in (
        (["b=x"], "b: expected another policy than a"),
        (["b=y"], "live: expected true"),
        (["b=y", "--live", "judge=scene"], "judge: expected person, except with bridge=emulator"),
        (["b=y", "--live", "robot.ip=10.0.0.1"], "standard input: expected a terminal"),
    ):
        assert main(["trial", "a=x", *words]) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1 and not [*tmp_path.glob("runs/*")]
