"""How often an arm's interval holds and how wide it is, in simulated comparisons whose truth is known."""

import numpy as np
import pytest

from benchmarks.interval_coverage import LOOK, arms, draw, looks, scores
from s2robot.comparison.intervals import bounds, success_interval, success_sequence
from s2robot.core.errors import UserError
from s2robot.evaluation.records import wilson
from s2robot.probing.report import seeds_interval

RATES = (0.5, 0.9, 0.95, 0.98, 0.99)
ERROR = 0.008  # of a coverage from 3000 runs: two standard errors


@pytest.mark.parametrize("rate", [0.5, 0.95])
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("spread", "hard"), [(0.0, 0.0), (0.0, 0.8), (0.1, 0.3), (0.2, 0.0)])
def test_new_seeds_and_positions_are_covered(seeds, spread, hard, rate):
    """All independent; positions dominate; both; seeds dominate."""
    found = arms(np.random.default_rng(0), 1500, seeds, rate, spread, hard)
    assert found["covered"] > 0.93 - ERROR


def test_seeds_that_plainly_differ_get_students_quantile():
    x = np.zeros((3, 128), bool)
    for row, successes in enumerate((125, 118, 111)):
        x[row, :successes] = True
    low, high, method = success_interval(x)
    pooled = wilson(354, 384)
    assert high - low > 2.5 * (pooled[1] - pooled[0]) and "Student" in method
    assert low < 354 / 384 < high


@pytest.mark.parametrize("spread, hard", [(0.0, 0.8), (0.2, 0.3), (0.2, 0.0)])
def test_a_score_of_pictures_and_three_seeds_is_covered(spread, hard):
    """Where seeds dominate a bootstrap over both covers too seldom; where pictures do, both are alike."""
    found = scores(np.random.default_rng(6), 300, 3, 0.5, spread, hard)
    assert found["t"] > 0.95 - 0.035  # nearly three standard errors of 300 runs
    if spread:
        assert found["bootstrap"] < 0.8
    else:
        assert found["bootstrap"] > 0.92 and 0.9 < found["wider"] < 1.2


def test_a_score_of_one_seed_or_none_known():
    rng = np.random.default_rng(0)
    one = seeds_interval(rng.normal(0.5, 0.01, (500, 1)))
    assert one["high"] - one["low"] == pytest.approx(2 * 1.96 * 0.01, rel=0.1)
    alike = seeds_interval(np.repeat(rng.normal(0.5, 0.01, (500, 1)), 3, 1))
    assert alike["low"] <= alike["value"] <= alike["high"]
    assert seeds_interval(np.full((5, 2), np.nan)) == {"value": None, "low": None, "high": None}


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
    assert sequence > 0.95 and fixed < 0.95
    x = draw(np.random.default_rng(5), 1, 3, rate, 0.0, 0.3)[0].astype(bool)
    widths = []
    for n in range(LOOK, 129, LOOK):
        low, high, method = success_sequence(x[:, :n])
        assert 0 <= low <= x[:, :n].mean() <= high <= 1 and low < rate < high
        widths.append(high - low)
    assert widths[-1] < widths[0] and widths[-1] < 3 * np.subtract(*success_interval(x)[1::-1])
    assert "for these trained policies" in method
