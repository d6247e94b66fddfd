"""`s2robot trial`: order, blinding, resuming and the end of a trial, with scripted outcomes and typed ones."""

import itertools
import json

import numpy as np
import pytest

from s2robot.cli import main
from s2robot.comparison.paired import sequential
from s2robot.comparison.trial import TrialSettings, _coin, by_hand, run_trial
from s2robot.core.errors import UserError
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.real.operator.prompts import TrialOperator


def settings(**changes):
    return TrialSettings(a="good", b="poor", by_hand=True, **changes)


class Bench:
    """A person who types what ``outcome(policy, pair)`` says: y, n or v. `asked`: (pair, policy) of each attempt."""

    def __init__(self, capsys, outcome, stop_at=None):
        self.capsys, self.outcome, self.stop_at, self.asked, self.text = capsys, outcome, stop_at, [], ""

    def ask(self, question):
        self.text += (shown := self.capsys.readouterr().out)
        if "Did it succeed" in question:
            if len(self.asked) == self.stop_at:
                raise KeyboardInterrupt
            lines = shown.split("pair ")[-1].splitlines()
            self.asked.append((int(lines[0].split()[0]) - 1, lines[-1].removeprefix("Run ").rstrip(".")))
            return self.outcome(*self.asked[-1][::-1])
        return "1"

    def run(self, out, given=None):
        given = given or settings(pairs=20)
        operator = TrialOperator(self.ask, stages=given.stages or ())
        status = run_trial(given, out, lambda folders: by_hand(given, CubePickConfig(), folders, operator))
        self.text += self.capsys.readouterr().out
        return status


def wins(policy, pair):
    return "y" if policy == "good" else "n"


def test_it_stops_when_they_are_told_apart_and_ends_as_stats_does(tmp_path, capsys):
    bench = Bench(capsys, wins)
    assert bench.run(tmp_path) == 0
    needed = next(n for n in range(1, 20) if sequential(np.ones(1), np.array([n]))[0] < 0.05)
    assert len(bench.asked) == 2 * needed and "good" not in bench.text.split("Run")[0]
    found = json.loads((tmp_path / "stats.json").read_text())
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"], pair["difference"]) == ("good", "poor", 1.0) and pair["low"] > 0
    assert [arm["successes"] for arm in found["arms"]] == [needed, 0]
    again = tmp_path / "again"
    assert main(["stats", str(tmp_path), "sequential=true", f"hydra.run.dir={again}"]) == 0
    assert json.loads((again / "stats.json").read_text())["pairs"] == found["pairs"]


def test_equal_policies_are_not_told_apart_and_the_order_is_random_in_each_pair(tmp_path, capsys):
    bench = Bench(capsys, lambda policy, pair: "y" if pair % 2 else "n")
    assert bench.run(tmp_path) == 3
    pairs = [bench.asked[i : i + 2] for i in range(0, 40, 2)]
    assert all({policy for _, policy in pair} == {"good", "poor"} for pair in pairs)
    assert 2 < sum(pair[0][1] == "good" for pair in pairs) < 18
    assert all(a[0] == b[0] == i for i, (a, b) in enumerate(pairs))
    keys = [f"{i:x}" for i in range(2000)]
    assert abs(np.mean([_coin(key, "pair 3") for key in keys]) - 0.5) < 0.04


@pytest.mark.parametrize("stop_at", [1, 2, 5])
def test_it_resumes_where_it_was_stopped_in_the_same_order(tmp_path, capsys, stop_at):
    first = Bench(capsys, lambda policy, pair: "y" if pair % 2 else "n", stop_at)
    with pytest.raises(KeyboardInterrupt):
        first.run(tmp_path / "stopped", settings(pairs=4))
    stored = sorted((tmp_path / "stopped").glob("*/episodes.jsonl"))
    assert (
        sum(len(file.read_text().splitlines()) for file in stored) == stop_at
    )  # each before the next is asked
    second = Bench(capsys, first.outcome)
    assert second.run(tmp_path / "stopped", settings(pairs=4)) == 3
    whole = Bench(capsys, first.outcome)
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "order.json").write_bytes((tmp_path / "stopped" / "order.json").read_bytes())
    whole.run(tmp_path / "whole", settings(pairs=4))
    assert first.asked + second.asked == whole.asked
    with pytest.raises(UserError, match="seed: expected 10000 as when the run began, got 5"):
        second.run(tmp_path / "stopped", settings(pairs=4, seed=5))


def test_a_void_attempt_is_repeated_and_counted(tmp_path, capsys):
    answers = itertools.chain("v", itertools.repeat("n"))
    bench = Bench(capsys, lambda policy, pair: next(answers))
    assert bench.run(tmp_path, settings(pairs=2)) == 3
    assert len(bench.asked) == 5 and bench.asked[0] == bench.asked[1]
    assert (
        f"{bench.asked[0][1]}, 2 attempts and 1 void" in bench.text and "2 attempts and 0 void" in bench.text
    )


def test_stages_decide_where_both_fail(tmp_path, capsys):
    bench = Bench(capsys, lambda policy, pair: "n")
    ask = bench.ask
    bench.ask = lambda question: (
        ask(question) if "How far" not in question else {"good": "1", "poor": "0"}[bench.asked[-1][1]]
    )
    assert bench.run(tmp_path, settings(pairs=20, stages=("missed", "grasped", "held"))) == 0
    assert (
        len(bench.asked) < 40
        and (tmp_path / "episodes.csv").read_text().count("grasped") == len(bench.asked) / 2
    )


def test_places_of_ones_own_and_wrong_settings_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "places.txt").write_text("Bowl left, spoon right\n\nBowl right, spoon left\n")
    bench = Bench(capsys, wins)
    assert bench.run(tmp_path / "out", settings(pairs=2, places=tmp_path / "places.txt")) == 3
    assert bench.text.count("spoon left") == 2
    for words, text in (
        (["a=x", "b=x"], "b: expected another policy than a"),
        (["a=x"], "b: expected a value"),
        (["a=x", "b=y"], "live: expected true"),
        (["a=x", "b=y", "places=p"], "places: expected null without by_hand=true"),
        (["a=x", "b=y", "by_hand=true", "places=places.txt"], "pairs: expected at most the 2 lines"),
        (["a=x", "b=y", "by_hand=true", "places=none.txt"], "none.txt: cannot be read"),
        (["a=x", "b=y", "--live", "judge=scene"], "judge: expected person, except with bridge=emulator"),
        (["a=x", "b=y", "--live", "robot.ip=10.0.0.1"], "standard input: expected a terminal"),
    ):
        monkeypatch.setattr("sys.stdin", open("/dev/null"))
        assert main(["trial", *words]) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1
