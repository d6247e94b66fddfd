"""Looks at a running comparison keep the error rate that they state."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy.special import betaln

from s2robot.comparison.paired import mcnemar
from s2robot.comparison.sequential import _log_evidence, sequential, tally
from s2robot.core.errors import UserError
from tests.s2robot.comparison.simulated import simulate


def log_e(wins, losses):
    return (wins + losses) * math.log(2) + betaln(wins + 1, losses + 1)


@pytest.mark.parametrize("counts", [(0, 0, 5), (1, 0, 0), (9, 2, 5), (3, 40, 90), (250, 150, 3000)])
def test_evidence_of_one_seed_is_the_beta_mixture(counts):
    wins, losses, ties = counts
    look = sequential({1.0: wins, -1.0: losses, 0.0: ties})
    assert math.log(look.e) == pytest.approx(log_e(wins, losses), abs=1e-9)
    assert look.p == pytest.approx(min(1, 1 / look.e)) and look.stop == (look.e >= 20)
    assert look.low <= (wins - losses) / sum(counts) <= look.high and look.positions == sum(counts)


def test_nothing_seen_says_nothing_and_nonsense_is_refused():
    look = sequential({})
    assert (look.e, look.p, look.stop, look.low, look.high, look.positions) == (1, 1, False, -1, 1, 0)
    with pytest.raises(UserError, match="of difference 2"):
        sequential({2: 1})
    with pytest.raises(UserError, match="alpha"):
        sequential({}, alpha=0)


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
    naive = [
        any(mcnemar(int((x[:n] == 1).sum()), int((x[:n] == -1).sum())) < 0.05 for n in range(8, 257, 8))
        for x in d[:150]
    ]
    assert np.mean(naive) > 0.07  # what a fixed-N test does when it is looked at again and again


def test_a_planted_gap_stops_early_and_where_sequential_says():
    a, b = simulate(np.random.default_rng(11), 500, 1, 256, (0.75, 0.5))
    stopped = stops(a, b)
    assert (stopped > 0).mean() > 0.95 and np.median(stopped[stopped > 0]) < 100
    run, n = int(np.argmax(stopped > 10)), int(stopped[stopped > 10][0])
    assert sequential(tally(a[run, :, :n], b[run, :, :n])).stop
    assert not sequential(tally(a[run, :, : n - 1], b[run, :, : n - 1])).stop


def test_state_is_counts_only():
    a, b = (x[0] for x in simulate(np.random.default_rng(12), 1, 3, 60, (0.7, 0.5)))
    halves = Counter(tally(a[:, :25], b[:, :25])) + Counter(tally(a[:, 25:], b[:, 25:]))
    assert dict(sorted(halves.items())) == tally(a, b)
    resumed, whole = sequential(halves), sequential(tally(a, b))
    assert (resumed.e, resumed.low, resumed.high) == pytest.approx((whole.e, whole.low, whole.high))


@pytest.mark.parametrize(("seeds", "gap"), [(1, 0.15), (3, 0.0), (3, 0.15)])
def test_the_true_difference_stays_in_the_confidence_sequence(seeds, gap):
    """At all of many looks together, for one seed an arm and for several whose outcomes hang together."""
    a, b = simulate(np.random.default_rng(13), 300, seeds, 96, (0.6 + gap, 0.6))
    d = (a.mean(1) - b.mean(1)).round(12)
    values = np.unique(d)
    counts = np.cumsum(d[..., None] == values, 1)[:, 3::4]  # (runs, looks, values)
    lost = [any(_log_evidence(values, n, gap) >= math.log(20) for n in run) for run in counts]
    assert np.mean(lost) < 0.05
    look = sequential(dict(zip(values.tolist(), counts[0, -1].tolist(), strict=True)))
    assert look.low < gap < look.high
