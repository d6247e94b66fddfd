"""Frames of picks with the simulator's truth, both probes of real encoders on them, and settings of all probes."""

import csv
import json
import math

import numpy as np
import pytest

from s2robot.cli import main
from s2robot.core.errors import UserError
from s2robot.core.settings import read
from s2robot.encoders.build import build_encoder
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.probing import frames as module
from s2robot.probing.frames import (
    CLASSES,
    FrameFeatures,
    FrameSettings,
    draw_cells,
    draw_episode,
    geom_classes,
)
from s2robot.probing.memorize import MemorizeSettings
from s2robot.probing.readout import ReadoutSettings
from s2robot.probing.scaling import ScalingSettings
from s2robot.probing.tokens import InformationSettings
from tests.inline import do_inline

WORLD = CubePickConfig(image_size=64)


@pytest.mark.parametrize("robot", ["xarm7", "panda"])
def test_cells_hold_what_is_seen_there(robot):
    env = CubePick(WORLD.replace(robot=robot), draw=False)
    env.reset(seed=3)
    fine, coarse = draw_cells(env, 8), draw_cells(env, 2)
    assert fine.shape == (3, 64, 6) and fine.dtype == np.float32
    np.testing.assert_allclose(fine[..., 1:].sum(-1), 1, atol=1e-5)
    blocks = fine.reshape(3, 2, 4, 2, 4, 6).mean((2, 4)).reshape(3, 4, 6)
    np.testing.assert_allclose(blocks, coarse, atol=0.05)  # drawn at other sizes
    assert (fine[..., 0] > 0.01).all() and (fine[..., 0] < 5).all()
    seen = fine[..., 1:].max((0, 1))
    assert (seen > 0.2).all(), dict(zip(CLASSES, seen, strict=True))
    assert {*np.flatnonzero(geom_classes(env) == CLASSES.index("cube"))} == env._cube_geoms


def test_the_seed_decides_the_frames():
    drawn, again, other = (draw_episode(WORLD, seed, 4, 2) for seed in (300_000, 300_000, 300_001))
    assert all(np.array_equal(drawn[name], again[name]) for name in drawn)
    assert not np.array_equal(drawn["cube_pose"], other["cube_pose"])
    assert drawn["images"].shape == (4, 3, 64, 64, 3) and drawn["images"].dtype == np.uint8
    assert drawn["cells"].shape == (4, 3, 4, 6) and len(set(drawn["step"])) == 4
    env = CubePick(WORLD, draw=False)
    _, info = env.reset(seed=300_000)
    np.testing.assert_allclose(drawn["cube_pose"][0, :2], info["cube_pose"][:2], atol=0.02)
    with pytest.raises(UserError, match=r"probe.frames: .* got 500"):
        draw_episode(WORLD, 300_000, 500, 2)


def test_missing_and_damaged_episodes_are_drawn_again(tmp_path, monkeypatch):
    """The first time by processes of their own."""
    encoder = build_encoder({"name": "mvp-tiny", "scales": [1]})
    counts = {"train_episodes": 2, "test_episodes": 2, "frames": 2, "cells": 2, "workers": 1}
    cfg = FrameSettings(world=WORLD, image_size=64, cache=str(tmp_path), **counts)
    data = FrameFeatures(cfg, [encoder])
    labels = {part: data.labels(part) for part in ("train", "test")}
    assert labels["train"]["episode"].tolist() == [0, 0, 1, 1]
    expected = draw_episode(WORLD, 400_001, 2, 2)
    for name in ("cube_pose", "cells", "gripper"):
        np.testing.assert_array_equal(labels["test"][name][2:], expected[name])
    files = sorted(data._file(seed) for seed in data.seeds)
    assert sorted(files[0].parent.iterdir()) == files
    files[0].write_bytes(b"cut off")
    do_inline(monkeypatch)
    drawn = []
    monkeypatch.setattr(
        module, "_draw_to", lambda path, *rest, to=module._draw_to: drawn.append(path) or to(path, *rest)
    )
    again = FrameFeatures(cfg, [encoder]).labels("train")
    assert drawn == files[:1] and np.array_equal(again["cube_pose"], labels["train"]["cube_pose"])
    for change in ({"frames": 3}, {"cells": 3}, {"world": WORLD.replace(robot="panda")}, {"image_size": 32}):
        monkeypatch.setattr(FrameFeatures, "_read", lambda *_: {"there": 1})
        assert FrameFeatures(cfg.replace(**change), [encoder]).key != data.key


@pytest.mark.parametrize(
    ("settings", "change", "text"),
    [
        (ReadoutSettings, {"train_seed": 100_000}, "probe.train_seed: "),
        (ReadoutSettings, {"test_seed": 499_999_980}, "probe.test_seed: "),
        (ReadoutSettings, {"test_seed": 300_090}, "probe.test_seed: .*training episodes"),
        (ReadoutSettings, {"pools": ["max"]}, r"probe.pools\[0\]: "),
        (InformationSettings, {"folds": 101}, "probe.folds: "),
        (ScalingSettings, {"resize": []}, "probe.resize: "),
        (ScalingSettings, {"scales": [[1.0], [2.0, 3.0]]}, "probe.scales: expected the smallest in each set"),
        (ScalingSettings, {"scales": [1, 2]}, r"probe.scales\[0\]: "),
        (ScalingSettings, {"head": {"steps": 0}}, "probe.head.steps: "),
        (MemorizeSettings, {"counts": [1]}, r"probe.counts\[0\]: "),
        (MemorizeSettings, {"base": {"img_size": 7}}, "probe.base"),
    ],
)
def test_wrong_settings_are_rejected(settings, change, text):
    with pytest.raises(UserError, match=text):
        read(settings, change, "probe")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def words(kind: str, cache, out) -> list[str]:
    counts = "train_episodes=2 test_episodes=2 frames=3 resamples=100 workers=1 image_size=256".split()
    own = [f"probe.{count}" for count in counts] + [f"probe.cache={cache}", f"hydra.run.dir={out}"]
    return ["probe", f"probe={kind}", "env.cameras=[hand,left]", *own]


def test_the_command_reads_pose_and_cells_of_real_encoders(tmp_path, cache, monkeypatch, capsys):
    """mvp-tiny at one scale and with S2; a second run draws and encodes nothing and gives the same."""
    do_inline(monkeypatch)
    assert main([*words("readout", cache, tmp_path / "a"), "~probe.encoders.s2-pretrained"]) == 0
    report = json.loads((tmp_path / "a/readout.json").read_text())
    places = {(r["encoder"], r["pool"], r["cameras"], r["subset"]) for r in report["results"]}
    assert len(report["results"]) == len(places) == (2 * 2 * 3 + 2) * 2
    for found in (row["position_mean_cm"] for row in report["results"] if row["subset"] == "all"):
        assert 0 < found["low"] <= found["value"] <= found["high"] < 40
    assert len([d for d in report["differences"] if d["subset"] == "all"]) == 2 * 3
    assert len(report["cells"]["results"]) == 9 and len(report["cells"]["differences"]) == 3
    lines = list(csv.DictReader((tmp_path / "a/readout.csv").open()))
    assert len(lines) == 6 * (len(places) + len(report["differences"])) + 5 * 12
    first = ("s2-added", "all")
    line = next(x for x in lines if (x["encoder"], x["cameras"]) == first)
    row = next(r for r in report["results"] if (r["encoder"], r["cameras"]) == first)
    assert line["minus"] == "" and float(line["value"]) == row["position_mean_cm"]["value"]
    assert (tmp_path / "a/readout.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "a/readout.html").read_text()
    assert "<svg" in page and "s2-added" in page and "http" not in page.replace("http://www.w3.org", "")
    assert "gripper pose" in capsys.readouterr().out
    monkeypatch.setattr(module, "worker_pool", None)
    monkeypatch.setattr("s2robot.encoders.encoder.S2Encoder.encode", None)
    assert main([*words("readout", cache, tmp_path / "b"), "~probe.encoders.s2-pretrained"]) == 0
    again = json.loads((tmp_path / "b/readout.json").read_text())
    assert all(again[key] == report[key] for key in ("results", "differences", "cells"))


def test_the_command_reconstructs_one_encoder_from_others(tmp_path, cache, monkeypatch):
    do_inline(monkeypatch)
    changes = (
        "probe.folds=2 probe.upper=base-s2 probe.target.name=mvp-tiny-s2 probe.target.dtype=float32".split()
    )
    changes += ["+probe.sources.itself={name: mvp-tiny-s2, scales: [1], dtype: float32}"]
    assert main([*words("information", cache, tmp_path), *changes, "~probe.sources.base-s2-pretrained"]) == 0
    report = json.loads((tmp_path / "information.json").read_text())
    found = {(row["source"], row["part"]): row for row in report["results"]}
    assert [*found] == [(s, p) for s in ("no image", "base", "base-s2", "itself") for p in ("train", "test")]
    for (source, part), row in found.items():
        value = {metric: row[metric]["value"] for metric in ("loss", "info", "ratio")}
        l0, best = report["l0"][part]["value"], found["base-s2", part]["info"]["value"]
        assert value["info"] == pytest.approx(-math.log(max(value["loss"] / l0, 1e-12)))
        assert value["ratio"] == pytest.approx(value["info"] / best)
        assert value["loss"] < 1e-9 * l0 or source != "itself"
    held_out = found["base", "test"]["info"]
    assert 0 < held_out["low"] <= held_out["value"] <= held_out["high"] < 5
    lines = list(csv.DictReader((tmp_path / "information.csv").open()))
    assert [*lines[0]] == ["source", "part", "minus", "metric", "value", "low", "high"]
    assert len(lines) == (4 + 6) * 2 * 3
