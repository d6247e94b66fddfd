"""Small policies and batches: 2 cameras of 3 × 3 tokens, 5 channels, chunk 4."""

import numpy as np
import pytest
import torch

from s2robot.policies import ChunkPolicy
from tests.policies.small import small_spec

SIZES = {"cameras": ("hand", "left"), "dim": 5, "tokens": 9, "chunk": 4}
POOLING = {"keypoints": 3, "values": 2, "queries": 2, "heads": 2, "width": 8}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def make_policy():
    """A fitted policy in eval mode; keys of PolicySpec as arguments."""

    def make(**keys):
        keys["pooling"] = POOLING | keys.get("pooling", {})
        policy = ChunkPolicy(small_spec(**SIZES | keys))
        rng, spec = np.random.default_rng(0), policy.spec
        actions = rng.normal(0, 0.05, (40, spec.action_dim))
        actions[:, -1] = rng.integers(0, 2, 40)
        shape = len(spec.cameras), spec.dim
        moments = rng.normal(size=shape), rng.uniform(0.5, 2, shape)
        chunks = np.stack([np.roll(actions, -i, 0)[: spec.chunk] for i in range(40)])
        policy.fit_normaliser(rng.normal(size=(40, spec.proprio_dim)), actions, chunks, None, moments)
        return policy.eval()

    return make


@pytest.fixture
def make_batch():
    def make(policy, b=3, seed=1):
        spec, g = policy.spec, torch.Generator().manual_seed(seed)
        t = spec.context
        actions = torch.randn(b, spec.chunk, spec.action_dim, generator=g) * 0.05
        actions[..., -1] = (actions[..., -1] > 0).float()
        shape = b, t, len(spec.cameras), spec.tokens, spec.dim
        past = torch.randn(b, t, spec.action_dim, generator=g) * 0.05
        seen = {"features": torch.randn(shape, generator=g).half(), "past_actions": past}
        seen |= {"proprio": torch.randn(b, t, spec.proprio_dim, generator=g)}
        pads = {"pad": torch.zeros(b, t).bool(), "action_pad": torch.zeros(b, spec.chunk).bool()}
        return seen | pads | {"actions": actions}

    return make
