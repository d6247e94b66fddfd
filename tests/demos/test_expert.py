"""What the picker would do: asking it changes nothing, and the chunks of a recording are what it says."""

from pathlib import Path

import numpy as np
import pytest

from s2robot.core.errors import UserError
from s2robot.demos.record import RelabelSettings, demo_attributes, expert_chunks, record_episode, relabel
from s2robot.demos.store import EpisodeStore
from s2robot.demos.windows import make_windows
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.cube_picker import Picker, PickerConfig
from tests.inline import do_inline

ROOT = Path(__file__).resolve().parents[2]
SEED, STEPS = 500, 3  # an episode with kicks and a miss


@pytest.fixture(scope="module")
def world():
    env = CubePick(draw=False)
    return env, Picker(env, PickerConfig())


def course(world, ask: bool) -> list[tuple]:
    """All that decides each step of the episode, and what was done; asked before and after each action if `ask`."""
    env, picker = world
    env.reset(seed=SEED)
    picker.reset(SEED)
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


def test_asking_changes_nothing_of_what_follows(world):
    rows = course(world, ask=True)
    assert rows == course(world, ask=False)
    assert {"kick", "miss", ""} == {row[2] for row in rows}


def test_the_chunk_of_a_step_is_what_is_done_up_to_the_next_push_and_then_what_would_be():
    action = np.arange(5, dtype=np.float32)[:, None]  # steps 2 and 3 are pushed
    asked = {step: 10.0 * step + np.arange(3.0)[:, None] for step in (2, 3, 5)}
    chunks = expert_chunks(action, asked)
    assert chunks.dtype == np.float32
    assert chunks[:, :, 0].tolist() == [[0, 1, 20], [1, 20, 21], [20, 21, 22], [30, 31, 32], [4, 50, 51]]


@pytest.fixture(scope="module")
def labelled():
    return record_episode(CubePickConfig(), PickerConfig(), SEED, STEPS)


def test_a_recording_with_an_expert_is_the_same_recording(labelled):
    plain, meta = record_episode(CubePickConfig(), PickerConfig(), SEED)
    arrays, same = labelled
    assert meta == same and set(arrays) - set(plain) == {"expert", "imitate"}
    assert all(np.array_equal(plain[key], arrays[key]) for key in plain)
    assert arrays["expert"].shape == (len(plain["action"]), STEPS, 8)
    assert np.array_equal(arrays["imitate"], 1 - plain["perturbed"]) and arrays["imitate"].dtype == np.uint8
    kicks, _ = record_episode(CubePickConfig(), PickerConfig(misses=0.0), SEED, 1, imitate_kicks=True)
    assert kicks["perturbed"].any() and kicks["imitate"].all()


def test_the_expert_does_what_it_says(world, labelled):
    """From the start of every push, the picker that is not pushed goes the way that the chunk says."""
    (arrays, _), (env, picker) = labelled, world
    pushed = arrays["perturbed"].astype(bool)
    starts = np.flatnonzero(pushed & ~np.roll(pushed, 1))
    env.reset(seed=SEED)
    picker.reset(SEED)
    for t in range(int(starts[-1]) + 1):
        if t in starts:
            with env.rehearsal():
                other = Picker(env, PickerConfig(kicks=(0, 0), misses=0.0))
                other.reset(SEED)
                for action in arrays["expert"][t]:
                    assert np.allclose(other.act()[0], action, atol=1e-6)
                    env.step_physics(action)
        action, _ = picker.act()
        assert np.array_equal(action, arrays["action"][t])
        env.step_physics(action)
    assert len(starts) > 1


def test_an_expert_that_takes_over_closes_on_with_what_it_has(world):
    env, picker = world
    env.reset(seed=SEED, options={"cube_xy": (0.05, 0.05)})
    picker.reset(SEED)
    picker.take_over([])
    assert picker.act()[0][7] == 0
    for steps, closed in ((2, 1.0), (8, 0.0)):  # still closing: to its end; shut on nothing: open again
        for _ in range(steps):
            env.step_physics(np.array([0, 0, 0, 0, 0, 0, 0, 1.0]))
        picker.take_over([[1.0] * 8])
        assert picker.act()[0][7] == closed, env.opening
    while not env.is_success:
        env.step_physics(picker.act()[0])
    assert picker.push == ""


@pytest.fixture
def source(tmp_path, labelled, monkeypatch):
    """A dataset of one episode without an expert."""
    do_inline(monkeypatch)
    plain = {key: array for key, array in labelled[0].items() if key not in ("expert", "imitate")}
    return one(tmp_path / "source.zarr", demo_attributes(CubePickConfig(), PickerConfig(), SEED), plain)


def one(path, attributes: dict, arrays: dict) -> EpisodeStore:
    with EpisodeStore.create(path, attributes) as store:
        store.append(arrays, {"seed": SEED, "success": True})
    return store


def test_a_copy_is_labelled_as_a_recording_is(tmp_path, source, labelled):
    settings, seen = RelabelSettings(out=tmp_path / "copy.zarr", expert=STEPS), []
    copy = relabel(source, settings, lambda *c: seen.append(c))
    assert seen == [(1, 1)] and copy.attrs == source.attrs and copy.meta("seed").tolist() == [SEED]
    assert set(copy.keys) == {*source.keys, "expert", "imitate"}
    assert all(np.array_equal(copy[key], labelled[0][key]) for key in copy.keys)
    assert relabel(source, settings, lambda *c: seen.append(c)).fingerprint == copy.fingerprint
    assert len(seen) == 1  # nothing was left to do
    with pytest.raises(UserError, match="expert: expected 1, .* got 3"):
        relabel(source, settings.replace(expert=1))
    short = relabel(copy, RelabelSettings(out=tmp_path / "short.zarr", expert=1))
    assert np.array_equal(short["expert"], copy["expert"][:, :1])


def test_what_the_picker_did_not_do_is_not_labelled(tmp_path, source):
    arrays, about = source.episode(0), source.attrs
    action = arrays["action"].copy()
    action[4, 2] += 0.01
    for name, picker, changes, text in (
        ("a", about["picker"], {"action": action}, "episode 0: action: .* 0.01 away at step 4"),
        ("b", about["picker"] | {"misses": 0.0}, {}, "episode 0: .* away at step"),
        ("c", None, {}, "expected simulated demos of a scripted expert"),
        ("d", {"speeed": 1}, {}, "picker.speeed: unknown key"),
    ):
        source = one(tmp_path / name, about | {"picker": picker}, arrays | changes)
        with pytest.raises(UserError, match=text):
            relabel(source, RelabelSettings(out=tmp_path / f"{name}.out", expert=1))


def test_the_shipped_demos_hold_an_expert():
    store = EpisodeStore.open(ROOT / "demos" / "data" / "xarm7_cube.zarr")
    assert len(store) == 120 and np.array_equal(store["imitate"], 1 - store["perturbed"])
    free = store["imitate"].astype(bool)
    assert np.array_equal(store["expert"][free, 0], store["action"][free])  # it does what it says
    windows = make_windows(store, np.arange(120), 1, 16)
    assert len(windows) == free.sum() and not windows.action_pad.any()
