"""Heads behind one signature: shapes, noise, learning, and what they do where there are two right ways."""

import pytest
import torch

from s2robot.policies import ChunkPolicy, PolicyError, PolicySpec
from s2robot.policies.heads import HEADS, HeadSizes, build_head

SMALL = {"flow": {"width": 32, "layers": 2}}


def small(kind: str, **keys) -> dict:
    """Settings of a head that trains in a second."""
    return {"kind": kind, **SMALL.get(kind, {}), **keys}


def noise_of(head, count: int, seed: int = 0):
    if not head.noise_shape:
        return None
    return torch.randn(count, *head.noise_shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", HEADS)
def test_shapes_and_gradients(kind):
    torch.manual_seed(0)
    head = build_head(small(kind), HeadSizes(6, 4, 3))
    context, target = torch.randn(5, 6), torch.rand(5, 4, 3)
    result = head.loss(context, target, torch.full((5, 4), 1 / 20))
    assert (
        result.loss.shape == () and result.estimate.shape == (5, 4, 3) and not result.estimate.requires_grad
    )
    result.loss.backward()
    assert all(p.grad is not None for p in head.parameters())
    with torch.no_grad():
        actions = head.sample(context, noise_of(head, 5))
    assert actions.shape == (5, 4, 3)
    assert ((actions[..., -1] >= 0) & (actions[..., -1] <= 1)).all()  # the gripper


@pytest.mark.parametrize("kind", HEADS)
def test_what_is_beyond_an_end_counts_nothing(kind):
    head = build_head(small(kind), HeadSizes(6, 4, 3))
    context, target = torch.randn(5, 6), torch.rand(5, 4, 3)
    weight = torch.zeros(5, 4)
    weight[:, :2] = 0.1
    losses = []
    for fill in (0.0, 1.0):
        torch.manual_seed(0)
        target[:, 2:] = fill
        losses.append(head.loss(context, target, weight))
    if kind == "regression":  # others see the whole noisy chunk
        assert torch.equal(losses[0].loss, losses[1].loss)
    assert torch.isfinite(losses[1].loss)


def two_ways(head, steps: int = 400, count: int = 128):
    """Trains on going left or right round a post, at random, and samples: joint 0 is -1 or 1, never 0."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    context = torch.zeros(count, 2)
    for _ in range(steps):
        side = torch.randint(0, 2, (count, 1, 1)) * 2.0 - 1
        target = torch.cat(
            [side.expand(-1, 4, 1) + 0.05 * torch.randn(count, 4, 1), torch.ones(count, 4, 1)], -1
        )
        loss = head.loss(context, target, torch.full((count, 4), 1 / count / 4)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return head.eval().sample(torch.zeros(200, 2), noise_of(head, 200))[..., 0].mean(1)  # (200,)


@pytest.mark.parametrize("kind", ["flow"])
def test_two_ways_round_a_post(kind):
    went = two_ways(build_head(small(kind), HeadSizes(2, 4, 2)))
    assert (went.abs() > 0.5).float().mean() > 0.9  # round the post, not into it
    assert 0.2 < (went > 0).float().mean() < 0.8  # both ways


def test_regression_runs_into_the_post():
    went = two_ways(build_head(small("regression"), HeadSizes(2, 4, 2)), steps=100)
    assert (went.abs() < 0.5).all()


def test_an_unknown_head_and_key_are_named():
    with pytest.raises(PolicyError, match="policy.head.kind is 'difusion', expected one of regression, "):
        build_head({"kind": "difusion"}, HeadSizes(6, 4, 3))
    with pytest.raises(PolicyError, match="policy.head: unknown key 'widht', did you mean 'width'"):
        build_head({"kind": "flow", "widht": 3}, HeadSizes(6, 4, 3))


@pytest.mark.parametrize("kind", HEADS)
def test_the_same_generator_gives_the_same_plan(make_policy, make_batch, kind):
    policy = make_policy(head=small(kind))
    batch = make_batch(policy)
    plans = [
        policy.plan(
            batch["features"], batch["proprio"], generators=[torch.Generator().manual_seed(s) for s in seeds]
        )
        for seeds in ([1, 2, 3], [1, 2, 3], [4, 2, 3])
    ]
    assert torch.equal(plans[0], plans[1])
    assert torch.equal(plans[0][1:], plans[2][1:])  # a row depends on its own generator alone
    assert torch.equal(plans[0][0], plans[2][0]) is (not policy.noise_shape)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("body", ["mlp", "transformer"])
def test_members_compute_as_each_alone(make_policy, make_batch, kind, body):
    policy = make_policy(head=small(kind), kind=body, members=3, context=2)
    batch = make_batch(policy)
    pooled = policy.pool(batch["features"])
    assert pooled.shape == (3, 2, 2, policy.width)
    plans = policy.plan_members(pooled, batch["proprio"], batch["past_actions"])
    assert plans.shape == (3, 3, 4, 8)
    single = ChunkPolicy(PolicySpec.from_dict({**policy.spec.to_dict(), "members": 1})).eval()
    stacked = policy.state_dict()
    for member in range(3):
        own = {
            f"network.{name.removeprefix('network.').replace('/', '.')}": value[member]
            for name, value in stacked.items()
            if name.startswith("network.")
        }
        shared = {name: value for name, value in stacked.items() if not name.startswith("network.")}
        single.load_state_dict(own | shared)
        torch.testing.assert_close(
            single.plan_members(single.pool(batch["features"]), batch["proprio"], batch["past_actions"])[0],
            plans[member],
            atol=1e-5,
            rtol=1e-4,
        )
    combined = policy.combine(plans)
    if policy.noise_shape:  # one member's own plan
        assert all(any(torch.equal(combined[i], plans[m, i]) for m in range(3)) for i in range(3))
    else:
        torch.testing.assert_close(combined, plans.mean(0))
    assert (policy.disagreement(plans) > 0).all()
    assert policy.disagreement(plans[:1]).tolist() == [0, 0, 0]
    loss, scalars = policy.train().loss(batch)
    loss.backward()
    assert all(p.grad is not None and p.grad.shape[0] == 3 for p in policy.parameters())
