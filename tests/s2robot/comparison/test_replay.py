"""Replays of recorded comparisons with the sequential test: its error rate, and the saved trials."""

from pathlib import Path

import numpy as np
import pytest

from s2robot.comparison.paired import mcnemar, sequential
from s2robot.comparison.replay import MAX_PAIRS, draw_outcomes, fixed_pairs, plan_pairs, stopping_pairs
from s2robot.comparison.trials import StatsSettings, read_arms, stage_wins

RESULTS = Path(__file__).parents[3] / "docs" / "results"


def recorded(name):
    return {arm.label: arm for arm in read_arms(str(RESULTS / f"{name}.json"))}


def test_replay_stops_where_the_sequential_test_does():
    a, b = np.random.default_rng(0).random((2, 1, 60)) < [[[0.8]], [[0.4]]]
    d = np.subtract(*draw_outcomes(a, b, 5, np.random.default_rng(1)))
    for row, end in zip(d, stopping_pairs(d), strict=True):
        p = [sequential(*np.unique(row[:n], return_counts=True))[0] for n in (end - 1, end)]
        assert p[1] <= 0.05 < p[0]
    same = np.subtract(*draw_outcomes(a, a, 3, np.random.default_rng(1)))
    assert stopping_pairs(same).min() == MAX_PAIRS + 1  # never


def test_fixed_number_is_the_smallest_with_the_power_of_the_exact_test():
    x, y = np.arange(20)[None] < 14, np.arange(20)[None] < 4
    d = np.subtract(*draw_outcomes(x, y, 40, np.random.default_rng(2)))
    power = [
        np.mean([mcnemar(int((row[:n] > 0).sum()), int((row[:n] < 0).sum())) <= 0.05 for row in d])
        for n in range(1, 41)
    ]
    assert fixed_pairs(d, 0.8) == 1 + next(n for n, share in enumerate(power) if share >= 0.8)


@pytest.mark.parametrize("stages", [None, ("approach", "grasp", "lift", "held")])
def test_error_rate_is_nominal_and_looks_save_trials(stages):
    """1,000 replays each of a difference of 26 points, by success and by stage, and of no difference."""
    arms = recorded("table10/result")
    a, b = arms["base-s2"], arms["base"]
    x, y = a.outcomes, b.outcomes
    if stages:
        failed = np.random.default_rng(0).choice(stages[:-1], x.shape[1])
        done = [arm.outcomes[:1] for arm in (a, b)]
        reached = [np.where(success, stages[-1], failed) for success in done]
        one = [arm._replace(outcomes=d, stages=s) for arm, d, s in zip((a, b), done, reached, strict=True)]
        x, y = stage_wins(*one, StatsSettings(trials=("a",), stages=stages).stages)
    plan = plan_pairs(x, y, 1000, 0.8)
    assert 0.005 < plan["false"] <= 0.05
    assert plan["mean"] < plan["known"] < plan["enough"]
