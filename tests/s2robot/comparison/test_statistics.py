"""The figures of a comparison: planted differences, the null, other libraries, what is printed before a run."""

import csv
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import binom
from statsmodels.stats.multitest import multipletests

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
    power_figures,
)
from s2robot.core.errors import UserError
from s2robot.core.files import write_csv
from tests.s2robot.evaluation.made import record

POWER = Power(gap=0.10, power=0.8, base=0.5, correlation=0.3, seed_sd=0.03, alpha=0.05, strict=False)


def episodes(rng, rate, positions, hard, seed_sd=0.0):
    """Records of one training seed: `hard` is what the positions share, so that arms are paired."""
    level = float(np.clip(rate + seed_sd * rng.standard_normal(), 0.02, 0.98))
    latent = ndtri(level) + math.sqrt(0.4) * hard + math.sqrt(0.6) * rng.standard_normal(positions)
    return [record(i, bool(x > 0), "held" if x > 0 else "grasp") for i, x in enumerate(latent)]


def runs(rng, rates, seeds=3, positions=128, seed_sd=0.0):
    hard = rng.standard_normal(positions)
    return {
        arm: {seed: episodes(rng, rate, positions, hard, seed_sd) for seed in range(seeds)}
        for arm, rate in rates.items()
    }


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
    assert (
        figures["needed"] is None
        and "training seeds an arm instead of 2" in lines[0]
        and "more training seeds" in lines[1]
    )


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
        zip(COLUMNS, ("base", "0", "", "", "10001", '{"cube_xy": [0.01, -0.02], "cube_yaw": 0.5, "closest_m": 0.012}', rows[1]["success"], rows[1]["stage"], "25" if rows[1]["success"] == "1" else "60",
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
            "Borderline: B: −9.4 points [−16.6, 2.1] against A, p = 0.001, N = 128 positions",
        ),
        ((0.25, 0.1, 0.4, 0.0009), "B: +25.0 points [10.0, 40.0] against A, p < 0.001, N = 128 positions"),
        (
            (0.0, -0.01, 0.01, 0.4),
            "No clear difference: B: +0.0 points [−1.0, 1.0] against A, p = 0.400, N = 128 positions",
        ),
    ],
)
def test_the_headline_of_a_pair(figures, text):
    pair = dict(zip(("difference", "low", "high", "p_holm"), figures, strict=True))
    assert headline({"a": "b", "b": "a", "positions": 128, **pair}, {"a": "A", "b": "B"}) == text
