"""`s2robot stress`: the figures of planted outcomes, and the command with its page, a repeat and wrong settings."""

import json
import re

import numpy as np
import pytest

from s2robot.core.errors import UserError
from s2robot.envs.cube_config import CubePickConfig
from s2robot.evaluation.stress import STRENGTHS, Cell, StressSettings, figures, settings_in
from tests.errors import refuses


class Planted:
    def __init__(self, outcomes):
        self.records = {e: {"success": bool(done)} for e, done in enumerate(outcomes)}


def test_score_is_the_mean_over_cells_with_an_interval_over_positions():
    settings = StressSettings(episodes=200)
    hard = np.random.default_rng(0).random(200)  # a position fails at all strengths above its threshold
    cells = [Cell(axis, i, 0.1 * i) for axis in ("blur", "noise") for i in range(1, STRENGTHS + 1)]
    journals = {Cell("", 0, 0.0): Planted(np.ones(200))}
    journals |= {c: Planted(hard > c.strength / (6 if c.axis == "blur" else 12)) for c in cells}
    result = figures(journals, ["blur", "noise"], settings)
    shares = np.array([[r["success"] for r in journals[c].records.values()] for c in cells])
    score = result["score"]
    assert score["success"] == pytest.approx(shares.mean()) and result["undisturbed"]["success"] == 1
    assert [entry["axis"] for entry in result["axes"]] == ["blur", "noise"]
    assert result["axes"][0]["success"] < result["axes"][1]["success"]
    error = shares.mean(0).std() / np.sqrt(200)  # wider than for 2,000 trials: cells of a position correlate
    assert (score["high"] - score["low"]) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert score["low"] < score["success"] < score["high"]
    perfect = dict.fromkeys([Cell("", 0, 0.0), *cells[:STRENGTHS]], Planted(np.ones(24)))
    score = figures(perfect, ["blur"], settings.replace(episodes=24))["score"]
    assert (score["low"], score["high"]) == pytest.approx((0.849, 1), abs=1e-3)  # not 100 % for certain


def test_wrong_axis_is_one_error_line():
    with pytest.raises(UserError, match="axes: expected one of .* got 'blurr', did you mean 'blur'"):
        StressSettings(axes={"blurr": (1, 2, 3, 4, 5)})
    refuses("blur: expected 5 strengths", StressSettings, axes={"blur": (1, 2)})
    refuses(r"axes.blur\[4\]: expected >= 0, got -1", StressSettings, axes={"blur": (1, 2, 3, 4, -1)})
    for value, found in ((1.5, "an integer"), (100, "<= 8")):
        with pytest.raises(UserError, match=f"env.clutter: expected {found}, got {value}"):
            settings_in(Cell("distractors", 1, value), CubePickConfig())


def test_command_writes_its_page_and_a_repeat_adds_nothing(here, save_untrained, tmp_path):
    env = CubePickConfig(cameras=("hand", "left"), max_steps=4)
    policy = save_untrained(tmp_path / "policy", {"env_config": env.model_dump(mode="json")})
    words = [
        "stress", f"checkpoint={policy}", "episodes=2", "env.cameras=[hand,left]", "env.max_steps=4", "workers=1",
        "only=[blur]", "videos=1", "hydra.run.dir=out",
    ]  # fmt: skip
    here(*words, "episodes=3")
    here(*words)
    result = json.loads((tmp_path / "out" / "stress.json").read_text())
    assert [entry["axis"] for entry in result["axes"]] == ["blur"] and result["score"]["success"] == 0
    assert [len(entry["points"]) for entry in result["axes"]] == [STRENGTHS]
    assert len((tmp_path / "out" / "episodes.csv").read_text().splitlines()) == 1 + 2 * (1 + STRENGTHS)
    assert "Success by axis" in (tmp_path / "out" / "report.html").read_text()
    journal = tmp_path / "out" / "cells" / "blur-5" / "episodes.jsonl"
    before = journal.read_text(), journal.stat().st_mtime_ns
    here(*words)
    assert journal.read_text() == before[0]
    facts = json.loads((policy / "policy.json").read_text())
    (policy / "policy.json").write_text(json.dumps(facts | {"spec": facts["spec"] | {"execute": 1}}))
    assert "policy.spec.execute: expected" in here(*words, status=2).stderr
    line = here(*words, "instruction=x", status=2).stderr
    assert "instruction: expected null (policy without tasks)" in line
    for wrong, text in (("blurr", "only: .* did you mean 'blur'"), ("", "only: expected some of .*blur")):
        assert re.search(text, here(*words, f"only=[{wrong}]", status=2).stderr)
