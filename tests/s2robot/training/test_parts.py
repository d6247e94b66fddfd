"""The parts of the training loop, each against numbers that were computed by hand."""

import math

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning_fabric import Fabric
from torch import nn

from s2robot.common.errors import UserError
from s2robot.common.paths import configs_dir
from s2robot.common.settings import read
from s2robot.policies import ChunkPolicy, channel_moments
from s2robot.training.averaging import averaged
from s2robot.training.loop import Learner, learn, parameter_groups
from s2robot.training.schedule import cosine_with_warm_up, warm_up_then_cosine
from s2robot.training.settings import TrainSettings
from tests.s2robot.training.small import make_spec


def line(value: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def test_the_average_is_the_one_computed_by_hand():
    model = line(8.0)
    average = averaged(model, 0.25)
    expected = []
    for value in (0.0, 4.0, 2.0, 10.0):
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
        expected.append(average.module.weight.item())
    # decays 1/10, 2/11, 3/12 = 0.25, then 0.25 where 4/13 would be more
    a = 8 * 0.1 + 0 * 0.9
    b = a * 2 / 11 + 4 * 9 / 11
    c = b * 0.25 + 2 * 0.75
    d = c * 0.25 + 10 * 0.75
    assert expected == pytest.approx([a, b, c, d], rel=1e-6)


def test_the_average_without_decay_is_the_model():
    model = line(3.0)
    average = averaged(model, 0.0)
    nn.init.constant_(model.weight, 0.1)
    average.update_parameters(model)
    assert torch.equal(average.module.weight, model.weight)


def test_the_decay_warms_up_over_many_steps():
    model = line(1.0)
    average = averaged(model, 0.999)
    nn.init.constant_(model.weight, 0.0)  # so the average is the product of the decays
    expected = 1.0
    for step in range(25):
        average.update_parameters(model)
        expected *= (1 + step) / (10 + step)
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-4)


def test_rates_rise_step_by_step():
    assert [warm_up_then_cosine(step, 9, 5) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert [cosine_with_warm_up(step, 0.0, 5) for step in range(6)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    )
    assert warm_up_then_cosine(4, 4, 4) == 1.0  # nothing is left to fall over: no division by zero


def test_rates_rise_and_fall_to_zero():
    rates = [warm_up_then_cosine(step, 10, 2) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[6] == pytest.approx(0.5) and rates[10] == pytest.approx(0)
    assert [warm_up_then_cosine(step, 4, 0) for step in (0, 1)] == [1.0, 1.0]
    assert warm_up_then_cosine(2, 4, 0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 3)))
    assert cosine_with_warm_up(0, 0.0, 4) == 0.25 and cosine_with_warm_up(9, 0.5, 4) == pytest.approx(0.5)
    assert cosine_with_warm_up(9, 2.0, 4) == pytest.approx(0)


def test_a_step_is_the_one_computed_by_hand():
    """SGD on w * x with loss (w * x)^2: gradient 2 w x^2, clipped to 1, rate 0.5 * share."""
    model = line(2.0)

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return (self.inner(x) ** 2).mean(), "other"

    shares = [1.0, 0.5, 0.25]
    fabric, whole = Fabric(accelerator="cpu", devices=1), Loss()
    learner = Learner(
        fabric,
        whole,
        torch.optim.SGD(whole.parameters(), lr=0.5),
        lambda step: shares[min(step, 2)],
        0.0,
        1.0,
    )
    seen = []

    def after(loss, rest):
        seen.append((round(loss.item(), 4), rest, learner.lr, round(model.weight.item(), 4)))

    learn(learner, 3, lambda step: (torch.ones(1, 1),), after)
    # gradients 4, 3 and 2.5, each clipped to 1
    assert seen == [
        (4.0, ["other"], 0.5, 1.5), (2.25, ["other"], 0.25, 1.25), (1.5625, ["other"], 0.125, 1.125)
    ]  # fmt: skip
    learn(learner, 5, lambda step: (torch.ones(1, 1),), after, stop=lambda: learner.step == 4)
    assert learner.step == 4


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_weight_decay_is_for_the_weights_of_layers(kind):
    pooling = {"kind": "attention", "queries": 2, "heads": 2, "width": 8, "shared": True}
    policy = ChunkPolicy(make_spec(kind, pooling=pooling))
    names = {id(p): name for name, p in policy.named_parameters()}
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in parameter_groups(policy, 0.3))
    assert decayed | plain == set(names.values()) and not decayed & plain
    assert all(name.endswith(".weight") for name in decayed)
    tables = {f"network.pooling.{name}" for name in ("camera", "pools.0.query", "pools.0.position")}
    tables |= {"network.body.mask", "network.body.position"} if kind == "transformer" else set()
    assert tables <= plain
    members = ChunkPolicy(make_spec(kind, pooling=pooling, members=2))
    names = {id(p): name for name, p in members.named_parameters()}
    again = [
        {names[id(p)].replace("/", ".") for p in group["params"]} for group in parameter_groups(members, 0.3)
    ]
    assert again == [decayed, plain]
    assert [group["weight_decay"] for group in parameter_groups(policy, 0.3)] == [0.3, 0.0]


def test_tables_without_a_gradient_do_not_shrink():
    """What the loss does not pull at stays: with decay, AdamW would multiply it by 1 - lr * decay."""
    policy = ChunkPolicy(make_spec("transformer"))
    optimizer = torch.optim.AdamW(parameter_groups(policy, 0.5), lr=0.1)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(policy.named_parameters())
    for name in ("network.body.mask", "network.body.position"):
        assert torch.equal(after[name], before[name])
    assert torch.allclose(after["network.head.out.weight"], before["network.head.out.weight"] * 0.95)


def test_the_defaults_are_those_of_the_config():
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        config = compose("train").train
    assert read(TrainSettings, config, "train") == TrainSettings()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "train.steps: found 0, expected 1 or more"),
        ({"steps": -1}, "train.steps: found -1, expected 1 or more"),
        ({"batch_size": 0}, "train.batch_size: found 0, expected 1 or more"),
        ({"lr": -1.0}, "train.lr: found -1.0, expected a number above 0"),
        ({"lr": math.nan}, "train.lr: found nan, expected a number above 0"),
        ({"weight_decay": -0.1}, "train.weight_decay: found -0.1, expected 0 or more"),
        ({"warmup": 1.5}, "train.warmup: found 1.5, expected a value from 0 to 1"),
        ({"ema": 1.0}, "train.ema: found 1, expected a value below 1"),
        ({"validation": 1.0}, "train.validation: found 1, expected a value below 1"),
        ({"seed": -1}, "train.seed: found -1, expected 0 or more"),
        ({"devices": 0}, "train.devices: found 0, expected 1 or more"),
        ({"threads": 0}, "train.threads: found 0, expected 1 or more"),
        ({"checkpoint_every": 0}, "train.checkpoint_every: found 0, expected 1 or more"),
        ({"grad_clip": -1.0}, "train.grad_clip: found -1.0, expected 0 or more"),
    ],
)
def test_values_out_of_range_are_one_line(changes, words):
    with pytest.raises(UserError) as error:
        read(TrainSettings, changes, "train")
    assert str(error.value) == words


def test_moments_of_some_rows_are_those_of_a_copy():
    features = np.random.default_rng(0).normal(size=(300, 2, 3, 4)).astype(np.float16)
    rows = np.flatnonzero(np.arange(300) % 7 < 3)
    for got, want in zip(
        channel_moments(features, 64, rows), channel_moments(features[rows], 64), strict=True
    ):
        assert np.array_equal(got, want)
