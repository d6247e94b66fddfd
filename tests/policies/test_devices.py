"""A policy on a device that is not there: torch's fake tensors know devices, shapes and types, and compute nothing.

A tensor made on another device than the rest fails here as on the GPU; so does a value read back in a step (`.item()`), for
which a GPU would have to be waited for.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from s2robot.policies import ChunkPolicy
from s2robot.policies.heads import HEADS
from tests.s2robot.training.small import DIM, TOKENS, make_spec


def on(module: nn.Module, device: torch.device) -> nn.Module:
    """`module.to(device)`, which fake tensors do not know how to do."""
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            for name, value in kept.items():
                if value is not None and value.device.type == "cpu":
                    new = torch.empty_like(value, device=device)
                    kept[name] = nn.Parameter(new) if isinstance(value, nn.Parameter) else new
    return module


def batch(policy: ChunkPolicy, every: bool, device: torch.device) -> dict[str, torch.Tensor]:
    spec, b = policy.spec, 3
    t, asked = spec.context, ((b, spec.context, spec.chunk) if every else (b, spec.chunk))
    shapes = {
        "features": (5, len(spec.cameras), TOKENS, DIM), "frames": (b, t), "proprio": (b, t, spec.proprio_dim),
        "past_actions": (b, t, spec.action_dim), "pad": (b, t), "actions": (*asked, spec.action_dim),
        "action_pad": asked, "target_counts": asked[1:],
    }  # fmt: skip
    types = {"features": torch.float16, "frames": torch.long, "pad": torch.bool, "action_pad": torch.bool}
    return {name: torch.zeros(shape, dtype=types.get(name), device=device) for name, shape in shapes.items()}


@pytest.mark.parametrize("head, kind, members", [*((h, "mlp", 2) for h in HEADS), ("regression", "transformer", 1)])  # fmt: skip
def test_training_step_and_plan_stay_on_the_device(head, kind, members):
    spec = make_spec(kind, head={"kind": head}, members=members, proprio_noise=0.1)
    with FakeTensorMode(allow_non_fake_inputs=False):
        device = torch.device("meta")
        policy = on(ChunkPolicy(spec), device)
        given = batch(policy, policy.network.body.causal, device)
        loss, scalars = policy(given)
        loss.backward()
        assert loss.device == device and loss.dtype == torch.float32
        assert {p.grad.device for p in policy.parameters() if p.grad is not None} == {device}
        assert {value.device for value in scalars.values()} == {device}
        policy.eval()
        seen = given["features"][:3, None].expand(3, spec.context, -1, -1, -1)
        plan = policy.plan(seen, given["proprio"], given["past_actions"], given["pad"])
        assert plan.device == device and plan.shape == (3, spec.chunk, spec.action_dim)
