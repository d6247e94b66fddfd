"""Open-loop evaluation: the measured errors against figures by hand, plans in batches, and intervals."""

import numpy as np
import pytest
import torch
from scipy import stats

from s2robot.core.errors import UserError
from s2robot.demos.store import EpisodeStore
from s2robot.evaluation.open_loop import interval, mean_action, measure, predict, summarise
from s2robot.policies import BatchActor, ChunkPolicy, PolicySpec
from tests.s2robot.pictures import ABOUT
from tests.s2robot.training.small import make_data, make_spec

PARTS = [
    {"name": "slide", "size": 1, "kind": "absolute"},
    {"name": "turn", "size": 3, "kind": "rotation", "form": "axis_angle"},
    {"name": "grip", "size": 1, "kind": "binary", "low": [-1.0], "high": [1.0]},
]
STATE = [{"name": "step", "size": 1, "kind": "absolute"}]


@pytest.fixture
def tiny(tmp_path):
    """Two episodes of 3 and 2 steps whose state is the row number in the store."""
    about = ABOUT | {"cameras": [], "kind": "states", "action_parts": PARTS, "proprio_parts": STATE}
    with EpisodeStore.create(tmp_path / "tiny.zarr", about) as store:
        one = [[0, 0, 0, 0, -1], [1, 0, 0, 0, -1], [3, 0, 0, np.pi / 2, 1]]
        for first, action in ((0, one), (3, [[5, 0, 0, 0, 1]] * 2)):
            rows = np.arange(first, first + len(action), dtype="f4")[:, None]
            actions = np.array(action, "f4")
            labels = np.tile(actions[:, None] / 2, (1, 2, 1))  # the expert's are others
            store.append({"action": actions, "expert": labels, "proprio": rows})
    return EpisodeStore.open(tmp_path / "tiny.zarr")


class Recorded(ChunkPolicy):
    """A policy that plans the recorded actions: its state is the row in the store."""

    def __init__(self, store):
        spec = {
            "cameras": ["top"], "dim": 2, "tokens": 1, "chunk": 2, "execute": 1, "members": 1, "action_dim": 5,
            "proprio_dim": 1, "action_parts": PARTS, "proprio_parts": STATE, "pooling": {"kind": "mean"},
            "network": {"image_dim": 4, "state_dim": 4, "hidden": [8]},
        }  # fmt: skip
        super().__init__(PolicySpec.from_dict(spec))
        self.actions = torch.from_numpy(store["action"])

    def plan_members(self, pooled, proprio, *_):
        rows = proprio[:, -1, 0].long()[:, None] + torch.arange(self.spec.chunk)
        return self.actions[rows.clamp(max=len(self.actions) - 1)][None]

    def plans(self, store, slots=2):
        features = np.zeros((store.num_steps, 1, 1, 2), np.float16)
        return predict(BatchActor(self, slots), store, features, [0, 1])


@pytest.mark.parametrize("slots", [1, 2])
def test_plans_equal_to_the_recorded_actions_have_no_error(tiny, slots):
    policy = Recorded(tiny)
    plans = policy.plans(tiny, slots)
    assert [plan.shape for plan in plans.values()] == [(3, 2, 5), (2, 2, 5)]
    measured = measure(policy, tiny, plans, np.zeros(5, np.float32))
    for name in measured.errors["policy"]:
        assert np.all(measured.values("policy", name) == float(name.endswith("_accuracy"))), name
    assert summarise(policy, measured)["better"]
    with EpisodeStore.create(tiny.path.with_name("short.zarr"), tiny.attrs) as short:
        short.append({key: array[:1] for key, array in tiny.episode(0).items()}, {"seed": 0})
    with pytest.raises(UserError, match="expected an episode with a step to imitate after its first"):
        measure(policy, short, {0: plans[0][:1]}, np.zeros(5, np.float32))


def test_both_baselines_match_a_calculation_by_hand(tiny):
    policy = Recorded(tiny)
    middle = mean_action(policy, tiny["action"][:3])  # of the first episode
    assert middle[0] == pytest.approx(4 / 3) and middle[3] == pytest.approx(np.arctan2(1, 2), abs=1e-6)
    assert middle[4] == pytest.approx(-1 / 3)  # two of three at -1
    measured = measure(policy, tiny, policy.plans(tiny), middle)
    assert measured.counts.tolist() == [[2, 1], [1, 0]]  # the first step of an episode has no previous action
    # episode 0: from step 1 slides 1, 3 against 0, 0; from step 2 slide 3 against 1
    assert measured.errors["repeat"]["slide_error"][0].tolist() == [1.5, 3]
    assert measured.by_step("repeat", "slide_error").tolist() == [0.75, 3]
    assert measured.values("repeat", "turn_error") == pytest.approx([np.pi / 4, 0], abs=1e-6)
    assert measured.values("repeat", "grip_accuracy").tolist() == [0.5, 1]
    assert measured.values("mean", "slide_error") == pytest.approx([1, 11 / 3])
    assert measured.values("mean", "grip_accuracy").tolist() == [0.5, 0]


def test_normalised_error_is_relative_to_the_spread_of_the_demos(tiny):
    policy, actions = Recorded(tiny), tiny["action"]
    moments = np.zeros((1, 2)), np.ones((1, 2))
    policy.fit_normaliser(tiny["proprio"], actions, np.stack([actions, actions], 1), None, moments)
    plans, parts, scale = policy.plans(tiny), policy.spec.action, policy.normaliser.action.scale
    measured = measure(policy, tiny, plans, np.zeros(5, np.float32))
    moved = [(parts.inner(torch.from_numpy(a)) / scale)[..., :7] for a in (actions[1:3], actions[:2])]
    away = (moved[0] - moved[1]).abs().mean(-1)  # of the 1 + 6 non-binary numbers, by step
    assert measured.values("repeat", "normalised") == pytest.approx([float(away.mean()), 0], rel=1e-5)


def test_plans_of_an_episode_do_not_depend_on_the_batch(tmp_path):
    """Each episode has its own context, past actions and head samples, whatever other episodes the batch contains."""
    store, features = make_data(tmp_path / "demos.zarr")
    network = {"width": 16, "blocks": 1, "heads": 2, "dropout": 0.1, "action_history": True}
    policy = ChunkPolicy(make_spec("transformer", network=network, head={"kind": "flow"}))
    together = predict(BatchActor(policy, 3), store, features, [1, 4, 6, 7])
    alone = BatchActor(policy, 1)
    alone.execute = policy.spec.chunk
    alone.reset([0], [7])
    rows = store.episode_slice(7)
    for t, row in enumerate(range(rows.start, rows.stop)):
        plan = alone.plan([0], features[row : row + 1], store["proprio"][row : row + 1])[0]
        np.testing.assert_allclose(together[7][t], plan, atol=1e-6)
        alone.record_actions([0], store["action"][row : row + 1])


def test_interval_of_a_mean_is_the_t_interval_if_it_exists():
    x = np.random.default_rng(0).normal(3, 1, 7)
    low, high = stats.t.interval(0.95, 6, x.mean(), stats.sem(x))
    assert list(interval(x).values()) == pytest.approx([x.mean(), low, high])
    result = interval(np.array([0.9, 1, 1]), upper=1.0)
    assert result["low"] < 0.9 and result["high"] == 1.0
    assert interval(np.array([2.0]), np.array([4.0])) == {"value": 0.5, "low": None, "high": None}
    assert interval(np.array([2.0, 0]), np.ones(2)) == {"value": 1.0, "low": None, "high": None}
    assert interval(np.array([2.0, 1]), np.zeros(2))["value"] is None
    assert interval(np.zeros(2), np.ones(2))["value"] == 0


def test_interval_of_a_ratio_has_the_nominal_coverage():
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(400):
        base = rng.gamma(8, 1, 8)
        result = interval(base * rng.gamma(4, 0.1, 8), base)
        covered.append(result["low"] <= 0.4 <= result["high"])
    assert 0.9 < np.mean(covered) < 0.99
