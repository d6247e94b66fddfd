"""Corrections of a policy: what is appended, what is imitated of it, and what does not fit together."""

import types
from pathlib import Path

import numpy as np
import pytest

from s2robot.core.errors import UserError
from s2robot.dagger import record as dagger_record
from s2robot.dagger.record import REASONS, Course, DaggerSettings, TakeoverSettings, record_corrections
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
from s2robot.policies import PolicyError
from tests.inline import do_inline

STEPS, SEED, PATIENCE = 2, 900, 3
CAMERAS = ("hand", "left")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    do_inline(monkeypatch)


@pytest.fixture(scope="session")
def demos(tmp_path_factory) -> EpisodeStore:
    """Two demos with an expert."""
    path, world = tmp_path_factory.mktemp("labelled") / "demos.zarr", CubePickConfig(cameras=CAMERAS)
    with EpisodeStore.create(path, demo_attributes(world, PickerConfig(), 500)) as store:
        for seed in (500, 503):
            store.append(*record_episode(world, PickerConfig(), seed, STEPS))
    return EpisodeStore.open(path)


@pytest.fixture(scope="session")
def checkpoint(save_untrained, tmp_path_factory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("policy") / "checkpoint")


@pytest.fixture
def settings(checkpoint) -> DaggerSettings:
    how = {"episodes": 1, "seed": SEED, "workers": 1, "takeover": TakeoverSettings(patience=PATIENCE)}
    return DaggerSettings(checkpoint=str(checkpoint), device="cpu", **how)


@pytest.fixture
def scripted(monkeypatch):
    """Stands in for a trained policy: does what it is told in one episode, two actions at a time."""

    def use(actions: np.ndarray) -> None:
        left = list(actions)

        def plan(observation: dict) -> np.ndarray:
            use.seen = observation
            now, left[:] = left[:2], left[2:]
            return np.stack(now)

        script = types.SimpleNamespace(disagreement=0.0, plan=plan, reset=lambda seed: None)
        monkeypatch.setattr(dagger_record, "_OPEN", {})
        monkeypatch.setattr(dagger_record, "load_policy", lambda *given: (script, None, None))

    return use


def ended(counts: dict[str, int]) -> tuple[int, ...]:
    return tuple(counts[key] for key in ("alone", "corrected", "failed"))


def test_a_correction_is_appended_to_a_copy(demos, settings, tmp_path):
    before, world, told = demos.fingerprint, world_of_demos(demos), []
    out, progress = tmp_path / "out.zarr", lambda *c: told.append(c)
    store, counts = record_corrections(settings, demos, world, out, first=1, progress=progress)
    assert ended(counts) == (0, 1, 0) and told == [(1, counts)]
    assert sum(counts[reason] for reason in REASONS) == 1
    assert demos.fingerprint == before and store.fingerprint_of_first(1) == demos.fingerprint_of_first(1)
    assert store.meta("seed").tolist() == [500, SEED] and store.attrs == demos.attrs
    arrays = store.episode(1)
    policy = arrays["perturbed"].astype(bool)
    switch = int(policy.sum())
    assert PATIENCE <= switch < 30 and not policy[switch:].any()  # the policy, then the picker to the end
    assert np.array_equal(arrays["imitate"], 1 - policy)
    assert np.array_equal(arrays["expert"][switch:, 0], arrays["action"][switch:])
    assert replay_episode(store, CubePick(world, draw=False), 1)["success"]
    windows = make_windows(store, np.array([1]), 1, STEPS)
    assert windows.steps.tolist() == list(range(int(store.lengths[0]) + switch, store.num_steps))


def course(demos: EpisodeStore, settings: DaggerSettings, patience: int = 30, steps: int = 100, **changes):
    world = world_of_demos(demos).replace(image_size=64, max_steps=steps)
    how = settings.replace(takeover=TakeoverSettings(patience=patience), **changes)
    return Course(how, world, PickerConfig(), STEPS)


def test_corrections_of_a_task_with_layouts_have_theirs(settings, scripted, tmp_path, monkeypatch):
    world, expert = settings_class("lift")(image_size=24), ExpertSettings(kicks=(0, 0), misses=0.0)
    demos = record(tmp_path / "demos.zarr", world, expert, 1, 500, 1, expert=STEPS)
    monkeypatch.setattr(dagger_record, "_course", lambda *given: Course(settings, world, expert, STEPS))
    scripted(np.zeros((9, 7), np.float32))
    store, counts = record_corrections(settings, demos, world, tmp_path / "out.zarr")
    assert ended(counts) == (0, 1, 0) and store.meta("seed").tolist() == [500, SEED]
    task = make(world, draw=False)
    _, info = task.reset(seed=SEED)
    assert store.meta("layout")[1].tolist() == [info["layout"][name] for name in store.attrs["layout_names"]]


def test_what_a_policy_does_alone_and_what_nobody_can_save_is_no_correction(demos, settings, scripted):
    scripted(demos.episode(0)["action"])
    alone = {"seed": 500, "reason": "", "step": int(demos.lengths[0]), "success": True}
    assert dagger_record.corrected_episode(course(demos, settings), 500) == ({}, alone)
    assert scripted.seen["images"]["hand"].shape == (64, 64, 3) and scripted.seen["proprio"].shape == (8,)
    still = np.zeros((40, 8), np.float32)
    scripted(still)
    late = {"seed": SEED, "reason": "late", "step": 5, "success": False}
    assert dagger_record.corrected_episode(course(demos, settings, steps=5), SEED) == ({}, late)
    scripted(still)
    _, facts = dagger_record.corrected_episode(course(demos, settings, PATIENCE), SEED)
    assert (facts["reason"], facts["step"]) == ("stalled", PATIENCE + 1)  # the first is progress on nothing


def test_from_which_of_its_states_the_picker_is_imitated(demos, settings, scripted):
    """A policy that closes where it is: the picker takes over when the gripper is shut."""
    close = np.repeat(np.append(np.zeros(7), 1.0)[None].astype(np.float32), 40, 0)
    close[0, 7] = 0
    env = CubePick(world_of_demos(demos).replace(image_size=64), draw=False)
    for visited in ("open", "all"):
        scripted(close)
        arrays, facts = dagger_record.corrected_episode(
            course(demos, settings, imitate_visited=visited), SEED
        )
        switch = facts["step"]
        missed = {"seed": SEED, "reason": "missed", "step": switch, "success": True}
        assert facts == missed and 3 < switch < 12
        imitated = {"open": 2, "all": switch}[visited]  # open before steps 0 and 1
        after = [1] * (len(arrays["action"]) - switch)
        assert arrays["imitate"].tolist() == [1] * imitated + [0] * (switch - imitated) + after
        picker = Picker(env, PickerConfig())
        env.reset(seed=SEED)
        picker.reset(SEED)
        for t in range(imitated):
            env.set_state(arrays["state"][t])
            picker.take_over(arrays["action"][:t])
            assert np.allclose(picker.ask(STEPS), arrays["expert"][t], atol=1e-6), (visited, t)
        assert arrays["action"][switch, 7] == 0  # shut on nothing, it opens


def test_members_that_disagree_are_not_followed(demos, settings, save_untrained, tmp_path):
    two = save_untrained(tmp_path / "two", members=2)
    takeover = TakeoverSettings(patience=PATIENCE, disagreement=1e-9)
    sure, world = settings.replace(checkpoint=str(two), takeover=takeover), world_of_demos(demos)
    store, _ = record_corrections(sure, demos, world, tmp_path / "out.zarr", 1)
    assert not store.episode(1)["perturbed"].any() and store.episode(1)["imitate"].all()
    with pytest.raises(UserError, match="takeover.disagreement: expected null .* one member, got 1e-09"):
        record_corrections(sure.replace(checkpoint=settings.checkpoint), demos, world, tmp_path / "a", 1)


def changed(demos: EpisodeStore, path: Path, drop: tuple = (), more: dict | None = None, **about):
    with EpisodeStore.create(path, {**demos.attrs, **about}) as store:
        arrays = {key: value for key, value in demos.episode(0).items() if key not in drop}
        store.append(arrays, {"seed": 500, "success": True} | (more or {}))
    return store


def test_what_does_not_fit_together_is_one_line(demos, settings, tmp_path):
    world, out = world_of_demos(demos), tmp_path / "out.zarr"
    one_eye = changed(demos, tmp_path / "c.zarr", cameras=["hand"])
    blind = changed(demos, tmp_path / "e.zarr", drop=("expert", "imitate"))
    real = changed(demos, tmp_path / "r.zarr", env_version="RealCubePick-v0")
    unknown = changed(demos, tmp_path / "p.zarr", picker=None)
    scored = changed(demos, tmp_path / "s.zarr", more={"score": 0.5})  # no correction has it
    lift = world.replace(success_height=0.04, max_steps=9)
    for error, how, source, where, text in (
        (PolicyError, settings, one_eye, world, "cameras hand, left, got hand: 'left' is missing"),
        (UserError, settings, blind, world, f"s2robot convert data={blind.path} .*expert="),
        (DatasetError, settings, scored, world, "meta/score: expected"),
        (UserError, settings, real, world, "env_version: expected CubePick-v0, got RealCubePick-v0"),
        (UserError, settings, demos, lift, "env: expected the demos' world, .* .success_height 0.1 -> 0.04."),
        (UserError, settings.replace(checkpoint=None), demos, world, "checkpoint: expected a string"),
        (PolicyError, settings.replace(checkpoint=str(tmp_path / "no")), demos, world, "no such folder"),
        (DatasetError, settings, unknown, world, "expected simulated demos of a scripted expert"),
    ):
        with pytest.raises(error, match=text):
            record_corrections(how, source, where, out)
    assert not out.exists()
    with pytest.raises(UserError, match="c.zarr: expected a dataset that begins with"):
        record_corrections(settings, demos, world, one_eye.path)


def test_the_positions_that_are_tried(demos, settings, save_untrained, tmp_path, monkeypatch):
    """The demos' own too, none twice, and not those of another policy; a copy that a kill left half made is made again."""
    world, out, part, tried = world_of_demos(demos), tmp_path / "out.zarr", tmp_path / ".out.zarr.partial", []

    def instead(course, seed):  # of simulating: odd positions are corrected, others need not be
        tried.append(seed)
        reason = "late" if seed % 2 else ""
        facts = {"seed": seed, "reason": reason, "step": 1, "success": True}
        return (demos.episode(0) if reason else {}), facts

    def recorded(**changes):
        store, counts = record_corrections(settings.replace(**changes), demos, world, out, first=1)
        return store.meta("seed").tolist(), ended(counts), sum(counts[reason] for reason in REASONS)

    monkeypatch.setattr(dagger_record, "corrected_episode", instead)
    with EpisodeStore.create(part, demos.attrs) as copy:
        copy.append_all(demos)
    assert recorded(seed=500, episodes=3) == ([500, 501], (2, 1, 0), 1)
    assert tried == [500, 501, 502] and not part.exists()
    other, first = str(save_untrained(tmp_path / "other", deltas=0.02)), SEED + 1
    assert recorded(seed=first) == ([500, 501, first], (0, 1, 0), 1)
    for changes, words in (
        ({"checkpoint": other}, "policy: expected [0-9a-f]{64} as "),
        ({"imitate_visited": "all"}, "imitate_visited: expected none .* got all"),
        ({"takeover": TakeoverSettings(patience=PATIENCE + 1)}, r"takeover\.patience: expected 3 .* got 4"),
    ):
        with pytest.raises(UserError, match=words):
            recorded(seed=first, **changes)
    assert recorded(checkpoint=other, seed=first + 2) == ([500, 501, first, first + 2], (0, 1, 0), 1)
    assert recorded(seed=first, workers=2) == (
        [500, 501, first, first + 2],
        (0, 1, 0),
        0,
    )  # nothing is left to try
    assert tried == [500, 501, 502, first, first + 2]


def taken_over(settings, *left: float, missed=False, disagreement=0.0) -> str:
    """Why the expert takes over in a world from which the policy is `left` away after each step."""
    ways = iter(left)
    env = types.SimpleNamespace(
        _steps=0, settings=types.SimpleNamespace(max_steps=len(left)), render_cameras=dict, proprio=None,
        is_success=False, grasp_missed=missed,
    )  # fmt: skip

    def execute(action):
        env._steps, env.remaining = env._steps + 1, next(ways)

    actor = types.SimpleNamespace(plan=lambda seen: np.zeros((2, 8)), disagreement=disagreement)
    return dagger_record._act(env, actor, settings, execute)


def test_the_expert_waits_for_progress_and_no_longer():
    settings = TakeoverSettings(patience=2, progress=0.01)
    # 0.275 is too little, 0.269 is more than 1 cm below the best, 0.28; then nothing
    near = (0.30, 0.28, 0.275, 0.269, 0.268)
    assert taken_over(settings, *near) == "late" and taken_over(settings, *near, 0.30) == "stalled"
    lifted = (0.01, -0.01, -0.03)
    assert taken_over(settings, *lifted, lifted[-1]) == "late"
    assert taken_over(settings, *lifted, lifted[1], lifted[0]) == "stalled"  # it sinks again
    assert taken_over(settings, 0.3, missed=True) == "missed"
    sure = TakeoverSettings(disagreement=0.1)
    assert taken_over(settings, 0.3, disagreement=9.0) == taken_over(sure, 0.3, disagreement=0.1) == "late"
    assert taken_over(sure, 0.3, disagreement=0.11) == "unsure"
