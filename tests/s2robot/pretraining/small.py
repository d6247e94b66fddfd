"""A pre-training run of one second: gradients of random colours, a tiny encoder."""

from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from s2robot.core.files import configs_dir
from s2robot.core.settings import read
from s2robot.pretraining.pretrain import PretrainSettings


def make_frames(n: int, side: int) -> np.ndarray:
    """Return images that can be predicted: gradients of random colours."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, side)
    a, b, c = rng.random((3, n, 1, 1, 3))
    x = a * ramp[None, :, None, None] + b * ramp[None, None, :, None] + c
    return (255 * x / x.max()).astype(np.uint8)


def make_settings(folder: Path, **changes) -> PretrainSettings:
    """Return small settings from the shipped config; creates a frame bank in `folder` and trains in folder/out."""
    if not (folder / "frames.npy").exists():
        np.save(folder / "frames.npy", make_frames(12, 32))
        (folder / "meta.json").write_text('{"seed": 3}')
    cfg = OmegaConf.load(configs_dir() / "pretrain" / "default.yaml")
    small = {
        "encoder": {"img_size": 16, "patch_size": 4, "dim": 24, "depth": 2, "heads": 3}, "decoder_dim": 16,
        "decoder_depth": 1, "decoder_heads": 2, "data": str(folder), "out": str(folder / "out"), "batch_size": 8, "steps": 8,
        "lr": 3e-3, "warmup_steps": 2, "threads": 1, "precision": "32-true", "accelerator": "cpu", "checkpoint_every": 3,
        "image_every": 4, "log_every": 2,
    }  # fmt: skip
    return read(PretrainSettings, OmegaConf.merge(cfg, small, changes), "pretrain")
