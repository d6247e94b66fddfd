"""The linear read-out: planted features are found, noise is not, no episode helps its own frames, intervals cover."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from s2robot.common.errors import UserError
from s2robot.common.paths import configs_dir
from s2robot.encoders.build import build_encoder
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.cube_picker import Picker
from s2robot.probing import moments as readout_frames
from s2robot.probing.cell_maps import CELL_METRICS, PLACE
from s2robot.probing.moments import MomentBank, draw_episode
from s2robot.probing.readout import ReadoutConfig, readout, run_readout
from s2robot.probing.readout_report import JOINED, summary_text
from s2robot.probing.ridge import (
    METRICS,
    interval,
    kernels,
    resample,
    ridge,
    scores,
    targets_of,
    weighted_medians,
    yaw_errors,
)
from tests.inline import do_inline


def poses(count: int, seed: int, turned: float = 0.0) -> np.ndarray:
    """Upright cubes on the table and above it.  # (count, 7)"""
    rng = np.random.default_rng(seed)
    yaw = rng.uniform(-np.pi, np.pi, count) + turned
    place = rng.uniform([-0.12, -0.16, 0.02], [0.12, 0.16, 0.15], (count, 3))
    zero = np.zeros(count)
    return np.column_stack([place, np.cos(yaw / 2), zero, zero, np.sin(yaw / 2)])


def read_out(train, test, targets, true, episodes):
    """Every metric on all of the test frames, each counted once."""
    fit = ridge(*kernels(train, test), targets, episodes)
    return {k: v[0] for k, v in scores(fit.read, true, np.ones((1, len(true)))).items()}, fit


# --- ridge --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [9, 6000])  # fewer and more features than frames, and more than one block
def test_planted_linear_features_give_the_pose_back(width):
    targets, true = targets_of(poses(90, 0)), targets_of(poses(40, 1))
    mix = np.random.default_rng(2).normal(size=(5, width))
    found, _ = read_out(targets @ mix + 3, true @ mix + 3, targets, true, np.arange(90) // 6)
    assert (
        found["position_mean_cm"] < 1e-4 and found["height_mean_cm"] < 1e-4 and found["yaw_mean_deg"] < 1e-3
    )
    assert min(found[f"{name}_r2"] for name in ("position", "height", "yaw")) > 1 - 1e-9


def test_noise_reads_nothing_and_says_so():
    rng = np.random.default_rng(3)
    targets, true = targets_of(poses(300, 4)), targets_of(poses(300, 5))
    found, fit = read_out(
        rng.normal(size=(300, 900)), rng.normal(size=(300, 900)), targets, true, np.arange(300) // 6
    )
    blind, _ = read_out(np.ones((300, 1)), np.ones((300, 1)), targets, true, np.arange(300) // 6)
    for name in ("position", "height", "yaw"):
        assert abs(found[f"{name}_r2"]) < 0.05
    assert found["position_mean_cm"] == pytest.approx(blind["position_mean_cm"], rel=0.05)
    assert 19 < found["yaw_mean_deg"] < 26  # 22.5 by chance
    assert min(fit.penalties) > 1  # it asked for almost no map at all


@pytest.mark.parametrize("width", [4, 50])
def test_left_out_episodes_are_as_if_fitted_without_them(width):
    """Against a plain solution that leaves each episode out in turn."""
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(30, width)) * rng.uniform(0.1, 9, width), rng.normal(size=(30, 2))
    episodes = np.array([*([0] * 7), *([5] * 3), *([2] * 12), *([9] * 8)])
    own, cross = kernels(x, x[:1])
    z = (x - x.mean(0)) / x.std(0)
    penalties = np.array([1e-3, 1.0, 30.0])
    expected = np.zeros((3, 2))
    for p, penalty in enumerate(penalties * np.trace(own) / 30):
        for e in np.unique(episodes):
            a, b, rest = z[episodes != e], y[episodes != e], episodes == e
            centred = a - a.mean(0)
            weights = np.linalg.solve(
                centred.T @ centred + penalty * np.eye(width), centred.T @ (b - b.mean(0))
            )
            expected[p] += ((b.mean(0) + (z[rest] - a.mean(0)) @ weights - y[rest]) ** 2).sum(0)
    fit = ridge(own, cross, y, episodes, groups=((0,), (1,)), penalties=penalties)
    np.testing.assert_allclose(fit.left_out, expected, rtol=1e-8)
    assert fit.penalties == tuple(penalties[expected.argmin(0)])


def test_prediction_is_ridge_with_a_free_intercept():
    rng = np.random.default_rng(7)
    x, x_test, y = rng.normal(size=(40, 11)), rng.normal(size=(9, 11)), rng.normal(size=(40, 1)) + 5
    own, cross = kernels(x, x_test)
    fit = ridge(own, cross, y, np.arange(40) // 4, groups=((0,),), penalties=np.array([0.3]))
    z = (x - x.mean(0)) / x.std(0)
    weights = np.linalg.solve(z.T @ z + 0.3 * np.trace(own) / 40 * np.eye(11), z.T @ (y - y.mean(0)))
    expected = y.mean(0) + (x_test - x.mean(0)) / x.std(0) @ weights
    np.testing.assert_allclose(fit.read, expected, rtol=1e-10)


def test_kernels_of_cameras_add_up_and_constant_features_count_nothing():
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(2, 12, 5)).astype(np.float16), rng.normal(size=(2, 12, 7)).astype(np.float16)
    joined = kernels(np.hstack([a[0], b[0]]), np.hstack([a[1], b[1]]))
    for whole, left, right in zip(joined, kernels(*a), kernels(*b), strict=True):
        np.testing.assert_allclose(whole, left + right, rtol=1e-12, atol=1e-12)
    constant = np.full((12, 1), 0.1, np.float16)
    with_constant = kernels(np.hstack([a[0], constant]), np.hstack([a[1], constant + 9]))[0]
    # not to the last bit: some BLAS group the sum over one column more in another way
    np.testing.assert_allclose(with_constant, kernels(*a)[0], rtol=1e-14, atol=1e-14)
    assert np.isfinite(kernels(constant, constant + 1)[1]).all()


def test_an_episode_does_not_choose_its_own_penalty():
    """Features that only tell episodes apart are perfect between frames of one, and worth nothing on another."""
    rng = np.random.default_rng(9)
    episodes = np.repeat(np.arange(40), 6)
    code = rng.normal(size=(40, 80))[episodes] + 0.01 * rng.normal(size=(240, 80))
    targets = targets_of(poses(40, 10))[episodes]
    own, cross = kernels(code, code[:1])
    variance = ((targets - targets.mean(0)) ** 2).sum(0)[:2].sum()
    by_episode = ridge(own, cross, targets, episodes)
    by_frame = ridge(own, cross, targets, np.arange(240))
    assert by_frame.left_out[:, :2].sum(1).min() < 1e-3 * variance  # the leak that must not be
    assert by_episode.left_out[:, :2].sum(1).min() > 0.9 * variance
    assert by_episode.penalties[0] > 100 * by_frame.penalties[0]


# --- targets, errors, intervals -------------------------------------------------------------------------------


@given(quarters=st.integers(-5, 5), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_yaw_is_the_same_every_quarter_turn(quarters, seed):
    one, other = (targets_of(poses(20, seed, turned)) for turned in (0.0, quarters * np.pi / 2))
    np.testing.assert_allclose(one, other, atol=1e-12)
    apart = targets_of(poses(20, seed, np.radians(90 * quarters + 30)))
    np.testing.assert_allclose(yaw_errors(apart[:, 3:] * 0.1, one[:, 3:]), 30, atol=1e-9)
    back = targets_of(poses(20, seed, np.radians(60)))
    np.testing.assert_allclose(
        yaw_errors(back[:, 3:], one[:, 3:]), 30, atol=1e-9
    )  # 60 one way is 30 the other


def test_yaw_of_a_cube_on_another_face():
    """A quarter turn about a level axis of its own changes nothing that can be seen."""
    yaw, half = 0.3, np.pi / 4
    turn = np.array([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
    for tip in ([np.cos(half), np.sin(half), 0, 0], [np.cos(half), 0, np.sin(half), 0]):
        w, x = turn[0] * tip[0], turn[0] * tip[1] - turn[3] * tip[2]
        y, z = turn[0] * tip[2] + turn[3] * tip[1], turn[3] * tip[0]
        found = targets_of(np.array([[0, 0, 0.02, w, x, y, z]]))[0]
        np.testing.assert_allclose(found[3:], [np.sin(4 * yaw), np.cos(4 * yaw)], atol=1e-12)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=12))
@settings(deadline=None, max_examples=60)
def test_weighted_median_is_the_median_of_the_repeated(pairs):
    values, times = (np.array(column) for column in zip(*pairs, strict=True))
    times[0] += 1
    expected = np.median(np.repeat(values, times))
    assert weighted_medians(values.astype(float), times[None].astype(float)) == pytest.approx([expected])


def test_scores_of_repeated_frames():
    """Weights are repetitions, in every metric; a height that does not vary has no R2."""
    rng = np.random.default_rng(11)
    true = targets_of(poses(12, 12))
    read = true + 0.01 * rng.normal(size=true.shape)
    times = rng.integers(0, 4, 12)
    again = np.repeat(np.arange(12), times)
    one = scores(read, true, times[None].astype(float))
    many = scores(read[again], true[again], np.ones((1, len(again))))
    assert set(one) == set(METRICS)
    for name in METRICS:
        np.testing.assert_allclose(one[name], many[name], rtol=1e-9)
    expected = 1 - ((read - true)[:, :2] ** 2).sum() / ((true - true.mean(0))[:, :2] ** 2).sum()
    assert scores(read, true, np.ones((1, 12)))["position_r2"] == pytest.approx(expected)
    true[:, 2] = 0.02
    assert np.isnan(scores(read, true, np.ones((1, 12)))["height_r2"]).all()
    assert interval(np.full(5, np.nan)) == {"value": None, "low": None, "high": None}


def test_intervals_by_episode_cover_and_those_by_frame_do_not():
    """Frames of an episode share most of their error: 95 % intervals must hold the truth about as often."""
    rng = np.random.default_rng(13)
    hits = {"episode": 0, "frame": 0}
    times = {"episode": resample(40, 400, 0)[:, np.repeat(np.arange(40), 6)], "frame": resample(240, 400, 0)}
    for _ in range(300):
        error = np.repeat(rng.gamma(2.0, 0.5, 40), 6) * rng.uniform(0.8, 1.2, 240)  # its mean is 1
        for way, weights in times.items():
            found = interval(weights @ error / weights.sum(1))
            hits[way] += found["low"] <= 1 <= found["high"]
    assert 0.90 <= hits["episode"] / 300 <= 0.98
    assert hits["frame"] / 300 < 0.75


def test_the_same_seed_resamples_the_same_episodes():
    assert np.array_equal(resample(9, 50, 4), resample(9, 50, 4))
    assert not np.array_equal(resample(9, 50, 4), resample(9, 50, 5))
    drawn = resample(9, 50, 4)
    assert (drawn[0] == 1).all() and (drawn.sum(1) == 9).all()


# --- frames ---------------------------------------------------------------------------------------------------

WORLD = CubePickConfig(image_size=64)


@pytest.fixture(scope="module")
def drawn():
    return draw_episode(WORLD, 300_000, 4)


def test_frames_are_decided_by_the_seed(drawn):
    other = draw_episode(WORLD, 300_001, 4)
    again = draw_episode(WORLD, 300_000, 4)
    assert all(np.array_equal(drawn[name], again[name]) for name in drawn)
    assert not np.array_equal(drawn["cube_pose"], other["cube_pose"])
    assert drawn["images"].shape == (4, 3, 64, 64, 3) and drawn["images"].dtype == np.uint8
    assert len(set(drawn["step"])) == 4
    env = CubePick(WORLD, draw=False)
    _, info = env.reset(seed=300_000)
    np.testing.assert_allclose(drawn["cube_pose"][0, :2], info["cube_pose"][:2], atol=0.02)
    with pytest.raises(
        UserError, match=r"readout.frames: found 500, but the pick of seed 300000 has \d+ steps"
    ):
        draw_episode(WORLD, 300_000, 500)


def test_what_hides_the_cube_is_known():
    """Against MuJoCo's own segmentation: the cube's pixels with and without all the rest."""
    import mujoco

    env = CubePick(WORLD, draw=False)
    picker = Picker(env)
    renderer = mujoco.Renderer(env.model, 64, 64)
    option = mujoco.MjvOption()
    option.geomgroup[:], option.sitegroup[:] = 0, 0
    option.geomgroup[1] = 1
    renderer.enable_segmentation_rendering()

    def pixels() -> np.ndarray:
        counts = []
        for camera in env.camera_ids.values():
            renderer.update_scene(env.data, camera, option)
            ids = renderer.render()
            is_geom = ids[..., 1] == int(mujoco.mjtObj.mjOBJ_GEOM)
            counts.append((np.isin(ids[..., 0], list(env._cube_geoms)) & is_geom).sum())
        return np.array(counts)

    env.reset(seed=1)
    picker.reset(1)
    shares = []
    for step in range(19):
        env.step_physics(picker.act()[0])
        if step % 6 == 0:
            shares.append(readout_frames._visible(env, env.render_cameras()))
            groups, seen = env.model.geom_group.copy(), pixels()
            env.model.geom_group[[g for g in range(env.model.ngeom) if g not in env._cube_geoms]] = 5
            whole = pixels()
            env.model.geom_group[:] = groups
            np.testing.assert_allclose(shares[-1], seen / whole, atol=0.03)  # edges of fewer triangles
    renderer.close()
    assert np.min(shares) < 0.6 and np.max(shares) == 1  # it saw both


def test_a_bank_draws_what_is_missing_and_heals(tmp_path, drawn, monkeypatch):
    do_inline(monkeypatch)
    bank = MomentBank(tmp_path, WORLD, 4)
    with pytest.raises(UserError, match="no frames of seed 300000, expected them"):
        bank.images(300_000)
    calls = []
    assert bank.fill([300_000, 300_001], 1, lambda *done: calls.append(done)) == 2 and calls == [
        (1, 2),
        (2, 2),
    ]
    assert np.array_equal(bank.images(300_000), drawn["images"])
    labels = bank.labels([300_001, 300_000])
    assert labels["episode"].tolist() == [0] * 4 + [1] * 4
    assert np.array_equal(labels["cube_pose"][4:], drawn["cube_pose"])
    (bank.path / "300000.npz").write_bytes(b"cut off")
    assert bank.fill([300_000, 300_001], 1) == 1 and np.array_equal(bank.images(300_000), drawn["images"])
    assert not list(bank.path.glob("*.part*"))
    others = (replace(WORLD, image_size=32), replace(WORLD, robot="panda"), replace(WORLD, cameras=("hand",)))
    keys = {bank.key, MomentBank(tmp_path, WORLD, 5).key, *(MomentBank(tmp_path, w, 4).key for w in others)}
    assert len(keys) == 5


# --- the whole --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"train_seed": 100_000},
            "readout.train_seed: found seeds 100000 to 100099, expected them in 200000",
        ),
        ({"test_seed": 499_999_980}, "readout.test_seed: found seeds 499999980 to 500000039, expected"),
        ({"test_seed": 300_090}, "10 seeds .first 300090. are in the training and in the held-out episodes"),
        ({"test_episodes": 1}, "readout.test_episodes: found 1, expected at least 2"),
        ({"pools": ("max",)}, "readout.pools: found .'max'., expected some of tokens, mean"),
    ],
)
def test_wrong_settings_are_refused(change, text):
    with pytest.raises(UserError, match=text):
        ReadoutConfig(**change)


def test_the_shipped_settings_are_those_of_the_class():
    shipped = OmegaConf.to_container(OmegaConf.load(configs_dir() / "readout" / "default.yaml"))
    assert set(shipped) - {"encoders"} == set(ReadoutConfig.__dataclass_fields__) - {"world"}
    ours = ReadoutConfig()
    for key, value in shipped.items():
        if key != "encoders":
            assert (tuple(value) if isinstance(value, list) else value) == getattr(ours, key)
    with pytest.raises(UserError, match="readout: unknown key 'foo'"):
        run_readout(OmegaConf.create({"readout": {"encoders": {}, "foo": 1}}))
    with pytest.raises(UserError, match="readout.encoders: found none, expected at least 1"):
        readout({}, ours, configs_dir())


@pytest.mark.slow  # what `information` does with two of them is like it
def test_two_real_encoders_on_the_same_frames(tmp_path, monkeypatch):
    """mvp-tiny at one scale and with S2, end to end; a second run draws and encodes nothing and gives the same."""
    do_inline(monkeypatch)
    facts = {"name": "mvp-tiny", "dtype": "float32"}
    encoders = {
        "one": build_encoder({**facts, "scales": [1]}),
        "s2": build_encoder({**facts, "scales": [1, 2]}),
    }
    world = CubePickConfig(cameras=("hand", "left"))
    cfg = ReadoutConfig(
        world=world,
        train_episodes=2,
        test_episodes=2,
        frames=3,
        resamples=100,
        cache=str(tmp_path / "cache"),
        workers=1,
    )
    report = readout(encoders, cfg, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "readout.json").read_text()) == report
    assert report["settings"]["image_size"] == 256 and report["frames"]["test"] == 6
    places = {(r["encoder"], r["pool"], r["cameras"], r["subset"]) for r in report["results"]}
    assert len(report["results"]) == len(places) == (2 * 2 * 3 + 2) * 4
    whole = [r for r in report["results"] if r["subset"] == "all"]
    for row in whole:
        found = row["position_mean_cm"]
        assert 0 < found["low"] <= found["value"] <= found["high"] < 40 and row["frames"] == 6
    value = {(r["encoder"], r["pool"], r["cameras"]): r["yaw_mean_deg"]["value"] for r in whole}
    apart = [d for d in report["differences"] if d["subset"] == "all"]
    assert len(apart) == 2 * 3
    for row in apart:
        pair = [value[name, row["pool"], row["cameras"]] for name in (row["encoder"], row["minus"])]
        assert row["yaw_mean_deg"]["value"] == pytest.approx(pair[0] - pair[1])
    lines = list(csv.DictReader((tmp_path / "out" / "readout.csv").open()))
    cells = report["cells"]
    assert [(r["encoder"], r["cameras"]) for r in cells["results"]][:4] == [
        (PLACE, "hand"), (PLACE, "left"), (PLACE, JOINED), ("one", "hand"),
    ]  # fmt: skip
    assert len(cells["results"]) == 9 and len(cells["differences"]) == 3
    assert len(lines) == (len(report["results"]) + len(report["differences"])) * len(METRICS) + 12 * len(
        CELL_METRICS
    )
    same = [line for line in lines if (line["encoder"], line["minus"], line["cameras"]) == ("s2", "", JOINED)]
    assert float(same[0]["value"]) == pytest.approx(
        next(r for r in whole if (r["encoder"], r["pool"], r["cameras"]) == ("s2", "tokens", JOINED))[
            METRICS[0]
        ]["value"]
    )
    assert (tmp_path / "out" / "readout.png").read_bytes().startswith(b"\x89PNG")

    said = summary_text(report)
    assert "\n  s2 - one, tokens " in said and "\n  s2 - one  " in said and "\n  gripper pose " in said

    monkeypatch.setattr(readout_frames, "worker_pool", None)
    for encoder in encoders.values():
        monkeypatch.setattr(encoder, "encode", None)
    again = readout(encoders, cfg, tmp_path / "again")
    for key in ("results", "differences", "cells"):
        assert again[key] == report[key]
    with pytest.raises(UserError, match="'mean' is the name of a row without images"):
        readout({"mean": encoders["one"]}, cfg, tmp_path / "x")
