"""Checkpoints of an earlier version (0.1), stored beside this file with the actions that it took from them."""

import json
from pathlib import Path

import numpy as np
import pytest

from s2robot.policies import Actor, load_checkpoint

STORED = Path(__file__).parent / "checkpoints"


def encode(images: np.ndarray) -> np.ndarray:
    """Any fixed map of frames (B, 8, 8, 3) to tokens (B, 4, 6)."""
    return images.astype(np.float32).reshape(len(images), 4, 6, -1).mean(-1) / 255


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_an_old_checkpoint_loads_and_acts_as_it_did(kind):
    policy, contract = load_checkpoint(STORED / kind)
    assert policy.spec.kind == kind and contract["robot"] == "xarm7"
    actor = Actor(policy, encode)
    actor.reset()
    rng = np.random.default_rng(0)
    for expected in json.loads((STORED / kind / "actions.json").read_text()):
        frames = {name: rng.integers(0, 255, (8, 8, 3)).astype(np.uint8) for name in ("hand", "left")}
        proprio = rng.normal(size=8).astype(np.float32) * 0.1
        action = actor.act({"images": frames, "proprio": proprio})
        np.testing.assert_allclose(action, expected, rtol=1e-5, atol=1e-6)
