"""A training on several datasets: shares exact by seed, statistics as of the weighted concatenation, the identity."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from s2robot.config import DemosSettings
from s2robot.core.errors import UserError
from s2robot.demos.mix import Mix
from s2robot.demos.store import EpisodeStore
from s2robot.demos.windows import make_windows
from s2robot.encoders.joined import Joined
from s2robot.policies import ChunkPolicy, channel_moments, load_checkpoint, mixed_moments
from s2robot.policies.normalise import Normaliser
from s2robot.training.batches import Batches, mixed
from s2robot.training.train import train
from tests.s2robot.training.small import CONTRACT, make_data, make_settings, make_spec


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two datasets, the second of the first's episodes 2 to 4 turned about, with their features."""
    folder = tmp_path_factory.mktemp("mix")
    a, features = make_data(folder / "a.zarr")
    rows = np.concatenate([np.arange(s.start, s.stop) for s in map(a.episode_slice, (2, 3, 4))])
    with EpisodeStore.create(folder / "b.zarr", a.attrs | {"seed": 1}) as store:
        for i in (2, 3, 4):
            arrays = a.episode(i)
            store.append(
                {**arrays, "action": -arrays["action"] / 2, "proprio": arrays["proprio"] + 1},
                {"seed": i, "success": True},
            )
    return (a, features), (EpisodeStore.open(folder / "b.zarr"), features[rows] * 2)


@pytest.fixture(scope="module")
def mix(data):
    (a, fa), (b, fb) = data
    return Mix([a, b], [1, 3]), Joined([fa, fb])


def test_a_mix_reads_as_its_datasets_end_to_end(data, mix):
    (a, fa), (b, fb) = data
    store, features = mix
    assert (len(store), store.num_steps) == (len(a) + len(b), a.num_steps + b.num_steps)
    for key in ("action", "proprio"):
        assert np.array_equal(store[key], np.concatenate([a[key], b[key]]))
        assert np.array_equal(
            store.read(key, a.num_steps - 2, a.num_steps + 3), store[key][a.num_steps - 2 :][:5]
        )
        assert np.array_equal(store.episode(9)[key], b.episode(1)[key])
    assert store.meta("seed").tolist() == [*range(8), 2, 3, 4]
    both = np.concatenate([fa, fb])
    assert features.shape == both.shape
    rows = [0, len(fa), len(fa) - 1, len(both) - 1, 0]
    assert np.array_equal(features[rows], both[rows]) and np.array_equal(features[60:120], both[60:120])
    assert torch.equal(features.index_select(0, torch.tensor(rows)), torch.from_numpy(both[rows]))
    windows = make_windows(store, np.array([3, 8, 10]), 2, 4)
    alone = [make_windows(a, np.array([3]), 2, 4), make_windows(b, np.array([0, 2]), 2, 4)]
    assert np.array_equal(windows.actions, np.concatenate([w.actions for w in alone]))
    assert np.array_equal(windows.steps, np.concatenate([alone[0].steps, alone[1].steps + a.num_steps]))


@pytest.mark.parametrize("seed", [0, 7])
def test_shares_are_exact_in_every_epoch(seed):
    groups = [(0.25, torch.arange(30)), (0.75, torch.arange(30, 50))]  # an epoch of 50: 12 and 38
    for epoch in range(3):
        drawn = mixed(groups, seed, range(epoch * 50, (epoch + 1) * 50))
        assert (drawn < 30).sum() == 12
    # of each group every window as often as the others, to one: 36 of 30, 114 of 20
    counts = Counter(mixed(groups, seed, range(150)).tolist())
    assert {counts[i] for i in range(30)} == {1, 2} and {counts[i] for i in range(30, 50)} == {5, 6}
    pieces = torch.cat([mixed(groups, seed, range(i, i + 16)) for i in range(0, 144, 16)])
    assert torch.equal(pieces, mixed(groups, seed, range(144)))  # wherever a training goes on
    assert not torch.equal(pieces, mixed(groups, seed + 1, range(144)))


def repeated(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.concatenate([x] * 3 + [y] * 2)


@pytest.mark.parametrize("mode", ["standard", "minmax", "quantile"])
def test_weighted_statistics_are_those_of_the_weighted_concatenation(mode):
    rng = np.random.default_rng(3)
    spec = make_spec()
    parts = (rng.normal(size=(40, 8)), rng.normal(2, 3, size=(25, 8)))
    parts = tuple(np.append(x[:, :7], x[:, 7:] > 0, 1) for x in parts)
    chunks = [np.stack([x] * 4, 1) for x in parts]
    often = np.repeat([3.0, 2.0], [40, 25])
    both, chunk = np.concatenate(parts), np.concatenate(chunks)
    weighted, plain = (Normaliser(mode, spec.proprio, spec.action, 4, cumulative=True) for _ in range(2))
    weighted.fit(both, both, chunk, None, (often, often, often))
    long, chunk = repeated(*parts), repeated(*chunks)
    ones = np.ones(len(long))
    plain.fit(long, long, chunk, None, (ones, ones, ones))
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(weighted.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    if mode != "quantile":  # those without weights lie between two values
        plain.fit(long, long, chunk)
        for name, tensor in plain.state_dict().items():
            torch.testing.assert_close(weighted.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_moments_of_features_are_those_of_the_weighted_concatenation(data):
    (_, fa), (_, fb) = data
    total = 3 * len(fa) + 2 * len(fb)
    found = mixed_moments(
        [channel_moments(fa), channel_moments(fb)], [3 * len(fa) / total, 2 * len(fb) / total]
    )
    for x, y in zip(found, channel_moments(repeated(fa, fb)), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)


def trained(mix, out, **changes):
    store, features = mix
    contract = {**CONTRACT, "dataset": {"fingerprint": store.fingerprint}}
    split = (np.array([0, 1, 2, 8, 9]), np.array([3, 10]))
    return train(make_settings(steps=6, **changes), make_spec(), store, features, contract, out, split)


def test_a_training_on_a_mix_goes_on_where_it_was(mix, tmp_path):
    whole = trained(mix, tmp_path / "whole")
    _, contract = load_checkpoint(whole)
    assert contract["training"] | {"held_out": 2, "demos": 5} == contract["training"]
    state = tmp_path / "part"
    trained(mix, state)
    (state / "metrics.json").unlink()
    policy = load_checkpoint(trained(mix, state))[0].state_dict()
    assert all(torch.equal(policy[k], v) for k, v in load_checkpoint(whole)[0].state_dict().items())
    store, features = mix
    other = Mix(store.members, [1, 1])
    with pytest.raises(UserError, match="state of another run.*dataset.fingerprint"):
        trained((other, features), state)
    rows = json.loads((tmp_path / "whole/metrics.json").read_text())
    assert all(np.isfinite(row["val_loss"]) for row in rows)


def test_the_held_out_loss_of_a_mix_is_by_share(mix, tmp_path):
    folder = trained(mix, tmp_path, checkpoint_every=1, log_every=6, ema=0.0)
    policy: ChunkPolicy = load_checkpoint(folder)[0]
    store, features = mix
    losses = []
    for episode in (3, 10):
        windows = make_windows(store, np.array([episode]), 1, 4)
        batches = Batches(store, features, windows, torch.device("cpu"))
        losses.append(policy.loss(batches.take(torch.arange(len(windows))))[1]["loss"].item())
    told = json.loads((tmp_path / "metrics.json").read_text())[-1]["val_loss"]
    assert told == pytest.approx(0.25 * losses[0] + 0.75 * losses[1], rel=1e-4)


def test_what_a_config_may_say_of_a_mix(data, tmp_path):
    (a, _), (b, _) = data
    split = tmp_path / "split.json"
    split.write_text('{"train": [0, 1], "validation": [2]}')
    demos = DemosSettings(
        mix=(
            {"path": str(a.path), "weight": 1.0, "episodes": "1:5"},
            {"path": str(b.path), "split": str(split)},
        )
    )
    store = demos.open()
    assert isinstance(store, Mix) and store.shares == (0.5, 0.5)
    train_on, held_out = demos.select(store, 0.0, 0)
    assert (train_on.tolist(), held_out.tolist()) == ([1, 2, 3, 4, 8, 9], [10])
    assert not demos.plain and DemosSettings(name="x", episodes=3).plain
    for wrong, words in (
        ({"mix": ()}, "demos.mix: "),
        ({"mix": ({"path": "a", "weight": 0},)}, r"demos.mix\[0\].weight: "),
        ({"mix": ({"path": "a"},), "episodes": 3}, "demos.episodes: "),
        ({"split": "a", "episodes": 3}, "demos.episodes: "),
    ):
        with pytest.raises(UserError, match=words):
            DemosSettings(**wrong)
    for settings in (demos, demos.replace(mix=None, path=str(a.path), episodes="1:5")):
        with pytest.raises(UserError, match="expected demos.episodes=<number>"):
            settings.first()
    with pytest.raises(UserError, match="takes one dataset"):
        demos.folder()
