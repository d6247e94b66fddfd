"""Ridge regression: it matches plain normal equations, and no episode chooses the penalty of its own frames."""

import numpy as np
import pytest

from s2robot.probing.readout import fit_frames, fit_tokens, kernels

FRAMES = 3


def tokens(episodes: int, dim: int, seed: int) -> np.ndarray:
    """Tokens of unequal spread and mean, (T, 2, 4, D)."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(episodes * FRAMES, 2, 4, dim))
    return values * rng.uniform(0.1, 9, dim) + rng.normal(size=dim) * 5


def ridge(x: np.ndarray, y: np.ndarray, keep: np.ndarray, penalty: float):
    """Return the map fitted to the rows of `keep`; the penalty is relative to their mean eigenvalue."""
    centre, middle = x[keep].mean(0), y[keep].mean(0)
    z = x[keep] - centre
    gram = z.T @ z
    gram += penalty * np.eye(len(gram))
    a = np.linalg.solve(gram, z.T @ (y[keep] - middle))
    return lambda rows: (rows - centre) @ a + middle


@pytest.mark.parametrize("width", [4, 50])
def test_left_out_episodes_and_predictions_of_frames_match_plain_ridge(width, monkeypatch):
    monkeypatch.setattr("s2robot.probing.readout._BLOCK", 32)
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(30, width)) * rng.uniform(0.1, 9, width), rng.normal(size=(30, 2)) + 5
    x_test = rng.normal(size=(9, width))
    episodes = np.array([*([0] * 7), *([5] * 3), *([2] * 12), *([9] * 8)])
    own, cross = kernels(x, x_test)
    z, z_test = (x - x.mean(0)) / x.std(0), (x_test - x.mean(0)) / x.std(0)
    penalties, expected = np.array([1e-3, 1.0, 30.0]), np.zeros((3, 2))
    absolute = penalties * np.trace(own) / 30
    for p, penalty in enumerate(absolute):
        for e in np.unique(episodes):
            out = episodes == e
            expected[p] += ((ridge(z, y, ~out, penalty)(z[out]) - y[out]) ** 2).sum(0)
    predictions, chosen, left_out = fit_frames(own, cross, y, episodes, [[0], [1]], penalties)
    np.testing.assert_allclose(left_out, expected, rtol=1e-8)
    assert chosen == penalties[expected.argmin(0)].tolist()
    for column, p in enumerate(expected.argmin(0)):
        whole = ridge(z, y, np.ones(30, bool), absolute[p])(z_test)
        np.testing.assert_allclose(predictions[:, column], whole[:, column], rtol=1e-9)


def test_token_maps_match_plain_ridge_and_cross_validation():
    x, y = tokens(9, 6, 5), tokens(9, 3, 6)
    y += x @ np.random.default_rng(7).normal(size=(6, 3)) * 0.1
    x[..., 2] = 0.1  # a constant channel says nothing
    flat, wanted = x.reshape(-1, 6), y.reshape(-1, 3)
    z = (flat - flat.mean(0)) * np.where(flat.std(0) > 1e-9, 1 / np.maximum(flat.std(0), 1e-9), 0)
    episodes = np.repeat(np.arange(9), FRAMES * 8)

    def relative(keep, penalty):
        spread = ((z[keep] - z[keep].mean(0)) ** 2).sum(0).mean()
        return ridge(z, wanted, keep, penalty * spread)

    penalties, expected = np.array([1e-3, 0.3, 10.0]), np.zeros((3, 3))
    for p, penalty in enumerate(penalties):
        for fold in range(4):
            out = episodes % 4 == fold
            expected[p] += ((relative(~out, penalty)(z[out]) - wanted[out]) ** 2).sum(0)
    predict, chosen, left_out = fit_tokens(x, y, FRAMES, range(9), 4, penalties)
    np.testing.assert_allclose(left_out, expected, rtol=1e-9)
    assert chosen == penalties[expected.sum(1).argmin()]
    whole = relative(np.ones(len(z), bool), chosen)(z)
    np.testing.assert_allclose(predict(flat), whole, rtol=1e-9, atol=1e-9)


def test_an_episode_does_not_choose_its_own_penalty():
    """Features that only tell episodes apart are perfect between frames of one, and worth nothing on another."""
    rng = np.random.default_rng(9)
    episodes = np.repeat(np.arange(40), 6)
    code = rng.normal(size=(40, 80))[episodes] + 0.01 * rng.normal(size=(240, 80))
    targets = rng.normal(size=(40, 2))[episodes]
    variance = ((targets - targets.mean(0)) ** 2).sum()
    own, cross = kernels(code, code[:1])
    apart, mixed = (fit_frames(own, cross, targets, e, [[0, 1]]) for e in (episodes, np.arange(240)))
    assert mixed[2].sum(1).min() < 1e-3 * variance  # the leak that must not be
    assert apart[2].sum(1).min() > 0.9 * variance and apart[1][0] > 100 * mixed[1][0]
    source, target = code.reshape(240, 1, 1, 80), targets.reshape(240, 1, 1, 2)
    order = rng.permutation(240)
    apart = fit_tokens(source, target, 6, range(40))
    mixed = fit_tokens(source[order], target[order], 1, range(240))
    assert mixed[2].sum(1).min() < 0.01 * variance < 0.8 * variance < apart[2].sum(1).min()
