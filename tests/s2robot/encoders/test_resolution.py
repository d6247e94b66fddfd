"""S2 on a picture enlarged from the first scale, as in the paper, against native pixels: never mixed up."""

import hashlib
import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.nn import functional as F

from s2robot.config import encoder_settings
from s2robot.core.errors import UserError
from s2robot.core.files import configs_dir
from s2robot.encoders.build import build_encoder
from s2robot.encoders.encoder import S2Encoder
from s2robot.s2.pyramid import channels_first, pyramid
from s2robot.s2.reference import forward

CPU = torch.device("cpu")


def build(file, scales=(1, 2), resolution="native", **settings) -> S2Encoder:
    named = {"name": "mvp-tiny", "checkpoint": file, "scales": list(scales), "resolution": resolution}
    return build_encoder(named | settings)


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def test_native_features_keep_their_fingerprint_and_upsampled_ones_have_another(tiny_encoder):
    native, upsampled = build(tiny_encoder), build(tiny_encoder, resolution="upsampled")
    parts = {
        "architecture": native.describe, "module": native.architecture, "weights": native.weights_sha256,
        "preprocessing": native.preprocessing, "tile": 32, "sizes": (32, 64), "pool": "tokens", "dtype": "float32",
    }  # fmt: skip
    before = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    assert native.fingerprint == before and upsampled.fingerprint != before
    assert (native.image_size, upsampled.image_size) == (64, 32)  # what is rendered
    single = build(tiny_encoder, (1,), "upsampled")  # nothing to enlarge
    assert single.fingerprint == build(tiny_encoder, (1,)).fingerprint and single.image_size == 32


def test_the_first_scale_is_the_same_and_the_larger_hold_nothing_new(tiny_encoder, frames):
    native, upsampled = build(tiny_encoder), build(tiny_encoder, resolution="upsampled")
    a, b = native.encode(frames), upsampled.encode(frames)  # (3, 16, 2 * 64)
    torch.testing.assert_close(b[..., :64], a[..., :64], rtol=1e-5, atol=1e-5)
    assert (a[..., 64:] - b[..., 64:]).abs().mean() > 1e-3
    small = torch.from_numpy(frames).view(3, 32, 2, 32, 2, 3).float().mean((2, 4))  # area average
    whole = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    for given, seen in ((frames, small), (whole, whole.float())):
        first = seen.permute(0, 3, 1, 2) * upsampled.scale + upsampled.shift
        expected = forward(upsampled._model, first, scales=[1, 2], num_prefix_token=1)[
            :, 1:
        ]  # the paper's code
        torch.testing.assert_close(upsampled.encode(given), expected, rtol=1e-4, atol=1e-4)
    levels = pyramid(
        channels_first(torch.from_numpy(frames)), [(32, 32), (64, 64), (96, 96)], (32, 32), enlarge=True
    )
    for level in levels[1:]:
        enlarged = F.interpolate(levels[0], level.shape[-2:], mode="bicubic")
        torch.testing.assert_close(level, enlarged, rtol=0, atol=0)


def test_the_config_decides_the_resolution(tiny_encoder):
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        words = [f"encoder.checkpoint={tiny_encoder}", "s2.resolution=upsampled"]
        settings = encoder_settings(compose("train", words))
    assert build_encoder(settings).upsampled
    assert not build_encoder(settings | {"resolution": "native"}).upsampled


def test_a_larger_scale_alone_on_the_grid_of_the_first(tiny_encoder, frames):
    both, large = build(tiny_encoder), build(tiny_encoder, (2,))
    small_grid = build(tiny_encoder, (2,), grid=1)
    assert (large.grid, small_grid.grid, small_grid.map_of(64, 64)) == (2 * both.grid, both.grid, (4, 4))
    torch.testing.assert_close(small_grid.encode(frames), both.encode(frames)[..., 64:])
    assert len({both.fingerprint, large.fingerprint, small_grid.fingerprint}) == 3
    assert build(tiny_encoder, (2,), grid=2).fingerprint == large.fingerprint
    with pytest.raises(UserError, match="encoder.grid"):
        build(tiny_encoder, (1,), grid=2)
