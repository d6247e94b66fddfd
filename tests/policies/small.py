"""Small policies, one network, delta targets, no randomness in training; and batches for them."""

import numpy as np
import torch

from s2robot.policies import ChunkPolicy, PolicySpec

PLAIN = {"members": 1, "execute": 2, "action_target": "delta", "chunk": 8, "context": 1}
NETWORKS = {
    "rnn": {"image_dim": 8, "state_dim": 8, "width": 16, "layers": 2},
    "mlp": {"image_dim": 128, "state_dim": 128, "hidden": [64, 32], "layer_norm": False, "dropout": 0.0},
    "transformer": {
        "width": 16, "blocks": 2, "heads": 2, "dropout": 0.0, "causal": False, "action_history": True,
        "proprio_history": True,
    },
}  # fmt: skip
SIZES = {"cameras": ("hand", "left"), "dim": 5, "tokens": 9, "chunk": 4}  # 3 × 3 tokens per camera
POOLING = {"keypoints": 3, "values": 2, "queries": 2, "heads": 2, "width": 8}


def small_spec(**keys) -> PolicySpec:
    network = NETWORKS[keys.get("kind", "mlp")] | keys.pop("network", {})
    return PolicySpec.from_dict(PLAIN | keys | {"network": network})


def make_policy(**keys) -> ChunkPolicy:
    """Return a fitted policy in eval mode; `keys` override its spec."""
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


def untrained(encoder, deltas: float = 0.03, **changes) -> ChunkPolicy:
    """Return a policy with random weights and a plausible normaliser for an encoder; `changes` override its spec."""
    values = {
        "cameras": ["hand", "left"], "dim": encoder.dim, "tokens": encoder.num_tokens, "chunk": 4, "execute": 2,
        "network": {"image_dim": 8, "state_dim": 8, "hidden": [16]}, "pooling": {"keypoints": 4, "values": 2},
    }  # fmt: skip
    torch.manual_seed(0)
    policy = ChunkPolicy(small_spec(**values | changes))
    rng, numbers = np.random.default_rng(0), policy.spec.action_dim
    joints = numbers - ((changes.get("action_parts") or [{"name": "gripper"}])[-1]["name"] == "gripper")
    moves, closes = rng.normal(0, deltas, (50, joints)), rng.integers(0, 2, (50, numbers - joints))
    actions = np.append(moves, closes, 1)
    size = len(policy.spec.cameras), encoder.dim
    moments = np.zeros(size), np.ones(size)
    chunks = np.repeat(actions[:, None], policy.spec.chunk, 1)  # (50, K, A)
    policy.fit_normaliser(rng.normal(size=(50, policy.spec.proprio_dim)), actions, chunks, None, moments)
    return policy.eval()


def make_batch(policy, b=3, seed=1):
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


@torch.no_grad()
def plan_of(policy, batch):
    """Return a policy's plan for a batch, with the past actions and padding if the batch has them."""
    seen = policy.pool(batch["features"]), batch["proprio"], batch.get("past_actions"), batch.get("pad")
    return policy.clip(policy.combine(policy.plan_members(*seen)))
