"""Batches of one dataset and of a mix: every window once per epoch, exact shares, targets."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from s2robot.config import DemosSettings
from s2robot.demos.mix import Mix
from s2robot.demos.store import EpisodeStore
from s2robot.demos.windows import make_windows
from s2robot.encoders.cache import Joined
from s2robot.policies import ChunkPolicy, channel_moments, load_checkpoint
from s2robot.training.batches import Batches, _mixed_epoch, mixed, shuffled
from s2robot.training.train import train
from tests.errors import refuses
from tests.s2robot.training.small import CONTRACT, make_settings, make_spec

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def second(data, tmp_path_factory):
    """A second dataset: changed copies of episodes 2 to 4 of the first, with their features."""
    store, features = data
    rows = np.concatenate([np.arange(s.start, s.stop) for s in map(store.episode_slice, (2, 3, 4))])
    path = tmp_path_factory.mktemp("mix") / "b.zarr"
    with EpisodeStore.create(path, store.attrs | {"seed": 1}) as other:
        for i in (2, 3, 4):
            arrays = store.episode(i)
            changed = {"action": -arrays["action"] / 2, "proprio": arrays["proprio"] + 1}
            other.append({**arrays, **changed}, {"seed": i, "success": True})
    return EpisodeStore.open(path), features[rows] * 2


@pytest.fixture(scope="module")
def mix(data, second):
    return Mix([data[0], second[0]], [1, 3]), Joined([data[1], second[1]])


def batches_of(data, context: int = 1, **how) -> Batches:
    store, features = data
    return Batches(store, features, make_windows(store, np.arange(8), context, 4), CPU, **how)


def test_processes_share_batches_and_epochs_visit_every_window_once(data):
    batches = batches_of(data)
    assert batches.count == data[0].num_steps - 4  # four steps are perturbed
    for step in range(9):  # beyond the end of the first epoch
        full_batch = batches.step(step, 16, seed=5)["actions"]
        shares = [batches.step(step, 16, seed=5, rank=r, world=2) for r in range(2)]
        assert torch.equal(full_batch, torch.cat([share["actions"] for share in shares]))
        targets = torch.cat([~share["action_pad"] for share in shares]).sum(0)  # (K,)
        assert all(torch.equal(share["target_counts"], targets / 2) for share in shares)
    n = batches.count
    first, other = (shuffled(n, 5, range(i * n, (i + 1) * n)) for i in (0, 1))
    assert sorted(first.tolist()) == sorted(other.tolist()) == list(range(n))
    assert not torch.equal(first, other)
    assert torch.equal(shuffled(n, 5, range(n - 3, n + 3)), torch.cat([first[-3:], other[:3]]))


def test_shared_frames_are_read_once_and_current_actions_are_hidden(data):
    batches = batches_of(data, 3)
    batch = batches.take(torch.arange(10))
    assert len(batch["features"]) < 30 == batch["frames"].numel()
    shown = batch["features"][batch["frames"]]  # (10, 3, C, N, D)
    context = make_windows(data[0], np.arange(8), 3, 4).context
    assert torch.equal(shown, torch.from_numpy(data[1][context[:10]]))
    policy = ChunkPolicy(make_spec("transformer")).eval()
    policy.network.set_moments(torch.zeros(2, 6), torch.ones(2, 6))
    each = {k: v for k, v in batch.items() if k != "frames"} | {"features": shown}
    torch.testing.assert_close(policy.loss(batch)[0], policy.loss(each)[0])
    past = batches.take(torch.arange(batches.count))["past_actions"]
    assert not past[:, -1].any() and past[:, :-1].any()
    assert torch.equal(batches.action, torch.from_numpy(data[0]["action"]))  # the dataset itself is unchanged


def test_steps_draw_from_each_augmented_copy_and_validation_from_none(data):
    store, features = data
    batches = batches_of((store, Joined([features, features + 100])), 3)
    drawn = [batches.step(step, 64, 0) for step in range(9)]
    copied = torch.cat([(b["features"][b["frames"]] > 50).flatten(2).float().mean(2) for b in drawn])
    assert torch.equal(copied[:, 0], copied[:, 2]) and 0.45 < (copied == 1).float().mean() < 0.55
    assert torch.equal(drawn[3]["proprio"], batches_of(data, 3).step(3, 64, 0)["proprio"])
    halves = [b["features"][b["frames"]] for b in (batches.step(3, 64, 0, rank, 2) for rank in (0, 1))]
    assert torch.equal(torch.cat(halves), drawn[3]["features"][drawn[3]["frames"]])
    assert batches.take(torch.arange(batches.count))["features"].max() < 50


@pytest.mark.parametrize("members", [1, 2])
def test_rounding_frames_in_the_step_is_bit_equal(data, members):
    store, features = data
    windows = make_windows(store, np.arange(8), 1, 4)
    losses = []
    for rounds in (False, True):
        torch.manual_seed(0)
        policy = ChunkPolicy(make_spec(members=members)).train()
        moments = channel_moments(features)
        policy.fit_normaliser(store["proprio"], store["action"], windows.actions, windows.action_pad, moments)
        token_dtype = policy.network.pooling.multiply_in(torch.bfloat16)
        batch = batches_of(data, product=token_dtype if rounds else None).step(3, 16, 0)
        assert ("means" in batch) == rounds
        assert batch["features"].dtype == (torch.bfloat16 if rounds else torch.float16)
        torch.manual_seed(1)
        loss, _ = policy(batch)
        loss.backward()
        losses.append([loss, *(p.grad for p in policy.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))


def test_a_causal_body_has_targets_at_every_step_of_a_window(data):
    windows = make_windows(data[0], np.arange(8), 3, 4)
    batch = batches_of(data, 3, every=True).step(0, 16, seed=0)
    assert batch["actions"].shape == (5, 3, 4, 8)  # 16 // 3 windows of three targets each
    start_of = {int(row): i for i, row in enumerate(windows.steps)}
    for row, window in enumerate(shuffled(len(windows), 0, range(5)).tolist()):
        for position, step in enumerate(windows.context[window].tolist()):
            other = start_of.get(step)
            if other is None or windows.pad[window, position]:  # perturbed or before the episode
                assert batch["action_pad"][row, position].all()
            else:
                assert torch.equal(batch["actions"][row, position], torch.from_numpy(windows.actions[other]))
                assert batch["action_pad"][row, position].tolist() == windows.action_pad[other].tolist()


def test_mix_reads_as_its_concatenated_datasets(data, second, mix):
    (a, fa), (b, fb), (store, features) = data, second, mix
    assert (len(store), store.num_steps) == (len(a) + len(b), a.num_steps + b.num_steps)
    for key in ("action", "proprio"):
        assert np.array_equal(store[key], np.concatenate([a[key], b[key]]))
        edge = store.read(key, a.num_steps - 2, a.num_steps + 3)
        assert np.array_equal(edge, store[key][a.num_steps - 2 :][:5])
        assert np.array_equal(store.episode(9)[key], b.episode(1)[key])
    assert store.meta("seed").tolist() == [*range(8), 2, 3, 4]
    both = np.concatenate([fa, fb])
    rows = [0, len(fa), len(fa) - 1, len(both) - 1, 0]
    assert features.shape == both.shape and np.array_equal(features[60:120], both[60:120])
    assert torch.equal(features.index_select(0, torch.tensor(rows)), torch.from_numpy(both[rows]))
    windows = make_windows(store, np.array([3, 8, 10]), 2, 4)
    alone = [make_windows(a, np.array([3]), 2, 4), make_windows(b, np.array([0, 2]), 2, 4)]
    assert np.array_equal(windows.actions, np.concatenate([w.actions for w in alone]))
    assert np.array_equal(windows.context, np.concatenate([alone[0].context, alone[1].context + a.num_steps]))


def test_shares_are_exact_in_every_epoch():
    groups, seed = [(0.25, torch.arange(30)), (0.75, torch.arange(30, 50))], 7  # an epoch of 50: 12 and 38
    _mixed_epoch.cache_clear()
    for epoch in range(3):
        assert (mixed(groups, seed, range(epoch * 50, (epoch + 1) * 50)) < 30).sum() == 12
    # within a group, counts of windows differ by at most one: 36 of 30, 114 of 20
    counts = Counter(mixed(groups, seed, range(150)).tolist())
    assert {counts[i] for i in range(30)} == {1, 2} and {counts[i] for i in range(30, 50)} == {5, 6}
    pieces = torch.cat([mixed(groups, seed, range(i, i + 16)) for i in range(0, 144, 16)])
    assert _mixed_epoch.cache_info().misses == 9  # three times three epochs: not once for each step
    assert torch.equal(pieces, mixed(groups, seed, range(144)))  # at whichever step a run resumes
    assert not torch.equal(pieces, mixed(groups, seed + 1, range(144)))


def test_training_on_a_mix_resumes_and_weights_validation_by_share(mix, tmp_path):
    store, features = mix

    def trained(store, features=features):
        contract = {**CONTRACT, "dataset": {"fingerprint": store.fingerprint}}
        split = (np.array([0, 1, 2, 8, 9]), np.array([3, 10]))
        settings = make_settings(steps=6, batch_size=5, checkpoint_every=1, log_every=6, ema=0.0)
        return train(settings, make_spec(), store, features, contract, tmp_path, split)

    policy, contract = load_checkpoint(trained(store))
    assert contract["training"] | {"held_out": 2, "demos": 5} == contract["training"]
    losses = []
    for episode in (3, 10):
        windows = make_windows(store, np.array([episode]), 1, 4)
        batches = Batches(store, features, windows, CPU)
        losses.append(policy.loss(batches.take(torch.arange(len(windows))))[1]["loss"].item())
    logged = json.loads((tmp_path / "metrics.json").read_text())[-1]["val_loss"]
    assert logged == pytest.approx(0.25 * losses[0] + 0.75 * losses[1], rel=1e-4)
    again = load_checkpoint(trained(store))[0].state_dict()
    assert all(torch.equal(again[k], v) for k, v in policy.state_dict().items())
    refuses("dataset.fingerprint.*as in the saved state", trained, Mix(store.members, [1, 1]))
    refuses("features.augment.*as in the saved state", trained, store, Joined(2 * features.arrays))


def test_mix_config(data, second, tmp_path):
    paths, split = [str(store.path) for store, _ in (data, second)], tmp_path / "split.json"
    split.write_text('{"train": [0, 1], "validation": [2]}')
    members = ({"path": paths[0], "weight": 1.0, "episodes": "1:5"}, {"path": paths[1], "split": str(split)})
    demos = DemosSettings(mix=members)
    store = demos.open()
    assert isinstance(store, Mix) and store.shares == (0.5, 0.5)
    trained, held_out = demos.select(store, 0.0, 0)
    assert (trained.tolist(), held_out.tolist()) == ([1, 2, 3, 4, 8, 9], [10])
    assert not demos.plain and DemosSettings(name="x", episodes=3).plain
    for wrong in ({"mix": ({"path": "a"},)}, {"split": "a"}):
        refuses("demos.episodes: ", DemosSettings, **wrong, episodes=3)
    refuses("demos.episodes", demos.first)
    refuses("one dataset", demos.folder)
