"""How often an arm's interval holds and how wide it is, in simulated comparisons whose truth is known."""

import numpy as np
import pytest

from benchmarks.interval_coverage import LOOK, arms, draw, looks
from s2robot.common.errors import UserError
from s2robot.comparison.intervals import bounds, success_interval, success_sequence
from s2robot.evaluation.records import wilson

RATES = (0.5, 0.9, 0.95, 0.98, 0.99)
ERROR = 0.008  # of a coverage from 3000 runs: two standard errors


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("seeds", [3, 5])
def test_independent_seeds_are_covered_and_the_interval_is_as_wide_as_wilsons(seeds, rate):
    found = arms(np.random.default_rng(0), 3000, seeds, rate, 0.0, 0.0)
    assert 0.93 - ERROR < found["covered"] < 0.97 + ERROR
    assert 0.85 < found["median"] < 1.15
    assert found["episodes"] > 0.85 * seeds * 128


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("seeds", "spread", "hard"), [(3, 0.0, 0.3), (3, 0.05, 0.3), (5, 0.05, 0.3)])
def test_seeds_that_differ_and_positions_that_are_hard_for_all_are_covered(seeds, spread, hard, rate):
    found = arms(np.random.default_rng(1), 3000, seeds, rate, spread, hard)
    assert 0.93 - ERROR < found["covered"] < 0.97 + ERROR


def test_ten_seeds_are_within_15_percent_of_wilson_on_average_too():
    for rate in RATES:
        assert arms(np.random.default_rng(2), 1500, 10, rate, 0.0, 0.0)["mean"] < 1.15


def test_three_seeds_at_98_percent_count_as_what_they_are():
    """83 of 384 episodes was what pseudo-counts, made for differences, left of them."""
    x = np.ones((3, 128), bool)
    x[[0, 0, 1, 1, 1, 2, 2, 2], [3, 90, 17, 55, 120, 40, 71, 101]] = False
    low, high, method = success_interval(x)
    assert (low, high) == pytest.approx(wilson(376, 384), abs=2e-3)
    assert method == "Wilson, as of 384 independent episodes; training seeds differ no more than by chance"


def test_seeds_that_plainly_differ_get_students_quantile():
    x = np.zeros((3, 128), bool)
    for row, successes in enumerate((125, 118, 111)):
        x[row, :successes] = True
    low, high, method = success_interval(x)
    pooled = wilson(354, 384)
    assert high - low > 2.5 * (pooled[1] - pooled[0]) and method.endswith("training seeds differ: t quantile")
    assert low < 354 / 384 < high


def test_odd_shapes_and_all_or_nothing_have_an_interval():
    for shape in ((1, 1), (2, 1), (1, 2), (2, 2), (7, 3)):
        for x in (np.zeros(shape), np.ones(shape)):
            low, high, _ = success_interval(x)
            assert 0 <= low <= x.mean() <= high <= 1 and high - low > 0.05
    low, high, _ = success_interval(np.array([[1], [0]]))
    assert 0 <= low < 0.5 < high <= 1
    with pytest.raises(UserError, match="confidence must lie between 0 and 1, found 95"):
        success_interval(np.ones((2, 2)), 95)


def test_many_arms_at_once_are_one_at_a_time():
    x = draw(np.random.default_rng(3), 20, 3, 0.9, 0.05, 0.3)
    low, high, *_ = bounds(x)
    for i, one in enumerate(x):
        assert success_interval(one.astype(bool))[:2] == pytest.approx((low[i], high[i]), abs=1e-12)


@pytest.mark.parametrize("rate", [0.5, 0.98])
def test_an_arm_stopped_early_is_inside_at_every_look_and_a_fixed_interval_is_not(rate):
    sequence, fixed = looks(np.random.default_rng(4), 300, 3, rate, 0.3)
    assert sequence > 0.95 and fixed < 0.93
    x = draw(np.random.default_rng(5), 1, 3, rate, 0.0, 0.3)[0].astype(bool)
    widths = []
    for n in range(LOOK, 129, LOOK):
        low, high, method = success_sequence(x[:, :n])
        assert 0 <= low <= x[:, :n].mean() <= high <= 1 and low < rate < high
        widths.append(high - low)
    assert widths[-1] < widths[0] and widths[-1] < 3 * np.subtract(*success_interval(x)[1::-1])
    assert "for these trained policies" in method
