"""Absolute parts predicted as changes from the previous action: where they start, and that levels do not matter."""

import numpy as np
import torch

from s2robot.policies import BatchActor, ChunkPolicy
from tests.policies.small import plan_of, small_spec

ACTION = [
    {"name": "arm", "size": 2, "kind": "absolute", "names": ["a", "b"]},
    {"name": "lift", "size": 1, "kind": "absolute"},
    {"name": "slide", "size": 1, "kind": "delta"},
    {"name": "grip", "size": 1, "kind": "binary"},
]
STATE = [{"name": "state", "size": 3, "kind": "absolute", "names": ["b", "c", "a"]}]
K = 3


def make_policy(**changes) -> ChunkPolicy:
    values = {
        "cameras": ["top"], "dim": 2, "tokens": 1, "context": 2, "chunk": K, "execute": 2, "action_dim": 5, "proprio_dim": 3,
        "action_parts": ACTION, "proprio_parts": STATE, "from_last": True, "pooling": {"kind": "mean"},
        "network": {"image_dim": 4, "state_dim": 4, "hidden": [8]},
    }  # fmt: skip
    return ChunkPolicy(small_spec(**values | changes))


def ramp(level: float, steps: int = 20) -> np.ndarray:
    """Return actions whose `arm` and `lift` rise by 0.1, 0.2 and 0.3 a step from `level`; the others are constant."""
    moving = level + np.arange(steps)[:, None] * np.array([0.1, 0.2, 0.3])
    return np.concatenate([moving, np.full((steps, 1), 0.5), np.ones((steps, 1))], 1).astype(np.float32)


def fitted(policy: ChunkPolicy) -> ChunkPolicy:
    """Fit a policy on ramps of two levels and zero its network, which then predicts the midpoint."""
    ramps = [ramp(level) for level in (0.0, 5.0)]
    chunks = np.stack([a[t : t + K] for a in ramps for t in range(1, 20 - K)])
    last = np.stack([a[t - 1] for a in ramps for t in range(1, 20 - K)])
    state, moments = np.zeros((len(last), 3), np.float32), (np.zeros((1, 2)), np.ones((1, 2)))
    before = last, np.zeros(len(last), bool)
    policy.fit_normaliser(state, np.concatenate(ramps), chunks, None, moments, before=before)
    torch.nn.init.zeros_(policy.network.head.out.weight)
    torch.nn.init.zeros_(policy.network.head.out.bias)
    return policy


def test_unseen_levels_make_no_difference():
    policy, a = fitted(make_policy()).eval(), torch.from_numpy(ramp(100.0, 5))
    past = torch.stack([a[1], torch.zeros(5)])[None]
    seen = {"features": torch.zeros(1, 2, 1, 1, 2), "proprio": torch.zeros(1, 2, 3), "past_actions": past}
    torch.testing.assert_close(plan_of(policy, seen)[0, :, :4], a[2:5, :4], rtol=1e-5, atol=1e-5)
    _, scalars = policy.loss(seen | {"actions": a[2:5][None]})
    assert scalars["arm_error"] < 1e-4 and scalars["lift_error"] < 1e-4


def test_episode_starts_from_its_state_and_the_midpoint_of_the_demos():
    policy = fitted(make_policy()).eval()
    actor = BatchActor(policy, 1)
    actor.reset([0])
    middle = float(policy.normaliser.action.offset[2])
    features, state = np.zeros((1, 1, 1, 2), np.float32), np.array([[7.0, 8.0, 9.0]], np.float32)  # b, c, a
    first = actor.plan([0], features, state)[0, 0]
    np.testing.assert_allclose(first[:3], [9.1, 7.2, middle + 0.3], rtol=1e-5)
    actor.record_actions([0], np.array([[1.0, 2, 3, 0.5, 1]], np.float32))
    np.testing.assert_allclose(actor.plan([0], features, state)[0, 0, :4], [1.1, 2.2, 3.3, 0.5], rtol=1e-5)


def test_causal_context_has_no_target_without_a_previous_action():
    network = {"width": 8, "blocks": 1, "heads": 2, "dropout": 0.0, "causal": True}
    policy = make_policy(kind="transformer", context=3, network=network).eval()
    batch = {
        "features": torch.randn(2, 3, 1, 1, 2), "proprio": torch.randn(2, 3, 3), "past_actions": torch.rand(2, 3, 5),
        "pad": torch.zeros(2, 3, dtype=torch.bool), "actions": torch.rand(2, 3, K, 5),
    }  # fmt: skip
    loss = policy.loss(batch)[0]
    other = batch["actions"].clone()
    other[:, 0] += 3
    assert torch.equal(policy.loss(batch | {"actions": other})[0], loss)
    other[:, 1] += 3
    assert not torch.equal(policy.loss(batch | {"actions": other})[0], loss)
