"""Recording, re-rendering and replaying give the same bytes and motion, also after kills; expert labels."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from s2robot.core.errors import UserError
from s2robot.demos import record as recorder
from s2robot.demos import replay
from s2robot.demos.record import RecordingSettings, record, record_episode, relabel
from s2robot.demos.replay import camera_sizes, drawn_by, episode_frames, replay_episode, world_of_demos
from s2robot.demos.store import EpisodeStore
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.cube_picker import Picker, PickerConfig
from tests import forks
from tests.demos.test_store import ATTRIBUTES
from tests.errors import refuses
from tests.inline import do_inline
from tests.kills import kill_at_every_write

CAMERAS, SIZE = ("hand", "left", "right"), 64


def record_here(path: Path, seed: int, **world) -> EpisodeStore:
    """Record one episode in this process."""
    config = CubePickConfig(**world)
    with EpisodeStore.create(path, {**CubePick(config).describe(), "seed": seed, "kind": "states"}) as store:
        store.append(*record_episode(config, PickerConfig(), seed))
    return store


def test_contents_of_a_recording(recorded):
    store = EpisodeStore.open(recorded)
    assert list(store.meta("seed")) == [500, 501, 502] and store.meta("success").all()
    assert store.robot == "xarm7" and store.cameras == CAMERAS and store.attrs["kind"] == "states"
    assert set(store.keys) == {"state", "proprio", "cube_pose", "action", "perturbed"}
    assert world_of_demos(store).model_dump_json() == CubePickConfig().model_dump_json()
    assert world_of_demos(store, cameras=("left",)).cameras == ("left",)


def test_unreachable_box_is_one_error_line(inline, tmp_path):
    far = CubePickConfig(box_x=(0.5, 0.5), max_steps=2)
    with pytest.raises(UserError, match=r"the expert failed 11 of 11 episodes; check the task"):
        record(tmp_path / "far.zarr", far, PickerConfig(), 1, 0, 1)


KILLED = """
import os, signal, sys
from s2robot.demos.record import record
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_picker import PickerConfig
kill = lambda done, failed: os.kill(os.getpid(), signal.SIGKILL)
if __name__ == '__main__':
    record(sys.argv[1], CubePickConfig(), PickerConfig(), 40, 500, 1, kill)
"""


def test_a_killed_recording_keeps_its_episodes_and_leaves_no_worker(tmp_path):
    file, path = tmp_path / "killed.py", tmp_path / "demos.zarr"
    file.write_text(KILLED)
    env = os.environ | {forks.ALL: "1"}
    # the pipe closes only after all workers have exited
    done = forks.run([sys.executable, str(file), str(path)], env=env, stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == -signal.SIGKILL
    with EpisodeStore.open(path, mode="a") as store:
        assert list(store.meta("seed")) == [500] and not list(tmp_path.glob(".*"))


def skip_simulation(monkeypatch) -> None:
    """Replace simulated episodes with a few random numbers; every third seed fails."""

    def episode(world: CubePickConfig, picker: PickerConfig, seed: int, *how) -> tuple[dict, dict]:
        rng = np.random.default_rng(seed)
        arrays = {"state": rng.random((3, 5)), "action": rng.random((3, 8), np.float32)}
        return arrays, {"seed": seed, "success": seed % 3 != 2}

    def attributes(world: CubePickConfig, picker: PickerConfig, seed: int) -> dict:
        return ATTRIBUTES | {"seed": seed, "picker": picker.model_dump()}

    monkeypatch.setattr(recorder, "demo_attributes", attributes)
    do_inline(monkeypatch)
    monkeypatch.setattr(recorder, "record_episode", episode)


def record_two_episodes(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        skip_simulation(patch)
        record(folder / "demos.zarr", CubePickConfig(), PickerConfig(), 2, 500, 1).close()


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_recording_resumes_identically_after_a_kill_at_any_write(tmp_path, every):
    def files(folder: Path) -> dict[str, bytes]:
        return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}

    killed = kill_at_every_write(record_two_episodes, tmp_path, every)
    expected = files(tmp_path / "whole")
    assert len(killed) > 20 / every and len(EpisodeStore.open(tmp_path / "whole/demos.zarr")) == 2
    for write, folder in killed.items():
        assert files(folder) == expected, write


def test_recording_resumes_only_in_its_own_store(tmp_path, monkeypatch):
    skip_simulation(monkeypatch)
    path, args = tmp_path / "demos.zarr", (CubePickConfig(), PickerConfig())
    record(path, *args, 4, 500).close()
    before = EpisodeStore.open(path).fingerprint
    for world, picker, episodes, seed, more, text in (
        (*args, 4, 501, {}, "seed: expected 501, or a new path, got 500; nothing was overwritten"),
        (*args, 3, 500, {}, "episodes: expected 3, .* got 4"),
        (args[0], PickerConfig(misses=0.0), 4, 500, {}, "picker.*: expected "),
        (*args, 4, 500, {"imitate_kicks": True}, "imitate_kicks: expected True, .* got None"),
    ):
        refuses(f"demos.zarr: {text}", record, path, world, picker, episodes, seed, **more)
    assert EpisodeStore.open(path).fingerprint == before
    EpisodeStore.create(tmp_path / "empty.zarr", ATTRIBUTES).close()
    record(tmp_path / "empty.zarr", *args, 4, 500).close()  # a failed recording does not block its path
    assert EpisodeStore.open(tmp_path / "empty.zarr").fingerprint == before
    (tmp_path / "file.zarr").write_text("mine")
    refuses("file.zarr: expected a new path", record, tmp_path / "file.zarr", *args, 4, 500)
    record(path, *args, 6, 500).close()  # a recording can be extended
    record(tmp_path / "long.zarr", *args, 6, 500).close()
    assert EpisodeStore.open(path).fingerprint == EpisodeStore.open(tmp_path / "long.zarr").fingerprint
    assert list(EpisodeStore.open(path).meta("seed")) == [501, 502, 504, 505, 507, 508]


def test_replay_is_exact_and_detects_wrong_actions(recorded, tmp_path):
    store = EpisodeStore.open(recorded)
    env = CubePick(world_of_demos(store), draw=False)
    for i in (2, 0):  # in any order: a replay does not depend on earlier ones
        replayed = replay_episode(store, env, i)
        assert replayed == {"success": True, "stage": "held", "steps": store.lengths[i], "max_error": 0.0}
    with EpisodeStore.create(tmp_path / "wrong.zarr", store.attrs) as wrong:
        arrays = store.episode(0)
        arrays["action"][:, 1] *= -1  # another sign convention
        wrong.append(arrays, {"seed": 500, "success": True})
    result = replay_episode(wrong, env, 0)
    assert not result["success"] and result["max_error"] > 0.01
    panda = record_here(tmp_path / "panda.zarr", 31, robot="panda")
    result = replay_episode(panda, CubePick(world_of_demos(panda), draw=False), 0)
    assert result["success"] and result["max_error"] == 0.0


@pytest.mark.parametrize("robot", ["xarm7", pytest.param("panda", marks=pytest.mark.slow)])
def test_rerendered_images_equal_the_live_ones(tmp_path, robot):
    store = record_here(tmp_path / "one.zarr", 31, robot=robot, max_steps=12)
    env = CubePick(CubePickConfig(robot=robot, image_size=SIZE, max_steps=12))
    observation, _ = env.reset(seed=31)
    picker = Picker(env, PickerConfig())
    picker.begin(np.random.default_rng([31, 7]))
    live = []
    for _ in range(store.num_steps):
        live.append(np.stack(list(observation["images"].values())))
        observation, *_ = env.step(picker.act()[0])
    env.close()
    rendered = episode_frames(store.path, 0, CAMERAS, SIZE)
    assert all(frames.shape == (12, SIZE, SIZE, 3) and frames.dtype == np.uint8 for frames in rendered)
    assert np.array_equal(np.stack(rendered, 1), np.stack(live))
    (left,) = episode_frames(store.path, 0, ("left",), SIZE)
    assert np.array_equal(left, rendered[1])
    tall = {"hand": SIZE, "left": (SIZE, 2 * SIZE), "right": SIZE}
    hand, wide, _ = episode_frames(store.path, 0, CAMERAS, tall)
    assert np.array_equal(hand, rendered[0]) and wide.shape[1:3] == (SIZE, 2 * SIZE)


def test_renderer_facts_identify_the_frames(recorded, tmp_path, monkeypatch):
    store = EpisodeStore.open(recorded)
    current = drawn_by(store)
    assert current == drawn_by(store) and {"mujoco", "robosuite", "look", "opengl", "robot"} == set(current)
    monkeypatch.setattr(replay, "version", lambda name: "another")
    assert drawn_by(store) != current
    monkeypatch.setitem(sys.modules, "s2robot.envs.renderer", None)  # as if the simulator were not installed
    assert drawn_by(store) is None


def test_recorded_images_keep_the_size_of_each_camera(recorded, tmp_path):
    rng = np.random.default_rng(0)
    sizes = {"a": (6, 8), "b": (9, 6), "c": (4, 4)}
    images = {name: rng.integers(0, 256, (2, *size, 3), np.uint8) for name, size in sizes.items()}
    attributes = {**EpisodeStore.open(recorded).attrs, "kind": "images", "cameras": ["a", "b", "c"]}
    path = tmp_path / "images.zarr"
    with EpisodeStore.create(path, attributes) as store:
        arrays = {f"images_{name}": frames for name, frames in images.items()}
        store.append({**arrays, "action": np.zeros((2, 8), np.float32)}, {"seed": 0})
    for rendered, name in zip(episode_frames(path, 0, ("c", "a"), 6), "ca", strict=True):
        assert np.array_equal(rendered, images[name])
    store = EpisodeStore.open(path)
    assert camera_sizes(store, ("c", "a")) == {"c": (4, 4), "a": (6, 8)} and drawn_by(store) == {}
    assert camera_sizes(EpisodeStore.open(recorded), ("hand",)) == {"hand": (256, 256)}
    words = "cameras: expected 'top' among them, got hand,left,right"
    with pytest.raises(UserError, match=words):
        next(replay.render_episodes(EpisodeStore.open(recorded), [0], ("hand", "top"), 32, workers=1))
    refuses(words, episode_frames, recorded, 0, ("top",), 32)


SEED, STEPS = 500, 3  # an episode with kicks and a miss


@pytest.fixture(scope="module")
def world():
    env = CubePick(draw=False)
    return env, Picker(env, PickerConfig())


def trace_episode(world, ask: bool) -> list[tuple]:
    """Return the full state and action of every step; query the expert before and after each action if `ask`."""
    env, picker = world
    env.reset(seed=SEED)
    picker.begin(np.random.default_rng([SEED, 7]))
    query = picker.ask if ask else lambda steps: None
    rows: list[tuple] = []
    while not env.is_success:
        query(STEPS)
        action, push = picker.act()
        query(STEPS)
        env.step_physics(action)
        state = env.get_state().tobytes(), picker._ik.q.tobytes(), str(picker._rng.bit_generator.state)
        state += env.data.contact.geom[: env.data.ncon].tobytes(), env.stage, env._held_steps, env._steps
        rows.append((action.tobytes(), push, picker.push, picker.remember(), *state))
    return rows


def test_querying_the_expert_does_not_change_the_episode(world):
    rows = trace_episode(world, ask=True)
    assert rows == trace_episode(world, ask=False)
    assert {"kick", "miss", ""} == {row[2] for row in rows}


def test_chunk_follows_the_recording_until_the_next_push_then_the_expert():
    action = np.arange(5, dtype=np.float32)[:, None]  # steps 2 and 3 are pushed
    expert = {step: 10.0 * step + np.arange(3.0)[:, None] for step in (2, 3, 5)}
    chunks = recorder.expert_chunks(action, expert)
    assert chunks.dtype == np.float32
    assert chunks[:, :, 0].tolist() == [[0, 1, 20], [1, 20, 21], [20, 21, 22], [30, 31, 32], [4, 50, 51]]


@pytest.fixture(scope="module")
def labelled():
    return record_episode(CubePickConfig(), PickerConfig(), SEED, STEPS)


def test_expert_labels_do_not_change_the_recording(labelled):
    plain, meta = record_episode(CubePickConfig(), PickerConfig(), SEED)
    arrays, same = labelled
    assert meta == same and set(arrays) - set(plain) == {"expert", "imitate"}
    assert all(np.array_equal(plain[key], arrays[key]) for key in plain)
    assert arrays["expert"].shape == (len(plain["action"]), STEPS, 8)
    assert np.array_equal(arrays["imitate"], 1 - plain["perturbed"]) and arrays["imitate"].dtype == np.uint8
    kicks, _ = record_episode(CubePickConfig(), PickerConfig(misses=0.0), SEED, 1, imitate_kicks=True)
    assert kicks["perturbed"].any() and kicks["imitate"].all()


def test_expert_executes_the_chunks_it_predicts(world, labelled):
    """From the start of every push, an unperturbed picker executes the predicted chunk."""
    (arrays, _), (env, picker) = labelled, world
    pushed = arrays["perturbed"].astype(bool)
    starts = np.flatnonzero(pushed & ~np.roll(pushed, 1))
    env.reset(seed=SEED)
    picker.begin(np.random.default_rng([SEED, 7]))
    for t in range(int(starts[-1]) + 1):
        if t in starts:
            with env.rehearsal():
                other = Picker(env, PickerConfig(kicks=(0, 0), misses=0.0))
                other.begin(np.random.default_rng([SEED, 7]))
                for action in arrays["expert"][t]:
                    assert np.allclose(other.act()[0], action, atol=1e-6)
                    env.step_physics(action)
        action, _ = picker.act()
        assert np.array_equal(action, arrays["action"][t])
        env.step_physics(action)
    assert len(starts) > 1


def test_expert_takeover_continues_from_the_gripper_state(world):
    env, picker = world
    env.reset(seed=SEED, options={"cube_xy": (0.05, 0.05)})
    picker.begin(np.random.default_rng([SEED, 7]))
    picker.take_over([])
    assert picker.act()[0][7] == 0
    for steps, closed in ((2, 1.0), (8, 0.0)):  # half closed: finish closing; closed on nothing: reopen
        for _ in range(steps):
            env.step_physics(np.array([0, 0, 0, 0, 0, 0, 0, 1.0]))
        picker.take_over([[1.0] * 8])
        assert picker.act()[0][7] == closed, env.opening
    while not env.is_success:
        env.step_physics(picker.act()[0])
    assert picker.push == ""


@pytest.fixture
def source(inline, tmp_path, labelled):
    """A dataset of one episode without expert labels."""
    plain = {key: array for key, array in labelled[0].items() if key not in ("expert", "imitate")}
    attributes = recorder.demo_attributes(CubePickConfig(), PickerConfig(), SEED)
    return as_store(tmp_path / "source.zarr", attributes, plain)


def as_store(path, attributes: dict, arrays: dict) -> EpisodeStore:
    with EpisodeStore.create(path, attributes) as store:
        store.append(arrays, {"seed": SEED, "success": True})
    return store


def test_relabelled_copy_equals_a_labelled_recording(tmp_path, source, labelled):
    settings, progress = RecordingSettings(expert=STEPS), []
    copy = relabel(source, tmp_path / "copy.zarr", settings, lambda *c: progress.append(c))
    assert progress == [(1, 1)] and copy.attrs == source.attrs and copy.meta("seed").tolist() == [SEED]
    assert set(copy.keys) == {*source.keys, "expert", "imitate"}
    assert all(np.array_equal(copy[key], labelled[0][key]) for key in copy.keys)
    again = relabel(source, tmp_path / "copy.zarr", settings, lambda *c: progress.append(c))
    assert again.fingerprint == copy.fingerprint and len(progress) == 1  # nothing was left to do
    with pytest.raises(UserError, match="expert: expected 1, .* got 3"):
        relabel(source, tmp_path / "copy.zarr", settings.replace(expert=1))
    kicks = as_store(tmp_path / "kicks.zarr", source.attrs | {"imitate_kicks": True}, copy.episode(0))
    short = relabel(kicks, tmp_path / "short.zarr", RecordingSettings(expert=1))
    assert short.attrs == source.attrs and np.array_equal(short["expert"], copy["expert"][:, :1])


def test_relabelling_rejects_episodes_the_picker_did_not_record(tmp_path, source):
    arrays, about = source.episode(0), source.attrs
    action = arrays["action"].copy()
    action[4, 2] += 0.01
    for name, picker, changes, text in (
        ("a", about["picker"], {"action": action}, "episode 0: action: .* difference of 0.01 at step 4"),
        ("b", about["picker"] | {"misses": 0.0}, {}, "episode 0: .* difference of .* at step"),
        ("c", None, {}, "expected simulated demos of a scripted expert"),
        ("d", {"speeed": 1}, {}, "picker.speeed: unknown key"),
    ):
        source = as_store(tmp_path / name, about | {"picker": picker}, arrays | changes)
        refuses(text, relabel, source, tmp_path / f"{name}.out", RecordingSettings(expert=1))
