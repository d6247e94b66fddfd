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


@pytest.fixture(scope="module", params=["table10", "trained/steps", "trained/demos30", "trained/cube2"])
def folder(request):
    return RESULTS / request.param


@pytest.fixture(scope="module")
def summary(folder):
    return read(folder)


@pytest.fixture(scope="module")
def outcomes(folder):
    """arm -> bool (seeds, positions), from the list of episodes."""
    found: dict = defaultdict(lambda: defaultdict(dict))
    with (folder / "episodes.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            assert row["success"] in ("0", "1")
            if row["axis"]:
                continue
            found[row["arm"]][int(row["training_seed"])][int(row["position"])] = row["success"] == "1"
    return {
        arm: np.array([[run[p] for p in sorted(run)] for _, run in sorted(runs.items())])
        for arm, runs in found.items()
    }


def test_arms(summary, outcomes):
    assert {arm["name"] for arm in summary["arms"]} == {"base", "base-s2", "large"} == set(outcomes)
    for arm in summary["arms"]:
        rows = outcomes[arm["name"]]
        assert set(arm) >= FIGURES and len(rows) >= 3 and rows.shape[1] >= 128
        found = [(seed["successes"], seed["episodes"]) for seed in arm["seeds"]]
        assert found == [(count, rows.shape[1]) for count in rows.sum(1)]
        assert arm["success"] == pytest.approx(rows.mean())
        assert (arm["low"], arm["high"]) == pytest.approx(success_interval(rows)[:2], abs=1e-9)


def test_pairs(summary, outcomes):
    assert len(summary["pairs"]) == 3
    adjusted = holm([pair["p"] for pair in summary["pairs"]])
    assert [pair["p_holm"] for pair in summary["pairs"]] == pytest.approx(adjusted, abs=1e-9)
    for pair in summary["pairs"]:
        found = difference(outcomes[pair["a"]], outcomes[pair["b"]])
        for key in ("difference", "low", "high", "p"):
            assert pair[key] == pytest.approx(getattr(found, key), abs=1e-9)
        assert pair["episodes"] == outcomes[pair["a"]].size + outcomes[pair["b"]].size


def read(folder: Path):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


ROWS = {name: read(RESULTS / name)["rows"] for name in ("policies", "tasks")}


@pytest.mark.parametrize("table", ROWS)
def test_rates_and_intervals_are_those_of_the_outcomes(table):
    for row in ROWS[table]:
        rates = [seed["successes"] / seed["episodes"] for seed in row["seeds"]]
        assert row["mean"] == pytest.approx(np.mean(rates), abs=1e-4), row["name"]
        assert row["low"] <= row["mean"] <= row["high"]
        if "failed" not in row["seeds"][0]:  # which positions failed
            continue
        positions = np.arange(row["positions"][0], row["positions"][1] + 1)
        outcomes = np.array([~np.isin(positions, seed["failed"]) for seed in row["seeds"]])
        assert outcomes.sum(1).tolist() == [seed["successes"] for seed in row["seeds"]]
        assert success_interval(outcomes)[:2] == pytest.approx((row["low"], row["high"]), abs=1e-4)


def test_policies():
    assert {"default", "one scale"} <= {row["name"] for row in ROWS["policies"]}
    for row in ROWS["policies"]:
        first, last = row["positions"]
        assert first == 60_000 and last in (60_127, 60_255)  # none of them chose a setting
        assert all(seed["episodes"] == last - first + 1 for seed in row["seeds"])
        rates = [seed["successes"] / seed["episodes"] for seed in row["seeds"]]
        assert row["worst"] == pytest.approx(min(rates), abs=1e-4)
        assert row["command"].startswith(("s2robot train", "s2robot dagger"))


def test_tasks():
    for row in ROWS["tasks"]:
        tried, done = (sum(seed[key] for seed in row["seeds"]) for key in ("episodes", "successes"))
        if row["arm"] == "expert":
            assert len(row["failed"]) == tried - done
        else:
            assert sum(row["stages"].values()) == tried and row["stages"]["success"] == done


def test_the_tables_of_the_results_page_are_those_of_the_summaries():
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), "python docs/results_page.py"
