"""The recurrent body: equal to torch's, causal and independent of padding."""

import pytest
import torch

from s2robot.policies.bodies.rnn import RnnBody, RnnSettings

B, T, C, P, A, E = 3, 5, 2, 8, 8, 6


@pytest.fixture
def body():
    torch.manual_seed(0)
    return RnnBody(RnnSettings(image_dim=E, state_dim=4, width=7, layers=2), C, T, P, A).eval()


def context(seed=0):
    torch.manual_seed(seed)
    pad = torch.zeros(B, T, dtype=torch.bool)
    return torch.randn(B, T, C, E), torch.randn(B, T, P), torch.randn(B, T, A), pad


def test_one_layer_matches_torch_lstm(body):
    one = RnnBody(RnnSettings(image_dim=E, state_dim=4, width=7, layers=1), C, T, P, A)
    lstm = torch.nn.LSTM(C * E + 4, 7, batch_first=True)
    order = torch.cat([torch.arange(7) + 7 * i for i in (0, 1, 3, 2)])  # input, forget, cell, output
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(one.inputs[0].weight[order])
        lstm.weight_hh_l0.copy_(one.memories[0].weight[order])
        lstm.bias_ih_l0.copy_(one.inputs[0].bias[order])
        lstm.bias_hh_l0.copy_(one.memories[0].bias[order])
    images, proprio, past, pad = context()
    expected, _ = lstm(torch.cat([images.flatten(2), one.state(proprio)], -1))
    torch.testing.assert_close(one(images, proprio, past, pad, True), expected)


def test_steps_are_causal_and_padding_is_ignored(body):
    images, proprio, past, pad = context()
    before = body(images, proprio, past, pad, True)
    assert before.shape == (B, T, 7) and torch.equal(before[:, -1], body(images, proprio, past, pad))
    images[:, 3] += 1
    after = body(images, proprio, past, pad, True)
    assert torch.equal(after[:, :3], before[:, :3]) and not torch.allclose(after[:, 3:], before[:, 3:])
    pad[:, :2] = True
    padded = body(images, proprio, past, pad)
    images[:, :2], proprio[:, :2] = torch.nan, torch.nan
    assert torch.equal(body(images, proprio, past, pad), padded)
    short = body(*(x[:, 2:] for x in (images, proprio, past, pad)))
    torch.testing.assert_close(padded, short)  # as if the episode started there
