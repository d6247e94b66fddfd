import math

import numpy as np
import pytest
import torch

from s2robot.policies import ChunkPolicy, PolicyError, PolicySpec

KINDS = ["mlp", "transformer"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", [1, 3])
@pytest.mark.parametrize(
    "network", [{}, {"action_history": True, "proprio_history": False}, {"action_history": False}]
)
@pytest.mark.parametrize("action_target", ["delta", "cumulative"])
def test_shapes(make_policy, make_batch, kind, context, network, action_target):
    policy = make_policy(kind=kind, context=context, network=network, action_target=action_target).train()
    batch = make_batch(policy)
    loss, scalars = policy(batch)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters())  # DDP needs all
    assert set(scalars) == {"loss", "joint_loss", "gripper_loss", "joint_error", "gripper_accuracy"}
    actions = policy.plan(batch["features"], batch["proprio"], batch["past_actions"], batch["pad"])
    assert actions.shape == (3, 4, 8)
    assert set(actions[..., -1].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("kind", "causal"), [("mlp", {}), ("transformer", {"causal": False}), ("transformer", {"causal": True})]
)
@pytest.mark.parametrize("network", [{}, {"action_history": True, "proprio_history": True}])
def test_padding_does_not_matter(make_policy, make_batch, kind, causal, network):
    policy = make_policy(kind=kind, context=4, network={**network, **causal})
    batch = make_batch(policy)
    batch["pad"][0, :2] = True
    batch["pad"][1, :3] = True
    inputs = ("features", "proprio", "past_actions", "pad")
    first = policy.plan(*(batch[k] for k in inputs))
    for key in inputs[:3]:
        batch[key] = batch[key].clone()
        batch[key][batch["pad"]] = 7
    assert torch.equal(policy.plan(*(batch[k] for k in inputs)), first)
    batch["pad"][:] = False
    changed = policy.plan(*(batch[k] for k in inputs))
    assert not torch.allclose(changed[:2], first[:2])
    torch.testing.assert_close(changed[2], first[2])


@pytest.mark.parametrize("kind", KINDS)
def test_last_action_is_not_seen_and_history_can_be_shut_off(make_policy, make_batch, kind):
    for history in (True, False):
        policy = make_policy(kind=kind, context=3, network={"action_history": history})
        batch = make_batch(policy)
        out = [policy.plan(batch["features"], batch["proprio"], batch["past_actions"])]
        for step in (-1, 0):
            batch["past_actions"][:, step] += 5
            out.append(policy.plan(batch["features"], batch["proprio"], batch["past_actions"]))
        assert torch.equal(out[0], out[1])
        assert torch.allclose(out[1], out[2]) is not history


@pytest.mark.parametrize("target", ["delta", "cumulative"])
@pytest.mark.parametrize("joint_loss", ["huber", "mse"])
@pytest.mark.parametrize("gripper_loss", ["bce", "huber"])
def test_loss_is_exact_and_blind_to_padding(make_policy, make_batch, target, joint_loss, gripper_loss):
    policy = make_policy(
        action_target=target,
        joint_loss=joint_loss,
        gripper_loss=gripper_loss,
        gripper_weight=0.3,
    )
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
            each = (
                error**2
                if joint_loss == "mse"
                else torch.where(error.abs() < 1, error**2 / 2, error.abs() - 0.5)
            )
            joint += each.mean()
            p, wanted = out[row, step, 7], action[7]
            if gripper_loss == "bce":
                gripper += -torch.log(torch.sigmoid(p if wanted else -p))
            else:
                e = (p - wanted).abs()
                gripper += e**2 / 2 if e < 1 else e - 0.5
            weights += 1
    loss, scalars = policy.loss(batch)
    torch.testing.assert_close(scalars["joint_loss"], joint.detach() / weights)
    torch.testing.assert_close(scalars["gripper_loss"], gripper.detach() / weights)
    torch.testing.assert_close(loss, (joint + 0.3 * gripper) / weights)
    batch["actions"][batch["action_pad"]] = float("nan")
    assert torch.equal(policy.loss(batch)[0], loss)


def test_soft_gripper_and_training_noise(make_policy, make_batch):
    policy = make_policy(binary_gripper=False, proprio_noise=0.1)
    batch = make_batch(policy)
    assert (
        (gripper := policy.plan(batch["features"], batch["proprio"])[..., -1]) % 1 > 0
    ).all() and gripper.max() < 1
    assert torch.equal(policy.loss(batch)[0], policy.loss(batch)[0])
    policy.train()
    assert not torch.equal(policy.loss(batch)[0], policy.loss(batch)[0])


def test_zero_features_is_blind(make_policy, make_batch):
    for zero in (True, False):
        policy = make_policy(zero_features=zero)
        batch = make_batch(policy)
        same = torch.equal(
            policy.plan(batch["features"], batch["proprio"]),
            policy.plan(batch["features"] * 2, batch["proprio"]),
        )
        assert same is zero


@pytest.mark.parametrize(
    "key, wrong",
    [
        ("policy.kind", {"kind": "diffusion"}),
        ("policy.chunks", {"chunks": 3}),
        ("policy.execute", {"execute": 9}),
        ("policy.cameras", {"cameras": []}),
        ("policy.cameras", {"cameras": ["hand", "hand"]}),
        ("policy.dim", {"dim": True}),
        ("policy.context", {"context": 0}),
        ("policy.context", {"from_last": True}),
        ("policy.network.widht", {"network": {"widht": 2}, "kind": "transformer"}),
        ("policy.network.width", {"network": {"width": 30, "heads": 4}, "kind": "transformer"}),
        (r"policy.network.hidden\[1\]", {"network": {"hidden": [3, "x"]}}),
        ("policy.pooling.kind", {"pooling": {"kind": "max"}}),
        ("policy.pooling.width", {"pooling": {"heads": 3}}),
        ("6 tokens do not form a square", {"tokens": 6}),
        ("policy.head.kind", {"head": {"kind": "difusion"}}),
        ("policy.head.kind", {"head": {"kind": [1]}}),
        ("policy.head.steps", {"head": {"kind": "diffusion", "steps": 1}}),
        ("policy.head.steps", {"head": {"kind": "diffusion", "steps": 101}}),
        ("policy.head.clip", {"head": {"kind": "diffusion", "clip": math.nan}}),
        ("policy.ensemble", {"ensemble": math.nan}),
        ("policy.ensemble", {"ensemble": -1000.0}),
        ("policy.normalise_parts", {"normalise_parts": {"elbow": "minmax"}}),
        ("policy.normalise_parts.joints", {"normalise_parts": {"joints": "decile"}}),
        ("policy.grids", {"grids": [[3, 3], [3, 3]]}),
        ("policy.grids", {"grids": [[2, 3]]}),
        (
            "policy.pooling.shared",
            {"pooling": {"shared": True}, "cameras": ["a", "b"], "grids": [[3, 3], [2, 3]]},
        ),
    ],
)
def test_wrong_settings(key, wrong):
    with pytest.raises(PolicyError, match=f"^{key}"):
        ChunkPolicy(PolicySpec.from_dict({"cameras": ["hand"], "dim": 5, "tokens": 9, **wrong}))


def test_wrong_batches(make_policy, make_batch):
    policy = make_policy(context=2, network={"action_history": True})
    for key, words in [
        ("features", r"features: .*\(3, 2, 2, 9, 4\)"),
        ("proprio", r"proprio: .*\(3, 2, 7\)"),
        ("past_actions", r"past_actions: .*\(3, 2, 7\)"),
        ("actions", r"actions: .*\(3, 4, 7\)"),
    ]:
        batch = make_batch(policy)
        batch[key] = batch[key][..., :-1]
        with pytest.raises(PolicyError, match=words):
            policy.loss(batch)
    batch = make_batch(policy)
    with pytest.raises(PolicyError, match="features hold 1 steps of context, expected 2"):
        policy.plan(batch["features"][:, :1], batch["proprio"])
    del batch["past_actions"]
    with pytest.raises(PolicyError, match="past_actions are missing"):
        policy.loss(batch)
    del batch["proprio"]
    with pytest.raises(PolicyError, match="key 'proprio' is missing"):
        policy.loss(batch)


def test_moments_of_the_features_are_needed(make_policy):
    policy = make_policy()
    table, chunks = np.zeros((4, 8)), np.zeros((4, 4, 8))
    with pytest.raises(PolicyError, match="feature_moments: "):
        policy.fit_normaliser(table, table, chunks)
    with pytest.raises(PolicyError, match=r"feature_moments: .*\(1, 5\)"):
        policy.fit_normaliser(table, table, chunks, None, (np.ones((1, 5)), np.ones((1, 5))))


@pytest.mark.parametrize(
    ("frame", "target"),
    [("robosuite:OSC_POSE", "delta"), ("joint_delta_commanded", "cumulative"), ("parts", "cumulative")],
)
def test_what_steps_from_the_measured_pose_are_no_sum(frame, target):
    sizes = {"cameras": ["hand"], "dim": 4, "tokens": 4}
    spec = PolicySpec.from_dict({"action_target": "auto", **sizes}, action_frame=frame)
    assert spec.action_target == target
    for told in ("delta", "cumulative"):
        assert (
            PolicySpec.from_dict({"action_target": told, **sizes}, action_frame=frame).action_target == told
        )
