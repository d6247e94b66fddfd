"""Dense beside nn.Linear: the same values, alone and for members side by side, with gradients in the weights' own order."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state

from s2robot.policies.dense import Dense


def outcome(kind: type[nn.Linear], members: int, rows: int, sizes: tuple[int, int], training: bool) -> list:
    """Result, and gradients of rows, weights and biases."""
    torch.manual_seed(0)
    layers = [kind(*sizes).train(training) for _ in range(members)]
    x = torch.randn(members, rows, sizes[0], requires_grad=True)
    parameters, _ = stack_module_state(layers)
    out = torch.vmap(lambda state, x: functional_call(layers[0], state, (x,)))(parameters, x)
    (out * torch.randn(out.shape)).sum().backward()
    return [out, x.grad, parameters["weight"].grad, parameters["bias"].grad]


@pytest.mark.parametrize("members", [1, 4])
@pytest.mark.parametrize(("rows", "sizes"), [(1, (3, 5)), (7, (11, 2)), (64, (512, 512)), (64, (960, 128))])
def test_members_side_by_side_have_the_same_values(members, rows, sizes):
    ours, torchs = (outcome(kind, members, rows, sizes, True) for kind in (Dense, nn.Linear))
    torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-4)
    assert ours[2].is_contiguous()
