"""Heads: shapes, noise, learning, and behaviour where two actions are equally right."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from s2robot.policies import BatchActor, ChunkPolicy, PolicySpec
from s2robot.policies.heads import HEADS, HeadSizes, build_head, read_head
from s2robot.policies.heads.head import signed, unsigned
from s2robot.policies.parts import Parts
from tests.configs import composed
from tests.policies.small import make_batch, make_policy, plan_of, small_spec

SMALL = {
    **dict.fromkeys(("mip", "flow", "diffusion"), {"width": 32, "layers": 2}), "gmm": {"components": 3, "spread": 0.1},
    "flow, U-Net": {"kind": "flow", "denoiser": "unet", "width": 8, "layers": 2},
    "act": {"width": 16, "layers": 1, "heads": 2, "style": 2, "dropout": 0.0, "kl_weight": 0.1},
}  # fmt: skip


def slots(size: int):
    return Parts.read(None, size, "").inside


def make_head(settings: dict, context: int, chunk: int, size: int, net=None):
    """Build a head for actions of `size` numbers, with `net` instead of its own network."""
    head = build_head(read_head(settings), HeadSizes(context, chunk, slots(size)))
    if net is not None:
        head.net = torch.nn.Module()
        head.net.forward = net
    return head


def seeded(seed: int):
    return torch.Generator().manual_seed(seed)


def small(kind: str, **keys) -> dict:
    return {"kind": kind, **SMALL.get(kind, {}), **keys}


def noise_of(head, count: int, seed: int = 0):
    if not head.noise_shape:
        return None
    return torch.randn(count, *head.noise_shape, generator=seeded(seed))


DRAW = {"draw": True}


@pytest.mark.parametrize(("kind", "steps", "more"), [("gmm", 1000, {}), ("act", 300, DRAW)])
def test_both_ways_around_a_post_are_sampled(kind, steps, more):
    """Left or right at random: joint 0 is -1 or 1, never 0. A component in between moves slowly."""
    head, count = make_head(small(kind, **more), 2, 4, 2), 128
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    for _ in range(steps):
        way = torch.randint(0, 2, (count, 1, 1)) * 2.0 - 1 + 0.05 * torch.randn(count, 4, 1)
        target, weight = torch.cat([way, torch.ones(count, 4, 1)], -1), torch.full((count, 4), 1 / count / 4)
        optimizer.zero_grad()
        head.loss(torch.zeros(count, 2), target, weight).loss.backward()
        optimizer.step()
    with torch.no_grad():
        direction = head.eval().sample(torch.zeros(200, 2), noise_of(head, 200))[..., 0].mean(1)  # (200,)
    assert (direction.abs() > 0.5).float().mean() > 0.9  # around the post, not into it
    assert 0.2 < (direction > 0).float().mean() < 0.8  # both ways


@pytest.mark.parametrize("kind", HEADS)
def test_plans_do_not_depend_on_concurrent_episodes(kind):
    policy = make_policy(head=small(kind, **(DRAW if kind == "act" else {})))
    batch = make_batch(policy)

    def plans(order, actor):
        """Return the third episode's plans in order; those of other episodes come in between."""
        inputs = (([i], batch["features"][[i], 0], batch["proprio"][[i], 0]) for i in order)
        all_plans = [(rows, actor.plan(rows, *seen).tolist()) for rows, *seen in inputs]
        return [plan for rows, plan in all_plans if rows == [2]]

    concurrent, single = BatchActor(policy, 3), BatchActor(policy, 3)
    for actor in (concurrent, single):
        actor.reset(range(3), seeds=(5, 6, 7))
    interleaved, first = plans([0, 1, 2, 2, 0, 1, 2], concurrent), plans([2], single)
    resumed = BatchActor(policy, 3)  # as in a new process with the restored noise
    for generator, stored in zip(resumed.generators, single.generators, strict=True):
        generator.set_state(stored.get_state())
    assert interleaved == first + plans([2, 2], resumed)
    assert (interleaved[0] == interleaved[1]) is (not policy.noise_shape)


@pytest.mark.parametrize(("kind", "chunk"), [("mip", 1), ("flow", 5), ("diffusion", 8)])
def test_unet_accepts_chunks_of_any_length(chunk, kind):
    head, context = make_head(small(kind, denoiser="unet", width=8, layers=3), 6, chunk, 3), torch.randn(2, 6)
    head.loss(context, torch.rand(2, chunk, 3), torch.full((2, chunk), 1 / 2 / chunk)).loss.backward()
    assert all(p.grad is not None for p in head.parameters())
    actions = head.sample(context, noise_of(head, 2))
    assert actions.shape == (2, chunk, 3)
    with torch.autocast("cpu", torch.bfloat16):
        half = head.sample(context, noise_of(head, 2))
    torch.testing.assert_close(half, actions, atol=0.3, rtol=0.1)


@pytest.mark.parametrize(("kind", "predicts"), [("flow", ""), ("mip", ""), ("diffusion", "epsilon"), ("diffusion", "sample")])  # fmt: skip
def test_perfect_network_has_zero_loss_and_samples_the_chunk(kind, predicts):
    chunk = torch.randn(2, 4, 3).clamp(-1, 1)
    chunk[..., -1] = chunk[..., -1].sign()  # the gripper
    target, context = unsigned(chunk, slots(3)), torch.zeros(2, 2)

    def perfect(noisy, time, context):
        if kind == "flow":
            return (chunk - noisy) / (1 - time[:, None, None])
        if predicts != "epsilon":
            return chunk.repeat(len(noisy) // 2, 1, 1)
        signal = head.signal[(time * 100).round().long()][:, None, None]
        return (noisy - signal.sqrt() * chunk) / (1 - signal).sqrt()

    head = make_head(small(kind, **{"predicts": predicts} if predicts else {}), 2, 4, 3, perfect)
    torch.testing.assert_close(head.sample(context, noise_of(head, 2)), target)
    result = head.loss(context, target, torch.full((2, 4), 1 / 8))
    torch.testing.assert_close(result.estimate, target)
    assert result.loss < 1e-6


FROM_LAST = {"kind": "transformer", "context": 3, "from_last": True}
NORMALISED = {"standard": {"members": 2}, "quantile": FROM_LAST, "minmax": {}}


@pytest.mark.parametrize(("normalise", "settings"), NORMALISED.items())
def test_diffusion_can_plan_every_chunk_of_its_demos(normalise, settings):
    """A rare action lies many deviations from the mean: it is not clipped, and nothing beyond it is planned."""
    spec = {"cameras": ("hand",), "dim": 2, "tokens": 1, "chunk": 4, "action_dim": 3, "proprio_dim": 2}
    head = {"kind": "diffusion", "width": 8, "layers": 1}
    policy = ChunkPolicy(small_spec(**spec, normalise=normalise, head=head, **settings))
    rng = np.random.default_rng(0)
    chunks = rng.normal(0, 0.01, (500, 4, 3))
    chunks[::100, :, 0] = 0.7  # 20 deviations away with "standard"
    chunks[..., -1] = rng.integers(0, 2, (500, 4))
    states, before = rng.normal(size=(500, 2)), (chunks[:, 0], np.zeros(500, bool))
    moments = (np.zeros((1, 2)), np.ones((1, 2)))
    policy.fit_normaliser(states, chunks[:, 0], chunks, None, moments, before=before)
    start = policy._starts_of(states, before)
    targets = policy._to_target(torch.from_numpy(chunks), None if start is None else torch.from_numpy(start))
    expected = signed(policy.normaliser.target(targets.float()), policy.spec.action.inside)
    bounds = {name.replace("/", "."): x for name, x in policy.network.named_buffers()}
    head, low, high = policy.network.head, bounds["head.low"], bounds["head.high"]
    if policy.spec.members > 1:
        assert torch.equal(low[0], low[1])
        low, high = low[0], high[0]
    head.low, head.high = low, high
    signal = head.signal[0]
    assert torch.equal(head._split(expected, expected, signal)[0], expected)
    assert torch.equal(head._split(expected, expected + 100, signal)[0], high.expand_as(expected))
    far = np.full((1, 4, 3), 0.9), None, (chunks[:1, 0], np.zeros(1, bool))
    old_low, old_high = low.clone(), high.clone()
    policy.fit_range(states[:1], *far)
    assert torch.equal(bounds["head.low"].reshape(-1, 4, 3)[0], old_low)
    assert bool((bounds["head.high"].reshape(-1, 4, 3)[0, :, :-1] > old_high[:, :-1]).all())


@pytest.mark.parametrize("steps", [3, 51, 100])
def test_diffusion_starts_from_noise_at_any_number_of_steps(steps):
    """Noise levels are spread over the whole schedule, and the last step leaves no noise."""
    levels: list[int] = []

    def record(noisy, time, context):
        levels.append(round(float(time[0]) * 100))
        return torch.zeros_like(noisy)

    head = make_head(small("diffusion", steps=steps), 2, 4, 3, record)
    head.sample(torch.zeros(2, 2), noise_of(head, 2))
    assert len(levels) == steps and levels[0] == (steps - 1) * 100 // steps and levels[-1] == 0
    decreases = -np.diff(levels)
    assert decreases.min() >= 1 and decreases.max() <= 100 / steps + 1


def test_mip_refines_its_first_estimate():
    calls = []

    def net(noisy, time, context):
        calls.append((noisy.clone(), time.tolist()))
        return noisy + 1

    actions = make_head(small("mip", time=0.8), 2, 4, 3, net).sample(torch.zeros(2, 2))
    assert [time for _, time in calls] == [[0.0, 0.0], pytest.approx([0.8, 0.8])]
    assert not calls[0][0].any() and (calls[1][0] == 0.8).all()
    torch.testing.assert_close(actions[..., 0], torch.full((2, 4), 1.8))


def test_mixture_components_are_drawn_by_weight():
    head = make_head({"kind": "gmm", "components": 2, "spread": 0.5}, 2, 2, 2)
    state = {name: torch.zeros_like(value) for name, value in head.state_dict().items()}
    state["weights.bias"] = torch.tensor([0.25, 0.75]).log()
    state["means.bias"] = torch.tensor([-3.0, 9, -3, 9, 3, -9, 3, -9])  # (components, steps, dims)
    head.load_state_dict(state)
    actions = head.sample(torch.zeros(4000, 2), noise_of(head, 4000))
    right = actions[:, 0, 0] > 0
    assert 0.72 < right.float().mean() < 0.78
    assert torch.equal(right, actions[:, 1, 0] > 0)  # one component per chunk
    assert torch.equal(actions[..., 1] < 0.5, right[:, None].expand(-1, 2))  # which sets the gripper too
    spread = (actions[..., 0].abs() - 3).std()
    torch.testing.assert_close(spread, torch.tensor(0.5 * (math.log(2) + 0.01)), atol=0.02, rtol=0)


def known_field(head, together):
    """Return the exact network for chunks whose steps share one normal number (`together`) or have one each."""

    def net(noisy, time, context):
        signal = None if head.settings.kind == "flow" else head.signal[(time * 100).round().long()]
        size = 1 if signal is None else (signal.sqrt() + (1 - signal).sqrt())[:, None, None]
        time = time[:, None, None] if signal is None else signal.sqrt()[:, None, None] / size
        seen, count = noisy / size, noisy.shape[1] if together else 1
        total = seen.sum(1, keepdim=True).expand_as(seen) if together else seen
        chunk = time * total / (count * time**2 + (1 - time) ** 2)
        return (chunk - seen) / (1 - time) if signal is None else chunk

    return net


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_sampled_chunk_continues_the_given_actions(kind):
    """Two of six steps are fixed: dependent steps follow them, independent ones are sampled as before."""
    head = make_head(small(kind, **({"clip": 9.0} if kind == "diffusion" else {})), 2, 6, 3)
    context, noise = torch.zeros(200, 2), noise_of(head, 200)
    known = torch.full((200, 6, 3), 0.7).index_fill(2, torch.tensor([2]), 1.0)  # with the gripper closed
    for together in (True, False):
        head.net = torch.nn.Module()
        head.net.forward = known_field(head, together)
        with torch.no_grad():
            free = head.sample(context, noise)
            continued = head.sample(context, noise, (known, torch.tensor([1.0, 1, 0, 0, 0, 0])))
        assert torch.equal(continued[:, :2], known[:, :2])
        if together:
            error, baseline = ((x[:, 2:, 0] - 0.7).abs().mean(0) for x in (continued, free))  # (4,)
            assert (error < 0.15 * baseline).all()
        else:
            torch.testing.assert_close(continued[:, 2:], free[:, 2:])
            soft = head.sample(context, noise, (known, torch.tensor([1, 1, 0.5, 0.2, 0, 0])))
            torch.testing.assert_close(soft[:, 4:], free[:, 4:])  # of weight 0
            distance = (soft - known)[:, :5, 0].abs().mean(0)  # (5,)
            assert (distance.diff()[1:] > 0.02).all()


@settings(max_examples=40, deadline=None)
@given(chunk=st.integers(1, 9), left=st.integers(1, 9), fixed=st.integers(1, 9), kind=st.sampled_from(["flow", "diffusion", "mip"]),
       members=st.integers(1, 2), target=st.sampled_from(["delta", "cumulative"]))  # fmt: skip
def test_plan_repeats_the_fixed_actions(chunk, left, fixed, kind, members, target):
    """For any chunk, delay and remainder of the previous plan, in physical units."""
    left, fixed = min(left, chunk), min(fixed, left, chunk)
    spec = dict(cameras=("hand",), dim=2, tokens=1, chunk=chunk, action_dim=3, proprio_dim=2, execute=1)
    policy = ChunkPolicy(small_spec(**spec, head=small(kind), members=members, action_target=target)).eval()
    rng = np.random.default_rng(chunk)
    demos = np.append(rng.normal(0, 0.05, (60, chunk, 2)), rng.integers(0, 2, (60, chunk, 1)), -1)
    moments = np.zeros((1, 2)), np.ones((1, 2))
    policy.fit_normaliser(rng.normal(size=(60, 2)), demos[:, 0], demos, None, moments)
    actor, seen = BatchActor(policy, 2), (torch.zeros(2, 1, 1, 2), torch.zeros(2, 2))
    actor.reset([0, 1])
    pending = demos[:2, :left].astype(np.float32)
    plan = actor.plan([0, 1], *seen, pending, fixed)
    assert plan.shape == (2, chunk, 3) and plan.dtype == np.float32
    np.testing.assert_allclose(plan[:, :fixed], pending[:, :fixed], atol=2e-6)
    for weight, end in zip(
        policy._blend(torch.from_numpy(pending), fixed, None)[1:], (left, fixed + 3), strict=True
    ):
        assert (weight[:fixed] == 1).all() and (weight[fixed:] < 1).all() and (weight.diff() <= 0).all()
        assert (weight[min(left, end) :] == 0).all()


def single_member(policy, member):
    single, state = ChunkPolicy(policy.spec.replace(members=1)).train(policy.training), policy.state_dict()
    own = {k.replace("/", "."): v[member] if k.startswith("network.") else v for k, v in state.items()}
    single.load_state_dict(own)
    return single


@pytest.mark.parametrize("kind", [*HEADS, "flow, U-Net"])
@pytest.mark.parametrize("body", ["mlp", "rnn", "transformer"])
def test_ensemble_members_match_separate_networks(kind, body):
    policy = make_policy(head=small(kind), kind=body, members=3, context=2)
    batch = make_batch(policy)
    state = batch["proprio"], batch["past_actions"]
    each = [policy, *(single_member(policy, member) for member in range(3))]
    plans, *own = (one.plan_members(one.pool(batch["features"]), *state) for one in each)
    assert plans.shape == (3, 3, 4, 8)
    torch.testing.assert_close(torch.cat(own), plans, atol=1e-5, rtol=1e-4)
    combined = policy.combine(plans)
    if policy.noise_shape:  # each is the plan of one member
        assert all(any(torch.equal(combined[i], plans[m, i]) for m in range(3)) for i in range(3))
    else:
        torch.testing.assert_close(combined, plans.mean(0))
    assert (policy.disagreement(plans) > 0).all()
    assert policy.disagreement(plans[:1]).tolist() == [0, 0, 0]
    policy.eval()
    plans = policy.plan_members(each[0].pool(batch["features"]), *state, generators=[*map(seeded, range(3))])
    expected = policy.spec.action.errors(policy.combine(plans), batch["actions"].float())["joint_error"]
    torch.testing.assert_close(policy.loss(batch)[1]["joint_error"], expected.mean())
    with torch.autocast("cpu", torch.bfloat16):
        assert plan_of(policy, batch).dtype == torch.float32
        loss, scalars = policy.train().loss(batch)
    loss.backward()
    assert loss.dtype == torch.float32 and all(value.isfinite() for value in scalars.values())
    assert all(p.grad.isfinite().all() and p.grad.shape[0] == 3 for p in policy.parameters())


@pytest.mark.parametrize("kind", HEADS)
def test_head_is_selected_by_name(kind):
    config = OmegaConf.to_container(composed("train", f"policy/head={kind}", "policy=mvp_mlp"))["policy"]
    policy = ChunkPolicy(PolicySpec.from_dict(config | {"cameras": ("hand",), "dim": 8, "tokens": 4}))
    assert type(policy.network.head) is HEADS[kind][1]
    assert config["head"] == policy.spec.head.model_dump() == HEADS[kind][0]().model_dump()
