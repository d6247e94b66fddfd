"""Settings of small policies: one network, delta targets, no randomness in training."""

import torch

from s2robot.policies import PolicySpec

PLAIN = {"members": 1, "execute": 2, "action_target": "delta", "chunk": 8, "context": 1}
NETWORKS = {
    "rnn": {"image_dim": 8, "state_dim": 8, "width": 16, "layers": 2},
    "mlp": {"image_dim": 128, "state_dim": 128, "hidden": [64, 32], "layer_norm": False, "dropout": 0.0},
    "transformer": {
        "width": 16, "blocks": 2, "heads": 2, "dropout": 0.0, "causal": False, "action_history": True,
        "proprio_history": True,
    },
}  # fmt: skip


def small_spec(**keys) -> PolicySpec:
    network = NETWORKS[keys.get("kind", "mlp")] | keys.pop("network", {})
    return PolicySpec.from_dict(PLAIN | keys | {"network": network})


@torch.no_grad()
def plan_of(policy, batch):
    """Return a policy's plan for a batch, with the past actions and padding if the batch has them."""
    seen = policy.pool(batch["features"]), batch["proprio"], batch.get("past_actions"), batch.get("pad")
    return policy.clip(policy.combine(policy.plan_members(*seen)))
