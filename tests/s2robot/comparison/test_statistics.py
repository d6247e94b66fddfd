"""The figures of a comparison: power before the run, planted differences, equal arms, and figures by hand."""

import csv
import math

import numpy as np
import pytest
from scipy import stats

from s2robot.comparison import statistics
from s2robot.comparison.paired import difference, mcnemar, success_interval, success_sequence
from s2robot.comparison.settings import Power
from s2robot.core.files import write_csv
from tests.s2robot.comparison.test_paired import estimates, simulate
from tests.s2robot.evaluation.made import record

DESIGN = Power(gap=0.10, power=0.8, base=0.5, correlation=0.3, seed_sd=0.03, alpha=0.05, strict=False)


def correlated(base: float, gap: float, discordant: float) -> Power:
    """Return the design of two policies that disagree on a share `discordant` of the positions."""
    better = base + gap
    covariance = (base + better - discordant) / 2 - base * better
    deviations = math.sqrt(base * (1 - base) * better * (1 - better))
    return DESIGN.replace(base=base, correlation=covariance / deviations)


def test_power_of_mcnemar_matches_the_sum_over_all_tables():
    n, wins, losses = 20, 0.4, 0.1
    expected = sum(
        stats.multinomial.pmf([w, k, n - w - k], n, [wins, losses, 0.5])
        for w in range(n + 1)
        for k in range(n + 1 - w)
        if w > k and mcnemar(w, k) <= 0.05
    )
    assert statistics.power_at(0.3, n, correlated(0.4, 0.3, 0.5)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("seeds", "positions", "seed_sd"), [(2, 96, 0.02), (10, 64, 0.08)])
def test_planned_power_matches_simulated_experiments(seeds, positions, seed_sd):
    rates = (0.6, 0.75)
    b, a = simulate(np.random.default_rng(8), 1, 40, 2000, rates, seed_sd, own=0.0)
    correlation = np.corrcoef(a[0][:20].ravel(), b[0][:20].ravel())[0, 1]  # between two policies
    b, a = simulate(np.random.default_rng(9), 1000, seeds, positions, rates, seed_sd, own=0.0)
    _, centre, p = estimates(a, b)
    design = DESIGN.replace(base=0.6, correlation=float(correlation), seed_sd=seed_sd)
    planned = statistics.power_at(0.15, positions, design, seeds)
    assert ((p < 0.05) & (centre > 0)).mean() == pytest.approx(planned, abs=0.04)


def test_needed_positions_just_reach_the_power_of_the_design():
    for seeds in (1, 5):
        design = DESIGN.replace(base=0.6, seed_sd=0.02)
        positions = statistics.needed(0.12, design, seeds)
        power, below = (statistics.power_at(0.12, n, design, seeds) for n in (positions, positions - 3))
        assert power >= 0.8 > below - 0.01
        assert 0 < statistics.power_at(0.1, 64, design.replace(base=0.0), seeds) < 1
    figures, lines = statistics.power_figures(DESIGN, 1, 64)
    assert figures["needed"] == 291 and figures["planned"] == 64 and len(lines) == 2
    rows = {row["gap"]: row["needed"] for row in figures["table"]}
    assert list(rows) == [0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3]
    assert rows[0.1] == 291 and rows[0.05] > 1000 and rows[0.3] < 50
    good = DESIGN.replace(base=0.9)  # no success rate exceeds 100 %
    assert [row["gap"] for row in statistics.power_figures(good, 1, 10_000)[0]["table"]] == [*rows][:4]
    figures, lines = statistics.power_figures(DESIGN.replace(gap=0.03, seed_sd=0.1), 2, 128)  # unreachable
    assert figures["needed"] is None and len(lines) == 2
    assert lines[1].startswith("warning: experiment.seeds: ")


def test_interim_looks_decide_each_pair_and_stop_after_all_pairs():
    x = {"a": np.arange(64) < 61, "b": np.arange(64) < 13, "c": np.arange(64)[::-1] < 13}
    outcomes = {arm: row[None] for arm, row in x.items()}
    assert statistics.interim(outcomes, [("a", "b")], 0.05)["stop"]
    both = statistics.interim(outcomes, [("a", "b"), ("b", "c")], 0.05)
    assert [row["stop"] for row in both["pairs"]] == [True, False] and not both["stop"]
    assert both["positions"] == 64
    pair, row = statistics.pair_figures(outcomes, range(64), "a", "b", seq_alpha=0.025), both["pairs"][0]
    assert (pair["low"], pair["high"], pair["p"]) == (row["low"], row["high"], row["p"])
    own = statistics.all_pairs(outcomes, range(64), [("a", "b")], 0.1)[0]
    assert statistics.verdict(own | {"p_holm": 0.07})  # the chosen alpha decides


@pytest.mark.parametrize(("looked", "count"), [(None, 250), (0.05, 20)])
def test_false_positives_among_all_pairs_keep_alpha(looked, count):
    """Four arms with equal success: six pairs, tested at the end or at every look."""
    rng = np.random.default_rng(7)
    pairs = [(a, b) for i, a in enumerate("abcd") for b in "abcd"[:i]]
    plain = adjusted = 0
    for x in zip(*simulate(rng, count, 1, 96, (0.5,) * 4, own=0.0), strict=True):
        outcomes = dict(zip("abcd", x, strict=True))
        if looked is None:
            rows = statistics.all_pairs(outcomes, range(96), pairs)
            plain += min(row["p"] for row in rows) < 0.05
            adjusted += min(row["p_holm"] for row in rows) < 0.05
        else:
            parts = [{arm: x[:, :n] for arm, x in outcomes.items()} for n in (32, 64, 96)]
            looks = [statistics.interim(part, pairs, looked)["pairs"] for part in parts]
            adjusted += any(row["stop"] for look in looks for row in look)
    assert adjusted <= stats.binom.ppf(0.999, count, 0.05)
    assert looked or plain > 25


def test_interim_look_decides_with_holm_where_bonferroni_does_not():
    """Both pairs differ; after the first is decided, the second is tested at the full alpha."""
    rng = np.random.default_rng(3)
    x = {"a": rng.random((1, 64)) < 0.95, "b": rng.random((1, 64)) < 0.2, "c": np.zeros((1, 64), bool)}
    pairs = [("a", "b"), ("b", "c")]
    looks = [statistics.interim({k: v[:, :n] for k, v in x.items()}, pairs, 0.05) for n in range(4, 65, 2)]
    bonferroni = [all(row["p"] <= 0.025 for row in look["pairs"]) for look in looks]
    assert all(stop <= look["stop"] for stop, look in zip(bonferroni, looks, strict=True))
    assert any(look["stop"] and not stop for stop, look in zip(bonferroni, looks, strict=True))


def test_csv_has_one_row_per_episode(tmp_path):
    episodes = {"base": {0: [record(1), record(0, False, "grasp")]}, "s2": {3: [record(0)]}}
    table = [*statistics.csv_rows(episodes), *statistics.csv_rows(episodes, "demos", 15)]
    write_csv(tmp_path / "episodes.csv", statistics.COLUMNS, table)
    with (tmp_path / "episodes.csv").open() as file:
        rows = list(csv.DictReader(file))
    start = '{"cube_xy": [0.01, -0.02], "cube_yaw": 0.5, "closest_m": 0.012}'
    assert tuple(rows[1]) == tuple(statistics.COLUMNS)
    assert tuple(rows[1].values()) == ("base", "0", "", "", "10001", start, "1", "held", "25", "2.5")
    assert [row["success"] for row in rows] == ["0", "1", "1"] * 2 and rows[0]["time_to_success_s"] == ""
    assert rows[-1]["axis"] == "demos" and rows[-1]["value"] == "15" and rows[-1]["training_seed"] == "3"


def test_figures_of_a_small_pair_match_a_count_by_hand():
    """Two training seeds: a position counts for an arm if both of its seeds solve it, but not both of the other's."""
    x = {"a": np.array([[1, 1, 0, 1], [1, 1, 0, 0]], bool), "b": np.array([[1, 0, 1, 1], [1, 0, 1, 1]], bool)}
    pair, both = statistics.pair_figures(x, [7, 8, 9, 11], "a", "b"), difference(x["a"], x["b"])
    assert (pair["only_a"], pair["only_b"], pair["difference"]) == ([8], [9, 11], -0.125)
    assert pair["mcnemar"] == {"wins": 1, "losses": 2, "p": 1.0}
    assert (pair["episodes"], pair["positions"]) == (16, 4) and pair["method"].startswith("t interval")
    assert (pair["p"], pair["low"], pair["high"]) == (both.p, both.low, both.high)
    assert "B: −12.5 points [" in statistics.headline({**pair, "p_holm": 0.4}, {"a": "B", "b": "A"})
    one = statistics.pair_figures({"a": x["a"][:1], "b": x["b"]}, [7, 8, 9, 11], "a", "b")
    assert one["episodes"] == 12 and one["method"] == "adjusted Wald interval, t test"
    arm = statistics.arm_figures(x["a"], [3, 5], ["r3", "r5"])
    assert arm["seeds"][1] == {"seed": 5, "episodes": 4, "successes": 2, "run": "r5"}
    assert (arm["success"], arm["low"], arm["high"]) == (0.625, *success_interval(x["a"])[:2])
    early = statistics.arm_figures(x["a"], [3, 5], ["", ""], 0.05)
    assert early["interval"] == success_sequence(x["a"], 0.05)[2]
