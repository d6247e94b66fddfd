"""The figures of a comparison: planted differences, the null, other libraries, what is printed before a run."""

import csv
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import binom
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from s2robot.common.errors import UserError
from s2robot.common.files import write_csv
from s2robot.comparison.intervals import success_interval, success_sequence
from s2robot.comparison.paired import difference, holm, outcomes_of
from s2robot.comparison.settings import Power
from s2robot.comparison.statistics import (
    COLUMNS,
    all_pairs,
    arm_figures,
    csv_rows,
    headline,
    look_at,
    pair_figures,
    positions_of,
    power_figures,
)

POWER = Power(gap=0.10, power=0.8, base=0.5, correlation=0.3, seed_sd=0.03, alpha=0.05, strict=False)


def episodes(rng, rate, positions, hard, seed_sd=0.0):
    """Records of one training seed: `hard` is what the positions share, so that arms are paired."""
    level = float(np.clip(rate + seed_sd * rng.standard_normal(), 0.02, 0.98))
    latent = ndtri(level) + math.sqrt(0.4) * hard + math.sqrt(0.6) * rng.standard_normal(positions)
    return [
        {"episode": i, "seed": 10000 + i, "success": bool(x > 0), "cube_xy": [0.01 * i, -0.02], "cube_yaw": 0.5,
         "stage": "held" if x > 0 else "grasp", "steps": 20, "time_to_success_s": 2.0 if x > 0 else None}
        for i, x in enumerate(latent)
    ]  # fmt: skip


def runs(rng, rates, seeds=3, positions=128, seed_sd=0.0):
    hard = rng.standard_normal(positions)
    return {
        arm: {seed: episodes(rng, rate, positions, hard, seed_sd) for seed in range(seeds)}
        for arm, rate in rates.items()
    }


def test_a_planted_difference_is_recovered():
    """15 points, 3 seeds, 128 positions: no bias, and the interval covers as often as it says."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        records = runs(rng, {"base": 0.55, "s2": 0.70}, seed_sd=0.02)
        found.append(pair_figures(outcomes_of(records), positions_of(records), "s2", "base"))
    differences = np.array([f["difference"] for f in found])
    assert abs(differences.mean() - 0.15) < 3 * differences.std() / math.sqrt(len(found))
    covered = sum(f["low"] <= 0.15 <= f["high"] for f in found)
    assert covered >= binom.ppf(0.001, len(found), 0.95)
    assert sum(f["p"] < 0.05 for f in found) > 120  # it is mostly seen
    assert all((f["p"] < 0.05) == (f["low"] > 0 or f["high"] < 0) for f in found)


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_null_experiment_rejects_at_its_nominal_rate(seeds):
    rng = np.random.default_rng(seeds)
    p, exact = [], []
    for _ in range(400):
        records = runs(rng, {"a": 0.6, "b": 0.6}, seeds, 64, 0.03 if seeds > 1 else 0.0)
        pair = pair_figures(outcomes_of(records), positions_of(records), "a", "b")
        p.append(pair["p"])
        exact.append(pair["mcnemar"]["p"])
    most = binom.ppf(0.999, 400, 0.05)
    assert sum(x < 0.05 for x in p) <= most
    if seeds == 1:  # with more, McNemar speaks of these policies only, and they do differ
        assert sum(x < 0.05 for x in exact) <= most


def test_mcnemar_and_wilson_agree_with_statsmodels():
    rng = np.random.default_rng(5)
    records = runs(rng, {"a": 0.7, "b": 0.5}, 1, 97)
    outcomes = outcomes_of(records)
    pair = pair_figures(outcomes, positions_of(records), "a", "b")
    a, b = outcomes["a"][0], outcomes["b"][0]
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    assert pair["mcnemar"]["p"] == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue, abs=1e-12)
    assert pair["p"] == pytest.approx(
        pair["mcnemar"]["p"], abs=1e-12
    )  # one seed: the sign-flip test is McNemar's
    assert (pair["mcnemar"]["wins"], pair["mcnemar"]["losses"]) == (table[0][1], table[1][0])
    assert pair["only_a"] == [10000 + int(i) for i in np.flatnonzero(a & ~b)]
    assert pair["only_b"] == [10000 + int(i) for i in np.flatnonzero(b & ~a)]
    low, high, method = success_interval(outcomes["a"])
    assert (low, high) == pytest.approx(proportion_confint(a.sum(), a.size, method="wilson"), abs=1e-12)
    assert method == "Wilson"


def test_the_interval_of_an_arm_widens_where_seeds_are_alike_or_differ():
    """Three copies of one seed say no more than that seed; independent seeds say more; unlike seeds less."""
    rng = np.random.default_rng(1)
    one = rng.random((1, 128)) < 0.7
    width = lambda x: np.subtract(*success_interval(np.asarray(x))[1::-1])  # noqa: E731
    alike, free = np.repeat(one, 3, 0), rng.random((3, 128)) < 0.7
    apart = np.stack([rng.random(128) < rate for rate in (0.4, 0.7, 0.98)])
    assert width(free) < width(one) < 1.05 * width(alike) and width(alike) < 1.1 * width(one)
    assert width(apart) > 2 * width(free)
    for same in (np.zeros((3, 20), bool), np.ones((3, 20), bool)):
        low, high, _ = success_interval(same)
        assert 0 <= low <= same.mean() <= high <= 1 and high - low > 0.03


def test_the_interval_of_an_arm_covers_new_seeds_and_positions():
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(300):
        outcomes = outcomes_of(runs(rng, {"a": 0.7}, 3, 64, 0.04))["a"]
        low, high, _ = success_interval(outcomes)
        inside += low <= 0.7 <= high
    assert inside >= binom.ppf(0.001, 300, 0.93)  # the clipped levels move the truth a little


def test_power_is_said_before_the_run_and_too_few_positions_too():
    figures, lines = power_figures(POWER, 1, 64)
    assert figures["needed"] == 291 and figures["planned"] == 64
    needed = {row["gap"]: row["needed"] for row in figures["table"]}
    assert list(needed) == [0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3]
    assert needed[0.1] == 291 and needed[0.05] > 1000 and needed[0.3] < 50
    figures, _ = power_figures(POWER.replace(base=0.75), 1, 64)  # nothing is better than 100 %
    assert [row["gap"] for row in figures["table"]] == [0.03, 0.05, 0.08, 0.1, 0.15, 0.2]
    assert lines[0].startswith("To see a gap of 10 points with 80 % power you need 291 positions")
    assert "expected >= 291 to see a gap of 10 points" in lines[1]
    _, lines = power_figures(POWER, 1, 291)
    assert len(lines) == 1
    with pytest.raises(UserError, match="expected >= 291 .*, got 64; .*strict=false"):
        power_figures(POWER.replace(strict=True), 1, 64)
    figures, lines = power_figures(POWER.replace(gap=0.03, seed_sd=0.1), 2, 128)  # no N would do
    assert figures["needed"] is None and "take" in lines[0] and "more training seeds" in lines[1]


def test_looks_decide_and_keep_to_all_pairs():
    rng = np.random.default_rng(3)
    outcomes = outcomes_of(runs(rng, {"a": 0.95, "b": 0.2, "c": 0.2}, 1, 64))
    assert look_at(outcomes, [("a", "b")], 0.05)["stop"]
    both = look_at(outcomes, [("a", "b"), ("b", "c")], 0.05)
    assert [row["stop"] for row in both["pairs"]] == [True, False] and not both["stop"]
    assert both["positions"] == 64
    pair = pair_figures(outcomes, list(range(64)), "a", "b", looked=0.025)
    row = both["pairs"][0]
    assert (pair["low"], pair["high"], pair["p"]) == (row["low"], row["high"], row["p"])
    assert pair["method"] == "confidence sequence (sequential)"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_that_of_statsmodels(p):
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist(), abs=1e-12)


@pytest.mark.parametrize("looked", [None, 0.05])
def test_any_false_positive_among_all_pairs_is_as_rare_as_alpha(looked):
    """Four arms of one success: six pairs, at the end or at every look."""
    rng = np.random.default_rng(7)
    pairs = [(a, b) for i, a in enumerate("abcd") for b in "abcd"[:i]]
    plain = adjusted = 0
    count = 40 if looked else 250  # a look takes its time
    for _ in range(count):
        outcomes = outcomes_of(runs(rng, dict.fromkeys("abcd", 0.5), 1, 96))
        if looked is None:
            rows = all_pairs(outcomes, list(range(96)), pairs)
            plain += min(row["p"] for row in rows) < 0.05
            adjusted += min(row["p_holm"] for row in rows) < 0.05
        else:
            parts = [{arm: x[:, :n] for arm, x in outcomes.items()} for n in (32, 64, 96)]
            looks = [row for part in parts for row in look_at(part, pairs, looked)["pairs"]]
            adjusted += any(row["stop"] for row in looks)
    assert adjusted <= binom.ppf(0.999, count, 0.05)
    assert looked or plain > 25


def test_a_look_decides_what_holm_does_and_bonferroni_does_not():
    """Both pairs differ; the second needs no more than alpha once the first is decided."""
    rng = np.random.default_rng(3)
    x = {"a": rng.random((1, 64)) < 0.95, "b": rng.random((1, 64)) < 0.2, "c": np.zeros((1, 64), bool)}
    pairs = [("a", "b"), ("b", "c")]
    found = [look_at({k: v[:, :n] for k, v in x.items()}, pairs, 0.05) for n in range(4, 65)]
    alone = [[row["p"] <= 0.025 for row in look["pairs"]] for look in found]
    assert all(all(a) <= look["stop"] for a, look in zip(alone, found, strict=True))
    assert any(look["stop"] and not all(a) for a, look in zip(alone, found, strict=True))


def test_the_csv_holds_a_row_an_episode(tmp_path):
    records = runs(np.random.default_rng(4), {"base": 0.5, "s2": 0.8}, 2, 8)
    write_csv(tmp_path / "episodes.csv", COLUMNS, [*csv_rows(records), *csv_rows(records, "demos", 15)])
    with (tmp_path / "episodes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 2 * 2 * 2 * 8
    assert [int(r["success"]) for r in rows[:8]] == [int(e["success"]) for e in records["base"][0]]
    assert rows[-1]["axis"] == "demos" and rows[-1]["value"] == "15" and rows[0]["axis"] == ""
    assert rows[1] == dict(
        zip(COLUMNS, ("base", "0", "", "", "10001", '{"cube_xy": [0.01, -0.02], "cube_yaw": 0.5}', rows[1]["success"], rows[1]["stage"], "20",
                      rows[1]["time_to_success_s"]), strict=True)
    )  # fmt: skip


def test_the_figures_of_a_small_pair_are_those_counted_by_hand():
    """Two training seeds: a position counts for an arm if both did it, and not both of the other's."""
    x = {"a": np.array([[1, 1, 0, 1], [1, 1, 0, 0]], bool), "b": np.array([[1, 0, 1, 1], [1, 0, 1, 1]], bool)}
    pair = pair_figures(x, [7, 8, 9, 11], "a", "b")
    assert (pair["only_a"], pair["only_b"], pair["difference"]) == ([8], [9, 11], -0.125)
    assert pair["mcnemar"] == {"wins": 1, "losses": 2, "p": 1.0}
    assert (pair["episodes"], pair["positions"]) == (16, 4) and pair["method"].startswith("t interval")
    assert (
        pair["p"] == difference(x["a"], x["b"]).p
        and pair["p_positions"] == difference(x["a"], x["b"]).p_positions
    )
    one = pair_figures({"a": x["a"][:1], "b": x["b"]}, [7, 8, 9, 11], "a", "b")
    assert one["episodes"] == 12 and one["method"].startswith("adjusted Wald interval, exact sign-flip test")
    arm = arm_figures(x["a"], [3, 5], ["r3", "r5"])
    assert arm["seeds"] == [
        {"seed": 3, "episodes": 4, "successes": 3, "run": "r3"}, {"seed": 5, "episodes": 4, "successes": 2, "run": "r5"},
    ]  # fmt: skip
    assert (arm["success"], arm["low"], arm["high"]) == (0.625, *success_interval(x["a"])[:2])
    assert arm_figures(x["a"], [3, 5], ["", ""], 0.05)["interval"] == success_sequence(x["a"], 0.05)[2]


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        (
            (-0.094, -0.166, 0.021, 0.0012),
            "B: −9.4 points [−16.6, 2.1] against A, p = 0.001, N = 128 positions",
        ),
        ((0.25, 0.1, 0.4, 0.0009), "B: +25.0 points [10.0, 40.0] against A, p < 0.001, N = 128 positions"),
        ((0.0, -0.01, 0.01, 0.001), "B: +0.0 points [−1.0, 1.0] against A, p = 0.001, N = 128 positions"),
    ],
)
def test_the_headline_of_a_pair(figures, text):
    pair = dict(zip(("difference", "low", "high", "p_holm"), figures, strict=True))
    assert headline({"a": "b", "b": "a", "positions": 128, **pair}, {"a": "A", "b": "B"}) == text
