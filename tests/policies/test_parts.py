"""Actions and states in parts: their values inside and outside a policy, and invalid parts."""

import json

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from s2robot.core.errors import UserError
from s2robot.core.parts import check_values
from s2robot.policies import BatchActor, ChunkPolicy, Parts, PolicySpec, rotations
from s2robot.policies.checkpoint import check_contract
from s2robot.policies.heads import HEADS
from tests.policies.small import plan_of, small_spec
from tests.policies.test_heads import small

POSITION = {"name": "position", "size": 3, "kind": "delta"}
TURN = {"name": "turn", "size": 3, "kind": "rotation", "form": "axis_angle", "relative": True}
TURN6 = {**TURN, "size": 6, "form": "rot6d"}
POSE = {"name": "pose", "size": 3, "kind": "rotation", "form": "axis_angle"}
GRIPPER = {"name": "gripper", "size": 1, "kind": "binary"}
CLAW = {**GRIPPER, "name": "claw", "low": [-1.0], "high": [1.0]}
ARM = [POSITION, TURN, GRIPPER]
USUAL = [{"name": "joints", "size": 7, "kind": "delta"}, GRIPPER]


def parts(*specs):
    return Parts.read(specs, sum(part["size"] for part in specs), "action_parts")


def random_turns(count, seed=0, limit=0.5):
    """Return axis-angle rotations of up to `limit` rad.  # (count, 3)"""
    rng = np.random.default_rng(seed)
    axes = rng.normal(size=(count, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    return torch.from_numpy(axes * rng.uniform(0, limit, (count, 1)))


def test_a_spec_stores_its_parts():
    assert str(Parts.read(None, 8, "", "proprio")) == "joints (7 absolute), opening (1 absolute)"
    sizes = {"cameras": ("hand",), "dim": 5, "tokens": 9}
    assert PolicySpec(**sizes) == PolicySpec(**sizes, action_parts=tuple(USUAL))
    own = PolicySpec(**sizes, action_parts=tuple(ARM), action_dim=7)
    assert own.to_dict()["action_parts"] == ARM and own.action == parts(*ARM)
    assert PolicySpec.from_dict(json.loads(json.dumps(own.to_dict()))) == own


@pytest.mark.parametrize("form", ["axis_angle", "rot6d"])
@pytest.mark.parametrize("limit", [1e-7, 0.5, np.pi])
def test_rotations_agree_with_scipy(form, limit):
    vectors = torch.cat([random_turns(50, limit=limit), torch.zeros(1, 3), torch.tensor([[0, np.pi, 0]])])
    matrix = rotations.matrices(vectors, "axis_angle")
    np.testing.assert_allclose(matrix, Rotation.from_rotvec(vectors.numpy()).as_matrix(), atol=1e-12)
    again = rotations.matrices(rotations.numbers(matrix, form), form)
    torch.testing.assert_close(again, matrix, atol=1e-7, rtol=0)
    if form == "rot6d":
        assert torch.equal(rotations.numbers(matrix, form)[:, :3], matrix[:, :, 0])  # columns, not rows


@pytest.mark.parametrize("turn", [TURN, TURN6])
def test_relative_rotations_are_composed_and_never_added(turn):
    vectors = random_turns(2 * 5).view(2, 5, 3)
    outside = vectors if turn is TURN else parts(TURN).inner(vectors)
    targets = parts(turn).targets(outside, cumulative=True)  # (2, 5, 6)
    for row in range(2):
        total = Rotation.identity()
        for step in range(5):
            total = Rotation.from_rotvec(vectors[row, step]) * total  # about the axes of the base
            np.testing.assert_allclose(targets[row, step], total.as_matrix()[:, :2].T.ravel(), atol=1e-12)
    back = parts(turn).outer(parts(turn).actions(targets, cumulative=True))
    torch.testing.assert_close(back, outside, atol=1e-7, rtol=0)
    torch.testing.assert_close(parts(turn).targets(outside, cumulative=False), parts(TURN).inner(vectors))


def test_plans_respect_limits_and_errors_are_reported_by_part():
    limited = parts({**POSITION, "low": [-0.1] * 3, "high": [0.1] * 3}, CLAW)
    actions = torch.tensor([[0.3, -0.3, 0.05, 0.2], [0, 0, 0, -0.2]])
    expected = torch.tensor([[0.1, -0.1, 0.05, 1], [0, 0, 0, -1]])
    torch.testing.assert_close(limited.clip(actions), expected)
    assert limited.clip(actions, binary=False)[0, 3] == 0.2
    errors = parts(*ARM).errors(torch.tensor([[0.1, 0.2, 0.3, 0.0, 0.0, 0.4, 0.9]]), torch.zeros(1, 7))
    expected = {"position_error": 0.2, "turn_error": 0.4, "gripper_accuracy": 0.0}
    assert {name: value.item() for name, value in errors.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "specs, size, words",
    [
        (ARM, 8, r"action_parts: expected 8 numbers in total, got 7"),
        ([GRIPPER, GRIPPER], 2, "two parts named 'gripper'"),
        ([{**POSITION, "relative": True}], 3, r"\[0\].form: .*rotation"),
        ([{**POSITION, "low": [0, 0, 2], "high": [1, 1, 1]}], 3, r"\[0\].low: expected less than high"),
        ([{**POSITION, "low": [0, 0, 0]}], 3, r"\[0\].high: "),
        (["joints"], 7, r"action_parts\[0\]: .*'joints'"),
    ],
)
def test_invalid_parts_are_one_error_line(specs, size, words):
    with pytest.raises(UserError, match=words):
        Parts.read(specs, size, "action_parts")


CHUNK = 3
ARMS = {
    "arm": ARM, "rot6d": [POSITION, TURN6, CLAW], "binary": [GRIPPER], "gripper first": [GRIPPER, POSITION],
    "all": [POSITION, TURN, CLAW, {"name": "height", "size": 1, "kind": "absolute"}, POSE],
    "two arms": [{**p, "name": f"{side}_{p['name']}"} for side in ("left", "right") for p in ARM],
    "continuous": [{"name": "torque", "size": 2, "kind": "absolute"}],
}  # fmt: skip


def chunks_of(both, count):
    """Return random valid chunks of actions.  # (count, CHUNK, A)"""
    g = torch.Generator().manual_seed(0)
    pieces = []
    for i, part in enumerate(both.parts):
        x = torch.randn(count, CHUNK, part.size, generator=g) * 0.2
        if part.kind == "rotation":
            x = random_turns(count * CHUNK, i).view(count, CHUNK, 3).float()
            x = parts(TURN).inner(x) if part.form == "rot6d" else x
        elif part.kind == "binary":
            x = torch.where(x > 0, *binary_values(part))
        pieces.append(x)
    return torch.cat(pieces, -1)


def binary_values(part):
    """Return the two values of a binary part, the high one first."""
    return (part.high or (1.0,))[0], (part.low or (0.0,))[0]


def policy_of(arm, **keys):
    both = parts(*ARMS[arm])
    sizes = {"cameras": ("hand",), "dim": 5, "tokens": 4, "chunk": CHUNK, "action_dim": both.size}
    plain = {"pooling": {"kind": "mean"}, "network": {"hidden": [64]}, "action_parts": tuple(ARMS[arm])}
    policy, actions = ChunkPolicy(small_spec(**sizes | plain | keys)), chunks_of(both, 12)
    moments = np.zeros((1, 5)), np.ones((1, 5))
    policy.fit_normaliser(np.zeros((12, 8)), actions[:, 0].numpy(), actions.numpy(), None, moments)
    seen = torch.randn(12, 1, 1, 4, 5, generator=torch.Generator().manual_seed(1))
    return policy, {"features": seen, "proprio": torch.zeros(12, 1, 8), "actions": actions}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("target", ["delta", "cumulative"])
def test_sampling_the_training_target_plans_the_original_actions(arm, target, monkeypatch):
    policy, batch = policy_of(arm, action_target=target)
    head, targets = policy.eval().network.head, []
    loss = head.loss
    monkeypatch.setattr(head, "loss", lambda context, *goal: targets.append(goal[0]) or loss(context, *goal))
    _, scalars = policy(batch)
    monkeypatch.setattr(head, "sample", lambda *_: targets[0])
    plan = plan_of(policy, batch)
    torch.testing.assert_close(plan, batch["actions"], atol=1e-4, rtol=0)
    binary = [at for part, at in policy.spec.action.inside if part.kind == "binary"]
    assert all(set(targets[0][..., at].unique().tolist()) <= {0.0, 1.0} for at in binary)
    losses = {f"{part['name']}_loss" for part in ARMS[arm]}
    assert losses | {"loss", *policy.spec.action.errors(plan, plan)} == set(scalars)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("arm", ["rot6d", "continuous", "binary"])
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_every_head_plans_valid_actions(kind, arm):
    policy, batch = policy_of(arm, head=small(kind), members=2, action_target="cumulative")
    loss, scalars = policy.train().loss(batch)
    loss.backward()
    assert loss.isfinite() and all(bool(value.isfinite()) for value in scalars.values())
    plan = plan_of(policy.eval(), batch)
    assert plan.shape == batch["actions"].shape
    check_values(policy.spec.action.parts, plan.flatten(0, 1).numpy(), "plan")
    binary = [(part, at) for part, at in policy.spec.action.outside if part.kind == "binary"]
    assert all(set(plan[..., at].unique().tolist()) <= {*binary_values(part)} for part, at in binary)
    members = policy.plan_members(policy.pool(batch["features"]), batch["proprio"])
    assert bool((policy.disagreement(members) > 0).all()) is (arm != "binary")


def test_member_mean_and_disagreement_handle_half_turns():
    """With the hand pointing down, the rotation axis flips at pi while the members differ by 0.01 rad."""
    policy, _ = policy_of("arm")
    plans = torch.zeros(2, 1, CHUNK, 7)
    plans[0, ..., 5], plans[1, ..., 5] = 3.0, -3.0  # 0.28 rad apart, beyond half a turn
    middle = policy.combine(plans)[0, 0, 3:6]
    torch.testing.assert_close(middle.abs(), torch.tensor([0, 0, torch.pi]), atol=1e-3, rtol=0)
    policy, _ = policy_of("rot6d", execute=1)
    arm, disagreements = policy.spec.action, []
    (at,) = [at for part, at in arm.outside if part.kind == "rotation"]
    for middle in (2.0, torch.pi):
        turns = torch.zeros(3, 2, CHUNK, 3)
        turns[..., 0] = torch.tensor([-0.01, 0.0, 0.01])[:, None, None] + middle
        plans = torch.zeros(3, 2, CHUNK, arm.size)
        plans[..., at] = rotations.numbers(rotations.matrices(turns, "axis_angle"), "rot6d")
        disagreements.append(policy.disagreement(plans))
    torch.testing.assert_close(disagreements[0], disagreements[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(disagreements[0], torch.full((2,), 0.01 * (2 / 3) ** 0.5), atol=1e-4, rtol=0)


def test_overlapping_plans_are_averaged_as_rotations():
    policy, batch = policy_of("arm", ensemble=0.1, execute=1)
    actor, both, plans = BatchActor(policy, 1), policy.spec.action, []
    actor.reset([0])
    for step in range(2):
        seen = batch["features"][step]
        plans.append(policy.combine(policy.plan_members(policy.pool(seen[None]), batch["proprio"][:1]))[0])
        action = torch.from_numpy(actor.plan([0], seen, batch["proprio"][0]))[0, 0]
    weights = torch.exp(-0.1 * torch.arange(2))[:, None]  # the older plan has the larger weight
    mean = (weights * both.inner(torch.stack([plans[0][1], plans[1][0]]))).sum(0) / weights.sum()
    torch.testing.assert_close(action, both.clip(both.outer(mean)), atol=1e-6, rtol=1e-5)


def test_world_with_different_parts_is_rejected():
    contract = {"action_parts": ARM, "joint_names": []}
    limited = {**POSITION, "name": "place", "names": ["x", "y", "z"], "low": [-1] * 3, "high": [1] * 3}
    check_contract(contract, action_parts=[limited, TURN, GRIPPER])  # names and limits may differ
    with pytest.raises(UserError, match=r"position \(3 delta\), .*, got joints \(7 delta\)"):
        check_contract({**contract, "joint_names": ["j"] * 7}, action_parts=None)
    with pytest.raises(UserError, match="got position"):
        check_contract(contract, action_parts=[POSITION, TURN, {**GRIPPER, "low": [-1.0], "high": [1.0]}])
    check_contract({"joint_names": ["j"] * 7}, action_parts=USUAL, proprio_parts=None)
