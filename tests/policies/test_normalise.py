import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from s2robot.policies import Normaliser, PolicyError, channel_moments
from s2robot.policies.normalise import ACTION_FLOOR, PROPRIO_FLOOR
from s2robot.policies.parts import Parts


def parts(proprio, action):
    """The usual parts of so many numbers."""
    return Parts.read(None, proprio, "", "proprio"), Parts.read(None, action, "")


TABLE = arrays(np.float32, st.tuples(st.integers(2, 12), st.just(3)), elements=st.floats(-4, 4, width=32))


@settings(max_examples=50, deadline=None)
@given(data=TABLE, mode=st.sampled_from(["standard", "minmax", "quantile"]), cumulative=st.booleans())
def test_round_trip(data, mode, cumulative):
    n = Normaliser(mode, *parts(3, 3), 4, cumulative)
    n.fit(data, data, np.stack([data, data, data[::-1], data], 1))
    x = torch.from_numpy(data)
    torch.testing.assert_close(n.proprio.inverse(n.proprio(x)), x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(n.action.inverse(n.action(x)), x, atol=1e-5, rtol=1e-5)
    chunk = x[:1].expand(4, 3)
    torch.testing.assert_close(n.target.inverse(n.target(chunk)), chunk, atol=1e-5, rtol=1e-5)
    assert torch.equal(n.action(x)[:, -1], x[:, -1])  # the gripper is left alone
    assert torch.equal(n.target(chunk)[:, -1], chunk[:, -1])
    if mode == "minmax":
        assert n.proprio(x).abs().max() <= 1 + 1e-4


def test_statistics_and_floor_of_a_constant_dimension():
    proprio = np.array([[0.0, 5.0], [2.0, 5.0]])
    n = Normaliser("standard", *parts(2, 2), 3)
    n.fit(proprio, proprio, np.stack([proprio] * 3, 1))
    assert n.proprio.offset.tolist() == [1, 5]
    np.testing.assert_allclose(n.proprio.scale, [1, PROPRIO_FLOOR])
    n.fit(proprio[:, ::-1], proprio[:, ::-1], np.stack([proprio] * 3, 1))
    np.testing.assert_allclose(n.action.scale, [ACTION_FLOOR, 1])
    assert torch.equal(n.proprio(torch.tensor([[5.0, 1.0]])), torch.zeros(1, 2))


def test_cumulative_scales_are_those_of_the_targets_that_count():
    chunks = np.zeros((5, 4, 2))
    chunks[:, :, 0] = [[1, 2, 3, 9], [2, 3, 9, 9], [3, 9, 9, 9], [10, 20, 9, 9], [20, 9, 9, 9]]
    chunks[2:, :, 1] = 1
    pad = chunks[:, :, 0] == 9  # beyond an episode's end
    n = Normaliser("minmax", *parts(1, 2), 4, cumulative=True)
    n.fit(np.zeros((5, 1)), chunks[:, 0], chunks, pad)
    sums = {1: [1, 2, 3, 10, 20], 2: [3, 5, 30], 3: [6]}
    middle = [(max(s) + min(s)) / 2 for s in sums.values()]
    half = [max((max(s) - min(s)) / 2, ACTION_FLOOR) for s in sums.values()]
    np.testing.assert_allclose(n.target.offset[:, 0], [*middle, middle[-1]])
    np.testing.assert_allclose(n.target.scale[:, 0], [*half, half[-1]])
    assert n.target.offset[:, 1].tolist() == [0] * 4 and n.target.scale[:, 1].tolist() == [1] * 4


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_channel_moments(count):
    x = np.random.default_rng(0).normal(3, 2, (count, 2, 4, 5)).astype(np.float16)
    mean, std = channel_moments(x)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean((0, 2)), rtol=1e-5)
    np.testing.assert_allclose(std, x.astype(np.float64).std((0, 2)), rtol=1e-5)
    assert mean.shape == std.shape == (2, 5)
    mean, _ = channel_moments(x, frames=64)
    np.testing.assert_allclose(mean, 3, atol=6 / np.sqrt(min(count, 64) * 4) * 2)
    for bad in (x * np.inf, x[:0]):
        with pytest.raises(PolicyError, match="^features: expected frames of finite values"):
            channel_moments(bad)


def test_what_the_quantiles_cut_off_is_not_blown_up():
    """A number that is 0 but in every 500th step gets its standard deviation; one that never moves gets the floor."""
    x = np.zeros((1000, 3))
    x[::500, 0], x[:, 1] = 0.3, np.linspace(0, 1, 1000)
    n = Normaliser("quantile", *parts(3, 3), 2)
    n.fit(x, x, np.stack([x, x], 1))
    np.testing.assert_allclose(n.proprio.scale, [x[:, 0].std(), 0.49, PROPRIO_FLOOR], rtol=1e-5)
    np.testing.assert_allclose(n.proprio.offset, [x[:, 0].mean(), 0.5, 0], atol=1e-6)
    assert n.action(torch.tensor([0.3, 0.5, 0]))[0] < 25
