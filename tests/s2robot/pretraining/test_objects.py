"""Pictures of objects: the arguments decide them, their truth fits them, and folders are made once."""

import json

import numpy as np
import pytest
from PIL import Image

from s2robot.core.errors import UserError
from s2robot.envs.object_scenes import CLASSES, LABELS, ObjectScene
from s2robot.pretraining import objects
from s2robot.pretraining.objects import ObjectsSettings, make_objects
from tests.inline import do_inline


@pytest.fixture(scope="module")
def world():
    made = ObjectScene(96)
    yield made
    made.close()


@pytest.mark.parametrize("kind", [0, 9, 12, 17, 23])
def test_a_picture_holds_its_object_where_the_mask_says(kind, world):
    large, small = (world.draw(kind, 5, small) for small in (False, True))
    again = world.draw(kind, 5, False)
    assert all(np.array_equal(getattr(large, k), getattr(again, k)) for k in ("image", "mask", "depth"))
    label = 3 + kind
    shares = [(p.mask == label).mean() for p in (large, small)]
    assert shares[0] > 4 * shares[1] > 0 and shares[1] < 0.15**2
    assert set(np.unique(large.mask)) <= {0, 1, 2, label}  # clutter is of no class
    seen = large.mask == label
    assert large.image[seen].std(0).max() > 0 and large.image.dtype == np.uint8
    # nothing of it is behind the table: along the row of its middle it is nearer than the table beyond
    table = large.mask == 1
    assert large.depth[seen].mean() < large.depth[table].max()


def test_folders_hold_pictures_masks_and_depth_and_are_kept(tmp_path, monkeypatch, world):
    do_inline(monkeypatch)
    monkeypatch.setitem(objects._worlds, 96, world)
    settings = ObjectsSettings(train=26, test=3, image_size=96)
    done = []
    assert make_objects(settings, tmp_path, lambda *count: done.append(count)) == tmp_path
    assert done[-1] == (29, 29)
    pictures = sorted((tmp_path / "train/images").rglob("*.png"))
    assert len(pictures) == 26 and (tmp_path / f"train/images/{CLASSES[1]}/000025.png") in pictures
    assert len(list((tmp_path / "test").rglob("*.png"))) == 9
    depth = np.asarray(Image.open(tmp_path / f"train/depth/{CLASSES[0]}/000000.png"))
    mask = np.asarray(Image.open(tmp_path / f"train/masks/{CLASSES[0]}/000000.png"))
    assert depth.dtype.itemsize * 8 in (16, 32) and depth.shape == mask.shape == (96, 96)
    assert 50 < depth[mask == 3].min() and depth.max() <= 10_000 and 3 in mask
    first, held_out = (tmp_path / f"{p}/images/{CLASSES[0]}/000000.png" for p in ("train", "test"))
    assert first.read_bytes() != held_out.read_bytes()
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["labels"] == list(LABELS) and meta["train"] == 26
    before = first.stat().st_mtime_ns
    make_objects(settings, tmp_path)
    assert first.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="meta.json: "):
        make_objects(ObjectsSettings(train=4, test=3, image_size=96), tmp_path)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(UserError, match="meta.json: broken JSON"):
        make_objects(settings, tmp_path)
