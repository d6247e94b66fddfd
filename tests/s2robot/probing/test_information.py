"""Linear reconstruction of features: planted maps come back exactly, noise holds nothing, episodes stay apart."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from s2robot.common.errors import UserError
from s2robot.common.paths import configs_dir
from s2robot.comparison.result import information as report_table
from s2robot.encoders.build import build_encoder
from s2robot.envs.cube_config import CubePickConfig
from s2robot.probing import information as info
from s2robot.probing import token_maps
from s2robot.probing.information import (
    ALL,
    PLACE,
    ZERO,
    InformationConfig,
    channel_weights,
    compare_sources,
    information,
    judge,
    run_information,
    side_by_side,
    summary_text,
)
from s2robot.probing.readout import ReadoutConfig
from s2robot.probing.token_maps import linear_map, regrid, sum_up, token_pairs
from tests.inline import do_inline

FRAMES, CAMERAS, TOKENS = 3, 2, 4


def config(train: int = 10, test: int = 6, **changes) -> InformationConfig:
    data = ReadoutConfig(train_episodes=train, test_episodes=test, frames=FRAMES, resamples=200)
    return InformationConfig(data, **changes)


def features(episodes: int, dim: int, seed: int) -> np.ndarray:
    """Tokens of unequal spread and mean, (T, C, N, D)."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(episodes * FRAMES, CAMERAS, TOKENS, dim))
    return values * rng.uniform(0.1, 9, dim) + rng.normal(size=dim) * 5


def rows_of(losses, cfg) -> dict:
    return {row["source"]: row for row in judge(losses, cfg)["results"]}


# --- the map ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", ["none", "channel"])
def test_a_planted_map_is_recovered_exactly(normalise):
    x = features(16, 7, 0)
    weight, bias = np.random.default_rng(1).normal(size=(7, 5)), np.arange(5.0)
    y = x @ weight + bias
    sums = sum_up(x, y, FRAMES, range(10), 5)
    fit = linear_map(sums, channel_weights(sums, normalise))
    np.testing.assert_allclose(fit.weight, weight, atol=1e-6)
    np.testing.assert_allclose(fit(x), y, atol=1e-6)
    cfg = config(normalise=normalise)
    found = rows_of(compare_sources(y, {"planted": x}, cfg)[0], cfg)["planted"]
    for part in ("train", "test"):
        assert found[part]["loss"]["value"] < 1e-12
        assert found[part]["info"]["value"] == pytest.approx(-math.log(info.FLOOR))


def test_the_target_itself_leaves_no_loss_and_a_part_of_it_what_is_missing():
    y = features(16, 6, 2)
    spread = y.reshape(-1, 6).var(0)
    cfg = config()
    losses, penalties = compare_sources(y, {"same": y, "half": y[..., :3]}, cfg)
    found = rows_of(losses, cfg)
    assert found["same"]["test"]["loss"]["value"] < 1e-12 * spread.mean() and penalties["same"] < 1e-6
    assert found["half"]["train"]["loss"]["value"] == pytest.approx(spread[3:].sum() / 6, rel=0.2)


def test_noise_holds_nothing_on_held_out_frames():
    cfg = config(train=40, test=40, upper="noise")
    losses, penalties = compare_sources(features(80, 5, 3), {"noise": features(80, 30, 4)}, cfg)
    found = rows_of(losses, cfg)
    assert abs(found["noise"]["test"]["info"]["value"]) < 0.01 and penalties["noise"] > 0.1
    assert -0.05 < found[PLACE]["test"]["info"]["value"] < 0.01
    # nothing to divide by: no ratio, rather than any number
    assert found["noise"]["test"]["ratio"] == {"value": None, "low": None, "high": None}


def test_against_plain_ridge_and_plain_cross_validation():
    """Every left-out error and the map, against normal equations written out for each fold."""
    x, y = features(9, 6, 5), features(9, 3, 6)
    y += x @ np.random.default_rng(7).normal(size=(6, 3)) * 0.1
    x[..., 2] = 0.1  # a constant channel says nothing
    penalties, weights = np.array([1e-3, 0.3, 10.0]), np.array([0.5, 0.2, 2.0])
    fit = linear_map(sum_up(x, y, FRAMES, range(9), 4), weights, penalties)
    flat, wanted = x.reshape(-1, 6), y.reshape(-1, 3)
    episodes = np.repeat(np.arange(9), FRAMES * CAMERAS * TOKENS)
    scale = np.where(flat.std(0) > 1e-9, 1 / np.maximum(flat.std(0), 1e-9), 0)

    def ridge(keep, penalty):
        centre, middle = flat[keep].mean(0), wanted[keep].mean(0)
        z = (flat[keep] - centre) * scale
        gram = z.T @ z
        a = np.linalg.solve(gram + penalty * np.trace(gram) / 6 * np.eye(6), z.T @ (wanted[keep] - middle))
        return lambda rows: (rows - centre) * scale @ a + middle

    expected = np.zeros(3)
    for p, penalty in enumerate(penalties):
        for fold in range(4):
            out = episodes % 4 == fold
            expected[p] += ((ridge(~out, penalty)(flat[out]) - wanted[out]) ** 2 @ weights).sum()
    np.testing.assert_allclose(fit.left_out, expected, rtol=1e-9)
    assert fit.penalty == penalties[expected.argmin()]
    everything = np.ones(len(flat), bool)
    np.testing.assert_allclose(fit(flat), ridge(everything, fit.penalty)(flat), rtol=1e-9, atol=1e-9)


def test_an_episode_does_not_choose_its_own_penalty():
    """Features that only tell episodes apart are perfect between frames of one, and worth nothing on another."""
    rng = np.random.default_rng(8)
    episodes = np.repeat(np.arange(20), FRAMES)
    code = rng.normal(size=(20, 1, 1, 40))[episodes] + 0.01 * rng.normal(size=(60, CAMERAS, TOKENS, 40))
    y = rng.normal(size=(20, 1, 1, 3))[episodes] + np.zeros((1, CAMERAS, TOKENS, 1))
    spread = y.var((0, 1, 2)).sum() * y[..., 0].size
    apart = linear_map(sum_up(code, y, FRAMES, range(20), 5), np.ones(3))
    rows = rng.permutation(60)  # as if a frame were an episode, and those of one lay in several folds
    mixed = linear_map(sum_up(code[rows], y[rows], 1, range(60), 5), np.ones(3))
    assert mixed.left_out.min() < 0.01 * spread  # the leak that must not be
    assert apart.left_out.min() > 0.8 * spread
    assert apart.penalty > 100 * mixed.penalty


def test_held_out_frames_change_nothing_of_the_map():
    x, y = features(16, 5, 9), features(16, 4, 10)
    cfg = config()
    one, penalties = compare_sources(y, {"a": x}, cfg)
    x[30:], y[30:] = 0.5, 7.0
    other, same = compare_sources(y, {"a": x}, cfg)
    assert penalties == same and not np.allclose(one["a"]["test"], other["a"]["test"])
    for name in (ZERO, PLACE, "a"):
        np.testing.assert_array_equal(one[name]["train"], other[name]["train"])


def test_blocks_are_of_one_episode_and_add_up(monkeypatch):
    x, y = features(4, 3, 11), features(4, 2, 12)
    whole = sum_up(x, y, FRAMES, range(4), 2)
    monkeypatch.setattr(token_maps, "_ROWS", 1)  # a frame at a time
    blocks = list(token_pairs(x, y, FRAMES, range(1, 3)))
    assert [episode for episode, *_ in blocks] == [1] * FRAMES + [2] * FRAMES
    np.testing.assert_array_equal(blocks[4][1], x[7].reshape(-1, 3))
    np.testing.assert_array_equal(blocks[4][2], y[7].reshape(-1, 2))
    np.testing.assert_allclose(sum_up(x, y, FRAMES, range(4), 2).folds, whole.folds, rtol=1e-12)
    assert whole.folds[:, 0, 0].tolist() == [2 * FRAMES * CAMERAS * TOKENS] * 2


# --- grids --------------------------------------------------------------------------------------------------


@given(old=st.integers(1, 7), new=st.integers(1, 7), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_regrid_keeps_means_and_constants(old, new, seed):
    maps = np.random.default_rng(seed).normal(size=(2, old * old, 3))
    found = regrid(maps, new * new)
    np.testing.assert_allclose(found.mean(1), maps.mean(1), atol=1e-12)
    np.testing.assert_allclose(regrid(np.full((1, old * old, 1), 0.3), new * new), 0.3, rtol=1e-12)
    if old % new == 0:
        image = torch.as_tensor(maps).reshape(2, old, old, 3).permute(0, 3, 1, 2)
        area = torch.nn.functional.interpolate(image, (new, new), mode="area")
        np.testing.assert_allclose(found, area.flatten(2).transpose(1, 2).numpy(), atol=1e-12)


def test_regrid_of_thirds_and_halves():
    line = np.outer(np.ones(2), [0.0, 6.0]).reshape(1, 4, 1)  # two columns into three: the middle has both
    assert regrid(line, 9)[0, :, 0].reshape(3, 3).tolist() == [[0, 3, 6]] * 3
    with pytest.raises(UserError, match="found 6 and 4 tokens, expected square grids"):
        regrid(np.zeros((1, 6, 1)), 4)


def test_a_finer_source_is_read_on_the_targets_grid():
    rng = np.random.default_rng(13)
    fine = rng.normal(size=(48, CAMERAS, 16, 3))
    y = fine.reshape(48, CAMERAS, 2, 2, 2, 2, 3).mean((3, 5)).reshape(48, CAMERAS, 4, 3) @ rng.normal(
        size=(3, 4)
    )
    cfg = config()
    assert rows_of(compare_sources(y, {"fine": fine}, cfg)[0], cfg)["fine"]["test"]["loss"]["value"] < 1e-12


# --- figures ------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_formulas():
    cfg = config(train=2, test=3, upper="big", unit="bits", folds=2)
    losses = {
        ZERO: {"train": np.array([1.0, 3.0]), "test": np.array([4.0, 4.0, 4.0])},
        "base": {"train": np.array([1.0, 1.0]), "test": np.array([2.0, 1.0, 3.0])},
        "big": {"train": np.array([0.5, 0.5]), "test": np.array([0.5, 1.0, 1.5])},
    }
    found = judge(losses, cfg)
    base, big = found["results"]
    assert found["l0"]["train"]["value"] == 2 and base["train"]["info"]["value"] == pytest.approx(1)
    assert base["train"]["ratio"]["value"] == pytest.approx(0.5)
    assert base["test"]["info"]["value"] == pytest.approx(1) and big["test"]["ratio"]["low"] == 1
    assert base["test"]["info"]["low"] == pytest.approx(math.log2(4 / 3))  # all three draws the worst episode
    assert base["train"]["info"]["low"] is None
    (apart,) = found["differences"]
    assert (apart["source"], apart["minus"]) == ("big", "base")
    assert apart["test"]["info"]["value"] == pytest.approx(1)
    half = judge({**losses, "big": {k: v / 2 for k, v in losses["base"].items()}}, cfg)
    for key in ("value", "low", "high"):  # paired: what is always twice as good is so in every draw
        assert half["differences"][0]["test"]["info"][key] == pytest.approx(1)


def test_normalised_channels_weigh_alike():
    """With 1 of unit variance the l0 of training frames is 1, whatever the channels' units; constants weigh nothing."""
    y = features(16, 4, 14) * np.array([1e-4, 1, 1e3, 0])
    cfg = config(normalise="channel")
    losses, _ = compare_sources(y, {"a": features(16, 2, 15)}, cfg)
    assert judge(losses, cfg)["l0"]["train"]["value"] == pytest.approx(1)
    with pytest.raises(UserError, match="information.target: found tokens that are all the same"):
        compare_sources(np.ones_like(y), {"a": y}, cfg)


def test_what_needs_no_image_is_the_mean_of_each_place():
    rng = np.random.default_rng(16)
    y = np.broadcast_to(rng.normal(size=(1, CAMERAS, TOKENS, 3)), (48, CAMERAS, TOKENS, 3))
    cfg = config()
    found = rows_of(compare_sources(y, {"a": features(16, 2, 17)}, cfg)[0], cfg)
    assert found[PLACE]["test"]["loss"]["value"] < 1e-24


# --- the whole ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"normalise": "layer"}, "information.normalise: found 'layer', expected one of none, channel"),
        ({"unit": "nat"}, "information.unit: found 'nat', expected one of nats, bits"),
        ({"folds": 11}, "information.folds: found 11, expected 2 to train_episodes = 10"),
    ],
)
def test_wrong_settings_are_refused(change, text):
    with pytest.raises(UserError, match=text):
        config(**change)


def test_wrong_sources_are_refused(tmp_path):
    tiny = build_encoder({"name": "mvp-tiny", "scales": [1]})
    pooled = build_encoder({"name": "mvp-tiny", "scales": [1], "pool": "mean"})
    for target, sources, upper, text in (
        (tiny, {}, None, "information.sources: found none, expected at least 1"),
        (tiny, {PLACE: tiny}, None, "information.sources: 'no image' is the name of another row"),
        (tiny, {"a": tiny}, "b", r"information.upper: found 'b', expected null, all or one of \['a'\]"),
        (pooled, {"a": tiny}, None, "information.target.pool: found mean, expected tokens"),
        (tiny, {"a": pooled}, None, "information.sources.a.pool: found mean, expected tokens"),
    ):
        with pytest.raises(UserError, match=text):
            information(target, sources, config(upper=upper), tmp_path)
    assert not list(tmp_path.iterdir())


def test_all_sources_together_are_an_upper_bound_on_the_training_frames():
    """The target is one part from each source and noise: neither has it all, both together hold what there is."""
    rng = np.random.default_rng(5)
    a, b = features(16, 3, 0), features(16, 4, 1)
    target = a @ rng.normal(size=(3, 6)) + b @ rng.normal(size=(4, 6)) + 0.5 * features(16, 6, 2)
    cfg = config(upper=ALL)
    sources = {"a": a, "b": b}
    losses, _ = compare_sources(target, sources | {ALL: side_by_side([a, b], TOKENS)}, cfg)
    rows = rows_of(losses, cfg)
    for part in ("train", "test"):
        ratios = {name: rows[name][part]["ratio"]["value"] for name in ("a", "b", ALL)}
        assert ratios[ALL] == 1 and 0 < ratios["a"] < 0.9 and 0 < ratios["b"] < 0.9
    fine = np.repeat(np.repeat(b.reshape(-1, CAMERAS, 2, 2, 4), 2, 2), 2, 3).reshape(-1, CAMERAS, 16, 4)
    joined = side_by_side([a, fine], TOKENS)
    np.testing.assert_allclose(joined, np.concatenate([a, b], -1))


def test_the_shipped_settings_are_those_of_the_class():
    shipped = OmegaConf.to_container(OmegaConf.load(configs_dir() / "information" / "default.yaml"))
    own = {k: shipped.pop(k) for k in ("upper", "normalise", "unit", "folds")}
    ours = InformationConfig()
    assert own.pop("upper") == "all"  # the class has none: it does not choose the sources either
    assert all(getattr(ours, key) == value for key, value in own.items())
    assert shipped["target"]["name"] == "mvp-small" and list(shipped["sources"])[:2] == ["base", "base-s2"]
    assert {"target", "sources"} < set(shipped)
    data = {k: v for k, v in shipped.items() if k not in ("target", "sources")}
    assert set(data) == set(ReadoutConfig.__dataclass_fields__) - {*info.UNUSED, "world"}
    assert all(getattr(ours.data, key) == value for key, value in data.items())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"foo": 1}, "^information.foo: unknown key, expected one of cache, "),
        ({"pools": ["mean"]}, "^information.pools: unknown key"),
        (
            {"test_seed": 300_090},
            "^information: 10 seeds .first 300090. are in the training and in the held-out",
        ),
        ({"train_seed": 100_000}, "^information.train_seed: found seeds 100000 to 100099, expected them in"),
        ({"upper": "x"}, "^information.upper: found 'x', expected null, all or one of"),
    ],
)
def test_errors_of_the_command_name_its_own_keys(tmp_path, change, text):
    tiny = {"name": "mvp-tiny", "scales": [1]}
    env = OmegaConf.load(configs_dir() / "env" / "cube_pick.yaml")
    cfg = {"information": {"target": tiny, "sources": {"a": tiny}, **change}, "env": env}
    with pytest.raises(UserError, match=text):
        run_information(OmegaConf.create({**cfg, "robot": {"name": "xarm7"}, "run_dir": str(tmp_path)}))


def test_real_encoders_end_to_end(tmp_path, monkeypatch):
    """mvp-tiny-s2 from mvp-tiny at one scale and with S2, and from itself, on 2 + 2 episodes."""
    do_inline(monkeypatch)
    tiny = {"name": "mvp-tiny", "dtype": "float32"}
    target = build_encoder({"name": "mvp-tiny-s2", "dtype": "float32", "scales": [1]})
    sources = {
        "base": build_encoder({**tiny, "scales": [1]}),
        "base-s2": build_encoder({**tiny, "scales": [1, 2]}),
        "itself": target,
    }
    world = CubePickConfig(cameras=("hand", "left"))
    data = ReadoutConfig(
        world,
        train_episodes=2,
        test_episodes=2,
        frames=3,
        resamples=100,
        cache=str(tmp_path / "c"),
        workers=1,
    )
    report = information(target, sources, InformationConfig(data, folds=2, upper="base-s2"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "information.json").read_text()) == report
    found = {row["source"]: row for row in report["results"]}
    assert list(found) == [PLACE, *sources] and report["settings"]["image_size"] == 256
    for part in ("train", "test"):
        l0 = report["l0"][part]["value"]
        for row in report["results"]:
            value = {metric: row[part][metric]["value"] for metric in info.METRICS}
            expected = -math.log(max(value["loss"] / l0, info.FLOOR))
            assert value["info"] == pytest.approx(expected)
            assert value["ratio"] == pytest.approx(value["info"] / found["base-s2"][part]["info"]["value"])
        assert found["itself"][part]["loss"]["value"] < 1e-9 * l0
        assert 0 < found["base"][part]["info"]["value"] < 5
    held = found["base"]["test"]["info"]
    assert held["low"] <= held["value"] <= held["high"]
    lines = list(csv.DictReader((tmp_path / "out" / "information.csv").open()))
    assert len(lines) == (4 + 6) * 2 * 3
    (line,) = [x for x in lines if [*x.values()][:4] == ["base-s2", "base", "test", "info"]]
    expected = found["base-s2"]["test"]["info"]["value"] - held["value"]
    assert float(line["value"]) == pytest.approx(expected)
    assert (tmp_path / "out" / "information.png").read_bytes().startswith(b"\x89PNG")
    said = summary_text(report).splitlines()
    assert (
        said[0].split()
        == "source train loss train info (nats) train ratio test loss test info (nats) test ratio".split()
    )
    assert said[3].startswith("base-s2 ") and "100.0% [100.0%, 100.0%]" in said[3]
    assert any(line.startswith("base-s2 - base ") for line in said)
    table = report_table(tmp_path / "out")  # as a comparison's report shows it
    assert table["columns"] == [
        "source",
        *(f"{p} {m}" for p in ("train", "test") for m in ("loss", "info (nats)", "ratio")),
    ]
    assert [row[0] for row in table["rows"]][:4] == list(found) and all(
        len(row) == 7 for row in table["rows"]
    )
    with pytest.raises(
        UserError, match="information_run: .*information.json: no such file; `s2robot information`"
    ):
        report_table(tmp_path)
    (tmp_path / "information.json").write_text("{}")
    with pytest.raises(UserError, match="KeyError: 'settings', expected what `s2robot information` writes"):
        report_table(tmp_path)
