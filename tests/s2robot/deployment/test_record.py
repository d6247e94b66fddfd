"""`s2robot record` on the emulated arm with its cameras: hand guiding, teleoperation, and corrections of a policy."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from s2robot.cli import main
from s2robot.demos.errors import DatasetError
from s2robot.demos.formats.export import rate_of, rates_of
from s2robot.demos.lineage import Lineage
from s2robot.demos.store import EpisodeStore
from s2robot.demos.windows import make_windows
from s2robot.deployment.record import ArmRecording, CorrectionRecorder
from s2robot.deployment.store import CAUSES, open_corrections, open_store
from s2robot.envs.real.arms.geometry import ToolIK
from s2robot.envs.real.emulator.stand_in import EmulatedOperator
from tests import forks
from tests.envs.real.home import described
from tests.envs.real.patience import PATIENCE, wait_for
from tests.errors import refuses
from tests.s2robot.pictures import attributes_of

pytest.importorskip("xarm")

SIZE, SEED = 64, 1
CORRECTED = 700  # the first position of a correction


@pytest.fixture
def config(arm_config, tmp_path):
    """`config(kind, *words)` makes a config of `s2robot record` into `out.zarr`."""

    def make(kind, *words):
        views = () if kind == "dagger" else (f"env.image_size={SIZE}", "env.cameras=[hand,left]")
        out = f"out='{tmp_path / 'out.zarr'}'"
        words = f"seed={SEED}", "episodes=1", *views, *words
        return arm_config("record", f"recording={kind}", out, *words)

    return make


@pytest.fixture
def demos(tmp_path):
    """Make two short demos as recorded on an arm; `demos(led=True)` makes hand-guided ones."""

    def make(led=False):
        path, blank = tmp_path / "demos.zarr", np.zeros((6, 8), np.float32)
        episode = {
            **{f"images_{name}": np.zeros((6, SIZE, SIZE, 3), np.uint8) for name in ("hand", "left")},
            "action": blank, "proprio": blank, "time": np.arange(6.0), "time_action": np.arange(6.0),
            "camera_age": np.zeros((6, 2), np.float32),
        }  # fmt: skip
        if not led:
            episode |= {"action_raw": blank, "action_sent": blank, "verdict": np.zeros(6, np.uint8)}
            episode |= {"code": np.zeros(6, np.int32)}
        attributes = attributes_of(("hand", "left")) | {"source": "teleop, emulator"}
        with EpisodeStore.create(path, attributes) as store:
            for seed in (1, 2):
                store.append(episode, {"seed": seed, "success": True})
        return path

    return make


def person(*plays):
    """Return a key reader that runs one `play(on_key)` per episode, in order; the last one repeats."""
    remaining = list(plays)

    @contextmanager
    def keys(on_key):
        if on_key.__self__._homing:  # on the way to the start, where keys stop the arm
            return (yield)

        def run():
            try:
                (remaining.pop(0) if len(remaining) > 1 else remaining[0])(on_key)
            except BaseException:  # end the episode; the test re-raises
                on_key("x")
                raise

        with ThreadPoolExecutor(1) as pool:
            play = pool.submit(run)
            yield
            play.result(PATIENCE)

    return keys


def further(recording, steps, meanwhile=lambda: None):
    """Wait until the current episode has `steps` more steps."""
    end = len(recording.recorder) + steps
    wait_for(lambda: meanwhile() or len(recording.recorder) >= end)


def led(side):
    """Wait until the box lets an operator lead the arm."""
    wait_for(lambda: side("status")["mode"] == 2 and side("status")["ready"])


def wave(side, end="\r"):
    """Return a play with a short motion by hand that lifts nothing."""

    def act(on_key):
        led(side)
        joints = np.array(side("status")["joints"])
        for _ in range(4):
            joints[6] += 0.05
            side("hand", joints=joints.tolist())
            time.sleep(0.1)
        on_key(end)

    return act


@pytest.mark.slow
def test_hand_taught_demo_is_recorded_and_trained_on(config, emulator, tmp_path, tiny_encoder, monkeypatch):
    monkeypatch.setattr(EmulatedOperator, "success", lambda self: True)
    grip = lambda on_key: wave(emulator)(lambda key: (on_key(" "), time.sleep(0.5), on_key(key)))  # noqa: E731
    store = ArmRecording(config("teach"), None, person(grip)).run()
    assert len(store) == 1 and store.meta("success").all() and list(store.meta("seed")) == [SEED]
    assert store.cameras == ("hand", "left") and store.attrs["source"] == "teach, emulator"
    assert store["images_hand"].shape == (store.num_steps, SIZE, SIZE, 3)
    assert store["images_left"].any() and set(store["action"][:, 7]) == {0.0, 1.0}
    training = [
        f"demos.path={store.path}", f"env.image_size={SIZE}", "env.cameras=[hand,left]", "train.steps=1",
        f"encoder.checkpoint={tiny_encoder}", f"features.cache={tmp_path}/cache", "features.workers=1",
        "train.batch_size=8", f"hydra.run.dir={tmp_path}/train",
    ]  # fmt: skip
    assert main(["train", *training]) == 0 and (tmp_path / "train" / "checkpoint").is_dir()


def test_sessions_resume_at_the_next_position_without_discarded_episodes(config, emulator):
    store = ArmRecording(config("teach"), None, person(wave(emulator, "x"), wave(emulator))).run()
    assert len(store) == 1 and list(store.meta("seed")) == [SEED + 1] and not store.meta("success").any()
    again = ArmRecording(config("teach"), None, person(wave(emulator))).run()
    assert list(again.meta("seed")) == [SEED + 1, SEED + 2]


def test_demo_is_kept_as_failed_if_its_questions_are_interrupted(config, emulator, monkeypatch, tmp_path):
    monkeypatch.setattr(EmulatedOperator, "success", lambda self: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        ArmRecording(config("teach"), None, person(wave(emulator))).run()
    assert EpisodeStore.open(tmp_path / "out.zarr").meta("success").tolist() == [False]


def test_demo_is_teleoperated_with_keys(config, emulator, monkeypatch):
    place = EmulatedOperator.place  # meanwhile, somebody bumps the buttons of a SpaceMouse
    bumped = lambda *inputs: (place(*inputs), *map(recording.controls.on_button, (0, 1)))[0]  # noqa: E731
    monkeypatch.setattr(EmulatedOperator, "place", bumped)

    def lift(on_key):
        further(recording, 1)
        on_key(" ")
        start, end = height(), len(recording.recorder) + 5
        wait_for(lambda: on_key("r") or (height() > start + 0.012 and len(recording.recorder) >= end))
        on_key("\r")

    def stay(on_key):
        further(recording, 5)
        on_key("\r")

    def height():
        return ToolIK().pose(np.array(emulator("status")["joints"]))[0][2]

    recording = ArmRecording(config("teleop", "episodes=2"), None, person(lift, stay))
    store = recording.run()
    lifted, stayed = (store.episode(i) for i in range(len(store)))
    assert store.attrs["source"] == "teleop, emulator" and 6 <= len(lifted["time"]) <= 60
    expected = {"action", "action_raw", "action_sent", "proprio", "images_hand", "images_left", "verdict"}
    assert expected <= set(store.keys) and not store["code"].any() and store["verdict"].max() <= 1
    first, last = (ToolIK().pose(lifted["proprio"][i, :7].astype(float))[0] for i in (0, -1))
    assert last[2] - first[2] > 0.01 and np.abs(last - first)[:2].max() < 0.01
    assert lifted["action"][0, 7] == 0 and lifted["action"][-1, 7] == 1
    places = [ToolIK().pose(q.astype(float))[0] for q in stayed["proprio"][:, :7]]
    assert np.ptp(places, 0).max() < 0.002  # it once went on to where the first episode had led, 4 cm


def test_hung_recording_is_stopped_while_the_arm_is_led_by_hand(emulator, calm, tmp_path):
    """Only the box holds the arm up in that mode."""
    words = ["recording=teach", "bridge=emulator", f"bridge.emulator.port={emulator.port}", "episodes=1"]
    process = forks.Popen(
        [sys.executable, "-m", "s2robot", "record", *words, f"env.image_size={SIZE}",
            "env.cameras=[hand,left]", *calm, "bridge.supervisor_s=1.5", "out=out.zarr"],
        cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    output = ""
    while "Enter: end" not in output:
        output += (line := process.stdout.readline())
        assert line, output
    led(emulator)
    try:
        time.sleep(1.0)  # until the first beat
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: not emulator("status")["ready"])
        process.send_signal(signal.SIGCONT)
        assert "supervisor" in process.communicate(timeout=PATIENCE)[0]
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "words, message",
    [
        (["recording=teleop", "device=mouse"], "device: expected 'keyboard', 'spacemouse' or 'hand', got 'mouse'"),
        (["recording=teach"], "robot.ip: expected"),
        (["recording=teleop", "speed=0"], "speed: expected > 0, got 0"),
        (["recording=dagger", "robot.ip=1.2.3.4", "checkpoint=x", "arm.device=mouse"], "arm.device: expected"),
        (["recording=dagger", "robot.ip=1.2.3.4", "checkpoint=x"], "kind: expected images "),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_error_line(words, message, tmp_path, capsys):
    assert main(["record", *words, f"hydra.run.dir={tmp_path}"]) == 2
    assert message in capsys.readouterr().err


def test_corrected_episode_is_appended_to_a_copy(config, emulator, demos, slow_policy, monkeypatch):
    source = demos()
    words = f"checkpoint='{slow_policy}'", f"demos.path='{source}'", f"seed={CORRECTED}", "episodes=2"
    cfg = config("dagger", *words)

    def correct(on_key):
        further(correction, 2)
        on_key(" ")
        further(correction, 4, lambda: on_key("r"))
        on_key(" ")
        further(correction, 2)
        on_key("\r")

    def only_end(on_key):
        further(correction, 1)
        on_key("\r")

    correction = ArmRecording(cfg, None, person(only_end, correct))
    threads = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    store = correction.run()
    assert threads == [1]  # the stream to the arm needs its own core
    # the first needed no correction
    assert len(store) == 3 and list(store.meta("seed")) == [1, 2, CORRECTED + 1]
    assert Lineage().trained_on(store, [0]).positions["corrected"] == {CORRECTED, CORRECTED + 1}
    assert store.meta("speed").tolist() == [1, 1, correction.bench.bridge.speed]
    assert len(EpisodeStore.open(source)) == 2 and "perturbed" not in EpisodeStore.open(source).keys
    episode = store.episode(2)
    policy = episode["perturbed"].astype(bool)
    assert policy[:2].all() and policy[-1] and 3 <= (~policy).sum() <= 60 and np.diff(policy).sum() == 2
    # the operator's part lifts the tool
    assert np.abs(episode["action"][~policy, :7]).max() > 0.005 and not episode["code"].any()
    assert not store.read("perturbed", 0, 12).any()
    windows = make_windows(store, np.arange(3), 1, 4)
    steps = np.flatnonzero(~policy) + 12
    assert list(windows.steps) == [*range(12), *steps]  # the policy's own steps are never training targets
    assert not any(c["unsafe"] for c in emulator("commands", since=0)["commands"])
    # the same command resumes: all positions up to the last corrected one are done
    assert len(ArmRecording(cfg).run()) == 3


@pytest.mark.slow
def test_correction_led_by_hand_is_recorded(config, emulator, demos, slow_policy):
    words = f"checkpoint='{slow_policy}'", f"demos.path='{demos(led=True)}'", "arm.device=hand"
    cfg = config("dagger", f"seed={CORRECTED}", *words)

    def lead(on_key):
        further(correction, 2)
        on_key(" ")
        led(emulator)
        # an action spans two led steps: motion before the first one belongs to none
        further(correction, 2)
        joints = np.array(emulator("status")["joints"])
        for _ in range(4):
            joints[6] += 0.05
            emulator("hand", joints=joints.tolist())
            further(correction, 1)
        on_key(" ")
        further(correction, 2)
        on_key("\r")

    correction = ArmRecording(cfg, None, person(lead))
    episode = correction.run().episode(2)
    by_hand = ~episode["perturbed"].astype(bool)
    assert not by_hand[:2].any() and not by_hand[-1] and by_hand.sum() >= 6
    assert episode["action"][by_hand][:, 6].sum() == pytest.approx(0.2, abs=0.03)
    # the policy resumes where the operator left the arm
    after = int(np.flatnonzero(by_hand)[-1]) + 1
    start = episode["proprio"][np.flatnonzero(by_hand)[0], 6]
    assert episode["proprio"][after, 6] - start == pytest.approx(0.2, abs=0.03)


def test_hand_guided_steps_are_appended_to_teleoperated_demos(demos, tmp_path):
    """A hand-guided step lacks the sent action that teleoperated demos store. Each episode stores its speed."""
    source, out = EpisodeStore.open(demos()), tmp_path / "made.zarr"
    recorder = CorrectionRecorder(open_corrections(out, source), 0.7)
    first = {key: value[0] for key, value in source.episode(0).items()}
    own = {key: first.pop(key) for key in ("action_raw", "action_sent", "verdict", "code")}
    led_step = first | {"action": np.ones(8, np.float32)}
    for step in (led_step | own | {"verdict": np.uint8(1)}, led_step):
        recorder.on_step(step)
    recorder.finish(persons=[False, True], success=True, seed=3)
    store = EpisodeStore.open(out)
    made = store.episode(2)
    assert made["perturbed"].tolist() == [1, 0] and made["verdict"].tolist() == [1, 0]
    assert made["action_sent"][:, 0].tolist() == [0, 1] and made["action_raw"][:, 0].tolist() == [0, 1]
    assert store.meta("speed").tolist() == pytest.approx([1, 1, 0.7])
    assert rates_of(store).tolist() == [10, 10, 7]
    refuses("speed: expected one rate .* got 7 and 10 Hz", rate_of, store)
    slow = tmp_path / "slow.zarr"  # as recorded by a deployment: slowly, and with the cause of each end
    with EpisodeStore.create(slow, {**source.attrs, "speed": 0.5}) as store:
        store.append(source.episode(0), {"seed": 3, "success": True, "cause": 1})
    assert rate_of(EpisodeStore.open(slow)) == 5
    copy = open_corrections(tmp_path / "of_slow.zarr", EpisodeStore.open(slow))
    recorder = CorrectionRecorder(copy, 1.0)
    recorder.on_step({key: value[0] for key, value in source.episode(1).items()})
    recorder.finish(persons=[True], seed=2, success=True)
    copy = EpisodeStore.open(copy.path)
    assert copy.meta("speed").tolist() == [0.5, 1.0]
    assert copy.meta("cause").tolist() == [1, CAUSES.index("ended")]


@pytest.mark.parametrize("where", ["data/depth", "data/verdict", "meta/score", "images_left"])
def test_demos_that_cannot_take_corrections_are_rejected_before_an_episode(demos, tmp_path, where):
    source, other, out = EpisodeStore.open(demos()), tmp_path / "other.zarr", tmp_path / "out.zarr"
    arrays, meta = source.episode(0), {"seed": 1, "success": True}
    if where in ("data/depth", "data/verdict"):
        arrays[where.removeprefix("data/")] = np.zeros(6, np.float64)
    if where == "meta/score":
        meta["score"] = 0.5
    with EpisodeStore.create(other, source.attrs) as store:
        store.append(arrays, meta)
    cameras = ("hand",) if where == "images_left" else ("hand", "left")
    with pytest.raises(DatasetError, match=f"other.zarr: .*{where}: expected "):
        open_corrections(out, EpisodeStore.open(other), cameras=cameras)
    assert not out.exists()


def test_incompatible_dataset_is_rejected_before_an_episode(demos, tmp_path):
    path, same, out = demos(), {"source": "teleop, emulator"}, tmp_path / "out.zarr"
    cameras = dict.fromkeys(("hand", "left"))  # their details matter only for a new dataset
    arm = described("xarm7")
    open_store(path, arm, 10, cameras, SIZE, same).close()
    for names, size, attributes, key in (
        (cameras, 2 * SIZE, same, "images_hand"), ({"hand": None}, SIZE, same, "cameras"),
        (cameras, SIZE, {"source": "teach, arm"}, "source"),
    ):  # fmt: skip
        refuses(f"{key}: expected", open_store, path, arm, 10, names, size, attributes)
    source = EpisodeStore.open(path)
    with open_corrections(out, source, 1) as store:
        assert len(store) == 1 and not store["perturbed"].any()
        assert store.attrs["source"] == "teleop, emulator"
    open_corrections(out, source, 1).close()
    refuses("expected a dataset that begins with the 2 episodes", open_corrections, out, source)
