"""Disturb the frames of demos before encoding: augmentation for a frozen encoder, whose features are computed once."""

from collections.abc import Callable

import numpy as np

from s2robot.envs.disturb import IMAGES

AUGMENTATION = "augmented 1"  # part of a cache's key; count up with any change below
# axis of `s2robot stress` -> the range of its values, drawn uniformly on a logarithmic scale
RANGES = {
    "exposure": (0.3, 2),
    "contrast": (0.3, 1.5),
    "blur": (0.002, 0.03),
    "noise": (2, 32),
    "compression": (5, 60),
}


def augmented(make_frames: Callable[[], list[np.ndarray]], seed: tuple[int, ...]) -> list[np.ndarray]:
    """Return made frames, uint8 (T, H, W, 3) per camera, each with other colours and one disturbance."""
    rng, out = np.random.default_rng(seed), []
    for frames in make_frames():
        out.append(np.empty_like(frames))
        for i, frame in enumerate(frames):
            axis = rng.choice([*RANGES])
            value = np.exp(rng.uniform(*np.log(RANGES[axis])))
            tinted = np.clip(frame * rng.uniform(0.7, 1.3, 3), 0, 255).astype(np.uint8)
            out[-1][i] = IMAGES[axis](tinted, float(value), rng)
    return out
