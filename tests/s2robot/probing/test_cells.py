"""Depth and segments of cells: the simulator's truth, planted features that give it back, noise that does not."""

from dataclasses import replace

import numpy as np
import pytest

from s2robot.common.errors import UserError
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.probing.cell_maps import CLASSES, PLACE, Split, read_cells
from s2robot.probing.cells import CellBank, cells_of, draw_cells, kinds_of
from s2robot.probing.moments import MomentBank, draw_episode, moments
from tests.inline import do_inline

WORLD = replace(CubePickConfig(), image_size=64)
FRAMES, TRAIN, TEST = 4, 12, 8


@pytest.mark.parametrize("robot", ["xarm7", "panda"])
def test_cells_hold_what_is_seen_there(robot):
    env = CubePick(replace(WORLD, robot=robot), draw=False)
    env.reset(seed=3)
    fine, coarse = cells_of(env, 8), cells_of(env, 2)
    assert fine.shape == (3, 64, 6) and fine.dtype == np.float32
    np.testing.assert_allclose(fine[..., 1:].sum(-1), 1, atol=1e-5)
    blocks = fine.reshape(3, 2, 4, 2, 4, 6).mean((2, 4)).reshape(3, 4, 6)
    np.testing.assert_allclose(blocks, coarse, atol=0.05)  # drawn at other sizes
    assert (fine[..., 0] > 0.01).all() and (fine[..., 0] < 5).all()
    seen = fine[..., 1:].max((0, 1))
    assert (seen > 0.2).all(), dict(zip(CLASSES, seen, strict=True))
    cube = np.flatnonzero(kinds_of(env) == CLASSES.index("cube"))
    assert set(cube) == env._cube_geoms


def test_the_moments_are_those_of_the_frames():
    steps = [step for _, step in moments(WORLD, 300_000, 3)]
    assert steps == draw_episode(WORLD, 300_000, 3)["step"].tolist()
    assert draw_cells(WORLD, 300_000, 3, 4).shape == (3, 3, 16, 6)


def test_a_bank_draws_what_is_missing_and_heals(tmp_path, monkeypatch):
    """First by a process of its own."""
    bank = CellBank(MomentBank(tmp_path, WORLD, 3), 4)
    with pytest.raises(UserError, match="300000.cells-4.npz: no cells of seed 300000, expected them"):
        bank.targets([300_000])
    bank.fill([300_000], 1)
    found = bank.targets([300_000])
    assert np.array_equal(found, draw_cells(WORLD, 300_000, 3, 4))
    bank._file(300_000).write_bytes(b"cut off")
    do_inline(monkeypatch)
    bank.fill([300_000], 1)
    assert np.array_equal(bank.targets([300_000]), found)
    assert [path.name for path in bank.bank.path.iterdir()] == ["300000.cells-4.npz"]
    with pytest.raises(UserError, match="readout.cells: found 0, expected 1 or more"):
        CellBank(bank.bank, 0)


def truth(cells: int = 4, seed: int = 0) -> np.ndarray:
    """Made-up cells of two cameras: depth of a place plus what varies, shares of a patch with an edge in it."""
    rng = np.random.default_rng(seed)
    shape = ((TRAIN + TEST) * FRAMES, 2, cells)
    depth = 1 + rng.normal(size=(2, cells)) + 0.1 * rng.normal(size=shape)
    shares = rng.dirichlet(np.full(len(CLASSES), 0.3), shape)
    return np.concatenate([depth[..., None], shares], -1).astype(np.float32)


def judged(features: dict[str, np.ndarray], targets: np.ndarray) -> dict:
    return read_cells(features, targets, ("hand", "left"), Split(FRAMES, TRAIN, 200, 0))


def test_planted_features_give_the_cells_back_and_noise_does_not():
    targets = truth()
    rng = np.random.default_rng(1)
    planted = targets @ rng.normal(size=(6, 9)) + 3
    noise = rng.normal(size=(*targets.shape[:3], 9))
    found = judged({"planted": planted, "noise": noise}, targets)
    rows = {(row["encoder"], row["cameras"]): row for row in found["results"]}
    assert len(rows) == 3 * 3
    for camera in ("hand", "left", "all"):
        exact, blind, place = (rows[name, camera] for name in ("planted", "noise", PLACE))
        assert exact["depth_mean_mm"]["value"] < 1 and exact["depth_r2"]["value"] > 0.999
        for metric in ("class_accuracy", "class_miou", "cube_iou"):
            assert exact[metric]["value"] > 0.99 > 0.6 > blind[metric]["value"]
        assert place["depth_r2"]["value"] == pytest.approx(0, abs=1e-12)
        assert blind["depth_r2"]["value"] < -1  # it does not even know the place
        assert exact["train"]["depth_r2"] > 0.999
        assert place["depth_mean_mm"]["value"] == pytest.approx(100 * np.sqrt(2 / np.pi), rel=0.15)
    (apart,) = [row for row in found["differences"] if row["cameras"] == "all"]
    assert (apart["encoder"], apart["minus"]) == ("noise", "planted")
    difference = rows["noise", "all"]["class_miou"]["value"] - rows["planted", "all"]["class_miou"]["value"]
    assert apart["class_miou"]["value"] == pytest.approx(difference)
    assert apart["class_miou"]["high"] < 0


def test_figures_are_those_of_a_plain_computation():
    """The row without an image, against the definitions."""
    targets = truth()
    found = next(
        row for row in judged({}, targets)["results"] if (row["encoder"], row["cameras"]) == (PLACE, "left")
    )
    known, asked = targets[: TRAIN * FRAMES, 1].astype(float), targets[TRAIN * FRAMES :, 1].astype(float)
    read = np.broadcast_to(known.mean(0), asked.shape)
    assert found["depth_mean_mm"]["value"] == pytest.approx(1000 * np.abs(read - asked)[..., 0].mean())
    right = read[..., 1:].argmax(-1) == asked[..., 1:].argmax(-1)
    assert found["class_accuracy"]["value"] == pytest.approx(right.mean())
    both, either = np.minimum(read, asked)[..., 1:].sum((0, 1)), np.maximum(read, asked)[..., 1:].sum((0, 1))
    assert found["class_miou"]["value"] == pytest.approx((both / either).mean())
    assert found["cube_iou"]["value"] == pytest.approx((both / either)[-1])
    low, value, high = (found["class_miou"][key] for key in ("low", "value", "high"))
    assert low < value < high


def test_a_class_that_is_not_there_is_left_out_and_grids_are_brought_together():
    targets = truth()
    targets[..., 4] += targets[..., 5]  # no cube
    targets[..., 5] = 0
    fine = np.repeat(targets.reshape(-1, 2, 2, 2, 6), 2, 2).repeat(2, 3).reshape(-1, 2, 16, 6)
    row = judged({"fine": fine}, targets)["results"][-1]
    assert row["cube_iou"]["value"] is None and row["class_miou"]["value"] > 0.99
    assert row["depth_r2"]["value"] > 0.999
