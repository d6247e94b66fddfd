"""Actors: executing plans, context, ensembles of overlapping plans, batches of episodes, invalid observations."""

import warnings

import numpy as np
import pytest
import torch

from s2robot.policies import Actor, BatchActor
from tests.errors import refuses
from tests.policies.small import make_policy, plan_of


def fake_encode(frames):
    """Map C arrays (B, 6, 6, 3) to features (B, C, 9, 5): a fixed linear map of 2 × 2 patches."""
    x = torch.as_tensor(np.stack(frames, 1)).float().div(255)
    x = x.unflatten(3, (3, 2)).unflatten(2, (3, 2)).transpose(3, 4).reshape(*x.shape[:2], 9, 12)
    return (x @ torch.randn(12, 5, generator=torch.Generator().manual_seed(3))).half()


def observation(seed):
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (6, 6, 3), np.uint8) for name in ("left", "extra", "hand")}
    return {"images": images, "proprio": rng.normal(size=8).astype(np.float32)}


def features(*seen):
    """(B, C, N, D)"""
    return torch.cat([fake_encode([obs["images"][name][None] for name in ("hand", "left")]) for obs in seen])


def run_episode(actor, steps):
    """Run an episode; return its features (1, 1, C, N, D), states (1, 1, P) and actions."""
    seen = [observation(i) for i in range(steps)]
    actor.reset()
    states = [torch.from_numpy(obs["proprio"])[None, None] for obs in seen]
    return [features(obs)[None] for obs in seen], states, [actor.act(obs) for obs in seen]


def test_planned_actions_are_executed_in_order():
    policy = make_policy(execute=3)
    actor = Actor(policy, fake_encode)
    maps, states, actions = run_episode(actor, 7)
    for start in (0, 3, 6):
        plan = plan_of(policy, {"features": maps[start], "proprio": states[start]})[0].numpy()
        for step, action in enumerate(actions[start : start + 3]):
            np.testing.assert_allclose(action, plan[step], atol=1e-6)
            assert action.shape == (8,) and action.dtype == np.float32
    np.testing.assert_array_equal(run_episode(actor, 1)[2], actions[:1])


def test_encoding_runs_without_gradients():
    seen = []
    actor = Actor(make_policy(), lambda frames: seen.append(torch.is_grad_enabled()) or fake_encode(frames))
    run_episode(actor, 1)
    assert seen == [False]


CASES = [("mlp", 1, None), ("transformer", 3, None), ("mlp", 3, 0.1), ("transformer", 1, 0.1)]


@pytest.mark.parametrize(("kind", "context", "ensemble"), CASES)
def test_batch_agrees_with_single(kind, context, ensemble):
    history = {"action_history": True}
    policy = make_policy(kind=kind, context=context, execute=2, ensemble=ensemble, network=history)
    batch, rows = BatchActor(policy, 3), [2, 0]
    batch.reset(rows)
    queue = {row: [] for row in rows}
    actors = {row: Actor(policy, fake_encode) for row in rows}
    for actor in actors.values():
        actor.reset()
    for step in range(7):
        if step == 3:  # one episode ends early
            batch.reset([2])
            actors[2].reset()
            queue[2] = []
        seen = {row: observation(10 * step + row) for row in rows}
        expected = {row: actors[row].act(seen[row]) for row in rows}
        due, waiting = ([row for row in rows if bool(queue[row]) is full] for full in (False, True))

        def inputs(ids, seen=seen):
            return ids, features(*(seen[i] for i in ids)), np.stack([seen[i]["proprio"] for i in ids])

        if due:
            plans = batch.plan(*inputs(due))
            assert plans.shape == (len(due), batch.execute, 8) and plans.dtype == np.float32
            queue |= {row: list(plan) for row, plan in zip(due, plans, strict=True)}
        if waiting and batch.every_step:
            batch.observe(*inputs(waiting))
        actions = np.stack([queue[row].pop(0) for row in rows])
        batch.record_actions(rows, actions)
        for row, action in zip(rows, actions, strict=True):
            np.testing.assert_allclose(action, expected[row], atol=1e-5)


def test_context_matches_training():
    policy = make_policy(kind="transformer", context=3, execute=1)
    maps, states, actions = run_episode(Actor(policy, fake_encode), 4)
    for last in range(4):
        steps = range(max(0, last - 2), last + 1)
        missing = 3 - len(steps)
        f = torch.zeros(1, 3, 2, 9, 5)
        proprio, past, pad = torch.zeros(1, 3, 8), torch.zeros(1, 3, 8), torch.zeros(1, 3, dtype=torch.bool)
        pad[:, :missing] = True
        for position, step in enumerate(steps, missing):
            f[0, position], proprio[0, position] = maps[step][0, 0], states[step][0, 0]
            if step < last:
                past[0, position] = torch.from_numpy(actions[step])
        seen = {"features": f, "proprio": proprio, "past_actions": past, "pad": pad}
        np.testing.assert_allclose(actions[last], plan_of(policy, seen)[0, 0].numpy(), atol=1e-5)


def test_ensemble_weights():
    policy = make_policy(ensemble=0.5, chunk=3)
    maps, states, actions = run_episode(Actor(policy, fake_encode), 5)
    plans = [policy.plan_members(policy.pool(f), s)[0, 0] for f, s in zip(maps, states, strict=True)]
    for step in range(5):
        votes = [plans[start][step - start] for start in range(max(0, step - 2), step + 1)]  # oldest first
        weights = np.exp(-0.5 * np.arange(len(votes)))
        soft = sum(w * v.numpy() for w, v in zip(weights, votes, strict=True)) / weights.sum()
        np.testing.assert_allclose(actions[step][:7], soft[:7], atol=1e-5)
        assert actions[step][7] == (soft[7] > 0.5)


def test_degrees_and_small_frames_warn_once():
    actor = Actor(make_policy(execute=1), lambda frames: np.zeros((1, len(frames), 9, 5)), {"hand": (8, 8)})
    obs = observation(0)
    degrees, small = r"proprio\[2\] is 45", r"camera 'hand' has 4 x 6 px, .* 8 x 8"
    for angle, size, words in ((0, (8, 8), ""), (45, (8, 8), degrees), (0, (4, 6), small), (45, (4, 6), "")):
        obs["proprio"][2], obs["images"]["hand"] = angle, np.zeros((*size, 3), np.uint8)
        with pytest.warns(UserWarning, match=words) if words else warnings.catch_warnings(action="error"):
            actor.act(obs)


@pytest.mark.parametrize("kind", ["diffusion", "flow", "gmm", "act"])
def test_each_episode_draws_noise_that_its_seed_reproduces(kind):
    more = {"draw": True} if kind == "act" else {"spread": 0.5} if kind == "gmm" else {}
    policy, plans = make_policy(head={"kind": kind, **more}), []
    for actor in (Actor(policy, fake_encode), Actor(policy, fake_encode)):
        plans.append((actor.seed, actor.plan(observation(0))))  # before any reset, as at program start
        for _ in range(2):
            actor.reset()
            plans.append((actor.seed, actor.plan(observation(0))))
    assert len({seed for seed, _ in plans}) == len({plan.tobytes() for _, plan in plans}) == 6
    for seed, plan in plans:
        actor.reset(seed)
        assert actor.seed == seed and actor.plan(observation(0)).tobytes() == plan.tobytes()


BAD = [
    ("proprio", None), ("proprio", "home"), ("proprio", np.append(np.zeros(7), np.nan)), ("images", None),
    ("images", [np.zeros((6, 6, 3), np.uint8)] * 2), ("left", None),
    *(("left", np.zeros(shape, np.uint8)) for shape in ((6, 6), (6, 6, 4), (6, 12, 3))),
    ("left", np.zeros((6, 6, 3), np.float32)),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), BAD)
@pytest.mark.parametrize("step", [0, 1])
def test_invalid_observation_is_rejected_at_every_step(key, value, step):
    """With and without a plan due; the next valid observation gets the same action as without the error."""
    policy, map_of = make_policy(execute=3), lambda height, width: (height // 2, width // 2)
    actor, other = (Actor(policy, fake_encode, map_of=map_of) for _ in range(2))
    good, bad = [observation(i) for i in range(3)], observation(9)
    for obs in good[:step]:
        np.testing.assert_array_equal(actor.act(obs), other.act(obs))
    where = bad if key in bad else bad["images"]
    where[key] = value
    if value is None:
        del where[key]
    refuses("^observation: ", actor.act, bad)
    np.testing.assert_array_equal(actor.act(good[step]), other.act(good[step]))
