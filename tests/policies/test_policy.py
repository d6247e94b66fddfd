"""Policy networks: shapes, padding, every term of the loss, and invalid settings."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state

from s2robot.core.errors import UserError
from s2robot.policies import ChunkPolicy, PolicySpec
from s2robot.policies.bodies.mlp import Dense
from tests.policies.small import make_batch, make_policy, plan_of

KINDS = ["mlp", "transformer"]
CAUSAL = {"causal": True, "action_history": True}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", [1, 3])
@pytest.mark.parametrize("network", [{}, {"action_history": True, "proprio_history": False}])
def test_shapes(kind, context, network):
    policy = make_policy(kind=kind, context=context, network=network, action_target="cumulative").train()
    batch = make_batch(policy)
    loss, scalars = policy(batch)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters())  # for DDP
    assert set(scalars) == {"loss", "joint_loss", "gripper_loss", "joint_error", "gripper_accuracy"}
    actions = plan_of(policy, batch)
    assert actions.shape == (3, 4, 8) and set(actions[..., -1].unique().tolist()) <= {0.0, 1.0}
    with pytest.raises(UserError, match=r"^features: .*\(B, T, \*\(2, 9, 5\)\), got .* 2, 9, 4\)$"):
        plan_of(policy, batch | {"features": batch["features"][..., :-1]})


HISTORY = {"action_history": True, "proprio_history": True}
CASES = [("mlp", {}), ("mlp", HISTORY), ("transformer", {"causal": False}), ("transformer", {"causal": True})]


@pytest.mark.parametrize(("kind", "network"), CASES)
def test_padding_does_not_matter(kind, network):
    policy = make_policy(kind=kind, context=4, network=network)
    batch = make_batch(policy)
    batch["pad"][0, :2] = batch["pad"][1, :3] = True
    first = plan_of(policy, batch)
    for key in ("features", "proprio", "past_actions"):
        batch[key][batch["pad"]] = 7
    assert torch.equal(plan_of(policy, batch), first)
    batch["pad"][:] = False
    changed = plan_of(policy, batch)
    assert not torch.allclose(changed[:2], first[:2])
    torch.testing.assert_close(changed[2], first[2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("history", [True, False])
def test_last_action_is_hidden_and_history_can_be_disabled(kind, history):
    policy = make_policy(kind=kind, context=3, network={"action_history": history})
    batch = make_batch(policy)
    out = [plan_of(policy, batch)]
    for step in (-1, 0):
        batch["past_actions"][:, step] += 5
        out.append(plan_of(policy, batch))
    assert torch.equal(out[0], out[1])
    assert torch.allclose(out[1], out[2]) is not history


def huber(error: torch.Tensor) -> torch.Tensor:
    return torch.where(error.abs() < 1, error**2 / 2, error.abs() - 0.5)


@pytest.mark.parametrize("target", ["delta", "cumulative"])
@pytest.mark.parametrize("joint_loss", ["huber", "mse"])
@pytest.mark.parametrize("gripper_loss", ["bce", "huber"])
def test_loss_is_exact_and_ignores_padding(target, joint_loss, gripper_loss):
    losses = {"joint_loss": joint_loss, "gripper_loss": gripper_loss, "gripper_weight": 0.3}
    policy = make_policy(action_target=target, **losses)
    batch = make_batch(policy)
    lengths = [4, 2, 1]
    for row, length in enumerate(lengths):
        batch["action_pad"][row, length:] = True
    context = policy._context(policy.pool(batch["features"]), batch["proprio"], None, None)
    out = policy.network.head._raw(policy.network.body(*context))  # the gripper as a logit with bce
    joint = gripper = weights = 0.0
    scale, offset = policy.normaliser.target.scale, policy.normaliser.target.offset
    for row, length in enumerate(lengths):
        total = torch.zeros(7)
        for step in range(length):
            action = batch["actions"][row, step]
            total = action[:7] + (total if target == "cumulative" else 0)
            error = out[row, step, :7] - (total - offset[step, :7]) / scale[step, :7]
            joint += (error**2 if joint_loss == "mse" else huber(error)).mean()
            p, closed = out[row, step, 7], action[7]
            bce = -torch.log(torch.sigmoid(p if closed else -p))
            gripper += bce if gripper_loss == "bce" else huber(p - closed)
            weights += 1
    loss, scalars = policy.loss(batch)
    torch.testing.assert_close(scalars["joint_loss"], joint.detach() / weights)
    torch.testing.assert_close(scalars["gripper_loss"], gripper.detach() / weights)
    torch.testing.assert_close(loss, (joint + 0.3 * gripper) / weights)
    batch["actions"][batch["action_pad"]] = float("nan")
    assert torch.equal(policy.loss(batch)[0], loss)


def test_soft_gripper_training_noise_and_zero_features():
    policy = make_policy(binary_gripper=False, proprio_noise=0.1)
    batch = make_batch(policy)
    gripper = plan_of(policy, batch)[..., -1]
    assert (gripper % 1 > 0).all() and gripper.max() < 1
    assert torch.equal(policy.loss(batch)[0], policy.loss(batch)[0])
    policy.train()
    assert not torch.equal(policy.loss(batch)[0], policy.loss(batch)[0])
    for zero in (True, False):
        policy = make_policy(zero_features=zero)
        plans = [plan_of(policy, batch | {"features": batch["features"] * times}) for times in (1, 2)]
        assert torch.equal(*plans) is zero


@pytest.mark.parametrize(
    "key, wrong",
    [
        ("policy.execute", {"execute": 9}), ("policy.context", {"from_last": True}),
        ("policy.network.widht", {"network": {"widht": 2}, "kind": "transformer"}),
        ("policy.network.width", {"network": {"width": 30, "heads": 4}, "kind": "transformer"}),
        ("policy.grids: .* 6 tokens", {"tokens": 6}),
        ("policy.head.steps", {"head": {"kind": "diffusion", "steps": 101}}),
        ("policy.ensemble", {"ensemble": math.nan}),
        ("policy.normalise_parts", {"normalise_parts": {"elbow": "minmax"}}),
        ("policy.normalise_parts.joints", {"normalise_parts": {"joints": "decile"}}),
        ("policy.grids", {"grids": [[3, 3], [3, 3]]}), ("policy.grids", {"grids": [[2, 3]]}),
        ("policy.pooling.shared", {"pooling": {"shared": True}, "cameras": ["a", "b"], "grids": [[3, 3], [2, 3]]}),
    ],
)  # fmt: skip
def test_wrong_settings(key, wrong):
    with pytest.raises(UserError, match=f"^{key}"):
        ChunkPolicy(PolicySpec.from_dict({"cameras": ["hand"], "dim": 5, "tokens": 9, **wrong}))


def test_steps_from_the_measured_pose_are_not_summed():
    targets = {"robosuite:OSC_POSE": "delta", "joint_delta_commanded": "cumulative", "parts": "cumulative"}
    for frame, usual in targets.items():
        for setting, expected in (("auto", usual), ("delta", "delta"), ("cumulative", "cumulative")):
            data = {"action_target": setting, "cameras": ["hand"], "dim": 4, "tokens": 4}
            assert PolicySpec.from_dict(data, action_frame=frame).action_target == expected


def test_causal_body_trains_every_step_like_the_last():
    policy = make_policy(kind="transformer", context=4, network=CAUSAL)
    torch.nn.init.normal_(policy.network.body.distance)
    batch = make_batch(policy)
    batch["pad"][1, :2] = True
    inputs = batch["proprio"], batch["past_actions"], batch["pad"]
    pooled, state, past, pad = policy._context(policy.pool(batch["features"]), *inputs)
    all_steps = policy.network.body(pooled, state, past, pad, True)  # (B, T, W)
    assert all_steps.shape == (3, 4, 16)
    torch.testing.assert_close(all_steps[:, -1], policy.network.body(pooled, state, past, pad))
    for last in range(4):  # later steps and the padding before the window do not matter
        visible, unknown = slice(0, last + 1), past[:, : last + 1].clone()
        unknown[:, -1] = 0
        alone = policy.network.body(pooled[:, visible], state[:, visible], unknown, pad[:, visible])
        rows = ~pad[:, last]
        torch.testing.assert_close(alone[rows], all_steps[rows, last], atol=1e-5, rtol=1e-4)
    one, _ = policy.loss(batch)
    for key, unused in (("actions", torch.nan), ("action_pad", True)):  # targets only at the last step
        batch[key] = torch.stack([torch.full_like(batch[key], unused)] * 3 + [batch[key]], 1)
    torch.testing.assert_close(policy.loss(batch)[0], one)


def forward_and_backward(kind: type[nn.Linear], members: int, rows: int, sizes: tuple[int, int]) -> list:
    torch.manual_seed(0)
    layers = [kind(*sizes) for _ in range(members)]
    x = torch.randn(members, rows, sizes[0], requires_grad=True)
    parameters, _ = stack_module_state(layers)
    out = torch.vmap(lambda state, x: functional_call(layers[0], state, (x,)))(parameters, x)
    (out * torch.randn(out.shape)).sum().backward()
    return [out, x.grad, parameters["weight"].grad, parameters["bias"].grad]


@pytest.mark.parametrize("members", [1, 4])
@pytest.mark.parametrize(("rows", "sizes"), [(1, (3, 5)), (64, (960, 128))])
def test_dense_matches_linear_with_contiguous_weight_gradients(members, rows, sizes):
    dense, linear = (forward_and_backward(kind, members, rows, sizes) for kind in (Dense, nn.Linear))
    torch.testing.assert_close(dense, linear, rtol=1e-5, atol=1e-4)
    assert dense[2].is_contiguous()
