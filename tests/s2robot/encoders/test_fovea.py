"""A second look: the crop's pixels, the gaze and its sources, and a policy that looks twice."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from s2robot.core.errors import UserError
from s2robot.encoders.build import build_encoder
from s2robot.encoders.cache import FeatureCache
from s2robot.encoders.fovea import corners_of, token_places
from s2robot.loading import load_policy
from s2robot.policies.pooling import CameraPooling, PoolingSettings
from tests.s2robot.pictures import TRAINING, noise

CAMERAS = ("hand", "left", "right")


@pytest.fixture
def facts(tiny_encoder):
    return {"name": "mvp-tiny", "checkpoint": str(tiny_encoder), "scales": [1], "dtype": "float32"}


@pytest.fixture
def gazing(facts, tmp_path):
    """The facts of an encoder whose gaze is at the largest values of one channel of each camera."""
    maps = {f"gaze.{i:03d}.{name}": 50.0 * torch.eye(64 + 16)[i : i + 1] for i, name in enumerate(CAMERAS)}
    save_file(maps, tmp_path / "gaze.safetensors", {"encoder": build_encoder(facts).fingerprint})
    return facts | {"zoom": 2, "gaze": str(tmp_path / "gaze.safetensors")}


@pytest.mark.parametrize(("zoom", "first"), [(2, 16), (4, 24), (1.6, 12)])
def test_tokens_are_those_of_the_frame_and_of_the_exact_crop(facts, zoom, first):
    plain, fovea = build_encoder(facts), build_encoder(facts | {"zoom": zoom})
    frames, side, places = noise(2, 64, 64, 3), round(64 / zoom), token_places(4, 4)
    tokens, crop = fovea.encode(frames), slice(first, first + side)
    both = torch.cat([plain.encode(frames), plain.encode(np.ascontiguousarray(frames[:, crop, crop]))], 1)
    assert torch.equal(tokens[..., :64], both)
    assert torch.equal(tokens[0, :, 66], torch.arange(32) // 16)
    assert torch.equal(tokens[0, :16, 64:66], places) and places[1].tolist() == [-0.25, -0.75]
    torch.testing.assert_close(tokens[0, 16:, 64:66], places * side / 64)  # both have one centre
    assert (fovea.map_of(64, 64), fovea.dim, fovea.num_tokens) == ((8, 4), 67, 32)
    assert fovea.gflops_per_image == 2 * plain.gflops_per_image and fovea.image_size == round(32 * zoom)
    coarse = build_encoder(facts | {"zoom": zoom, "resolution": "upsampled"})  # no new pixels
    assert coarse.image_size == 32 and coarse.encode(noise(1, 32, 32, 3)).shape == (1, 32, 67)
    assert coarse.fingerprint != fovea.fingerprint
    assert {fovea.encode(noise(n, 43, 71, 3)).shape[1] for n in (0, 1)} == {np.prod(fovea.map_of(43, 71))}


def test_crops_stay_within_the_frame():
    looks = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.5], [0.9, -0.2]])  # x, y
    assert corners_of(looks, (48, 64), (24, 32)).tolist() == [[0, 0], [24, 32], [24, 16], [7, 32]]


@pytest.mark.parametrize("changes", [{"gaze": "centre"}, {"gaze": "random"}, {}])
def test_a_frame_has_the_same_tokens_alone_and_in_a_batch(gazing, changes):
    fovea = build_encoder(gazing | changes)
    frames = [noise(6, 64, 64, 3), noise(6, 64, 64, 3)[::-1].copy(), noise(6, 64, 64, 3)]
    together = fovea.encode_cameras(frames)  # (6, 3, 32, 67)
    alone = [fovea.encode(frames[i][t : t + 1], (i,)) for t in range(6) for i in range(3)]
    assert torch.equal(torch.cat(alone).view(together.shape), together)
    assert (len(together[:, 0, 16, 64:66].unique(dim=0)) == 1) == (changes == {"gaze": "centre"})


def test_features_are_cached_under_a_key_with_the_gaze(gazing, tmp_path):
    frames, paths = [noise(3, 64, 64, 3)] * 3, set()
    for changes in ({}, {"gaze": "centre"}, {"gaze": "random"}, {"zoom": 4}):
        fovea = build_encoder(gazing | changes)
        cache = FeatureCache(tmp_path, "demos", fovea.fingerprint, CAMERAS, [3], 32, fovea.dim, "float32")
        found = cache.build(lambda missing: ((i, frames) for i in missing), fovea.encode_cameras)
        assert np.array_equal(found, fovea.encode_cameras(frames).numpy())
        paths.add(cache.path)
    assert len(paths) == 4


def test_wrong_gazes_are_one_line(gazing):
    for changes, words in (
        ({"gaze": "left"}, "expected centre, random, a checkpoint or a file of heat maps, got 'left'"),
        ({"scales": [2]}, "gaze.safetensors: expected a gaze for encoder .*, got one for "),
        ({"zoom": 1}, "zoom: expected > 1, got 1"),
        ({"pool": "mean"}, "pool: expected tokens with s2.fovea, got 'mean'"),
    ):
        with pytest.raises(UserError, match=words):
            build_encoder(gazing | changes)
    with pytest.raises(UserError, match="maps of 64 channels at 20 tokens, got 80 weights"):
        build_encoder(gazing).encode(noise(1, 48, 64, 3))


@pytest.mark.parametrize("kind", ["spatial_softmax", "attention"])
def test_heat_maps_of_a_policy_are_those_that_it_computes(kind, monkeypatch):
    pool = CameraPooling(PoolingSettings(kind=kind, width=4, heads=2, queries=1, keypoints=2), 1, 3, 4, 8)
    pool.set_moments(torch.ones(1, 3), torch.full((1, 3), 2.0))
    tokens, (maps,), seen, softmax = torch.randn(1, 1, 4, 3), pool.maps(), [], torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda *a, **k: seen.append(softmax(*a, **k)) or seen[-1])
    pool(tokens)
    expected = softmax(maps[:, :3] @ tokens[0, 0].T + maps[:, 3:], -1)
    torch.testing.assert_close(seen[0].flatten(0, -2), expected)
    before, pool.placed = pool(tokens), True  # the tokens' own places, which are not on the grid
    assert torch.equal(before, pool(tokens)) == (kind == "attention")


def test_gaze_policy_trains_evaluates_and_acts_without_its_source(here, recorded, tiny_encoder, tmp_path):
    common = [f"demos.path={recorded}", f"encoder.checkpoint={tiny_encoder}", "policy.members=2", *TRAINING]
    here("train", *common, "s2=single", f"hydra.run.dir={tmp_path / 'one'}")
    source = (tmp_path / "one/checkpoint").rename(tmp_path / "gaze")
    fovea = [*common, "s2=fovea", f"s2.fovea.gaze={source}", "train.steps=10"]
    short = ["evaluate.episodes=2", "evaluate.videos=0", "evaluate.workers=1", "env.max_steps=4"]
    assert "of 2 episodes" in here("run", *fovea, *short, f"hydra.run.dir={tmp_path / 'two'}").stdout
    source.rename(tmp_path / "gone")
    acting = load_policy(tmp_path / "two/checkpoint", device="cpu")
    assert acting.spec.placed and acting.image_size == 64 and len(acting.encoder.maps) == 3
    images = {name: noise(64, 64, 3) for name in CAMERAS}
    assert acting.act({"images": images, "proprio": np.zeros(8, np.float32)}).shape == (8,)
    camera = [f"s2.fovea.gaze={tmp_path / 'gone'}", "env.cameras=[hand,left]"]
    for words, error in (
        (["train.steps=1"], "s2.fovea.gaze: expected centre"),
        (camera, "s2.fovea.gaze: expected one of hand, left, got one of hand, left, right"),
        (["s2.fovea.gaze=centre", "train.tune.blocks=1"], "train.tune.blocks: expected 0 with s2=fovea"),
    ):
        assert error in here("train", *fovea, *words, f"hydra.run.dir={tmp_path / 'three'}", status=2).stderr
