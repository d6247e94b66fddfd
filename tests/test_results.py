"""The committed comparisons are whole, and their figures follow from their episodes."""

import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from docs.results_page import PAGE, page
from s2robot.comparison.paired import difference, holm, success_interval

RESULTS = Path(__file__).parents[1] / "docs/results"
FIGURES = {"encoder", "scales", "gflops_per_frame", "parameters", "ms_per_action"}


def read(name: str):
    return json.loads((RESULTS / name / "summary.json").read_text(encoding="utf-8"))


ROWS = {name: read(name)["rows"] for name in ("policies", "tasks")}


def outcomes_of(name: str) -> dict[str, np.ndarray]:
    """arm -> bool (seeds, positions), from the list of episodes."""
    found: dict = defaultdict(lambda: defaultdict(dict))
    with (RESULTS / name / "episodes.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if not row["axis"]:
                run = found[row["arm"]][int(row["training_seed"])]
                run[int(row["position"])] = bool(int(row["success"]))
    return {
        arm: np.array([[run[p] for p in sorted(run)] for _, run in sorted(runs.items())])
        for arm, runs in found.items()
    }


@pytest.mark.parametrize("name", ["table10", "trained/steps", "trained/demos30", "trained/cube2"])
def test_arms_and_pairs_are_those_of_the_episodes(name):
    summary, outcomes = read(name), outcomes_of(name)
    assert {arm["name"] for arm in summary["arms"]} == {"base", "base-s2", "large"} == set(outcomes)
    for arm in summary["arms"]:
        rows = outcomes[arm["name"]]
        assert set(arm) >= FIGURES and len(rows) >= 3 and rows.shape[1] >= 128
        found = [(seed["successes"], seed["episodes"]) for seed in arm["seeds"]]
        assert found == [(count, rows.shape[1]) for count in rows.sum(1)]
        figures = (arm["success"], arm["low"], arm["high"])
        assert figures == pytest.approx((rows.mean(), *success_interval(rows)[:2]), abs=1e-9)
    assert len(summary["pairs"]) == 3
    adjusted = holm([pair["p"] for pair in summary["pairs"]])
    assert [pair["p_holm"] for pair in summary["pairs"]] == pytest.approx(adjusted, abs=1e-9)
    for pair in summary["pairs"]:
        a, b = outcomes[pair["a"]], outcomes[pair["b"]]
        for key in ("difference", "low", "high", "p"):
            assert pair[key] == pytest.approx(getattr(difference(a, b), key), abs=1e-9)
        assert pair["episodes"] == a.size + b.size


@pytest.mark.parametrize("table", ROWS)
def test_rates_and_intervals_are_those_of_the_outcomes(table):
    for row in ROWS[table]:
        rates = [seed["successes"] / seed["episodes"] for seed in row["seeds"]]
        assert row["mean"] == pytest.approx(np.mean(rates), abs=1e-4), row["name"]
        assert row["low"] <= row["mean"] <= row["high"]
        assert row.get("worst", min(rates)) == pytest.approx(min(rates), abs=1e-4)
        if "failed" not in row["seeds"][0]:  # which positions failed
            continue
        positions = np.arange(row["positions"][0], row["positions"][1] + 1)
        outcomes = np.array([~np.isin(positions, seed["failed"]) for seed in row["seeds"]])
        assert outcomes.sum(1).tolist() == [seed["successes"] for seed in row["seeds"]]
        assert success_interval(outcomes)[:2] == pytest.approx((row["low"], row["high"]), abs=1e-4)


def test_policies_are_evaluated_on_positions_that_chose_no_setting():
    assert {"default", "one scale"} <= {row["name"] for row in ROWS["policies"]}
    for row in ROWS["policies"]:
        first, last = row["positions"]
        assert first == 60_000 and all(seed["episodes"] == last - first + 1 for seed in row["seeds"])


def test_every_episode_of_a_task_has_its_outcome():
    for row in ROWS["tasks"]:
        tried, done = (sum(seed[key] for seed in row["seeds"]) for key in ("episodes", "successes"))
        if row["arm"] == "expert":
            assert len(row["failed"]) == tried - done
        else:
            assert sum(row["stages"].values()) == tried and row["stages"]["success"] == done


def test_the_tables_of_the_results_page_are_those_of_the_summaries():
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), "python docs/results_page.py"
