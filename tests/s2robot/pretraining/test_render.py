"""Rendered images: the seed decides them, their truth fits them, and folders are made once."""

import json

import numpy as np
import pytest
from PIL import Image

from s2robot.core.errors import UserError
from s2robot.envs.object_scenes import CLASSES, LABELS, ObjectScene
from s2robot.pretraining import render
from s2robot.pretraining.render import (
    ObjectsSettings,
    ScenesSettings,
    make_objects,
    make_scenes,
    render_scenes,
)
from tests.inline import do_inline


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Six frames a seed: two moments of an episode, of three cameras."""
    do_inline(monkeypatch)
    monkeypatch.setattr(render, "_FRAMES_A_SEED", 6)


def test_looks_vary_as_much_as_asked(monkeypatch):
    """Between two frames of one camera, a wild look changes far more pixels than the task's own does."""
    monkeypatch.setattr(render, "_EVERY", 1)
    apart = {}
    for vary in (0.0, 1.0):
        frames = render_scenes(2, ("cube_pick",), ("xarm7",), 32, vary)
        assert frames.shape == (6, 32, 32, 3) and len({frame.tobytes() for frame in frames}) == 6
        assert frames.reshape(6, -1).std(1).min() > 5  # no empty image
        apart[vary] = np.abs(np.diff(frames[1::3].astype(float), axis=0)).mean()  # of the left camera
    assert apart[1.0] > 2 * apart[0.0]


def test_tasks_take_turns_and_the_end_of_an_episode_is_shown(monkeypatch):
    monkeypatch.setattr(render, "_EVERY", 16)
    monkeypatch.setattr(render, "_FRAMES_A_SEED", 24)
    reached, moments = [], render._moments

    def watched(env, seed):
        for _ in moments(env, seed):
            reached.append((env.settings.task, env.is_success))
            yield

    monkeypatch.setattr(render, "_moments", watched)
    frames = render_scenes(1, ("cube_pick", "stack"), ("xarm7",), 32, 0.0)
    assert len({frame.tobytes() for frame in frames}) == 24
    assert any(success for _, success in reached) and all("stack" in task.lower() for task, _ in reached)


def test_a_bank_of_both_arms_is_written_once(tmp_path, monkeypatch):
    settings = ScenesSettings(frames=9, image_size=32, workers=1)
    bank = np.load(make_scenes(settings, tmp_path))
    assert bank.shape == (12, 32, 32, 3)  # whole episodes of 6 frames
    assert np.array_equal(bank[6:], render_scenes(1, ("cube_pick",), ("xarm7", "panda"), 32, 0.6))
    assert json.loads((tmp_path / "meta.json").read_text()) == {
        "tasks": ["cube_pick"], "robots": ["xarm7", "panda"], "frames": 9, "image_size": 32, "vary": 0.6, "seed": 0,
    }  # fmt: skip
    monkeypatch.setattr(render, "render_scenes", None)
    assert np.array_equal(bank, np.load(make_scenes(settings, tmp_path)))
    with pytest.raises(UserError, match="meta.json: seed: "):
        make_scenes(settings.replace(seed=1), tmp_path)
    (tmp_path / "meta.json").unlink()
    with pytest.raises(UserError, match="meta.json: cannot be read"):  # somebody else's frames
        make_scenes(settings, tmp_path)


@pytest.fixture(scope="module")
def world():
    made = ObjectScene(96)
    yield made
    made.close()


@pytest.mark.parametrize("kind", [0, 9, 12, 17, 23])
def test_an_image_holds_its_object_where_the_mask_says(kind, world):
    large, small, again = (world.draw(kind, 5, small) for small in (False, True, False))
    assert all(np.array_equal(getattr(large, k), getattr(again, k)) for k in ("image", "mask", "depth"))
    label = 3 + kind
    shares = [(p.mask == label).mean() for p in (large, small)]
    assert shares[0] > 4 * shares[1] > 0 and shares[1] < 0.15**2
    assert set(np.unique(large.mask)) <= {0, 1, 2, label}  # clutter is of no class
    seen, table = large.mask == label, large.mask == 1
    assert large.image[seen].std(0).max() > 0 and large.image.dtype == np.uint8
    assert large.depth[seen].mean() < large.depth[table].max()  # it is not behind the table


def test_folders_hold_images_masks_and_depth_and_are_kept(tmp_path, monkeypatch, world):
    monkeypatch.setitem(render._worlds, 96, world)
    settings = ObjectsSettings(train=26, test=3, image_size=96)
    assert make_objects(settings, tmp_path) == tmp_path
    assert len(list((tmp_path / "train/images").rglob("*.png"))) == 26
    assert (tmp_path / f"train/images/{CLASSES[1]}/000025.png").is_file()
    assert len(list((tmp_path / "test").rglob("*.png"))) == 9
    files = (tmp_path / f"train/{folder}/{CLASSES[0]}/000000.png" for folder in ("depth", "masks"))
    depth, mask = (np.asarray(Image.open(file)) for file in files)
    assert depth.dtype.itemsize * 8 in (16, 32) and depth.shape == mask.shape == (96, 96)
    assert 50 < depth[mask == 3].min() and depth.max() <= 10_000 and 3 in mask
    first, held_out = (tmp_path / f"{p}/images/{CLASSES[0]}/000000.png" for p in ("train", "test"))
    assert first.read_bytes() != held_out.read_bytes()
    meta, before = json.loads((tmp_path / "meta.json").read_text()), first.stat().st_mtime_ns
    assert meta["labels"] == list(LABELS) and meta["train"] == 26
    make_objects(settings, tmp_path)
    assert first.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="meta.json: train: "):
        make_objects(settings.replace(train=4), tmp_path)
