"""Statistics of paired arms against closed forms, other libraries, full enumeration and simulations of a known truth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.special import betaln, ndtri
from statsmodels.stats import contingency_tables, multitest

from benchmarks import interval_coverage as coverage
from s2robot.comparison import paired
from s2robot.core.errors import UserError
from s2robot.evaluation.records import wilson


def simulate(rng, runs, seeds, positions, rates, seed_sd=0.0, shared=0.4, own=0.1):
    """Return two arms, bool (runs, seeds, positions): seeds differ by seed_sd, a hard position is hard for all.

    `shared` and `own` are a position's parts of a normal latent variable, for both arms and for one arm.
    """
    hard = math.sqrt(shared) * rng.standard_normal((runs, 1, positions))
    arms = []
    for rate in rates:
        level = np.clip(rate + seed_sd * rng.standard_normal((runs, seeds, 1)), 0.01, 0.99)
        position = math.sqrt(own) * rng.standard_normal((runs, 1, positions))
        noise = math.sqrt(1 - shared - own) * rng.standard_normal((runs, seeds, positions))
        arms.append(ndtri(level) + hard + position + noise > 0)
    return arms


def estimates(a, b, seeds_random=True):
    """Return half width at 95 %, centre and p value of many runs at once, computed like `difference`."""
    a, b = a.astype(float), b.astype(float)
    centre, error, df = paired.estimate(a.mean(-2) - b.mean(-2), [a, b] if seeds_random else [])
    return stats.t.ppf(0.975, df) * error, centre, 2 * stats.t.sf(np.abs(centre) / error, df)


def records(outcomes, order=None):
    return [{"seed": 100 + int(i), "success": bool(outcomes[i])} for i in order or range(len(outcomes))]


def test_means_over_disturbances_keep_the_error_rate():
    chance = np.random.default_rng(1).random((2000, 10))
    a, b = (np.random.default_rng(i).binomial(50, chance)[:, None] / 50 for i in (2, 3))
    found = [paired.difference(x, y, trials=50).p < 0.05 for x, y in zip(a, b, strict=True)]
    assert 0.01 < np.mean(found) < 0.06


def test_outcomes_are_sorted_and_missing_positions_are_named():
    rng = np.random.default_rng(0)
    arms = {"base": rng.random((3, 7)) < 0.5, "s2": rng.random((2, 7)) < 0.5}
    order = [3, 0, 6, 1, 2, 5, 4]
    runs = {arm: {i: records(x[i], order) for i in range(len(x))[::-1]} for arm, x in arms.items()}
    outcomes = paired.outcomes_of(runs)
    assert list(outcomes) == ["base", "s2"] and all(x.dtype == bool for x in outcomes.values())
    assert all((outcomes[arm] == arms[arm]).all() for arm in arms)
    with pytest.raises(UserError, match="arm 's2' seed 4: .* got no position 101"):
        paired.outcomes_of({"base": {0: records([1, 0])}, "s2": {4: records([1])}})
    with pytest.raises(UserError, match="arm 'base' seed 1: .* got another position 101"):
        paired.outcomes_of({"base": {0: records([1]), 1: records([1, 0])}})


@pytest.mark.parametrize(("b", "c"), [(0, 0), (3, 0), (7, 1), (60, 90)])
def test_mcnemar_matches_statsmodels(b, c):
    expected = contingency_tables.mcnemar([[5, b], [c, 9]], exact=True).pvalue
    assert paired.mcnemar(b, c) == paired.mcnemar(c, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("p", [[0.3], [0.5, 0.5, 0.9, 0], [0.02, 0.02, 0.001, 1, 0.03]])
def test_holm_matches_statsmodels(p):
    assert paired.holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1].tolist(), abs=1e-12)


def table(both, a_only, b_only, neither):
    a, b = np.repeat([[1, 1, 0, 0], [1, 0, 1, 0]], [both, a_only, b_only, neither], axis=1).astype(bool)
    return a[None], b[None]


def test_one_seed_matches_agresti_and_min_by_hand():
    result = paired.difference(*table(1, 1, 7, 12))
    centre, half = -6 / 23, 1.959964 * math.sqrt(9 - 36 / 23) / 23  # cells plus a half each: 1.5, 7.5; n = 23
    assert (result.low, result.high) == pytest.approx((centre - half, centre + half), abs=1e-6)
    assert result.difference == pytest.approx(-6 / 21)
    assert result.p == pytest.approx(paired.mcnemar(1, 7))
    assert result.scope == paired.POSITIONS


def test_interval_of_identical_arms_has_a_width():
    for arms in (table(5, 0, 0, 0), (np.ones((3, 5)), np.ones((3, 5)))):
        result = paired.difference(*arms)
        assert result.difference == 0 and result.low == -result.high < -0.1 and result.p == 1
    one_sided = paired.difference(*table(0, 5, 0, 0))
    assert one_sided.difference == one_sided.high == 1 and one_sided.low < 0.9


def test_planted_difference_is_recovered():
    a, b = simulate(np.random.default_rng(1), 1000, 3, 128, (0.7, 0.5), seed_sd=0.02)
    half, centre, p = estimates(a, b)
    assert (np.abs(centre - 0.2) <= half).mean() > 0.94
    assert (p < 0.05).mean() > 0.95 and centre.mean() == pytest.approx(0.2 * 128 / 130, abs=0.005)
    one = paired.difference(a[0], b[0])
    assert one.low < 0.2 < one.high and one.scope == paired.SEEDS_AND_POSITIONS
    assert (one.high - one.low) / 2 == pytest.approx(half[0])
    assert one.p == pytest.approx(p[0]) and one.difference == pytest.approx(a[0].mean() - b[0].mean())


@pytest.mark.parametrize("seed_sd", [0.0, 0.12])
@pytest.mark.parametrize("seeds", [2, 5])
def test_equal_arms_are_rejected_at_the_nominal_rate(seeds, seed_sd):
    a, b = simulate(np.random.default_rng(2), 1000, seeds, 64, (0.6, 0.6), seed_sd)
    rejected = (estimates(a, b)[2] < 0.05).sum()
    assert rejected <= stats.binom.ppf(0.999, 1000, 0.06)  # 5 %, plus one point for the approximation
    assert rejected >= 2 if seeds == 2 else rejected >= 10  # it must reject sometimes


def test_interval_covers_widely_differing_seeds_unlike_a_pooled_one():
    a, b = simulate(np.random.default_rng(5), 1000, 4, 128, (0.6, 0.6), seed_sd=0.1)
    half, centre, _ = estimates(a, b)
    blind, _, _ = estimates(a, b, seeds_random=False)
    assert (np.abs(centre) <= half).mean() > 0.935
    assert (np.abs(centre) <= blind).mean() < 0.65


SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 12))


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.data())
def test_swapping_arms_flips_signs_and_order_does_not_matter(shape, data):
    a, b = (data.draw(arrays(bool, (k, shape[2]))) for k in shape[:2])
    result, swapped = paired.difference(a, b), paired.difference(b, a)
    assert result.difference == pytest.approx(-swapped.difference)
    assert (result.low, result.high) == pytest.approx((-swapped.high, -swapped.low))
    assert result.p == pytest.approx(swapped.p) and 0 <= result.p <= 1
    assert -1 <= result.low <= result.difference <= result.high <= 1
    order = data.draw(st.permutations(range(shape[2])))
    again = paired.difference(a[::-1, order], b[:, order])
    assert (again.low, again.high, again.p) == pytest.approx((result.low, result.high, result.p))
    p, low, high = look = paired.sequential(*paired.tally(a, b))
    other = paired.sequential(*paired.tally(b[:, order], a[:, order]))
    assert look == pytest.approx((other[0], -other[2], -other[1]), abs=1e-9)
    assert low <= result.difference <= high and 0 < p <= 1 and (p <= 0.05) == (not low <= 0 <= high)


@pytest.mark.parametrize("rate", [0.5, 0.95])
@pytest.mark.parametrize(("seeds", "spread", "hard"), [(3, 0.0, 0.0), (5, 0.0, 0.8), (3, 0.1, 0.3), (5, 0.2, 0.0)])  # fmt: skip
def test_interval_covers_new_seeds_and_positions(seeds, spread, hard, rate):
    """Independent outcomes; dominant positions; both effects; dominant seeds."""
    result = coverage.arms(np.random.default_rng(0), 1500, seeds, rate, spread, hard)
    assert result["covered"] > 0.93 - 0.008  # two standard errors


def test_one_seed_is_wilson_and_extreme_outcomes_have_an_interval():
    assert paired.success_interval(np.arange(16)[None] < 11)[:2] == pytest.approx(wilson(11, 16))
    for shape in ((1, 1), (2, 1), (7, 3)):
        for x in (np.zeros(shape), np.ones(shape)):
            low, high, _ = paired.success_interval(x)
            assert 0 <= low <= x.mean() <= high <= 1 and high - low > 0.05
    low, high, _ = paired.success_interval(np.array([[1], [0]]))
    assert 0 <= low < 0.5 < high <= 1


def log_e(wins, losses):
    return (wins + losses) * math.log(2) + betaln(wins + 1, losses + 1)


@pytest.mark.parametrize("counts", [(0, 0, 5), (1, 0, 0), (9, 2, 5), (3, 40, 90), (250, 150, 3000)])
def test_evidence_of_one_seed_is_the_beta_mixture(counts):
    d, n = np.array([1.0, -1.0, 0.0]), np.array(counts)
    assert paired.log_evidence(d, n, 0.0) == pytest.approx(log_e(*counts[:2]), abs=1e-9)
    p, low, high = paired.sequential(d, n)
    assert p == pytest.approx(min(1, math.exp(-log_e(*counts[:2]))), rel=1e-8)
    assert low <= (counts[0] - counts[1]) / sum(counts) <= high
    assert (p <= 0.05) == (not low <= 0 <= high)
    assert paired.sequential(np.zeros(0), np.zeros(0)) == (1, -1, 1)  # no data
    for end in {low, high} - {-1.0, 1.0}:  # the ends are where the evidence reaches its limit
        assert paired.log_evidence(d, n, end) == pytest.approx(math.log(20), abs=1e-6)


def stops(a, b):
    """Return the number of positions at which the test stops, 0 for never, of streams bool (runs, 1, positions)."""
    d = a[:, 0].astype(int) - b[:, 0]
    wins, losses = np.cumsum(d == 1, 1), np.cumsum(d == -1, 1)
    size = int(max(wins.max(), losses.max())) + 1
    stop = np.array([[log_e(w, k) >= math.log(20) for k in range(size)] for w in range(size)])[wins, losses]
    return np.where(stop.any(1), stop.argmax(1) + 1, 0)


def test_testing_after_every_position_keeps_the_error_rate():
    a, b = simulate(np.random.default_rng(10), 3000, 1, 256, (0.6, 0.6))
    assert 0.005 < (stops(a, b) > 0).mean() < 0.05


@pytest.mark.parametrize(("seeds", "gap"), [(1, 0.15), (3, 0.0)])
def test_confidence_sequence_contains_the_true_difference(seeds, gap):
    """At all looks simultaneously, for one seed per arm and for several with correlated outcomes."""
    a, b = simulate(np.random.default_rng(13), 200, seeds, 96, (0.6 + gap, 0.6))
    d = (a.mean(1) - b.mean(1)).round(12)
    values = np.unique(d)
    counts = np.cumsum(d[..., None] == values, 1)[:, 7::8]  # (runs, looks, values)
    missed = [any(paired.log_evidence(values, n, gap) >= math.log(20) for n in run) for run in counts]
    assert np.mean(missed) < 0.05
    _, low, high = paired.sequential(values, counts[0, -1])
    assert low < gap < high


@pytest.mark.parametrize("rate", [0.5, 0.98])
def test_success_sequence_covers_all_looks_unlike_a_fixed_interval(rate):
    sequence, fixed = coverage.looks(np.random.default_rng(4), 300, 3, rate, 0.3)
    assert sequence > 0.95 and fixed < 0.95
    x = coverage.draw(np.random.default_rng(5), 1, 3, rate, 0.0, 0.3)[0].astype(bool)
    widths = []
    for n in range(coverage.LOOK, 129, coverage.LOOK):
        low, high, _ = paired.success_sequence(x[:, :n])
        assert 0 <= low <= x[:, :n].mean() <= high <= 1 and low < rate < high
        widths.append(high - low)
    assert widths[-1] < widths[0] and widths[-1] < 3 * np.subtract(*paired.success_interval(x)[1::-1])


def mean_squares(x):
    """Return the mean squares between seeds and of the residuals, and success by position, summed term by term."""
    k, n = len(x), len(x[0])
    rows, columns = [sum(row) / n for row in x], [sum(column) / k for column in zip(*x, strict=True)]
    mean = sum(rows) / k
    residual = sum((x[i][j] - rows[i] - columns[j] + mean) ** 2 for i in range(k) for j in range(n))
    return sum((row - mean) ** 2 for row in rows) / (k - 1), residual / ((k - 1) * (n - 1)), columns


A, B = [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]], [[1, 0, 0, 1, 0, 0], [0] * 6]


def test_variance_and_degrees_of_freedom_match_a_sum_term_by_term():
    (between_a, residual_a, mean_a), (between_b, residual_b, mean_b) = mean_squares(A), mean_squares(B)
    d = [x - y for x, y in zip(mean_a, mean_b, strict=True)]
    centre = sum(d) / 8  # two added positions: half a win, half a loss, one tie
    parts = [between_a / 3, residual_a / 18, between_b / 2, residual_b / 12]
    seeds = parts[0] - parts[1] + parts[2] - parts[3]
    variance = (sum(v * v for v in d) + 1 - 8 * centre**2) / 64 + seeds
    df = variance**2 / sum(v**2 / n for v, n in zip(parts, (2, 10, 1, 5), strict=True))
    assert seeds > 0 and df > 1
    result = paired.difference(np.array(A), np.array(B), 0.5)
    half = stats.t.ppf(0.75, df) * math.sqrt(variance)
    assert (result.low, result.high) == pytest.approx((centre - half, centre + half))
    assert result.p == pytest.approx(2 * stats.t.sf(abs(centre) / math.sqrt(variance), df))
    assert result.difference == pytest.approx(14 / 18 - 2 / 12)


def test_interval_of_a_small_arm_is_wilsons_of_its_effective_episodes():
    (between, residual, mean), p = mean_squares(A), 14 / 18
    variance = sum((v - p) ** 2 for v in mean) / 5 / 6 + between / 3 - residual / 18
    episodes, df = p * (1 - p) / variance, 2 * (variance / (between / 3)) ** 2
    assert between / 3 > residual / 18 and 1 < episodes < 18 and df > 2
    q = stats.t.ppf(0.75, df)
    middle = (p + q**2 / (2 * episodes)) / (1 + q**2 / episodes)
    half = q / (1 + q**2 / episodes) * math.sqrt(p * (1 - p) / episodes + q**2 / (4 * episodes**2))
    assert paired.success_interval(np.array(A), 0.5)[:2] == pytest.approx((middle - half, middle + half))


def test_simulated_trials_add_information_and_keep_the_coverage():
    """Synthetic truths, with an unbiased or a 15 points worse simulation; an uninformative one costs almost nothing."""
    rng, covered = np.random.default_rng(0), []
    for rate, gap in ((0.5, 0.0), (0.85, 0.15)):
        for correlation, minimum in ((0.0, 0.97), (0.9, 1.2)):
            share, gain = coverage.beside_simulation(rng, 1500, 40, rate, gap, correlation)
            assert 0.93 <= share <= 0.975 and gain > minimum, (rate, gap, correlation)
            covered.append(share)
    assert 0.94 < np.mean(covered) < 0.97


def test_constant_simulation_leaves_wilsons_interval():
    arm = np.arange(40) < 26
    result = paired.predicted(arm, np.ones(40), np.ones(100))
    quantile, size = stats.t.ppf(0.975, 38), result[3]
    low, high = wilson(26, 40, 2 * stats.norm.cdf(quantile) - 1)
    assert result[0] == pytest.approx(0.65) and size == pytest.approx(40, rel=0.06)
    assert result[1:3] == pytest.approx((low, high), abs=0.01)
    perfect = paired.predicted(arm, arm, np.arange(1000) < 600)  # as if they had disagreed in one trial
    assert 0.6 < perfect[0] < 0.61 and 300 < perfect[3] < 1040
