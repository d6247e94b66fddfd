"""A person corrects a policy on the emulated arm; the episode goes into a copy of the demos."""

import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from s2robot import verbs
from s2robot.common.errors import UserError
from s2robot.demos.errors import DatasetError
from s2robot.demos.formats.export import rate_of, rates_of
from s2robot.demos.lineage import Lineage
from s2robot.demos.store import EpisodeStore
from s2robot.demos.windows import make_windows
from s2robot.deployment.arm import JOINT_NAMES
from s2robot.deployment.correct import ArmCorrection, _Corrections, _Same
from s2robot.deployment.log import CAUSES
from s2robot.deployment.store import open_corrections, open_store
from s2robot.envs.cube_config import ACTION_FRAME, ENV_VERSION
from s2robot.envs.real.control.recorder import EpisodeRecorder
from s2robot.envs.real.emulator.operator import EmulatedOperator
from tests.envs.real.patience import PATIENCE, wait_for

pytest.importorskip("xarm")

SEED, SIZE = 700, 64


@pytest.fixture
def demos(tmp_path):
    """Two short demos as an arm's recorder writes them; `demos(led=True)` as they are led by hand."""

    def make(led=False):
        path = tmp_path / "demos.zarr"
        attributes = {
            "robot": "xarm7", "joint_names": list(JOINT_NAMES), "rate_hz": 10, "cameras": ["hand", "left"],
            "camera_geometry": {}, "action_frame": ACTION_FRAME, "env_version": ENV_VERSION, "env_config": {}, "seed": 0,
            "kind": "images", "source": "teleop, emulator",
        }  # fmt: skip
        blank = np.zeros((6, 8), np.float32)
        episode = {
            **{f"images_{name}": np.zeros((6, SIZE, SIZE, 3), np.uint8) for name in ("hand", "left")},
            "action": blank, "proprio": blank, "time": np.arange(6.0), "time_action": np.arange(6.0),
            "camera_age": np.zeros((6, 2), np.float32),
        }  # fmt: skip
        if not led:
            episode |= {"action_raw": blank, "action_sent": blank, "verdict": np.zeros(6, np.uint8)}
            episode |= {"code": np.zeros(6, np.int32)}
        with EpisodeStore.create(path, attributes) as store:
            for seed in (1, 2):
                store.append(episode, {"seed": seed, "success": True})
        return path

    return make


def person(*plays):
    """Reads keys: each play runs beside an episode, in turn."""
    left = list(plays)

    @contextmanager
    def keys(on_key):
        failed = []

        def run():
            try:
                left.pop(0)(on_key)
            except (
                BaseException
            ) as error:  # the test's to raise; here it would leave the episode without an end
                failed.append(error)
                on_key("x")

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield
        thread.join(PATIENCE)
        if failed:
            raise failed[0]

    return keys


@pytest.mark.realtime
def test_the_corrected_part_is_appended_to_a_copy(
    arm_config, emulator, demos, slow_policy, tmp_path, monkeypatch
):
    monkeypatch.setattr(EmulatedOperator, "ended", lambda self: False)
    source, out = demos(), tmp_path / "corrected.zarr"
    cfg = arm_config(
        "record", "recording=dagger", f"checkpoint='{slow_policy}'", f"demos.path='{source}'", f"out='{out}'",
        f"seed={SEED}", "episodes=2",
    )  # fmt: skip

    def help_it(on_key):
        done = lambda: len(correction._recorder)  # noqa: E731
        wait_for(lambda: done() >= 2)
        on_key(" ")
        taken = done()
        while done() < taken + 4:
            on_key("r")
            time.sleep(0.05)
        on_key(" ")
        given = done()
        wait_for(lambda: done() >= given + 2)
        on_key("\r")

    def leave_it(on_key):
        wait_for(lambda: len(correction._recorder) >= 1)
        on_key("\r")

    correction = ArmCorrection(cfg, None, person(leave_it, help_it))
    store = correction.run()
    assert len(store) == 3 and list(store.meta("seed")) == [1, 2, SEED + 1]  # the first needed no help
    assert Lineage().trained_on(store, [0]).positions["corrected"] == {SEED, SEED + 1}
    assert store.meta("speed").tolist() == [1, 1, correction.bench.bridge.speed]
    assert len(EpisodeStore.open(source)) == 2 and "perturbed" not in EpisodeStore.open(source).keys
    episode = store.episode(2)
    policy = episode["perturbed"].astype(bool)
    assert (
        policy[:2].all()
        and policy[-1]
        and 3 <= (~policy).sum() <= 8
        and np.abs(np.diff(policy.astype(int))).sum() == 2
    )
    # up: the person's part lifts the tool, and no step is larger than an action may be
    assert np.abs(episode["action"][~policy, :7]).max() > 0.005 and not episode["code"].any()
    assert not store.read("perturbed", 0, 12).any()
    windows = make_windows(store, np.arange(3), 1, 4)
    steps = np.flatnonzero(~policy) + 12
    assert list(windows.steps) == [*range(12), *steps]  # the policy's own steps are never imitated
    assert not any(c["unsafe"] for c in emulator("commands", since=0)["commands"])
    # the same command goes on: all positions up to the last that was corrected are done
    assert len(ArmCorrection(cfg, None, person()).run()) == 3


@pytest.mark.slow
def test_the_arm_is_led_by_hand(arm_config, emulator, demos, slow_policy, tmp_path, monkeypatch):
    monkeypatch.setattr(EmulatedOperator, "ended", lambda self: False)
    out = tmp_path / "corrected.zarr"
    cfg = arm_config(
        "record", "recording=dagger", f"checkpoint='{slow_policy}'", f"demos.path='{demos(led=True)}'", f"out='{out}'",
        f"seed={SEED}", "episodes=1", "arm.device=hand",
    )  # fmt: skip

    def lead(on_key):
        done = lambda: len(correction._recorder)  # noqa: E731
        wait_for(lambda: done() >= 2)
        on_key(" ")
        wait_for(lambda: emulator("status")["mode"] == 2 and emulator("status")["ready"])
        taken = done()
        # an action is from one led step to the next: what is moved before the first belongs to none
        wait_for(lambda: done() >= taken + 2)
        joints = np.array(emulator("status")["joints"])
        for _ in range(4):
            joints[6] += 0.05
            emulator("hand", joints=joints.tolist())
            before = done()
            wait_for(lambda before=before: done() > before)
        wait_for(lambda: done() >= taken + 6)
        on_key(" ")
        given = done()
        wait_for(lambda: done() >= given + 2)
        on_key("\r")

    correction = ArmCorrection(cfg, None, person(lead))
    store = correction.run()
    episode = store.episode(2)
    person_s = ~episode["perturbed"].astype(bool)
    assert not person_s[:2].any() and not person_s[-1] and person_s.sum() >= 6
    led = episode["action"][person_s]
    assert led[:, 6].sum() == pytest.approx(0.2, abs=0.03)
    # what the policy did next begins where the hand left the arm
    after = int(np.flatnonzero(person_s)[-1]) + 1
    begun = episode["proprio"][np.flatnonzero(person_s)[0], 6]
    assert episode["proprio"][after, 6] - begun == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["checkpoint=null"], "checkpoint: found none"),
        (["arm.device=mouse"], "arm.device: found 'mouse', expected one of keyboard, spacemouse, hand"),
        (["demos.path=null"], "found demos of states, expected images"),
        (["episodes=0"], "episodes: found 0"),
    ],
)
def test_wrong_settings_are_one_line(words, told, demos, tmp_path):
    from hydra import compose, initialize_config_dir

    from s2robot.common.paths import configs_dir

    given = [
        "recording=dagger",
        "checkpoint=there",
        f"demos.path='{demos()}'",
        f"run_dir='{tmp_path}'",
        "robot.ip=127.0.0.1",
    ]
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        cfg = compose("record", [*given, *words])
    with pytest.raises(UserError, match=told):
        verbs.record(cfg)


def test_steps_led_by_hand_go_into_demos_of_any_arm(demos, tmp_path):
    """A led step knows nothing of what was sent; teleoperated demos hold it."""
    source = EpisodeStore.open(demos())
    corrections = _Corrections(open_corrections(tmp_path / "out.zarr", source), 0.7)
    recorder = EpisodeRecorder(corrections)
    blank, picture = np.ones(8, np.float32), np.zeros((SIZE, SIZE, 3), np.uint8)
    step = {
        "action": blank,
        "proprio": blank,
        "time": 1.0,
        "time_action": 1.1,
        "camera_age": np.zeros(2, np.float32),
    }
    own = {"action_raw": 2 * blank, "action_sent": 3 * blank, "verdict": np.uint8(1), "code": np.int32(0)}
    hears = _Same(recorder, corrections.wanted)
    for more in (own, {}):
        hears.on_step({**step, **more, "images_hand": picture, "images_left": picture})
    corrections.persons = [False, True]
    recorder.finish(success=True, seed=SEED)
    made = EpisodeStore.open(tmp_path / "out.zarr").episode(2)
    assert made["perturbed"].tolist() == [1, 0] and made["verdict"].tolist() == [1, 0]
    assert made["action_sent"][:, 0].tolist() == [3, 1] and made["action_raw"][:, 0].tolist() == [2, 1]


def test_each_episode_stores_how_fast_it_was(demos, tmp_path):
    """Corrections on a slowed arm stand beside demos at full speed; each keeps its own time."""
    source, out = EpisodeStore.open(demos()), tmp_path / "out.zarr"
    corrections = _Corrections(open_corrections(out, source), 0.7)
    corrections.persons = [True] * 6
    corrections.append(source.episode(0), {"seed": 3, "success": True})
    store = EpisodeStore.open(out)
    assert store.meta("speed").tolist() == [1, 1, 0.7] and rates_of(store).tolist() == [10, 10, 7]
    with pytest.raises(DatasetError, match="speed: found episodes at 7 and at 10 Hz, expected one rate"):
        rate_of(store)
    slow = tmp_path / "slow.zarr"
    with EpisodeStore.create(slow, {**source.attrs, "speed": 0.5}) as store:
        store.append(source.episode(0), {"seed": 3, "success": True})
    assert rate_of(EpisodeStore.open(slow)) == 5
    copy = open_corrections(tmp_path / "of_slow.zarr", EpisodeStore.open(slow))
    assert copy.meta("speed").tolist() == [0.5]


def test_demos_that_a_deployment_recorded_are_corrected_and_others_refused(demos, tmp_path):
    source = EpisodeStore.open(demos())
    for name, meta, arrays in (
        ("live", {"cause": 1}, {}),
        ("odd", {"grade": 3}, {"force": np.zeros(6, np.float32)}),
    ):
        with EpisodeStore.create(tmp_path / f"{name}.zarr", source.attrs) as store:
            store.append({**source.episode(0), **arrays}, {"seed": 1, "success": True, **meta})
    live = _Corrections(EpisodeStore.open(tmp_path / "live.zarr", "a"), 1.0)
    live.persons = [True] * 6
    episode = {key: value for key, value in source.episode(1).items()}
    with pytest.raises(DatasetError, match="perturbed"):  # only a copy says whose the steps are
        live.append(episode, {"seed": 2, "success": True})
    copy = open_corrections(tmp_path / "copy.zarr", EpisodeStore.open(tmp_path / "live.zarr"))
    live = _Corrections(copy, 1.0)
    live.persons = [True] * 6
    live.append(episode, {"seed": 2, "success": True})
    assert EpisodeStore.open(copy.path).meta("cause").tolist() == [1, CAUSES.index("ended")]
    with pytest.raises(
        UserError, match="odd.zarr: found demos with force, grade, which corrections do not have"
    ):
        _Corrections(EpisodeStore.open(tmp_path / "odd.zarr"), 1.0)


def test_other_pictures_are_refused_before_an_episode(demos):
    path = demos()
    eyes = dict.fromkeys(("hand", "left"))  # what is known of them is for a new one
    open_store(path, "xarm7", 10, eyes, SIZE, 0, {}, lambda store: None).close()
    for cameras, size, text in (
        (eyes, 2 * SIZE, r"found pictures of \(64, 64\) pixels of hand, expected \(128, 128\)"),
        (dict.fromkeys(("hand",)), SIZE, "found cameras hand, left, expected hand"),
    ):
        with pytest.raises(UserError, match=text):
            open_store(path, "xarm7", 10, cameras, size, 0, {}, lambda store: None)


def test_a_dataset_that_begins_otherwise_is_refused(demos, tmp_path):
    from s2robot.deployment.store import open_corrections

    source = EpisodeStore.open(demos())
    out = tmp_path / "out.zarr"
    with open_corrections(out, source, 1) as store:
        assert (
            len(store) == 1 and not store["perturbed"].any() and store.attrs["source"] == "teleop, emulator"
        )
    open_corrections(out, source, 1).close()
    with pytest.raises(UserError, match="found other episodes, expected a dataset that begins with the 2 of"):
        open_corrections(out, source)
