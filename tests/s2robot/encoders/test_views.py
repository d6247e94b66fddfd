"""Other views of frames: what they are, that they are made again as they were, and that a training draws them."""

import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from s2robot.common.paths import configs_dir
from s2robot.demos.windows import make_windows
from s2robot.encoders.build import build_encoder
from s2robot.encoders.views import Views
from s2robot.features import encode_demos
from s2robot.pipeline import read_task, train_policy
from s2robot.training.batches import Batches
from tests.inline import do_inline
from tests.s2robot.training.small import CAMERAS, make_data


def pictures(size=(16, 24)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)


def test_a_shift_repeats_the_edge_and_changes_nothing_else():
    frames = pictures()
    seen = set()
    for seed in range(40):
        moved = Views(1, shift=0.125, colour=0.0).changed(frames, np.random.default_rng(seed))
        assert moved.shape == frames.shape and moved.dtype == np.uint8
        shifts = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-3, 4)
            if np.array_equal(moved, np.pad(frames, ((0, 0), (2, 2), (3, 3), (0, 0)), "edge")[:, 2 - down : 18 - down, 3 - right : 27 - right])
        ]  # fmt: skip
        assert len(shifts) == 1
        seen |= set(shifts)
    assert len(seen) > 15 and {abs(down) for down, _ in seen} == {0, 1, 2}  # 1/8 of 16 rows, of 24 columns


def test_colour_changes_each_pixel_alike():
    frames = pictures()
    frames[0, :, :12] = frames[0, 0, 0]
    lit = Views(1, shift=0.0, colour=0.3).changed(frames, np.random.default_rng(5))
    assert not np.array_equal(lit, frames)
    assert (lit[0, :, :12] == lit[0, 0, 0]).all()
    grey = np.full((1, 2, 2, 3), 100, np.uint8)
    values = np.stack(
        [Views(1, 0.0, 0.3).changed(grey, np.random.default_rng(i))[0, 0, 0] for i in range(200)]
    )
    low, high = ((-27.5 * c + 127.5) * g for c, g in ((1.3, 0.85), (0.7, 1.15)))
    assert (
        values.min() >= np.floor(low) and values.max() <= np.ceil(high) and np.ptp(values) > (high - low) / 2
    )


def test_nothing_to_change_changes_nothing():
    assert np.array_equal(Views(1, 0.0, 0.0).changed(pictures(), np.random.default_rng(1)), pictures())


def test_views_stand_beside_each_other_and_come_again_in_any_order():
    views = Views(2, 0.1, 0.2)
    assert views.names(("hand", "left")) == ("hand~1", "left~1", "hand~2", "left~2")
    episodes = [(i, [pictures(), 255 - pictures()]) for i in range(3)]
    there = dict(views.frames(iter(episodes)))
    again = dict(views.frames(reversed(episodes)))
    assert [seen.shape for seen in there[1]] == 4 * [(3, 16, 24, 3)]
    assert all(np.array_equal(there[i], again[i]) for i in range(3))
    flat = [there[i][view].tobytes() for i in range(3) for view in range(4)]
    assert len(set(flat)) == len(flat)  # no two alike
    assert np.array_equal(dict(Views(1, 0.1, 0.2).frames(iter(episodes)))[2], there[2][:2])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("views") / "d.zarr")


@pytest.mark.parametrize("context", [1, 3])
def test_a_window_is_seen_in_one_view_that_the_step_draws(data, context):
    store, features = data
    # view v of feature x is x + 100 v, so a feature tells its frame and its view
    views = np.concatenate([features + np.float16(100 * v) for v in (1, 2)], 1)
    windows = make_windows(store, np.arange(8), context, 4)
    plain = Batches(store, features, windows, torch.device("cpu"), context > 1)
    batches = Batches(store, features, windows, torch.device("cpu"), context > 1, views)
    counts = np.zeros(3, int)
    for step in range(12):
        batch, same = batches.step(step, 16, 5), plain.step(step, 16, 5)
        for key in batch.keys() - {"features", "frames"}:
            assert torch.equal(batch[key], same[key])
        seen = batch["features"][batch["frames"]].float()  # (B, T, C, N, D)
        bare = same["features"][same["frames"]].float()
        view = ((seen - bare) / 100).round()
        assert torch.equal(view.amax((1, 2, 3, 4)), view.amin((1, 2, 3, 4)))  # one for all steps and cameras
        torch.testing.assert_close(seen, bare + 100 * view, atol=0.2, rtol=0)  # float16
        counts += np.bincount(view[:, 0, 0, 0, 0].int().numpy(), minlength=3)
    assert counts.min() > counts.sum() / 6  # 1 + K ways, each about as often
    again = batches.step(3, 16, 5)
    assert torch.equal(again["features"], batches.step(3, 16, 5)["features"])
    assert len(CAMERAS) == features.shape[1]


def test_what_is_validated_are_the_frames_themselves(data):
    store, features = data
    windows = make_windows(store, np.arange(8), 1, 4)
    batches = Batches(store, features, windows, torch.device("cpu"), views=features + np.float16(100))
    assert torch.equal(
        batches.take(torch.arange(4))["features"], torch.from_numpy(features[windows.context[:4, -1]])
    )


def test_train_encodes_views_beside_the_frames(tiny_encoder, recorded, tmp_path, monkeypatch):
    do_inline(monkeypatch)
    words = [
        f"run_dir={tmp_path}", f"demos.path={recorded}", f"encoder.checkpoint={tiny_encoder}", "features.workers=1",
        f"features.cache={tmp_path / 'cache'}", "policy.network.hidden=[16]", "policy.pooling.keypoints=4", "train.steps=2",
        "train.batch_size=32", "train.threads=1", "features.views=2", "env.cameras=[left]", "features.threads=1",
    ]  # fmt: skip
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        task = read_task(compose("train", words))
    encoder, store = build_encoder(task.encoder), task.open_demos()
    features, (frames,) = encode_demos(store, encoder, task.cameras, task.features)
    checkpoint = train_policy(task, store, encoder, features, tmp_path)
    assert json.loads((checkpoint / "policy.json").read_text())["contract"]["training"]["views"] == 2
    views, (cache,) = encode_demos(store, encoder, task.cameras, task.features, Views(2, 0.02, 0.2))
    assert views.shape == (len(features), 2 * features.shape[1], *features.shape[2:])
    assert {cache.path, frames.path} == set((tmp_path / "cache").iterdir())  # the training had made it
