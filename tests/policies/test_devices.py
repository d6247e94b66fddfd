"""Policies on a simulated device: torch's fake tensors have devices, shapes and dtypes but compute nothing.

A tensor created on a different device from the others fails here as on a GPU; so does reading a value back during a step
(`.item()`), which would wait for the GPU.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from s2robot.policies import ChunkPolicy
from s2robot.policies.heads import HEADS
from tests.policies.small import plan_of
from tests.s2robot.training.small import DIM, TOKENS, make_spec


def on(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module to a device; fake tensors do not support `module.to`."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, value in tensors.items():
                if value is not None and value.device.type == "cpu":
                    new = torch.empty_like(value, device=device)
                    tensors[name] = nn.Parameter(new) if isinstance(value, nn.Parameter) else new
    return module


def batch(policy: ChunkPolicy, every: bool, device: torch.device) -> dict[str, torch.Tensor]:
    spec, b = policy.spec, 3
    t, target_shape = spec.context, ((b, spec.context, spec.chunk) if every else (b, spec.chunk))
    shapes = {
        "features": (5, len(spec.cameras), TOKENS, DIM), "frames": (b, t), "proprio": (b, t, spec.proprio_dim),
        "past_actions": (b, t, spec.action_dim), "pad": (b, t), "actions": (*target_shape, spec.action_dim),
        "action_pad": target_shape, "target_counts": target_shape[1:],
    }  # fmt: skip
    types = {"features": torch.float16, "frames": torch.long, "pad": torch.bool, "action_pad": torch.bool}
    return {name: torch.zeros(shape, dtype=types.get(name), device=device) for name, shape in shapes.items()}


@pytest.mark.parametrize("head, kind, members", [*((h, "mlp", 2) for h in HEADS), ("regression", "transformer", 1)])  # fmt: skip
def test_training_step_and_plan_stay_on_the_device(head, kind, members):
    spec = make_spec(kind, head={"kind": head}, members=members, proprio_noise=0.1)
    with FakeTensorMode(allow_non_fake_inputs=False):
        device = torch.device("meta")
        policy = on(ChunkPolicy(spec), device)
        inputs = batch(policy, policy.network.body.causal, device)
        loss, scalars = policy(inputs)
        loss.backward()
        assert loss.device == device and loss.dtype == torch.float32
        assert {p.grad.device for p in policy.parameters() if p.grad is not None} == {device}
        assert {value.device for value in scalars.values()} == {device}
        policy.eval()
        seen = inputs["features"][:3, None].expand(3, spec.context, -1, -1, -1)
        plan = plan_of(policy, inputs | {"features": seen})
        assert plan.device == device and plan.shape == (3, spec.chunk, spec.action_dim)
