"""Corrections of a policy: the appended episodes, their labels, and mismatched settings."""

import types
from pathlib import Path

import numpy as np
import pytest

from s2robot.core.errors import UserError
from s2robot.dagger import record as dagger_record
from s2robot.dagger.record import Corrector, DaggerSettings, TakeoverSettings, record_corrections
from s2robot.demos.errors import DatasetError
from s2robot.demos.record import demo_attributes, record, record_episode
from s2robot.demos.replay import replay_episode, world_of_demos
from s2robot.demos.store import EpisodeStore
from s2robot.demos.windows import make_windows
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.cube_picker import Picker, PickerConfig
from s2robot.envs.robosuite_config import ExpertSettings
from s2robot.envs.tasks import make, settings_class
from tests.errors import refuses

STEPS, SEED, PATIENCE = 2, 900, 3
CAMERAS = ("hand", "left")
pytestmark = pytest.mark.usefixtures("inline")


@pytest.fixture(scope="session")
def demos(tmp_path_factory) -> EpisodeStore:
    """Two demos with expert labels."""
    path, world = tmp_path_factory.mktemp("labelled") / "demos.zarr", CubePickConfig(cameras=CAMERAS)
    with EpisodeStore.create(path, demo_attributes(world, PickerConfig(), 500)) as store:
        for seed in (500, 503):
            store.append(*record_episode(world, PickerConfig(), seed, STEPS))
    return EpisodeStore.open(path)


@pytest.fixture
def settings(slow_policy) -> DaggerSettings:
    own = {"episodes": 1, "seed": SEED, "workers": 1, "takeover": TakeoverSettings(patience=PATIENCE)}
    return DaggerSettings(checkpoint=str(slow_policy), device="cpu", **own)


@pytest.fixture
def scripted(monkeypatch):
    """Replace the trained policy by one that executes the given actions in one episode, two per plan."""

    def use(actions: np.ndarray) -> None:
        remaining = list(actions)

        def plan(observation: dict) -> np.ndarray:
            use.seen = observation
            plan, remaining[:] = remaining[:2], remaining[2:]
            return np.stack(plan)

        script = types.SimpleNamespace(disagreement=0.0, plan=plan, reset=lambda seed: None)
        monkeypatch.setattr(dagger_record, "load_policy", lambda *_: (script, None, None))

    return use


def outcome_counts(counts: dict[str, int]) -> tuple[int, ...]:
    return tuple(counts[key] for key in ("alone", "corrected", "failed"))


def test_correction_is_appended_to_a_copy_of_the_demos(demos, settings, tmp_path):
    before, world, calls = demos.fingerprint, world_of_demos(demos), []
    out, progress = tmp_path / "out.zarr", lambda *c: calls.append(c)
    store, counts = record_corrections(settings, demos, world, out, first=1, progress=progress)
    assert outcome_counts(counts) == (0, 1, 0) and calls == [(1, counts)]
    assert sum(counts[reason] for reason in dagger_record.REASONS) == 1
    assert demos.fingerprint == before and store.fingerprint_of_first(1) == demos.fingerprint_of_first(1)
    assert store.meta("seed").tolist() == [500, SEED] and store.attrs == demos.attrs
    arrays = store.episode(1)
    policy = arrays["perturbed"].astype(bool)
    switch = int(policy.sum())
    assert PATIENCE <= switch < 30 and not policy[switch:].any()  # the policy, then the picker until the end
    assert np.array_equal(arrays["imitate"], 1 - policy)
    assert np.array_equal(arrays["expert"][switch:, 0], arrays["action"][switch:])
    assert replay_episode(store, CubePick(world, draw=False), 1)["success"]
    windows = make_windows(store, np.array([1]), 1, STEPS)
    assert windows.steps.tolist() == list(range(int(store.lengths[0]) + switch, store.num_steps))


def corrected(demos, settings, seed, patience=30, steps=100, **changes) -> tuple[dict[str, np.ndarray], dict]:
    world = world_of_demos(demos).replace(image_size=64, max_steps=steps)
    settings = settings.replace(takeover=TakeoverSettings(patience=patience), **changes)
    return dagger_record.corrected_episode(Corrector(settings, world, PickerConfig(), STEPS), seed)


def test_corrections_store_the_layout_of_their_task(settings, scripted, tmp_path, monkeypatch):
    world, expert = settings_class("lift")(image_size=24), ExpertSettings(kicks=(0, 0), misses=0.0)
    demos = record(tmp_path / "demos.zarr", world, expert, 1, 500, 1, expert=STEPS)
    monkeypatch.setattr(dagger_record, "_course", lambda *_: (world, expert, STEPS))
    scripted(np.zeros((9, 7), np.float32))
    store, counts = record_corrections(settings, demos, world, tmp_path / "out.zarr")
    assert outcome_counts(counts) == (0, 1, 0) and store.meta("seed").tolist() == [500, SEED]
    _, info = make(world, draw=False).reset(seed=SEED)
    assert store.meta("layout")[1].tolist() == [info["layout"][name] for name in store.attrs["layout_names"]]


def test_unaided_successes_and_hopeless_failures_are_no_corrections(demos, settings, scripted):
    scripted(demos.episode(0)["action"])
    alone = {"seed": 500, "reason": "", "step": int(demos.lengths[0]), "success": True}
    assert corrected(demos, settings, 500) == ({}, alone)
    assert scripted.seen["images"]["hand"].shape == (64, 64, 3) and scripted.seen["proprio"].shape == (8,)
    still = np.zeros((40, 8), np.float32)
    scripted(still)
    late = {"seed": SEED, "reason": "late", "step": 5, "success": False}
    assert corrected(demos, settings, SEED, steps=5) == ({}, late)
    scripted(still)
    _, facts = corrected(demos, settings, SEED, PATIENCE)
    assert (facts["reason"], facts["step"]) == ("stalled", PATIENCE + 1)  # step 0 counts as progress


def test_imitate_visited_selects_the_labelled_policy_states(demos, settings, scripted):
    """The policy closes the gripper at once: the picker takes over when it is shut."""
    close = np.repeat(np.append(np.zeros(7), 1.0)[None].astype(np.float32), 40, 0)
    close[0, 7] = 0
    env = CubePick(world_of_demos(demos).replace(image_size=64), draw=False)
    for visited in ("open", "all"):
        scripted(close)
        arrays, facts = corrected(demos, settings, SEED, imitate_visited=visited)
        switch = facts["step"]
        missed = {"seed": SEED, "reason": "missed", "step": switch, "success": True}
        assert facts == missed and 3 < switch < 12
        imitated = {"open": 2, "all": switch}[visited]  # open before steps 0 and 1
        after = [1] * (len(arrays["action"]) - switch)
        assert arrays["imitate"].tolist() == [1] * imitated + [0] * (switch - imitated) + after
        picker = Picker(env, PickerConfig())
        env.reset(seed=SEED)
        picker.begin(np.random.default_rng([SEED, 7]))
        for t in range(imitated):
            env.set_state(arrays["state"][t])
            picker.take_over(arrays["action"][:t])
            assert np.allclose(picker.ask(STEPS), arrays["expert"][t], atol=1e-6), (visited, t)
        assert arrays["action"][switch, 7] == 0  # closed on nothing, it opens again


def test_expert_takes_over_when_members_disagree(demos, settings, save_untrained, tmp_path):
    two = save_untrained(tmp_path / "two", members=2)
    takeover = TakeoverSettings(patience=PATIENCE, disagreement=1e-9)
    cautious, world = settings.replace(checkpoint=str(two), takeover=takeover), world_of_demos(demos)
    store, _ = record_corrections(cautious, demos, world, tmp_path / "out.zarr", 1)
    assert not store.episode(1)["perturbed"].any() and store.episode(1)["imitate"].all()
    with pytest.raises(UserError, match="takeover.disagreement: expected null, .* one member, got 1e-09"):
        record_corrections(cautious.replace(checkpoint=settings.checkpoint), demos, world, tmp_path / "a", 1)


def modified_copy(demos: EpisodeStore, path: Path, drop: tuple = (), more: dict | None = None, **about):
    with EpisodeStore.create(path, {**demos.attrs, **about}) as store:
        arrays = {key: value for key, value in demos.episode(0).items() if key not in drop}
        store.append(arrays, {"seed": 500, "success": True} | (more or {}))
    return store


def test_mismatched_settings_or_demos_are_one_error_line(demos, settings, tmp_path):
    world, out = world_of_demos(demos), tmp_path / "out.zarr"
    one_camera = modified_copy(demos, tmp_path / "c.zarr", cameras=["hand"])
    unlabelled = modified_copy(demos, tmp_path / "e.zarr", drop=("expert", "imitate"))
    real = modified_copy(demos, tmp_path / "r.zarr", env_version="RealCubePick-v0")
    unknown = modified_copy(demos, tmp_path / "p.zarr", picker=None)
    texts = modified_copy(demos, tmp_path / "t.zarr", tasks=["lift"])
    scored = modified_copy(demos, tmp_path / "s.zarr", more={"score": 0.5})  # corrections have no score
    lift = world.replace(success_height=0.04, max_steps=9)
    for error, changed_settings, source, task, text in (
        (UserError, settings, one_camera, world, "cameras hand, left, got hand: 'left' is missing"),
        (UserError, settings, unlabelled, world, f"s2robot convert data={unlabelled.path} .*expert="),
        (UserError, settings, texts, world, "t.zarr: expected demos without task texts .*, got 1"),
        (DatasetError, settings, scored, world, "meta/score: expected"),
        (UserError, settings, real, world, "env_version: expected CubePick-v0, got RealCubePick-v0"),
        (UserError, settings, demos, lift, "env: expected the demos' world, .* .success_height 0.1 -> 0.04."),
        (UserError, settings.replace(checkpoint=None), demos, world, "checkpoint: expected a string"),
        (UserError, settings.replace(checkpoint=str(tmp_path / "no")), demos, world, "no such folder"),
        (DatasetError, settings, unknown, world, "expected simulated demos of a scripted expert"),
    ):
        with pytest.raises(error, match=text):
            record_corrections(changed_settings, source, task, out)
    assert not out.exists()
    with pytest.raises(UserError, match="c.zarr: expected a dataset that begins with"):
        record_corrections(settings, demos, world, one_camera.path)


def test_positions_are_tried_once_per_policy(demos, settings, save_untrained, tmp_path, monkeypatch):
    world, out, tried = world_of_demos(demos), tmp_path / "out.zarr", []

    def fake_episode(_, seed):  # no simulation: odd positions are corrected, even ones succeed
        tried.append(seed)
        reason = "late" if seed % 2 else ""
        facts = {"seed": seed, "reason": reason, "step": 1, "success": True}
        return (demos.episode(0) if reason else {}), facts

    def recorded(**changes):
        store, counts = record_corrections(settings.replace(**changes), demos, world, out, first=1)
        reasons = sum(counts[reason] for reason in dagger_record.REASONS)
        return store.meta("seed").tolist(), outcome_counts(counts), reasons

    monkeypatch.setattr(dagger_record, "corrected_episode", fake_episode)
    assert recorded(seed=500, episodes=3) == ([500, 501], (2, 1, 0), 1)
    assert tried == [500, 501, 502]
    other, first = str(save_untrained(tmp_path / "other", deltas=0.02)), SEED + 1
    assert recorded(seed=first) == ([500, 501, first], (0, 1, 0), 1)
    for changes, words in (
        ({"checkpoint": other}, "policy: expected [0-9a-f]{64} as "),
        ({"imitate_visited": "all"}, "imitate_visited: expected none .* got all"),
        ({"takeover": TakeoverSettings(patience=PATIENCE + 1)}, r"takeover\.patience: expected 3 .* got 4"),
    ):
        refuses(words, recorded, seed=first, **changes)  # and lets go of the dataset
    assert recorded(checkpoint=other, seed=first + 2) == ([500, 501, first, first + 2], (0, 1, 0), 1)
    assert recorded(seed=first, workers=2) == ([500, 501, first, first + 2], (0, 1, 0), 0)  # none remain
    assert tried == [500, 501, 502, first, first + 2]


def takeover_reason(settings, *left: float, missed=False, disagreement=0.0) -> str:
    """Return the reason for the takeover from a policy with these distances `left` after each step."""
    distances = iter(left)
    env = types.SimpleNamespace(
        _steps=0, settings=types.SimpleNamespace(max_steps=len(left)), render_cameras=dict, proprio=None,
        is_success=False, grasp_missed=missed,
    )  # fmt: skip

    def execute(action):
        env._steps, env.remaining = env._steps + 1, next(distances)

    actor = types.SimpleNamespace(plan=lambda seen: np.zeros((2, 8)), disagreement=disagreement)
    return dagger_record._act(env, actor, settings, execute)


def test_expert_takes_over_when_progress_ends():
    settings = TakeoverSettings(patience=2, progress=0.01)
    # 0.275 is no progress; 0.269 is more than 1 cm below the best, 0.28; then none again
    near = (0.30, 0.28, 0.275, 0.269, 0.268)
    assert takeover_reason(settings, *near) == "late" and takeover_reason(settings, *near, 0.30) == "stalled"
    lifted = (0.01, -0.01, -0.03)
    assert takeover_reason(settings, *lifted, lifted[-1]) == "late"
    assert takeover_reason(settings, *lifted, lifted[1], lifted[0]) == "stalled"  # it sinks back
    assert takeover_reason(settings, 0.3, missed=True) == "missed"
    cautious = TakeoverSettings(disagreement=0.1)
    assert takeover_reason(settings, 0.3, disagreement=9.0) == "late"
    assert takeover_reason(cautious, 0.3, disagreement=0.1) == "late"
    assert takeover_reason(cautious, 0.3, disagreement=0.11) == "unsure"
