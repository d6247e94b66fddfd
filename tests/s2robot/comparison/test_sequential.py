"""Looks at a running comparison keep the error rate that they state."""

import math

import numpy as np
import pytest
from scipy.special import betaln

from benchmarks.interval_coverage import LOOK, draw
from benchmarks.interval_coverage import looks as looks_of
from s2robot.comparison import paired
from s2robot.comparison.paired import log_evidence, mcnemar, sequential, tally
from tests.s2robot.comparison.simulated import simulate


def log_e(wins, losses):
    return (wins + losses) * math.log(2) + betaln(wins + 1, losses + 1)


@pytest.mark.parametrize("counts", [(0, 0, 5), (1, 0, 0), (9, 2, 5), (3, 40, 90), (250, 150, 3000)])
def test_evidence_of_one_seed_is_the_beta_mixture(counts):
    d, n = np.array([1.0, -1.0, 0.0]), np.array(counts)
    assert log_evidence(d, n, 0.0) == pytest.approx(log_e(*counts[:2]), abs=1e-9)
    p, low, high = sequential(d, n)
    assert p == pytest.approx(min(1, math.exp(-log_e(*counts[:2]))), rel=1e-8)
    assert low <= (counts[0] - counts[1]) / sum(counts) <= high
    assert (p <= 0.05) == (not low <= 0 <= high)
    assert sequential(np.zeros(0), np.zeros(0)) == (1, -1, 1)  # nothing seen
    for end in {low, high} - {-1.0, 1.0}:  # where the evidence reaches its limit
        assert log_evidence(d, n, end) == pytest.approx(math.log(20), abs=1e-6)


def stops(a, b):
    """For streams bool (runs, 1, positions): the number of positions at which the test stops, 0 for never."""
    d = a[:, 0].astype(int) - b[:, 0]
    wins, losses = np.cumsum(d == 1, 1), np.cumsum(d == -1, 1)
    most = int(max(wins.max(), losses.max())) + 1
    over = np.array([[log_e(w, k) >= math.log(20) for k in range(most)] for w in range(most)])[wins, losses]
    return np.where(over.any(1), over.argmax(1) + 1, 0)


def test_looking_after_every_position_keeps_the_error_rate():
    a, b = simulate(np.random.default_rng(10), 3000, 1, 256, (0.6, 0.6))
    assert 0.005 < (stops(a, b) > 0).mean() < 0.05
    d = a[:, 0].astype(int) - b[:, 0]
    looks = [[x[:n] for n in range(16, 257, 16)] for x in d[:100]]
    naive = [any(mcnemar(int((x == 1).sum()), int((x == -1).sum())) < 0.05 for x in run) for run in looks]
    assert np.mean(naive) > 0.07  # what a fixed-N test does when it is looked at again and again


def test_a_planted_gap_stops_early_and_where_sequential_says():
    a, b = simulate(np.random.default_rng(11), 500, 1, 256, (0.75, 0.5))
    stopped = stops(a, b)
    assert (stopped > 0).mean() > 0.95 and np.median(stopped[stopped > 0]) < 100
    run, n = int(np.argmax(stopped > 10)), int(stopped[stopped > 10][0])
    p = [sequential(*tally(a[run, :, :m], b[run, :, :m]))[0] for m in (n - 1, n)]
    assert p[0] > 0.05 >= p[1]


@pytest.mark.parametrize(("seeds", "gap"), [(1, 0.15), (3, 0.0)])
def test_the_true_difference_stays_in_the_confidence_sequence(seeds, gap):
    """At all of many looks together, for one seed an arm and for several whose outcomes hang together."""
    a, b = simulate(np.random.default_rng(13), 200, seeds, 96, (0.6 + gap, 0.6))
    d = (a.mean(1) - b.mean(1)).round(12)
    values = np.unique(d)
    counts = np.cumsum(d[..., None] == values, 1)[:, 7::8]  # (runs, looks, values)
    lost = [any(log_evidence(values, n, gap) >= math.log(20) for n in run) for run in counts]
    assert np.mean(lost) < 0.05
    _, low, high = sequential(values, counts[0, -1])
    assert low < gap < high


@pytest.mark.parametrize("rate", [0.5, 0.98])
def test_an_arm_stopped_early_is_inside_at_every_look_and_a_fixed_interval_is_not(rate):
    sequence, fixed = looks_of(np.random.default_rng(4), 300, 3, rate, 0.3)
    assert sequence > 0.95 and fixed < 0.95
    x = draw(np.random.default_rng(5), 1, 3, rate, 0.0, 0.3)[0].astype(bool)
    widths = []
    for n in range(LOOK, 129, LOOK):
        low, high, _ = paired.success_sequence(x[:, :n])
        assert 0 <= low <= x[:, :n].mean() <= high <= 1 and low < rate < high
        widths.append(high - low)
    assert widths[-1] < widths[0] and widths[-1] < 3 * np.subtract(*paired.success_interval(x)[1::-1])
