"""The episode store: round trips, failed writes and errors. test_record.py covers kills."""

import errno
import json
import os
import signal
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import _local

from s2robot.core.errors import UserError
from s2robot.demos import arrays as stored_arrays
from s2robot.demos import store as episode_store
from s2robot.demos.store import EpisodeStore
from tests.errors import refuses

ATTRIBUTES = {
    "robot": "xarm7", "joint_names": [f"joint{i}" for i in range(1, 8)], "rate_hz": 10, "cameras": ["hand", "left"],
    "camera_geometry": {"hand": {"size": [8, 8], "fovy": 45.0}}, "action_frame": "joint_delta_commanded",
    "env_version": "CubePick-v0", "env_config": {"cube_size": 0.04}, "seed": 3, "kind": "states",
}  # fmt: skip
IMAGES = ATTRIBUTES | {"kind": "images", "cameras": ["hand"]}


def episode(i: int, length: int | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of episode i, the same on every call."""
    rng = np.random.default_rng(i)
    length = length or 1 + i % 7
    return {"action": rng.normal(size=(length, 8)).astype("f4"), "state": rng.normal(size=(length, 5))}


def add(store: EpisodeStore, i: int) -> None:
    store.append(episode(i), {"seed": i, "success": i % 2 == 0})


def filled(path: Path, count: int, **attributes) -> Path:
    with EpisodeStore.create(path, ATTRIBUTES | attributes) as store:
        for i in range(count):
            add(store, i)
    return path


def assert_holds(store: EpisodeStore, count: int) -> None:
    assert len(store) == count
    for i in range(count):
        for key, value in store.episode(i).items():
            expected = episode(i)[key]
            assert value.dtype == expected.dtype
            np.testing.assert_array_equal(value, expected)


def error(call, *args, **kwargs) -> str:
    return str(refuses(".", call, *args, **kwargs))


def test_round_trip(tmp_path):
    store = EpisodeStore.open(filled(tmp_path / "a.zarr", 3))
    assert_holds(store, 3)
    assert store.lengths.tolist() == [1, 2, 3] and store.episode_ends.tolist() == [1, 3, 6]
    assert (store.num_steps, store.episode_slice(1), store.episode_slice(-1)) == (6, slice(1, 3), slice(3, 6))
    np.testing.assert_array_equal(store.read("state", 2, 99), store["state"][2:])
    assert (store.keys, store.meta_keys) == (("action", "state"), ("seed", "success"))
    assert store.meta("seed").tolist() == [0, 1, 2] and store.meta("success").tolist() == [True, False, True]
    assert store.attrs == {**ATTRIBUTES, "schema_version": 1}
    empty = EpisodeStore.open(filled(tmp_path / "b.zarr", 0))
    assert (len(empty), empty.num_steps, empty.keys, empty.lengths.tolist()) == (0, 0, (), [])
    assert "'action'" in error(empty.__getitem__, "action")


def test_images_and_zero_arrays(tmp_path, monkeypatch):
    """All-zero chunks are written, so that a lost chunk is never read as zeros."""
    monkeypatch.setattr(stored_arrays, "CHUNK_BYTES", 100)
    frames, folder = np.zeros((9, 16, 8, 3), np.uint8), tmp_path / "a.zarr/data/images_hand"
    frames[5] = 7
    with EpisodeStore.create(tmp_path / "a.zarr", IMAGES) as store:
        store.append({"images_hand": frames, "flag": np.zeros(9, bool)})
        np.testing.assert_array_equal(store["images_hand"], frames)
    assert {p.name for p in folder.glob("c.*")} == {f"c.{i}.0.0.0" for i in range(3)}  # four frames each
    (folder / "c.0.0.0.0").unlink()
    assert "c.0.0.0.0: " in error(EpisodeStore.open, tmp_path / "a.zarr")


FRAMES = np.random.default_rng(0).integers(0, 256, (29, 16, 8, 3), np.uint8)
SHARD = "data/images_hand/c.1.0.0.0"


def images_in_pieces(path: Path, patch, frames: int) -> EpisodeStore:
    """Store FRAMES as three episodes, in chunks of `frames` images and files of twelve."""
    patch.setattr(stored_arrays, "CHUNK_BYTES", 12 * FRAMES[0].nbytes)
    patch.setattr(stored_arrays, "FRAMES", frames)
    EpisodeStore.create(path, IMAGES).close()
    for part in np.split(FRAMES, [5, 6]):
        with EpisodeStore.open(path, "a") as store:
            store.append({"images_hand": part})
    return EpisodeStore.open(path, "a")


# 99: the older layout, which existing datasets keep; small chunks, several or one a file
@pytest.mark.parametrize("frames", [99, 3, 12])
def test_chunked_image_frames(tmp_path, monkeypatch, frames):
    """Any range can be read, zarr reads the files, the fingerprint is fixed, and a full disk loses no earlier frame."""
    store = images_in_pieces(tmp_path / "a.zarr", monkeypatch, frames)
    assert store.fingerprint[:8] == "630c6126"
    monkeypatch.setattr(stored_arrays, "FRAMES", 4)
    with monkeypatch.context() as patch:
        failing_put(patch, 1, errno.ENOSPC)  # the first write is the array's length
        assert "3 earlier episodes are intact" in error(store.append, {"images_hand": FRAMES[:9]})
    store.append({"images_hand": FRAMES[:2]})
    array, expected = zarr.open_array(store.path / "data/images_hand"), np.concatenate([FRAMES, FRAMES[:2]])
    assert (array.chunks[0], (array.shards or array.chunks)[0]) == (min(frames, 12), 12)
    np.testing.assert_array_equal(array[:], expected)
    for start, stop in [*((i, i + 1) for i in range(31)), (0, 29), (2, 13), (11, 12), (7, 7), (28, 99)]:
        frames_read = EpisodeStore.open(store.path).read("images_hand", start, stop)
        np.testing.assert_array_equal(frames_read, expected[start:stop])


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (SHARD, lambda content: content[:-68] + b"\xff" * 68),  # chunks that were never written
        (SHARD, lambda content: content[:-52] + (1 << 40).to_bytes(8, "little") + content[-44:]),
        (SHARD, lambda content: content[:40]),
        (SHARD, lambda content: content[:1166] + content[-68:-52] * 4 + content[-4:]),  # shared bytes
        (SHARD, lambda content: flip(content)),
        (SHARD, None),  # a named pipe would block on open
        ("data/images_hand/zarr.json", lambda content: content.replace(b'"end"', b'"start"')),
        ("data/images_hand/zarr.json", lambda content: content.replace(b'"zstd"', b'"blosc"')),
    ],
)
def test_damaged_shards(tmp_path, monkeypatch, file, change):
    broken = images_in_pieces(tmp_path / "a.zarr", monkeypatch, 3).path / file
    content = broken.read_bytes()
    broken.unlink()
    broken.write_bytes(change(content)) if change else os.mkfifo(broken)
    assert f"{file}: " in error(EpisodeStore.open, tmp_path / "a.zarr")


@settings(max_examples=6, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 11), st.booleans()), min_size=1, max_size=8))
def test_append_and_reopen(steps):
    """Episodes of any length across many chunk boundaries; the store is reopened at any point."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_arrays, "CHUNK_BYTES", 160)  # 5 rows of action, 4 of state
        patch.setattr(stored_arrays, "ENDS_CHUNK", 3)
        store = EpisodeStore.create(Path(folder) / "a.zarr", ATTRIBUTES)
        for i, (length, reopen) in enumerate(steps):
            store.append(episode(i, length), {"seed": i})
            if reopen:
                store.close()
                store = EpisodeStore.open(store.path, "a")
        read = EpisodeStore.open(store.path)
        assert read.lengths.tolist() == [length for length, _ in steps]
        expected = [episode(i, length) for i, (length, _) in enumerate(steps)]
        for key in read.keys:
            np.testing.assert_array_equal(read[key], np.concatenate([e[key] for e in expected]))
        assert read.meta("seed").tolist() == list(range(len(steps)))
        merged = EpisodeStore.create(Path(folder) / "b.zarr", ATTRIBUTES)
        merged.append_all(read)
        assert merged.fingerprint == read.fingerprint
        merged.append_all(merged)
        assert len(EpisodeStore.open(merged.path)) == 2 * len(steps)


def test_fingerprint(tmp_path, monkeypatch):
    full = EpisodeStore.open(filled(tmp_path / "a.zarr", 4))
    first = full.fingerprint_of_first(3)
    assert first != EpisodeStore.open(filled(tmp_path / "b.zarr", 3, seed=4)).fingerprint
    with EpisodeStore.create(tmp_path / "other.zarr", ATTRIBUTES) as store:
        for i in (0, 1, 9):  # as long as episode 2, with different contents
            store.append(episode(i), {"seed": i % 7, "success": i != 1})
        assert store.fingerprint != first
    monkeypatch.setattr(stored_arrays, "CHUNK_BYTES", 64)  # another layout of files
    with EpisodeStore.open(filled(tmp_path / "c.zarr", 0), "a") as store:
        for i in range(5):  # equals the fingerprint that the store had then
            assert store.fingerprint == full.fingerprint_of_first(i), i
            add(store, i)
        assert store.fingerprint != full.fingerprint == full.fingerprint_of_first(9)


def test_split(tmp_path):
    store = EpisodeStore.open(filled(tmp_path / "a.zarr", 10))
    assert store.split(0.2, seed=1)[0].tolist() == store.split(0.2, seed=1)[0].tolist()
    for fraction, held_out in ((0.0, 0), (0.01, 1), (0.2, 2), (1.0, 9)):
        train, validation = store.split(fraction, seed=1)
        assert len(validation) == held_out and sorted([*train, *validation]) == list(range(10))
    for fraction, seed in product((0.2, 0.5), range(5)):  # spent episodes are never held out
        train, validation = store.split(fraction, seed, None, [0, 2, 3, 7])
        assert {*validation} <= {1, 4, 5, 6, 8, 9} and len(validation) == round(10 * fraction)
        assert sorted([*train, *validation]) == list(range(10))
        train, validation = store.split(fraction, seed, None, range(1, 10))
        assert validation.tolist() == [0] and train.tolist() == list(range(1, 10))
    assert "expected unseen episodes to hold out" in error(store.split, 0.5, 0, [1, 2], [1, 2])
    assert "got 1" in error(EpisodeStore.open(filled(tmp_path / "b.zarr", 1)).split, 0.5, 0)


def failing_put(monkeypatch, fail_at: int, code: int) -> list[int]:
    """Make every zarr write after the first `fail_at` leave half a temporary file and fail."""
    calls, put = [0], _local._put

    def write(path, value, exclusive=False):
        calls[0] += 1
        if calls[0] > fail_at:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".0123.partial").write_bytes(b"half")
            raise OSError(code, os.strerror(code))
        return put(path, value, exclusive)

    monkeypatch.setattr(_local, "_put", write)
    return calls


@pytest.mark.parametrize("before", [0, 2])
def test_failed_write_loses_only_one_episode(tmp_path, monkeypatch, before):
    """The k-th write fails, for every k; the same store and a reopened one can both continue."""
    fail_at, done = 0, False
    while not done:
        path = filled(tmp_path / f"{fail_at}.zarr", before)
        store = EpisodeStore.open(path, "a")
        with monkeypatch.context() as patch:
            calls = failing_put(patch, fail_at, errno.ENOSPC)
            try:
                add(store, before)
                done = True
            except UserError as caught:
                assert "disk is full" in str(caught)
                assert f"{before} earlier episodes are intact" in str(caught)
        assert_holds(EpisodeStore.open(path), before + done)  # a reader, before any repair
        if fail_at % 2:
            store.close()
            store = EpisodeStore.open(path, "a")
            assert not list(path.rglob("*.partial"))
            assert zarr.open_group(path, mode="r")["meta/episode_ends"].shape == (before + done,)
        for i in range(before + done, before + 3):
            add(store, i)
        assert_holds(EpisodeStore.open(path), before + 3)
        fail_at += 1
    assert calls[0] >= 10  # two writes for each of five arrays: all have failed once


def test_late_file_of_a_failed_write_is_overwritten(tmp_path, monkeypatch):
    """zarr's threads outlive a failed write and may recreate an array after its removal."""
    store = EpisodeStore.open(filled(tmp_path / "late.zarr", 0), "a")
    with monkeypatch.context() as patch:
        failing_put(patch, 11, errno.ENOSPC)
        assert "disk is full" in error(add, store, 0)
    assert (store.path / "meta/success/zarr.json").exists() or (store.path / "data/action/zarr.json").exists()
    monkeypatch.setattr("s2robot.demos.arrays.shutil.rmtree", lambda folder: None)
    add(store, 0)
    assert_holds(EpisodeStore.open(store.path), 1)


def test_single_writer_overwrites_nothing(tmp_path):
    path = filled(tmp_path / "a.zarr", 2)
    first = EpisodeStore.open(path, "a")
    assert "another writer" in error(EpisodeStore.open, path, "a")
    assert len(EpisodeStore.open(path)) == 2
    first.close()
    EpisodeStore.open(path, "a").close()
    assert "mode 'a'" in error(add, first, 1)
    assert "nothing was overwritten" in error(EpisodeStore.create, path, ATTRIBUTES)
    assert_holds(EpisodeStore.open(path), 2)
    (tmp_path / "file").write_text("mine")
    assert "nothing was overwritten" in error(EpisodeStore.create, tmp_path / "file", ATTRIBUTES)
    assert "nothing was written" in error(EpisodeStore.create, tmp_path / "file" / "b.zarr", ATTRIBUTES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "file"]


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    if not (child := os.fork()):
        with stored_arrays.new_path(tmp_path / "a") as part:
            part.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len([*tmp_path.glob(".*/a")]) == 1
    with stored_arrays.new_path(tmp_path / "b") as part:
        part.touch()
        with stored_arrays.new_path(tmp_path / "c") as other:
            other.touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "c"]
    with pytest.raises(UserError, match="d: exists already"), stored_arrays.new_path(tmp_path / "d") as part:
        part.mkdir()
        (tmp_path / "c").rename(tmp_path / "d")  # another writer was faster


def test_wrong_attributes(tmp_path):
    for name, value in (
        ("robot", 7), ("cameras", ["hand", "hand"]), ("rate_hz", 0), ("seed", True), ("kind", "video"), ("schema_version", 2),
        ("env_config", {"a": {1, 2}}), ("env_config", {"a": float("nan")}), ("arrays", {}), ("action_parts", "joints"),
        ("joint_names", list("abcdef")),
    ):  # fmt: skip
        about = {**ATTRIBUTES, name: value}
        assert f"a.zarr: {name}" in error(EpisodeStore.create, tmp_path / "a.zarr", about)
    assert not list(tmp_path.iterdir())


META = {"seed": 1, "success": True}


def test_wrong_episodes(tmp_path):
    path = filled(tmp_path / "a.zarr", 1)
    store = EpisodeStore.open(path, "a")  # a failure changes nothing for the next one
    for arrays, meta, message in (
        ({**episode(0, 5), "action": np.full((5, 8), np.nan, "f4")}, META, "episode 1: action: expected finite numbers, got nan"),
        ({**episode(0, 5), "state": np.zeros((4, 5))}, META, "action (5, 8), state (4, 5)"),
        ({**episode(0, 5), "action": np.zeros((5, 8))}, META, "data/action: expected float32 rows of [8]"),
        ({**episode(0, 5), "state": np.zeros((5, 6))}, META, "data/state: expected float64 rows of [5]"),
        ({"action": episode(0)["action"]}, META, "data/state: expected float64 rows of [5], got none"),
        ({**episode(0), "more": np.zeros(1)}, META, "data/more: expected none"),
        (episode(0), {"seed": 1.5, "success": True}, "meta/seed: expected int64 rows of [], got float64"),
        (episode(0), {"seed": "x", "success": True}, "meta/seed: expected numbers"),
        ({"action": np.zeros((0, 8), "f4")}, META, "got action (0, 8)"),
        ({"../action": np.zeros(3)}, META, "got 'data/../action'"),
        (episode(0), {"episode_ends": 1}, "got 'meta/episode_ends'"),
        ({}, {}, "got none"),
    ):  # fmt: skip
        assert message in error(store.append, arrays, meta)
    assert_holds(EpisodeStore.open(path), 1)


def test_check_and_merge(tmp_path, monkeypatch):
    monkeypatch.setattr(episode_store, "PIECE_BYTES", 1)  # copy row by row
    with EpisodeStore.open(filled(tmp_path / "a.zarr", 2), "a") as store:
        store.check(robot="xarm7", action_frame="joint_delta_commanded", cameras=["left"], rate_hz=10)
        store.check()
        others = {"robot": "panda", "action_frame": "x", "rate_hz": 20, "cameras": ["left", "up"]}
        for key, other in others.items():
            assert f"a.zarr: {key}: expected" in error(store.check, **{key: other})
        store.append_all(EpisodeStore.open(filled(tmp_path / "b.zarr", 2, seed=9)))
        assert store.lengths.tolist() == [1, 2, 1, 2]
        unlike = EpisodeStore.open(filled(tmp_path / "c.zarr", 2, robot="panda"))
        assert "c.zarr: robot: expected xarm7" in error(store.append_all, unlike) and len(store) == 4


def as_json(change):
    """Return a function that applies `change` to the JSON in a file's bytes."""

    def edit(content: bytes) -> bytes:
        change(about := json.loads(content))
        return json.dumps(about).encode()

    return edit


def attributes(change):
    return as_json(lambda about: change(about["attributes"]))


def flip(content: bytes) -> bytes:
    return content[:60] + bytes([content[60] ^ 0x55]) + content[61:]


REMOVED = ("data/action/zarr.json", "meta/episode_ends/zarr.json", "meta/episode_ends/c.0", "data/action/c.0.0", "zarr.json")  # fmt: skip
VERSION = "zarr.json: schema_version: expected 1, got"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        *((name, None, f"{name}: ") for name in REMOVED),
        ("data/action/zarr.json", as_json(lambda about: about.update(shape=[4, 8])), "data/action: expected 6"),
        ("meta/seed/zarr.json", as_json(lambda about: about.update(shape=[2])), "meta/seed: expected 3"),
        ("zarr.json", attributes(lambda a: a.update(schema_version=2)), f"{VERSION} 2"),
        ("zarr.json", attributes(lambda a: a.pop("schema_version")), "zarr.json: expected an episode store"),
        ("zarr.json", attributes(lambda a: a.pop("robot")), "a.zarr: robot: expected a value"),
        ("zarr.json", attributes(lambda a: a.update(arrays={"meta/seed": 1})), "zarr.json: expected arrays"),
        ("zarr.json", attributes(lambda a: a.update(arrays={"data/more": 1})), "data/more/zarr.json: cannot be read"),
        ("zarr.json", lambda content: content[:40], "zarr.json: cannot be read"),
        ("zarr.json", lambda _: b"[]", "zarr.json: expected keys and values"),
        ("data/state/zarr.json", lambda _: b"{}", "data/state/zarr.json: expected numbers"),
        ("data/action/c.0.0", lambda content: content[:30], "data/action/c.0.0: "),
        ("data/action/c.0.0", lambda _: b"", "data/action/c.0.0: "),
        ("data/state/c.0.0", flip, "data/state/c.0.0: "),
    ],
)  # fmt: skip
def test_damaged_datasets(tmp_path, file, change, message):
    path = filled(tmp_path / "a.zarr", 3)
    (path / file).write_bytes(change((path / file).read_bytes())) if change else (path / file).unlink()
    before = {f: f.read_bytes() for f in path.rglob("*") if f.is_file()}
    for mode in "ra":
        assert message in error(EpisodeStore.open, path, mode)
        assert before == {f: f.read_bytes() for f in path.rglob("*") if f.is_file()}  # no file changes


def test_decreasing_ends_and_large_arrays_verified_on_read(tmp_path, monkeypatch):
    path = filled(tmp_path / "a.zarr", 3)
    file, ends = path / "data/state/c.0.0", zarr.open_group(path, mode="r+")["meta/episode_ends"]
    ends[:] = [1, 6, 3]
    assert "meta/episode_ends: expected increasing ends" in error(EpisodeStore.open, path)
    ends[:] = [1, 3, 6]
    file.write_bytes(flip(file.read_bytes()))
    monkeypatch.setattr(stored_arrays, "VERIFY_BYTES", 100)
    store = EpisodeStore.open(path)
    assert "data/state/c.0.0: " in error(store.episode, 1)
    assert store["action"].shape == (6, 8)


TURN = {"name": "turn", "size": 3, "kind": "rotation", "form": "axis_angle", "relative": True}
ARM = [{"name": "position", "size": 3, "kind": "delta", "low": [-0.05] * 3, "high": [0.05] * 3}, TURN,
       {"name": "gripper", "size": 1, "kind": "binary"}]  # fmt: skip
POSE = [{"name": "pose", "size": 9, "kind": "absolute"}]
PARTS = ATTRIBUTES | {"joint_names": [], "action_parts": ARM, "proprio_parts": POSE}


def test_unusable_data_is_rejected_on_append(tmp_path):
    for i, (about, arrays, text) in enumerate((
        (ATTRIBUTES, {"action": np.zeros((3, 7), "f4")}, "action: expected floats (T, 8)"),
        (ATTRIBUTES, {"expert": np.zeros((3, 2, 7), "f4")}, "expert: expected floats (T, K, 8)"),
        (ATTRIBUTES, {"proprio": np.zeros((3, 7))}, "proprio: expected floats (T, 8)"),
        (IMAGES, {"action": np.zeros((3, 8))}, "images_hand: expected uint8"),
        (IMAGES, {"images_hand": np.zeros((3, 3, 8, 8), "u1")}, "images_hand: expected uint8"),
        (IMAGES, {"images_hand": np.zeros((3, 8, 8, 3), "f4")}, "images_hand: expected uint8"),
        (PARTS, {"action": np.full((3, 7), 0.06, "f4")}, "action: part 'position' of step 0"),
        (PARTS, {"action": np.zeros((3, 8), "f4")}, "action: expected floats (T, 7)"),
        (PARTS, {"expert": np.full((3, 4, 7), 0.1, "f4")}, "expert: part 'position' of step 0"),
    )):  # fmt: skip
        with EpisodeStore.create(tmp_path / f"{i}.zarr", about) as store:
            assert f"episode 0: {text}" in error(store.append, arrays) and len(store) == 0
            action = np.zeros((3, 7 if about is PARTS else 8), "f4")
            store.append({"action": action, "images_hand": np.zeros((3, 48, 64, 3), "u1")})
            assert len(store) == 1
