"""Reconstruction of features: planted maps leave no loss, noise holds nothing, figures follow the formulas."""

import math

import numpy as np
import pytest

from s2robot.probing.tokens import (
    ALL,
    PLACE,
    ZERO,
    InformationSettings,
    judge_information,
    reconstruct,
    side_by_side,
)
from tests.s2robot.probing.test_readout import tokens


def config(train: int = 10, test: int = 6, upper: str | None = None, **changes) -> InformationSettings:
    counts = {"train_episodes": train, "test_episodes": test, "frames": 3, "resamples": 200}
    return InformationSettings(upper=upper, **counts, **changes)


def judged(target, sources, cfg) -> tuple[dict, dict]:
    losses, penalties = reconstruct(target, sources, cfg)
    rows = judge_information(losses, cfg)["results"]
    return {(row["source"], row["part"]): row for row in rows}, penalties


def test_planted_maps_leave_no_loss_and_parts_what_is_missing():
    y = tokens(16, 6, 2)
    linear = tokens(16, 7, 0) @ np.random.default_rng(1).normal(size=(7, 6)) + np.arange(6.0)
    cfg = config()
    found, _ = judged(linear, {"planted": tokens(16, 7, 0)}, cfg)
    assert found["planted", "test"]["info"]["value"] == pytest.approx(-math.log(1e-12))
    found, penalties = judged(y, {"same": y, "half": y[..., :3]}, cfg)
    spread = y.reshape(-1, 6).var(0)
    assert found["same", "test"]["loss"]["value"] < 1e-12 * spread.mean() and penalties["same"] < 1e-6
    assert found["half", "train"]["loss"]["value"] == pytest.approx(spread[3:].sum() / 6, rel=0.2)


def test_noise_holds_nothing_on_held_out_frames():
    cfg = config(train=40, test=40, upper="noise")
    found, penalties = judged(tokens(80, 5, 3), {"noise": tokens(80, 30, 4)}, cfg)
    assert abs(found["noise", "test"]["info"]["value"]) < 0.01 and penalties["noise"] > 0.1
    assert -0.05 < found[PLACE, "test"]["info"]["value"] < 0.01
    # nothing to divide by: no ratio, rather than any number
    assert found["noise", "test"]["ratio"] == {"value": None, "low": None, "high": None}


def test_held_out_frames_change_nothing_of_the_map():
    x, y = tokens(16, 5, 9), tokens(16, 4, 10)
    one, penalties = reconstruct(y, {"a": x}, config())
    x[30:], y[30:] = 0.5, 7.0
    other, same = reconstruct(y, {"a": x}, config())
    assert penalties == same and not np.allclose(one["a"]["test"], other["a"]["test"])
    for name in (ZERO, PLACE, "a"):
        np.testing.assert_array_equal(one[name]["train"], other[name]["train"])


def test_figures_follow_the_formulas():
    cfg = config(train=2, test=3, upper="big", folds=2)
    losses = {
        ZERO: {"train": np.array([1.0, 3.0]), "test": np.array([4.0, 4.0, 4.0])},
        "base": {"train": np.array([1.0, 1.0]), "test": np.array([2.0, 1.0, 3.0])},
        "big": {"train": np.array([0.5, 0.5]), "test": np.array([0.5, 1.0, 1.5])},
    }
    found = judge_information(losses, cfg)
    rows = {(row["source"], row["part"]): row for row in found["results"]}
    bit = math.log(2)
    assert found["l0"]["train"]["value"] == 2 and rows["base", "train"]["info"]["value"] == pytest.approx(bit)
    assert rows["base", "train"]["ratio"]["value"] == pytest.approx(0.5)
    assert rows["base", "train"]["info"]["low"] is None
    assert (
        rows["base", "test"]["info"]["value"] == pytest.approx(bit)
        and rows["big", "test"]["ratio"]["low"] == 1
    )
    assert rows["base", "test"]["info"]["low"] == pytest.approx(
        math.log(4 / 3)
    )  # all draws the worst episode
    apart = {row["part"]: row for row in found["differences"]}
    assert (apart["test"]["source"], apart["test"]["minus"]) == ("big", "base")
    assert apart["test"]["info"]["value"] == pytest.approx(bit)
    half = judge_information({**losses, "big": {k: v / 2 for k, v in losses["base"].items()}}, cfg)
    for key in ("value", "low", "high"):  # paired: always twice as good is so in every draw
        assert half["differences"][1]["info"][key] == pytest.approx(bit)


def test_all_sources_together_are_an_upper_bound():
    """The target is one part from each source and noise: neither has it all, both together hold what there is."""
    rng = np.random.default_rng(5)
    a, b = tokens(16, 3, 0), tokens(16, 4, 1)
    target = a @ rng.normal(size=(3, 6)) + b @ rng.normal(size=(4, 6)) + 0.5 * tokens(16, 6, 2)
    found, _ = judged(target, {"a": a, "b": b, ALL: side_by_side([a, b], 4)}, config(upper=ALL))
    for part in ("train", "test"):
        ratios = {name: found[name, part]["ratio"]["value"] for name in ("a", "b", ALL)}
        assert ratios[ALL] == 1 and 0 < ratios["a"] < 0.9 and 0 < ratios["b"] < 0.9
    fine = np.repeat(np.repeat(b.reshape(-1, 2, 2, 2, 4), 2, 2), 2, 3).reshape(-1, 2, 16, 4)
    np.testing.assert_allclose(side_by_side([a, fine], 4), np.concatenate([a, b], -1))
