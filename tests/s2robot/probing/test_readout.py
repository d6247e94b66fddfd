"""Probes of pose and of another encoder's features: planted maps are found, noise holds no information."""

import csv
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2robot.cli import main
from s2robot.encoders.build import build_encoder
from s2robot.envs.cube_config import CubePickConfig
from s2robot.probing import frames as module
from s2robot.probing import readout
from s2robot.probing.frames import FrameFeatures, FrameSettings, draw_episode
from s2robot.probing.readout import GRIPPER, MEAN, PLACE, ZERO, pose_scores, pose_targets
from s2robot.probing.report import interval, resample

WORLD, FRAMES = CubePickConfig(image_size=64), 3


def config(train: int = 10, test: int = 6) -> FrameSettings:
    world = WORLD.replace(cameras=("hand", "left"))
    return FrameSettings(world=world, train_episodes=train, test_episodes=test, frames=FRAMES, resamples=200)


def poses(count: int, seed: int, turned: float = 0.0) -> np.ndarray:
    """Return poses of upright cubes on and above the table.  # (count, 7)"""
    rng = np.random.default_rng(seed)
    yaw = rng.uniform(-np.pi, np.pi, count) + turned
    position = rng.uniform([-0.12, -0.16, 0.02], [0.12, 0.16, 0.15], (count, 3))
    zero = np.zeros(count)
    return np.column_stack([position, np.cos(yaw / 2), zero, zero, np.sin(yaw / 2)])


def tokens(episodes: int, dim: int, seed: int) -> np.ndarray:
    """Return tokens whose channels differ in spread and mean, (T, 2, 4, D)."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(episodes * FRAMES, 2, 4, dim))
    return values * rng.uniform(0.1, 9, dim) + rng.normal(size=dim) * 5


def test_seed_determines_frames_and_only_missing_ones_are_rendered(inline, tmp_path, monkeypatch):
    monkeypatch.setenv("S2ROBOT_CACHE", str(tmp_path))
    encoder = build_encoder({"name": "mvp-tiny", "scales": [1]})
    cfg = config(2, 2).replace(world=WORLD, image_size=64, frames=2, workers=1)
    data = FrameFeatures(cfg, [encoder])
    train, test = (data.labels(part) for part in ("train", "test"))
    assert train["episode"].tolist() == [0, 0, 1, 1] and len(set(train["step"][:2])) == 2
    rendered = draw_episode(WORLD, 400_001, 2)
    assert all(np.array_equal(test[name][2:], rendered[name]) for name in ("cube_pose", "gripper"))
    assert not np.array_equal(train["cube_pose"], test["cube_pose"])
    assert rendered["images"].shape == (2, 3, 64, 64, 3) and rendered["images"].dtype == np.uint8
    files = sorted(data.file(seed) for seed in data.seeds)
    assert sorted(files[0].parent.iterdir()) == files
    files[0].unlink()
    rerendered, draw = [], module._draw_to
    monkeypatch.setattr(module, "_draw_to", lambda path, *rest: rerendered.append(path) or draw(path, *rest))
    assert np.array_equal(FrameFeatures(cfg, [encoder]).labels("train")["cube_pose"], train["cube_pose"])
    assert rerendered == files[:1]
    monkeypatch.setattr(module, "_draw_to", lambda *_: None)
    for change in ({"frames": 3}, {"world": WORLD.replace(robot="panda")}, {"image_size": 32}):
        assert FrameFeatures(cfg.replace(**change), [encoder]).key != data.key


def test_cameras_pools_and_subsets_are_probed_separately():
    """Each camera encodes one half of the pose; the mean token encodes nothing."""
    cfg = config(20, 12)
    pose, n = poses(32 * FRAMES, 0), 20 * FRAMES
    targets = pose_targets(pose)
    features = np.zeros((len(pose), 2, 4, 6))
    features[:, 0, 0, :3], features[:, 1, 0, 3:5] = targets[:, :3], targets[:, 3:]
    features[:, :, 1] = -features[:, :, 0]
    gripper = np.random.default_rng(1).normal(size=(len(pose), 6))
    labels = {"cube_pose": pose, "gripper": gripper, "distance": np.tile([0.05, 0.2, 0.2], 32)}
    train, test = ({k: v[part] for k, v in labels.items()} for part in (slice(n), slice(n, None)))
    train["episode"], test["episode"] = np.arange(20).repeat(FRAMES), np.arange(12).repeat(FRAMES)
    scores = readout.read_poses({"a": features}, train, test, cfg)
    assert len(scores) == (2 * 3 + 2) * 2
    hand, left, joined = (scores["a", "tokens", camera, "all"] for camera in ("hand", "left", "all"))
    assert hand["position_mean_cm"][0] < 0.01 and hand["yaw_mean_deg"][0] > 15
    assert left["yaw_mean_deg"][0] < 0.01
    assert joined["position_mean_cm"][0] < 0.01 and joined["yaw_mean_deg"][0] < 0.01
    baseline = scores[MEAN, "-", "-", "all"]["position_mean_cm"][0]
    for key in (("a", "mean", "all", "all"), (GRIPPER, "-", "-", "all")):
        assert scores[key]["position_mean_cm"][0] == pytest.approx(baseline, rel=0.2)
    far = targets[n:][test["distance"] > 0.1, :2]
    expected = 100 * np.linalg.norm(targets[:n, :2].mean(0) - far, axis=1)
    assert scores[MEAN, "-", "-", "apart"]["position_mean_cm"][0] == pytest.approx(expected.mean())


@given(quarters=st.integers(-5, 5), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_yaw_is_the_same_every_quarter_turn(quarters, seed):
    one, other = (pose_targets(poses(20, seed, turned)) for turned in (0.0, quarters * np.pi / 2))
    np.testing.assert_allclose(one, other, atol=1e-12)
    for turned in (90 * quarters + 30, 60):  # 60 in one direction equals 30 in the other
        rotated = pose_targets(poses(20, seed, np.radians(turned)))
        np.testing.assert_allclose(readout.yaw_errors(rotated[:, 3:] * 0.1, one[:, 3:]), 30, atol=1e-9)


def test_frame_weights_equal_repeated_frames():
    rng = np.random.default_rng(11)
    true = pose_targets(poses(12, 12))
    predicted = true + 0.01 * rng.normal(size=true.shape)
    times = rng.integers(0, 4, 12)
    again = np.repeat(np.arange(12), times)
    one = pose_scores(predicted, true, times[None].astype(float))
    repeated = pose_scores(predicted[again], true[again], np.ones((1, len(again))))
    for name in one:
        np.testing.assert_allclose(one[name], repeated[name], rtol=1e-9)
    expected = 1 - ((predicted - true)[:, :2] ** 2).sum() / ((true - true.mean(0))[:, :2] ** 2).sum()
    assert pose_scores(predicted, true, np.ones((1, 12)))["position_r2"] == pytest.approx(expected)
    true[:, 2] = 0.02  # does not vary: no R²
    assert np.isnan(pose_scores(predicted, true, np.ones((1, 12)))["height_r2"]).all()
    nothing = pose_scores(predicted[:0], true[:0], np.ones((5, 0)))["yaw_mean_deg"]
    assert interval(nothing) == {"value": None, "low": None, "high": None}


def test_episode_intervals_have_nominal_coverage():
    """Frames of an episode share most of their error; 95 % intervals must contain the truth about that often."""
    rng, hits = np.random.default_rng(13), []
    weights = resample(40, 400, 0)[:, np.repeat(np.arange(40), 6)]
    for _ in range(300):
        error = np.repeat(rng.gamma(2.0, 0.5, 40), 6) * rng.uniform(0.8, 1.2, 240)  # its mean is 1
        bounds = interval(weights @ error / weights.sum(1))
        hits.append(bounds["low"] <= 1 <= bounds["high"])
    assert 0.90 <= np.mean(hits) <= 0.98
    draws = resample(9, 50, 4)
    assert (draws[0] == 1).all() and (draws.sum(1) == 9).all()


def judge(target, sources, cfg, upper=None) -> tuple[dict, dict]:
    losses, penalties = readout.reconstruct(target, sources, cfg)
    rows = readout.judge_information(losses, upper, cfg)["results"]
    return {(row["source"], row["part"]): row for row in rows}, penalties


def test_planted_maps_have_no_loss_and_noise_has_no_information():
    y, cfg = tokens(16, 6, 2), config()
    linear = tokens(16, 7, 0) @ np.random.default_rng(1).normal(size=(7, 6)) + np.arange(6.0)
    results, _ = judge(linear, {"planted": tokens(16, 7, 0)}, cfg)
    assert results["planted", "test"]["info"]["value"] == pytest.approx(-math.log(1e-12))
    results, penalties = judge(y, {"same": y, "half": y[..., :3]}, cfg)
    spread = y.reshape(-1, 6).var(0)
    assert results["same", "test"]["loss"]["value"] < 1e-12 * spread.mean() and penalties["same"] < 1e-6
    assert results["half", "train"]["loss"]["value"] == pytest.approx(spread[3:].sum() / 6, rel=0.2)
    results, penalties = judge(tokens(80, 5, 3), {"noise": tokens(80, 30, 4)}, config(40, 40), "noise")
    assert abs(results["noise", "test"]["info"]["value"]) < 0.01 and penalties["noise"] > 0.1
    assert -0.05 < results[PLACE, "test"]["info"]["value"] < 0.01
    # there is no ratio to zero information
    assert results["noise", "test"]["ratio"] == {"value": None, "low": None, "high": None}


def test_held_out_frames_do_not_affect_the_map():
    x, y = tokens(16, 5, 9), tokens(16, 4, 10)
    one, penalties = readout.reconstruct(y, {"a": x}, config())
    x[30:], y[30:] = 0.5, 7.0
    other, same = readout.reconstruct(y, {"a": x}, config())
    assert penalties == same and not np.allclose(one["a"]["test"], other["a"]["test"])
    for name in (ZERO, PLACE, "a"):
        np.testing.assert_array_equal(one[name]["train"], other[name]["train"])


def test_figures_follow_the_formulas():
    cfg, bit = config(2, 3), math.log(2)
    losses = {
        ZERO: {"train": np.array([1.0, 3.0]), "test": np.array([4.0, 4.0, 4.0])},
        "base": {"train": np.array([1.0, 1.0]), "test": np.array([2.0, 1.0, 3.0])},
        "big": {"train": np.array([0.5, 0.5]), "test": np.array([0.5, 1.0, 1.5])},
    }
    report = readout.judge_information(losses, "big", cfg)
    rows = {(row["source"], row["part"]): row for row in report["results"]}
    train, test = (rows["base", part] for part in ("train", "test"))
    assert report["l0"]["train"]["value"] == 2 and train["info"]["value"] == pytest.approx(bit)
    assert train["ratio"]["value"] == pytest.approx(0.5) and train["info"]["low"] is None
    assert test["info"]["value"] == pytest.approx(bit) and rows["big", "test"]["ratio"]["low"] == 1
    assert test["info"]["low"] == pytest.approx(math.log(4 / 3))  # every draw is the worst episode
    difference = {row["part"]: row for row in report["differences"]}["test"]
    assert (difference["source"], difference["minus"]) == ("big", "base")
    assert difference["info"]["value"] == pytest.approx(bit)
    halves = {part: loss / 2 for part, loss in losses["base"].items()}
    half = readout.judge_information({**losses, "big": halves}, "big", cfg)
    for key in ("value", "low", "high"):  # paired: a constant factor of two holds in every draw
        assert half["differences"][1]["info"][key] == pytest.approx(bit)


def test_sources_are_concatenated_on_the_coarser_grid():
    a, b = tokens(16, 3, 0), tokens(16, 4, 1)
    fine = np.repeat(np.repeat(b.reshape(-1, 2, 2, 2, 4), 2, 2), 2, 3).reshape(-1, 2, 16, 4)
    np.testing.assert_allclose(readout.side_by_side([a, fine], 4), np.concatenate([a, b], -1))


def ridge(x: np.ndarray, y: np.ndarray, keep: np.ndarray, penalty: float):
    """Return the map fitted to the rows of `keep`; the penalty is relative to their mean eigenvalue."""
    centre, middle = x[keep].mean(0), y[keep].mean(0)
    z = x[keep] - centre
    gram = z.T @ z
    gram += penalty * np.eye(len(gram))
    a = np.linalg.solve(gram, z.T @ (y[keep] - middle))
    return lambda rows: (rows - centre) @ a + middle


@pytest.mark.parametrize("width", [4, 50])
def test_left_out_episodes_and_predictions_of_frames_match_plain_ridge(width, monkeypatch):
    monkeypatch.setattr("s2robot.probing.readout._BLOCK", 32)
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(30, width)) * rng.uniform(0.1, 9, width), rng.normal(size=(30, 2)) + 5
    x_test = rng.normal(size=(9, width))
    episodes = np.array([*([0] * 7), *([5] * 3), *([2] * 12), *([9] * 8)])
    own, cross = readout.kernels(x, x_test)
    z, z_test = (x - x.mean(0)) / x.std(0), (x_test - x.mean(0)) / x.std(0)
    penalties, expected = np.array([1e-3, 1.0, 30.0]), np.zeros((3, 2))
    absolute = penalties * np.trace(own) / 30
    for p, penalty in enumerate(absolute):
        for e in np.unique(episodes):
            out = episodes == e
            expected[p] += ((ridge(z, y, ~out, penalty)(z[out]) - y[out]) ** 2).sum(0)
    monkeypatch.setattr(readout, "FRAME_PENALTIES", penalties)
    predictions, chosen, left_out = readout.fit_frames(own, cross, y, episodes, [[0], [1]])
    np.testing.assert_allclose(left_out, expected, rtol=1e-8)
    assert chosen == penalties[expected.argmin(0)].tolist()
    for column, p in enumerate(expected.argmin(0)):
        plain = ridge(z, y, np.ones(30, bool), absolute[p])(z_test)
        np.testing.assert_allclose(predictions[:, column], plain[:, column], rtol=1e-9)


def test_token_maps_match_plain_ridge_and_cross_validation(monkeypatch):
    x, y = tokens(9, 6, 5), tokens(9, 3, 6)
    y += x @ np.random.default_rng(7).normal(size=(6, 3)) * 0.1
    x[..., 2] = 0.1  # a constant channel has no information
    flat, targets = x.reshape(-1, 6), y.reshape(-1, 3)
    z = (flat - flat.mean(0)) * np.where(flat.std(0) > 1e-9, 1 / np.maximum(flat.std(0), 1e-9), 0)
    episodes = np.repeat(np.arange(9), FRAMES * 8)

    def relative(keep, penalty):
        return ridge(z, targets, keep, penalty * ((z[keep] - z[keep].mean(0)) ** 2).sum(0).mean())

    penalties, expected = np.array([1e-3, 0.3, 10.0]), np.zeros((3, 3))
    for p, penalty in enumerate(penalties):
        for fold in range(4):
            out = episodes % 4 == fold
            expected[p] += ((relative(~out, penalty)(z[out]) - targets[out]) ** 2).sum(0)
    monkeypatch.setattr(readout, "TOKEN_PENALTIES", penalties)
    predict, chosen, left_out = readout.fit_tokens(x, y, FRAMES, range(9), 4)
    np.testing.assert_allclose(left_out, expected, rtol=1e-9)
    assert chosen == penalties[expected.sum(1).argmin()]
    plain = relative(np.ones(len(z), bool), chosen)(z)
    np.testing.assert_allclose(predict(flat), plain, rtol=1e-9, atol=1e-9)


def test_an_episode_does_not_choose_its_own_penalty():
    """Features that only identify the episode are perfect within it and worthless on others."""
    rng = np.random.default_rng(9)
    episodes = np.repeat(np.arange(40), 6)
    code = rng.normal(size=(40, 80))[episodes] + 0.01 * rng.normal(size=(240, 80))
    targets = rng.normal(size=(40, 2))[episodes]
    variance = ((targets - targets.mean(0)) ** 2).sum()
    own, cross = readout.kernels(code, code[:1])
    groups = episodes, np.arange(240)
    by_episode, by_frame = (readout.fit_frames(own, cross, targets, group, [[0, 1]]) for group in groups)
    assert by_frame[2].sum(1).min() < 1e-3 * variance  # the leak to avoid
    assert by_episode[2].sum(1).min() > 0.9 * variance and by_episode[1][0] > 100 * by_frame[1][0]
    source, target = code.reshape(240, 1, 1, 80), targets.reshape(240, 1, 1, 2)
    order = rng.permutation(240)
    by_episode = readout.fit_tokens(source, target, 6, range(40))
    by_frame = readout.fit_tokens(source[order], target[order], 1, range(240))
    assert by_frame[2].sum(1).min() < 0.01 * variance < 0.8 * variance < by_episode[2].sum(1).min()


def probe(kind: str, out, *changes: str) -> dict:
    """Run a probe command; later commands reuse the frames it renders."""
    counts = "train_episodes=2 test_episodes=2 frames=3 resamples=100 workers=1 image_size=256".split()
    own = [f"probe.{count}" for count in counts]
    words = ["probe", f"probe={kind}", "env.cameras=[hand,left]", f"hydra.run.dir={out}", *own, *changes]
    assert main(words) == 0
    return json.loads((out / f"{kind}.json").read_text())


def test_readout_command_on_real_encoders(inline, tmp_path, monkeypatch, capsys):
    """mvp-tiny at one scale and with S2; a second run renders and encodes nothing and returns the same results."""
    report = probe("readout", tmp_path / "a", "~probe.encoders.s2-pretrained", "~probe.encoders.two-averaged")
    keys = {(r["encoder"], r["pool"], r["cameras"], r["subset"]) for r in report["results"]}
    assert len(report["results"]) == len(keys) == (2 * 2 * 3 + 2) * 2
    for error in (row["position_mean_cm"] for row in report["results"] if row["subset"] == "all"):
        assert 0 < error["low"] <= error["value"] <= error["high"] < 40
    lines = list(csv.DictReader((tmp_path / "a/readout.csv").open()))
    assert len(lines) == 6 * (len(keys) + len(report["differences"]))
    assert float(lines[0]["value"]) == report["results"][0]["position_mean_cm"]["value"]
    assert (tmp_path / "a/readout.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "a/readout.html").read_text()
    assert "<svg" in page and "s2-added" in page and "http" not in page.replace("http://www.w3.org", "")
    assert "gripper pose" in capsys.readouterr().out
    monkeypatch.setattr(module, "worker_pool", None)
    monkeypatch.setattr("s2robot.encoders.encoder.S2Encoder.encode", None)
    again = probe("readout", tmp_path / "b", "~probe.encoders.s2-pretrained", "~probe.encoders.two-averaged")
    assert all(again[key] == report[key] for key in ("results", "differences"))


def test_information_command_reconstructs_one_encoder_from_others(inline, tmp_path, capsys):
    target = ("probe.target.name=mvp-tiny-s2", "probe.target.dtype=float32", "probe.upper=base-s2")
    itself = "+probe.sources.itself={name: mvp-tiny-s2, scales: [1], dtype: float32}"
    report = probe("information", tmp_path, *target, "~probe.sources.base-s2-pretrained", itself)
    table = {(row["source"], row["part"]): row for row in report["results"]}
    assert [*table] == [(s, p) for s in ("no image", "base", "base-s2", "itself") for p in ("train", "test")]
    for (source, part), row in table.items():
        value = {metric: row[metric]["value"] for metric in ("loss", "info", "ratio")}
        l0, best = report["l0"][part]["value"], table["base-s2", part]["info"]["value"]
        assert value["info"] == pytest.approx(-math.log(max(value["loss"] / l0, 1e-12)))
        assert value["ratio"] == pytest.approx(value["info"] / best)
        assert value["loss"] < 1e-9 * l0 or source != "itself"
    held_out = table["base", "test"]["info"]
    assert 0 < held_out["low"] <= held_out["value"] <= held_out["high"] < 5
    assert len([*csv.DictReader((tmp_path / "information.csv").open())]) == (4 + 6) * 2 * 3
    assert main(["probe", "probe=information", "probe.upper=nobody", f"hydra.run.dir={tmp_path / 'x'}"]) == 2
    assert "probe.upper: " in capsys.readouterr().err
