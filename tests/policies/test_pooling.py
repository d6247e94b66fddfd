"""Pooling: each kind against its definition, maps of several shapes, and position encodings."""

import numpy as np
import pytest
import torch

from s2robot.policies.pooling import POOLINGS, CameraPooling, FeatureNorm, PoolingSettings, map_places

KINDS = tuple(POOLINGS)


def pooling(kind, dim, tokens, out_dim, **settings):
    """Build the pooling of one camera with an identity norm."""
    pool = POOLINGS[kind](PoolingSettings(kind=kind, **settings), dim, tokens, out_dim)
    forward, norm = pool.forward, FeatureNorm(dim)
    pool.forward = lambda x: forward(x, norm)
    return pool


def cameras(kind, maps=9, count=2, **settings):
    return CameraPooling(PoolingSettings(kind=kind, keypoints=3, **settings), count, 7, maps, 11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 9])
def test_shapes_and_half_input(kind, tokens):
    pool = pooling(kind, 7, tokens, 11)
    x = torch.randn(5, tokens, 7)
    assert pool(x).shape == (5, 11)
    torch.testing.assert_close(pool(x.half()), pool(x.half().float()))


def test_positions_are_in_row_order():
    assert map_places(4).tolist() == [[-1, -1], [1, -1], [-1, 1], [1, 1]]
    assert map_places((2, 3)).tolist() == [[-1, -1], [0, -1], [1, -1], [-1, 1], [0, 1], [1, 1]]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_of_the_smaller_map_is_ignored(kind):
    pool, x = cameras(kind, [(3, 3), (2, 3)]).eval(), torch.randn(5, 2, 9, 7)
    filled = x.clone()
    filled[:, 1, 6:] = torch.nan
    out = pool(filled)
    assert torch.equal(out, pool(x))
    alone = cameras(kind, [(2, 3)], 1).eval()
    own = {k.replace("s.1.", "s.0."): v for k, v in pool.state_dict().items() if "s.0." not in k}
    alone.load_state_dict(own)
    assert torch.equal(out[:, 1:], alone(x[:, 1:, :6]))


def softmax_by_hand(pool, x, k, temperature):
    """Return the expected position and features of k heat maps, token by token, and the mean if it is kept."""
    out = []
    for tokens in x:
        logits, expected = [pool.project(token) for token in tokens], []  # k heat logits, then the values
        for i in range(k):
            heat = [torch.exp(logit[i] / temperature) for logit in logits]
            values = [torch.cat([place, logit[k:]]) for place, logit in zip(pool.places, logits, strict=True)]
            expected.append(sum(h * s for h, s in zip(heat, values, strict=True)) / sum(heat))
        out.append(torch.cat([*expected, *[tokens.mean(0)] * pool.settings.keep_mean]))
    return torch.stack(out)


@torch.no_grad()
@pytest.mark.parametrize("keep_mean", [True, False])
def test_mean_and_spatial_softmax_match_hand_computation(keep_mean):
    x, mean = torch.randn(5, 6, 7), pooling("mean", 7, 4, 11)
    torch.testing.assert_close(mean(x), mean.out(x.mean(1)))
    torch.testing.assert_close(mean(x), mean(x.mean(1, keepdim=True)))  # input that is already pooled
    settings = {"keypoints": 3, "values": 2, "temperature": 0.5, "keep_mean": keep_mean}
    pool = pooling("spatial_softmax", 7, (2, 3), 11, **settings)
    torch.testing.assert_close(pool(x), pool.out(softmax_by_hand(pool, x, 3, 0.5)))


def test_attention_equals_plain_cross_attention():
    """Folding the queries into the keys changes the cost, not the result."""
    pool = pooling("attention", 7, 9, 11, queries=3, heads=2, width=8).eval()
    x = torch.randn(5, 9, 7)
    key_position, value_position = pool.position.split(8, -1)
    key = (pool.key(x) + key_position).view(5, 9, 2, 4).transpose(1, 2)
    value = (pool.value(x) + value_position).view(5, 9, 2, 4).transpose(1, 2)
    query = pool.query.transpose(0, 1).expand(5, -1, -1, -1)
    plain = torch.nn.functional.scaled_dot_product_attention(query, key, value)  # (M, h, q, e)
    torch.testing.assert_close(pool(x), pool.out(plain.flatten(1)))


@pytest.mark.parametrize("shared", [True, False])
def test_cameras_are_distinguished(shared):
    pool = cameras("spatial_softmax", shared=shared)
    assert len(pool.pools) == (1 if shared else 2)
    out = pool(torch.randn(12, 1, 9, 7).expand(-1, 2, -1, -1))
    assert out.shape == (12, 2, 11) and not torch.allclose(out[:, 0], out[:, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_channel_moments_and_blindness(kind):
    pool, x = cameras(kind), torch.randn(3, 2, 9, 7)
    mean, std, before = torch.randn(2, 7), torch.rand(2, 7) + 0.5, pool(x)
    pool.set_moments(mean, std)
    torch.testing.assert_close(pool(x * std[:, None] + mean[:, None]), before, atol=1e-5, rtol=1e-4)
    pool.blind = True
    assert pool.blind and torch.equal(pool(x), pool(x + 1))


@pytest.mark.parametrize("tokens", [25, (4, 6)])
def test_attention_positions_start_as_sinusoids_along_both_axes(tokens):
    position, again = (pooling("attention", 7, tokens, 11, width=16).position.detach() for _ in range(2))
    angles = map_places(tokens)[..., None] * torch.pi / 2 * 2.0 ** torch.linspace(0, 2, 8)  # (N, 2, 8)
    waves = torch.cat([angles.sin().flatten(1), angles.cos().flatten(1)], 1)
    actual, expected = (sorted(x.round(decimals=4).T.tolist()) for x in (position, waves))
    np.testing.assert_allclose(actual, expected, atol=2e-4)
    assert torch.equal(position, again)


@pytest.mark.parametrize(("kind", "dtype"), [("mean", None), *((kind, torch.bfloat16) for kind in KINDS[1:])])
def test_training_can_round_the_tokens_in_advance(kind, dtype):
    pool, x = cameras(kind), torch.randn(5, 2, 9, 7)
    exact = pool(x)
    assert pool.multiply_in(torch.float32) is None and pool.multiply_in(torch.bfloat16) is dtype
    assert torch.equal(pool.eval()(x), exact)
    if dtype is not None:
        assert torch.equal(pool.train()(x), pool(x.bfloat16(), x.mean(2)))
        assert 0 < (pool(x) - exact).abs().max() < 0.1
        pool.blind = True
        assert pool.multiply_in(torch.bfloat16) is None
    assert cameras(kind, [(3, 3), (2, 3)]).multiply_in(torch.bfloat16) is None
