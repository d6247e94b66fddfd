"""Parts of the training loop against numbers computed by hand."""

import math

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from s2robot.policies import ChunkPolicy
from s2robot.training import loop
from s2robot.training.loop import averaged, cosine_with_warm_up, warm_up_then_cosine
from tests.s2robot.training.small import make_spec


def linear(value: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def test_average_matches_hand_computation():
    model = linear(8.0)
    average = averaged(model, 0.25)
    averages = []
    for value in (0.0, 4.0, 2.0, 10.0):
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
        averages.append(average.module.weight.item())
    # decays 1/10, 2/11, 3/12 = 0.25, then capped at 0.25 instead of 4/13
    a = 8 * 0.1 + 0 * 0.9
    b = a * 2 / 11 + 4 * 9 / 11
    c = b * 0.25 + 2 * 0.75
    assert averages == pytest.approx([a, b, c, c * 0.25 + 10 * 0.75], rel=1e-6)


def test_learning_rate_warms_up_and_decays_to_zero():
    warm_up = [0.2, 0.4, 0.6, 0.8, 1.0]
    assert [warm_up_then_cosine(step, 9, 5) for step in range(5)] == pytest.approx(warm_up)
    assert [cosine_with_warm_up(step, 10**9, 5) for step in range(6)] == pytest.approx([*warm_up, 1.0])
    assert warm_up_then_cosine(4, 4, 4) == 1.0  # no steps are left to decay: no division by zero
    rates = [warm_up_then_cosine(step, 10, 2) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[6] == pytest.approx(0.5) and rates[10] == pytest.approx(0)
    no_warm_up = [1.0, 1.0, 0.5 * (1 + math.cos(math.pi / 3))]
    assert [warm_up_then_cosine(step, 4, 0) for step in range(3)] == pytest.approx(no_warm_up)
    assert cosine_with_warm_up(0, 100, 4) == 0.25 and cosine_with_warm_up(9, 18, 4) == pytest.approx(0.5)
    assert cosine_with_warm_up(9, 5, 4) == pytest.approx(0)


def test_training_step_matches_hand_computation():
    """SGD on w * x with loss (w * x)^2: gradient 2 w x^2, clipped to 1, learning rate 0.5 * share."""
    model = linear(2.0)

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return (self.inner(x) ** 2).mean(), "other"

    shares, network = [1.0, 0.5, 0.25], Loss()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    fabric = Fabric(accelerator="cpu", devices=1)
    learner = loop.Learner(fabric, network, optimizer, lambda i: shares[i], 0.0, 1.0)
    seen = []
    for _ in range(3):
        loss, extra = learner.update(torch.ones(1, 1))
        seen.append((round(loss.item(), 4), extra, learner.lr, round(model.weight.item(), 4)))
    # gradients 4, 3 and 2.5, each clipped to 1
    rows = [(4.0, 0.5, 1.5), (2.25, 0.25, 1.25), (1.5625, 0.125, 1.125)]
    assert seen == [(loss, ["other"], rate, weight) for loss, rate, weight in rows] and learner.step == 3


def test_a_model_is_fitted_to_pairs():
    model, pairs = linear(0.0), [(torch.ones(1, 1), torch.full((1, 1), 2.0))] * 200
    losses = [*loop.optimise(model, pairs, nn.functional.mse_loss, 100, 0.1, 0.0, 5, clip=1.0)]
    assert len(losses) == 100 and losses[0] == 4 and losses[-1] < 1e-3


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_weight_decay_applies_only_to_layer_weights(kind):
    pooling = {"kind": "attention", "queries": 2, "heads": 2, "width": 8, "shared": True}
    named = []
    for members in (1, 2):
        policy = ChunkPolicy(make_spec(kind, pooling=pooling, members=members))
        names = {id(p): name.replace("/", ".") for name, p in policy.named_parameters()}
        groups = loop.parameter_groups(policy, 0.3)
        assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
        named.append([{names[id(p)] for p in group["params"]} for group in groups])
    decayed, plain = named[0]
    assert named[1] == named[0] and len(decayed | plain) == len(names) and not decayed & plain
    assert all(name.endswith(".weight") for name in decayed)
    tables = {f"network.pooling.{name}" for name in ("camera", "pools.0.query", "pools.0.position")}
    tables |= {"network.body.mask", "network.body.position"} if kind == "transformer" else set()
    assert tables <= plain
