"""Scales of states, actions and targets, and moments of features: computed by hand, and inverted."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from s2robot.policies import Normaliser, channel_moments, mixed_moments
from s2robot.policies.parts import Parts
from tests.errors import refuses
from tests.policies.test_parts import GRIPPER, POSITION, TURN


def normaliser(mode, size, chunk, action=None, **more):
    """Build a normaliser of states and actions of `size` numbers, or of actions with the given parts."""
    width = sum(part["size"] for part in action) if action else size
    proprio = Parts.read(None, size, "", "proprio")
    return Normaliser(mode, proprio, Parts.read(action, width, ""), chunk, **more)


def assert_scales(scaler, *expected):
    for actual, values in zip((scaler.offset, scaler.scale), expected, strict=True):
        np.testing.assert_allclose(actual, np.broadcast_to(values, actual.shape), rtol=1e-5, atol=1e-6)


TABLE = arrays(np.float32, st.tuples(st.integers(2, 12), st.just(3)), elements=st.floats(-4, 4, width=32))


@settings(max_examples=50, deadline=None)
@given(data=TABLE, mode=st.sampled_from(["standard", "minmax", "quantile"]), cumulative=st.booleans())
def test_round_trip(data, mode, cumulative):
    n = normaliser(mode, 3, 4, cumulative=cumulative)
    n.fit(data, data, np.stack([data, data, data[::-1], data], 1))
    x = torch.from_numpy(data)
    for scaler, values in ((n.proprio, x), (n.action, x), (n.target, x[:1].expand(4, 3))):
        torch.testing.assert_close(scaler.inverse(scaler(values)), values, atol=1e-5, rtol=1e-5)
        assert scaler is n.proprio or torch.equal(scaler(values)[:, -1], values[:, -1])  # the gripper's
    if mode == "minmax":
        assert n.proprio(x).abs().max() <= 1 + 1e-4


def test_statistics_and_floor_of_a_constant_dimension():
    proprio = np.array([[0.0, 5.0], [2.0, 5.0]])
    n = normaliser("standard", 2, 3)
    n.fit(proprio, proprio, np.stack([proprio] * 3, 1))
    assert_scales(n.proprio, [1, 5], [1, 1e-2])
    n.fit(proprio[:, ::-1], proprio[:, ::-1], np.stack([proprio] * 3, 1))
    np.testing.assert_allclose(n.action.scale, [1e-3, 1])
    assert torch.equal(n.proprio(torch.tensor([[5.0, 1.0]])), torch.zeros(1, 2))


ROWS, WEIGHTS = np.array([[2.0, 5], [0, 6], [3, 5], [1, 9]]), np.array([49.0, 1, 1, 49])
LONG = np.repeat(ROWS, WEIGHTS.astype(int), 0)
WEIGHTED = {  # centre and half-width of both columns, whose rows are in different orders
    "standard": (LONG.mean(0), LONG.std(0)),
    "minmax": ([1.5, 7], [1.5, 2]),
    "quantile": ([1, 7], [1, 2]),  # from 0 to 2, and from 5 to 9
}


@pytest.mark.parametrize("mode", WEIGHTED)
def test_weights_equal_repeated_rows(mode):
    n, (offset, scale) = normaliser(mode, 2, 1), WEIGHTED[mode]
    n.fit(ROWS, ROWS, ROWS[:, None], None, (WEIGHTS, WEIGHTS, WEIGHTS))
    assert_scales(n.proprio, offset, scale)
    for scaler in (n.action, n.target):
        assert_scales(scaler, [offset[0], 0], [scale[0], 1])
    for weights in [(np.ones(100),) * 3] + [None] * (mode != "quantile"):  # unweighted: interpolates
        plain = normaliser(mode, 2, 2, cumulative=True)
        plain.fit(LONG, LONG, np.stack([LONG] * 2, 1), None, weights)
        assert_scales(plain.proprio, offset, scale)
        assert_scales(plain.target, [[offset[0], 0], [2 * offset[0], 0]], [[scale[0], 1], [2 * scale[0], 1]])
    n, x = normaliser("quantile", 1, 1), np.arange(101.0)[:, None]
    n.fit(x, x, x[:, None], None, (np.ones(101),) * 3)
    assert_scales(n.proprio, [50], [49])  # from 1 to 99


def test_scales_ignore_padded_targets():
    chunks = np.zeros((5, 4, 2))
    chunks[:, :, 0] = [[1, 2, 3, 9], [2, 3, 9, 9], [3, 9, 9, 9], [10, 20, 9, 9], [20, 9, 9, 9]]
    chunks[2:, :, 1] = 1
    pad = chunks[:, :, 0] == 9  # beyond an episode's end
    n = normaliser("minmax", 2, 4, cumulative=True)
    n.fit(np.zeros((5, 2)), chunks[:, 0], chunks, pad)
    sums = [[1, 2, 3, 10, 20], *[[3, 5, 30]] * 3]  # one chunk with a third step makes no scale
    middle = [(max(s) + min(s)) / 2 for s in sums]
    half = [max((max(s) - min(s)) / 2, 1e-3) for s in sums]
    assert_scales(n.target, [[m, 0] for m in middle], [[h, 1] for h in half])
    few = zip(([1, 2], [3, 5]), middle, half, strict=False)
    inside = [[(s - m) / h for s in some] for some, m, h in few]  # two steps of the first two chunks
    inside += [inside[-1]] * 2  # beyond every end: as the step before
    ranges = n.range_of(chunks[:2], pad[:2] | (np.arange(4) > 1), None)
    for actual, pick in zip(ranges, (min, max), strict=True):
        np.testing.assert_allclose(actual[:, 0], [*map(pick, inside)], rtol=1e-4, atol=1e-3)


def test_weighted_targets_are_relative_to_their_starts():
    n, rows = normaliser("standard", 2, 2), np.repeat([0, 1], (2, 1000))  # only two windows have a step 1
    chunks, shares = np.array([[[1.0, 1], [3, 1]], [[2, 1], [9, 1]]])[rows], np.where(rows, 0.003, 0.5)
    n.fit(*[chunks[:, 0]] * 2, chunks, np.outer(rows, [0, 1]), (shares,) * 3, np.outer(rows, [-1.0, 0]))
    assert_scales(n.target, [[2.5, 0], [3, 0]], [[0.75**0.5, 1], [1e-3, 1]])  # 1 once, 3 three times


def test_parts_can_have_different_normalisations():
    rng = np.random.default_rng(0)
    positions, turns = rng.normal(2, 3, (50, 3)), rng.normal(0, 0.2, (50, 3))
    values = np.concatenate([rng.integers(0, 2, (50, 1)), positions, turns], 1)
    n = normaliser("standard", 2, 2, [GRIPPER, POSITION, TURN], modes={"position": "minmax"})
    n.fit(np.zeros((50, 2)), values, np.stack([values, values], 1))
    six = Parts.read([TURN], 3, "").inner(torch.from_numpy(turns)).numpy()
    low, high = positions.min(0), positions.max(0)
    scale = [1, *(high - low) / 2, *six.std(0)]  # one for each of the six numbers
    assert_scales(n.action, [0, *(high + low) / 2, *six.mean(0)], scale)


def test_rare_values_outside_the_quantiles_are_not_amplified():
    """A number that is nonzero every 500th step gets its standard deviation; a constant one gets the floor."""
    x = np.zeros((1000, 3))
    x[::500, 0], x[:, 1] = 0.3, np.linspace(0, 1, 1000)
    n = normaliser("quantile", 3, 2)
    n.fit(x, x, np.stack([x, x], 1))
    assert_scales(n.proprio, [x[:, 0].mean(), 0.5, 0], [x[:, 0].std(), 0.49, 1e-2])
    assert n.action(torch.tensor([0.3, 0.5, 0]))[0] < 25


@pytest.mark.parametrize("count", [1, 64, 65, 200])
def test_channel_moments(count):
    x = np.random.default_rng(0).normal(3, 2, (count, 2, 4, 5)).astype(np.float16)
    few = x[np.r_[0:64, 128:192]] if count == 200 else x  # two blocks of 64, spread out
    rows, double = np.array([0, count - 1]), np.float64
    plain, spread = (x[:, 0], x[:, 1]), (few[:, 0], few[:, 1])
    chosen = {"rows": rows, "tokens": [4, 1]}, (x[rows, 0], x[rows, 1, :1])
    means = {"tokens": [4, 1], "pooled": True}, (x[:, 0].mean(1, double, keepdims=True), x[:, 1, :1])
    for how, cameras in (({}, plain), ({"frames": 128}, spread), chosen, means):
        mean, std = channel_moments(x, **how)
        np.testing.assert_allclose(mean, [c.astype(double).mean((0, 1)) for c in cameras], rtol=1e-5)
        expected = np.maximum([c.astype(double).std((0, 1)) for c in cameras], 1e-3)
        np.testing.assert_allclose(std, expected, rtol=1e-5)
    for bad in (x * np.inf, x[:0]):
        refuses("^features: ", channel_moments, bad)


def test_moments_of_a_mix_by_hand():
    """One quarter has mean 0 and deviation 1, the rest 4 and 3: the mean square is 1 / 4 + 3 * 25 / 4 = 19."""
    parts = [(np.array([[0.0, 7]]), np.array([[1.0, 0]])), (np.array([[4.0, 7]]), np.array([[3.0, 0]]))]
    mean, std = mixed_moments(parts, [0.25, 0.75])
    assert mean.tolist() == [[3, 7]] and mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(std, [[10**0.5, 1e-3]], rtol=1e-6)
