"""What a planned comparison can see, against closed forms and simulated comparisons."""

import math

import numpy as np
import pytest
from scipy import stats

from s2robot.comparison.paired import mcnemar
from s2robot.comparison.power import Design, needed, power_at, power_text
from s2robot.core.errors import UserError
from tests.s2robot.comparison.simulated import estimates, simulate


def correlation_of(base: float, gap: float, discordant: float) -> float:
    """The correlation of two policies that disagree on such a share of the positions."""
    better = base + gap
    covariance = (base + better - discordant) / 2 - base * better
    return covariance / math.sqrt(base * (1 - base) * better * (1 - better))


@pytest.mark.parametrize(("gap", "discordant"), [(0.05, 0.2), (0.1, 0.3), (0.2, 0.4), (0.3, 0.5)])
def test_one_seed_agrees_with_connor(gap, discordant):
    z = stats.norm.ppf([0.975, 0.8])
    connor = ((z[0] * math.sqrt(discordant) + z[1] * math.sqrt(discordant - gap**2)) / gap) ** 2
    found = needed(gap, Design(0.5, correlation_of(0.5, gap, discordant)))
    assert connor <= found <= 1.1 * connor + 10  # the exact test needs a little more than its approximation


def test_power_of_mcnemar_is_the_sum_over_all_tables():
    design, n, gap = Design(0.4, correlation_of(0.4, 0.3, 0.5)), 20, 0.3
    wins, losses = 0.4, 0.1
    expected = sum(
        stats.multinomial.pmf([w, k, n - w - k], n, [wins, losses, 0.5])
        for w in range(n + 1)
        for k in range(n + 1 - w)
        if w > k and mcnemar(w, k) <= 0.05
    )
    assert power_at(gap, n, design) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("seeds", "positions", "seed_sd"), [(2, 96, 0.02), (3, 128, 0.04), (5, 64, 0.08)])
def test_planned_power_is_what_simulated_experiments_have(seeds, positions, seed_sd):
    rates = (0.6, 0.75)
    b, a = simulate(np.random.default_rng(8), 1, 40, 2000, rates, seed_sd, own=0.0)
    correlation = np.corrcoef(a[0][:20].ravel(), b[0][:20].ravel())[
        0, 1
    ]  # of two policies on the same positions
    design = Design(0.6, float(correlation), seeds=seeds, seed_sd=seed_sd)
    b, a = simulate(np.random.default_rng(9), 1000, seeds, positions, rates, seed_sd, own=0.0)
    _, centre, p = estimates(a, b)
    planned = power_at(0.15, positions, design)
    assert ((p < 0.05) & (centre > 0)).mean() == pytest.approx(planned, abs=0.06)


@pytest.mark.parametrize("design", [Design(0.5), Design(0.3, 0.1), Design(0.6, seeds=5, seed_sd=0.02)])
def test_needed_positions_just_reach_the_power(design):
    positions = needed(0.12, design)
    assert power_at(0.12, positions, design) >= 0.8 > power_at(0.12, positions - 3, design) - 0.01


def test_power_in_words_and_out_of_reach():
    assert power_text(0.1, Design(base=0.5)) == (
        "To see a gap of 10 points with 80 % power you need 291 positions (training seeds an arm: 1, spread "
        "0 points, base 50 %, alpha 5 %); it holds for new positions, for these trained policies only."
    )
    short = Design(base=0.6, seeds=3, seed_sd=0.06)
    assert needed(0.05, short) is None and "you need 24 training seeds" in power_text(0.05, short)
    for gap in (0.0, -0.1, 0.6):
        with pytest.raises(UserError, match="expected a gap"):
            needed(gap, Design(base=0.5))
