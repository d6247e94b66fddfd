"""Ridge regression and pose scores: planted features are found, noise is not, no episode helps its own frames."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2robot.probing.frames import CLASSES
from s2robot.probing.readout import (
    GRIPPER,
    GROUPS,
    MEAN,
    ReadoutSettings,
    fit_frames,
    kernels,
    pose_scores,
    pose_targets,
    read_poses,
    yaw_errors,
)
from s2robot.probing.report import interval, resample
from s2robot.probing.tokens import PLACE, fit_tokens, read_cells

POSE = [*GROUPS.values()]
FRAMES, TRAIN, TEST = 3, 10, 6


def poses(count: int, seed: int, turned: float = 0.0) -> np.ndarray:
    """Upright cubes on the table and above it.  # (count, 7)"""
    rng = np.random.default_rng(seed)
    yaw = rng.uniform(-np.pi, np.pi, count) + turned
    place = rng.uniform([-0.12, -0.16, 0.02], [0.12, 0.16, 0.15], (count, 3))
    zero = np.zeros(count)
    return np.column_stack([place, np.cos(yaw / 2), zero, zero, np.sin(yaw / 2)])


def tokens(episodes: int, dim: int, seed: int) -> np.ndarray:
    """Tokens of unequal spread and mean, (T, 2, 4, D)."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(episodes * FRAMES, 2, 4, dim))
    return values * rng.uniform(0.1, 9, dim) + rng.normal(size=dim) * 5


def test_planted_linear_features_give_the_pose_back_and_noise_reads_nothing():
    rng = np.random.default_rng(2)
    targets, true, episodes = pose_targets(poses(300, 0)), pose_targets(poses(300, 1)), np.arange(300) // 6

    def read(train, test):
        fit = fit_frames(*kernels(train, test), targets, episodes, POSE)
        return {
            k: v[0] for k, v in pose_scores(fit.predictions, true, np.ones((1, 300))).items()
        }, fit.penalties

    for width in (9, 6000):  # fewer and more features than frames, and more than one block
        mix = rng.normal(size=(5, width))
        found, _ = read(targets @ mix + 3, true @ mix + 3)
        assert max(found["position_mean_cm"], found["height_mean_cm"], found["yaw_mean_deg"]) < 1e-3
    found, penalties = read(*rng.normal(size=(2, 300, 900)))
    constant, _ = read(np.ones((300, 1)), np.ones((300, 1)))
    assert max(abs(found[f"{name}_r2"]) for name in GROUPS) < 0.05 and min(penalties) > 1
    assert found["position_mean_cm"] == pytest.approx(constant["position_mean_cm"], rel=0.05)
    assert 19 < found["yaw_mean_deg"] < 26  # 22.5 by chance


@pytest.mark.parametrize("width", [4, 50])
def test_left_out_episodes_and_predictions_match_plain_ridge(width):
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(30, width)) * rng.uniform(0.1, 9, width), rng.normal(size=(30, 2)) + 5
    x_test = rng.normal(size=(9, width))
    episodes = np.array([*([0] * 7), *([5] * 3), *([2] * 12), *([9] * 8)])
    own, cross = kernels(x, x_test)
    z, z_test = (x - x.mean(0)) / x.std(0), (x_test - x.mean(0)) / x.std(0)
    penalties = np.array([1e-3, 1.0, 30.0])

    def ridge(keep, penalty):
        a, b = z[keep], y[keep]
        centred = a - a.mean(0)
        gram = centred.T @ centred + penalty * np.trace(own) / 30 * np.eye(width)
        weights = np.linalg.solve(gram, centred.T @ (b - b.mean(0)))
        return lambda rows: b.mean(0) + (rows - a.mean(0)) @ weights

    expected = np.zeros((3, 2))
    for p, penalty in enumerate(penalties):
        for e in np.unique(episodes):
            expected[p] += ((ridge(episodes != e, penalty)(z[episodes == e]) - y[episodes == e]) ** 2).sum(0)
    fit = fit_frames(own, cross, y, episodes, [[0], [1]], penalties)
    np.testing.assert_allclose(fit.left_out, expected, rtol=1e-8)
    assert fit.penalties == penalties[expected.argmin(0)].tolist()
    for column, penalty in enumerate(fit.penalties):
        whole = ridge(np.ones(30, bool), penalty)(z_test)
        np.testing.assert_allclose(fit.predictions[:, column], whole[:, column], rtol=1e-9)


def test_an_episode_does_not_choose_its_own_penalty():
    """Features that only tell episodes apart are perfect between frames of one, and worth nothing on another."""
    rng = np.random.default_rng(9)
    episodes = np.repeat(np.arange(40), 6)
    code = rng.normal(size=(40, 80))[episodes] + 0.01 * rng.normal(size=(240, 80))
    targets = pose_targets(poses(40, 10))[episodes]
    variance = ((targets - targets.mean(0)) ** 2).sum(0)[:2].sum()
    own, cross = kernels(code, code[:1])
    apart, mixed = (fit_frames(own, cross, targets, e, POSE) for e in (episodes, np.arange(240)))
    assert mixed.left_out[:, :2].sum(1).min() < 1e-3 * variance  # the leak that must not be
    assert apart.left_out[:, :2].sum(1).min() > 0.9 * variance
    assert apart.penalties[0] > 100 * mixed.penalties[0]
    source, target = code.reshape(240, 1, 1, 80), targets.reshape(240, 1, 1, 5)
    order = rng.permutation(240)
    apart = fit_tokens(source, target, 6, range(40), 5, POSE)
    mixed = fit_tokens(source[order], target[order], 1, range(240), 5, POSE)
    assert (
        mixed.left_out[:, :2].sum(1).min()
        < 0.01 * variance
        < 0.8 * variance
        < apart.left_out[:, :2].sum(1).min()
    )


def test_cameras_pools_and_subsets_are_read_apart():
    """Each camera shows one half of the pose; the mean token shows nothing."""
    cfg = ReadoutSettings(train_episodes=20, test_episodes=12, frames=FRAMES, resamples=100)
    cfg = cfg.replace(world=cfg.world.replace(cameras=("hand", "left")))
    pose = poses(32 * FRAMES, 0)
    targets = pose_targets(pose)
    features = np.zeros((len(pose), 2, 4, 6))
    features[:, 0, 0, :3], features[:, 1, 0, 3:5] = targets[:, :3], targets[:, 3:]
    features[:, :, 1] = -features[:, :, 0]
    gripper = np.random.default_rng(1).normal(size=(len(pose), 6))
    labels = {"cube_pose": pose, "gripper": gripper, "distance": np.tile([0.05, 0.2, 0.2], 32)}
    n = 20 * FRAMES
    train, test = ({k: v[part] for k, v in labels.items()} for part in (slice(n), slice(n, None)))
    train["episode"], test["episode"] = np.arange(20).repeat(FRAMES), np.arange(12).repeat(FRAMES)
    found = read_poses({"a": features}, train, test, cfg)
    assert len(found) == (2 * 3 + 2) * 2
    assert found["a", "tokens", "hand", "all"]["position_mean_cm"][0] < 0.01
    assert (
        found["a", "tokens", "left", "all"]["yaw_mean_deg"][0]
        < 0.01
        < 15
        < found["a", "tokens", "hand", "all"]["yaw_mean_deg"][0]
    )
    joined = found["a", "tokens", "all", "all"]
    assert joined["position_mean_cm"][0] < 0.01 and joined["yaw_mean_deg"][0] < 0.01
    blind = found[MEAN, "-", "-", "all"]
    for key in (("a", "mean", "all", "all"), (GRIPPER, "-", "-", "all")):
        assert found[key]["position_mean_cm"][0] == pytest.approx(blind["position_mean_cm"][0], rel=0.2)
    far = test["distance"] > 0.1
    expected = 100 * np.linalg.norm(
        pose_targets(train["cube_pose"])[:, :2].mean(0) - targets[n:][far, :2], axis=1
    )
    assert found[MEAN, "-", "-", "apart"]["position_mean_cm"][0] == pytest.approx(expected.mean())


@given(quarters=st.integers(-5, 5), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_yaw_is_the_same_every_quarter_turn(quarters, seed):
    one, other = (pose_targets(poses(20, seed, turned)) for turned in (0.0, quarters * np.pi / 2))
    np.testing.assert_allclose(one, other, atol=1e-12)
    for turned in (90 * quarters + 30, 60):  # 60 one way is 30 the other
        apart = pose_targets(poses(20, seed, np.radians(turned)))
        np.testing.assert_allclose(yaw_errors(apart[:, 3:] * 0.1, one[:, 3:]), 30, atol=1e-9)


def test_scores_count_a_frame_as_often_as_its_weight():
    rng = np.random.default_rng(11)
    true = pose_targets(poses(12, 12))
    found = true + 0.01 * rng.normal(size=true.shape)
    times = rng.integers(0, 4, 12)
    again = np.repeat(np.arange(12), times)
    one = pose_scores(found, true, times[None].astype(float))
    many = pose_scores(found[again], true[again], np.ones((1, len(again))))
    for name in one:
        np.testing.assert_allclose(one[name], many[name], rtol=1e-9)
    expected = 1 - ((found - true)[:, :2] ** 2).sum() / ((true - true.mean(0))[:, :2] ** 2).sum()
    assert pose_scores(found, true, np.ones((1, 12)))["position_r2"] == pytest.approx(expected)
    true[:, 2] = 0.02  # does not vary: no R²
    assert np.isnan(pose_scores(found, true, np.ones((1, 12)))["height_r2"]).all()
    nothing = pose_scores(found[:0], true[:0], np.ones((5, 0)))["yaw_mean_deg"]
    assert interval(nothing) == {"value": None, "low": None, "high": None}


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
    assert 0.90 <= hits["episode"] / 300 <= 0.98 and hits["frame"] / 300 < 0.75
    drawn = resample(9, 50, 4)
    assert np.array_equal(drawn, resample(9, 50, 4)) and not np.array_equal(drawn, resample(9, 50, 5))
    assert (drawn[0] == 1).all() and (drawn.sum(1) == 9).all()


def test_token_maps_match_plain_ridge_and_cross_validation():
    """Every left-out error and the map, against normal equations written out for each fold."""
    x, y = tokens(9, 6, 5), tokens(9, 3, 6)
    y += x @ np.random.default_rng(7).normal(size=(6, 3)) * 0.1
    x[..., 2] = 0.1  # a constant channel says nothing
    penalties = np.array([1e-3, 0.3, 10.0])
    fit = fit_tokens(x, y, FRAMES, range(9), 4, [[0, 2], [1]], penalties)
    flat, wanted = x.reshape(-1, 6), y.reshape(-1, 3)
    episodes = np.repeat(np.arange(9), FRAMES * 8)
    scale = np.where(flat.std(0) > 1e-9, 1 / np.maximum(flat.std(0), 1e-9), 0)

    def ridge(keep, penalty):
        centre, middle = flat[keep].mean(0), wanted[keep].mean(0)
        z = (flat[keep] - centre) * scale
        gram = z.T @ z
        a = np.linalg.solve(gram + penalty * np.trace(gram) / 6 * np.eye(6), z.T @ (wanted[keep] - middle))
        return lambda rows: (rows - centre) * scale @ a + middle

    expected = np.zeros((3, 3))
    for p, penalty in enumerate(penalties):
        for fold in range(4):
            out = episodes % 4 == fold
            expected[p] += ((ridge(~out, penalty)(flat[out]) - wanted[out]) ** 2).sum(0)
    np.testing.assert_allclose(fit.left_out, expected, rtol=1e-9)
    best = [penalties[expected[:, group].sum(1).argmin()] for group in ([0, 2], [1])]
    assert fit.penalties == best
    for column, penalty in ((0, best[0]), (1, best[1]), (2, best[0])):
        whole = ridge(np.ones(len(flat), bool), penalty)(flat)
        np.testing.assert_allclose(fit.predict(flat)[:, column], whole[:, column], rtol=1e-9, atol=1e-9)


def cells(count: int = 4) -> np.ndarray:
    """Made-up cells of two cameras: depth of a place plus what varies, shares of a patch with an edge in it."""
    rng = np.random.default_rng(0)
    shape = ((TRAIN + TEST) * FRAMES, 2, count)
    depth = 1 + rng.normal(size=(2, count)) + 0.1 * rng.normal(size=shape)
    shares = rng.dirichlet(np.full(len(CLASSES), 0.3), shape)
    return np.concatenate([depth[..., None], shares], -1).astype(np.float32)


def judged(features: dict[str, np.ndarray], targets: np.ndarray) -> dict:
    cfg = ReadoutSettings(train_episodes=TRAIN, test_episodes=TEST, frames=FRAMES, resamples=100)
    cfg = cfg.replace(world=cfg.world.replace(cameras=("hand", "left")))
    return read_cells(features, targets, cfg)


def test_planted_features_give_the_cells_back_and_noise_does_not():
    targets, rng = cells(), np.random.default_rng(1)
    noise = rng.normal(size=(*targets.shape[:3], 9))
    found = judged({"planted": targets @ rng.normal(size=(6, 9)) + 3, "noise": noise}, targets)
    rows = {(row["encoder"], row["cameras"]): row for row in found["results"]}
    assert len(rows) == 3 * 3
    for camera in ("hand", "left", "all"):
        exact, blind, place = (rows[name, camera] for name in ("planted", "noise", PLACE))
        assert exact["depth_mean_mm"]["value"] < 1 and exact["depth_r2"]["value"] > 0.999
        for metric in ("class_accuracy", "class_miou", "cube_iou"):
            assert exact[metric]["value"] > 0.99 > 0.6 > blind[metric]["value"]
        assert place["depth_r2"]["value"] == pytest.approx(0, abs=1e-12) and blind["depth_r2"]["value"] < -1
    (apart,) = [row for row in found["differences"] if row["cameras"] == "all"]
    assert (apart["encoder"], apart["minus"]) == ("noise", "planted") and apart["class_miou"]["high"] < 0
    difference = rows["noise", "all"]["class_miou"]["value"] - rows["planted", "all"]["class_miou"]["value"]
    assert apart["class_miou"]["value"] == pytest.approx(difference)


def test_cell_figures_match_a_plain_computation():
    targets = cells()
    rows = judged({}, targets)["results"]
    found = next(row for row in rows if (row["encoder"], row["cameras"]) == (PLACE, "left"))
    known, true = targets[: TRAIN * FRAMES, 1].astype(float), targets[TRAIN * FRAMES :, 1].astype(float)
    predicted = np.broadcast_to(known.mean(0), true.shape)
    assert found["depth_mean_mm"]["value"] == pytest.approx(1000 * np.abs(predicted - true)[..., 0].mean())
    right = predicted[..., 1:].argmax(-1) == true[..., 1:].argmax(-1)
    assert found["class_accuracy"]["value"] == pytest.approx(right.mean())
    both, either = (f(predicted, true)[..., 1:].sum((0, 1)) for f in (np.minimum, np.maximum))
    assert found["class_miou"]["value"] == pytest.approx((both / either).mean())
    assert found["cube_iou"]["value"] == pytest.approx((both / either)[-1])
    assert found["class_miou"]["low"] < found["class_miou"]["value"] < found["class_miou"]["high"]
