"""What several tests share: one CPU thread, a tiny encoder with random weights, three recorded episodes."""

import pytest
import torch

from demos.picker import PickerConfig
from demos.record import record
from envs.cube_pick import CubePickConfig
from s2robot.vit import MVPViT, ViTSpec, save_encoder

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    """A file as `s2robot pretrain` writes it: 32 px tile, patch 8, 64 channels, 2 blocks; S2 draws 64 px."""
    path = tmp_path_factory.mktemp("encoder") / "tiny.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_encoder(MVPViT(ViTSpec(img_size=32, patch_size=8, dim=64, depth=2, heads=2)), path, {"seed": 0})
    return path


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """A dataset of 3 xArm7 episodes, seeds 500 to 502, as the recorder makes it; not to be changed."""
    path = tmp_path_factory.mktemp("demos") / "demos.zarr"
    record(path, CubePickConfig(), PickerConfig(), episodes=3, seed=500, workers=1).close()
    return path
