"""Our episodes as robomimic's file: what lies where, actions within -1..1, masks, and the same store when it comes back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from s2robot.demos.errors import DatasetError
from s2robot.demos.formats.convert import convert
from s2robot.demos.formats.export import ExportSettings
from s2robot.demos.formats.source import Choice
from s2robot.demos.formats.write_robomimic import write
from s2robot.demos.store import EpisodeStore
from tests.demos.formats import made

ROOT = Path(__file__).resolve().parents[3]


def written(store: EpisodeStore, path: Path, **settings) -> Path:
    write(store, path, ExportSettings(**settings), lambda *n: None)
    return path


def limited(low: float, high: float) -> dict:
    """A store's parts, with limits of the joints."""
    joints, gripper = made.PARTS["action_parts"]
    return {"action_parts": [{**joints, "low": [low] * 2, "high": [high] * 2}, gripper]}


@pytest.fixture
def store(tmp_path):
    return made.store(tmp_path / "in.zarr", **limited(-4, 6))


def test_what_a_file_holds(tmp_path, store):
    done = []
    write(store, tmp_path / "out.hdf5", ExportSettings(valid=0.5), lambda *n: done.append(n))
    assert done[-1] == (sum(made.LENGTHS),) * 2
    with h5py.File(tmp_path / "out.hdf5") as file:
        data, masks = file["data"], {k: file["mask"][k][:].tolist() for k in file["mask"]}
        assert data.attrs["total"] == sum(made.LENGTHS) and list(data) == ["demo_0", "demo_1"]
        assert json.loads(data.attrs["env_args"])["env_name"] == "mine"
        assert sorted(masks["train"] + masks["valid"]) == [b"demo_0", b"demo_1"]
        demo, episode = data["demo_1"], store.episode(1)
        assert demo.attrs["num_samples"] == made.LENGTHS[1]
        assert demo["dones"][:].tolist() == [0] * 6 + [1] and demo["rewards"][:].tolist() == [0] * 6 + [1]
        assert data["demo_0/rewards"][:].sum() == 0  # it did not succeed
        joints = demo["actions"][:, :2] * 5 + 1  # -4 to 6
        np.testing.assert_allclose(joints, episode["action"][:, :2], rtol=1e-6)
        np.testing.assert_array_equal(demo["actions"][:, 2], episode["action"][:, 2] * 2 - 1)
        np.testing.assert_array_equal(demo["obs/pose"], episode["proprio"])
        for camera in made.CAMERAS:
            np.testing.assert_array_equal(demo[f"obs/{camera}_image"], episode[f"images_{camera}"])
            assert demo[f"obs/{camera}_image"].chunks[0] == 1


def test_a_store_comes_back_as_it_was(tmp_path, store):
    convert(written(store, tmp_path / "out.hdf5"), tmp_path / "back.zarr")
    assert EpisodeStore.open(tmp_path / "back.zarr").fingerprint == store.fingerprint


def test_another_reads_it_by_its_habits(tmp_path, store):
    """Without what only we write, the file is one of robomimic's."""
    path = written(store, tmp_path / "out.hdf5")
    with h5py.File(path, "a") as file:
        del file["data"].attrs["s2robot"]
    convert(path, tmp_path / "back.zarr", Choice(cameras=("hand",)))
    back = EpisodeStore.open(tmp_path / "back.zarr")
    assert back.cameras == ("hand",) and back.keys == ("action", "proprio", "images_hand")
    np.testing.assert_array_equal(back["proprio"], store["proprio"])
    np.testing.assert_array_equal(back["images_hand"], store["images_hand"])
    assert np.abs(back["action"]).max() <= 1


def test_cameras_and_masks_are_chosen_of_ours(tmp_path, store):
    path = written(store, tmp_path / "out.hdf5", valid=0.5)
    convert(path, tmp_path / "back.zarr", Choice(cameras=("left.up",), mask="valid"))
    back = EpisodeStore.open(tmp_path / "back.zarr")
    with h5py.File(path) as file:
        number = int(file["mask/valid"][0].decode().removeprefix("demo_"))
    assert back.cameras == ("left.up",) and "images_hand" not in back.keys and len(back) == 1
    for key in back.keys:
        np.testing.assert_array_equal(back[key], store.episode(number)[key])


def test_actions_beyond_are_refused_cut_or_stretched(tmp_path):
    store = made.store(tmp_path / "in.zarr")  # joints without limits
    numbers = np.array(store["action"])
    numbers[0, 0] = 2.5
    made.overwrite(store.path, "action", numbers)
    store = EpisodeStore.open(store.path)
    words = r"in.zarr: action: found part 'joints' from -[\d.]+ to 2\.5, expected -1 to 1: action_range=data"
    with pytest.raises(DatasetError, match=words):
        written(store, tmp_path / "none.hdf5")
    with h5py.File(written(store, tmp_path / "cut.hdf5", action_range="clip")) as file:
        np.testing.assert_array_equal(
            file["data/demo_0/actions"][:, :2], np.clip(numbers[: made.LENGTHS[0], :2], -1, 1)
        )
    convert(tmp_path / "cut.hdf5", tmp_path / "cut.zarr")
    assert EpisodeStore.open(tmp_path / "cut.zarr")["action"].max() == 1  # cut for us as for all
    path = written(store, tmp_path / "stretched.hdf5", action_range="data")
    with h5py.File(path) as file:
        both = np.concatenate([file[f"data/demo_{i}/actions"] for i in range(2)])
    assert both.min(0).tolist() == [-1] * 3 and both.max(0).tolist() == [1] * 3
    convert(path, tmp_path / "stretched.zarr")
    assert EpisodeStore.open(tmp_path / "stretched.zarr")["action"].tobytes() == numbers.tobytes()


def test_a_rate_or_kind_that_the_file_contradicts_is_refused(tmp_path, store):
    path = written(store, tmp_path / "out.hdf5")
    with pytest.raises(
        DatasetError, match=r"out.hdf5: rate_hz: found 5, expected 10 as the file says, or null"
    ):
        convert(path, tmp_path / "back.zarr", Choice(rate_hz=5))
    convert(path, tmp_path / "back.zarr", Choice(rate_hz=10, action_kind="delta"))  # as it is written there
    parts = [{"name": "joints", "size": 3, "kind": "absolute"}]
    other = made.store(tmp_path / "other.zarr", action_parts=parts)
    path = written(other, tmp_path / "other.hdf5", action_range="data")
    words = "other.hdf5: action_kind: found delta, expected none: the file says absolute"
    with pytest.raises(DatasetError, match=words):
        convert(path, tmp_path / "no.zarr", Choice(action_kind="delta"))


def test_what_others_made_of_our_file_is_one_line(tmp_path, store):
    path = written(store, tmp_path / "out.hdf5")
    for change, words in (
        (lambda f: f["data"].attrs.__setitem__("s2robot", "{"), r"out.hdf5: data: s2robot: found broken JSON"),
        (lambda f: f["data/demo_1"].__delitem__("s2robot/grid"), r"data/demo_1: found no s2robot/grid, expected one"),
        (lambda f: f["data/demo_0"].attrs.__delitem__("s2robot:seed"), r"data/demo_0: .*'seed'"),
    ):  # fmt: skip
        broken = tmp_path / "broken.hdf5"
        broken.write_bytes(path.read_bytes())
        with h5py.File(broken, "a") as file:
            change(file)
        with pytest.raises(DatasetError, match=words.replace("out", "broken")):
            convert(broken, tmp_path / "back.zarr")
        assert not (tmp_path / "back.zarr").exists()


FULL = """
import resource, sys
from pathlib import Path
from s2robot.demos.errors import DiskError
from s2robot.demos.formats.export import ExportSettings, export
from s2robot.demos.store import EpisodeStore

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    export(EpisodeStore.open(sys.argv[1]), Path(sys.argv[2]), "robomimic", ExportSettings(action_range="data"))
except DiskError:
    print("refused")
"""


@pytest.mark.parametrize("room", [0, 1000, 10_000, 20_000, 30_000])
def test_a_disk_that_is_full(tmp_path, room):
    """The process lives on; hdf5 crashes at its end where it was told of a write that failed."""
    made.store(tmp_path / "in.zarr", sizes={"hand": (64, 64)})
    words = [sys.executable, "-c", FULL, str(tmp_path / "in.zarr"), str(tmp_path / "out.hdf5"), str(room)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["in.zarr"]
