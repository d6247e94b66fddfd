"""robomimic files in and out: order of demos, actions in our units and within -1..1, cameras, masks, broken files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from s2robot.core.errors import UserError
from s2robot.demos.binding import bind
from s2robot.demos.formats.export import ExportSettings, export
from s2robot.demos.formats.robomimic import world_of_file
from s2robot.demos.formats.source import Choice
from s2robot.demos.store import EpisodeStore
from tests.demos.formats import made
from tests.demos.formats.made import converted, refused

ROOT = Path(__file__).resolve().parents[3]
OSC = {"type": "OSC_POSE", "control_delta": True, "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5]}
ARGS = {
    "env_name": "Lift", "env_version": "1.4.1", "type": 1,
    "env_kwargs": {"robots": ["Panda"], "control_freq": 20, "controller_configs": OSC},
}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    """Demos 2 and 10, whose images hold their numbers; demo 2 turns a quarter about z."""
    path, rng = tmp_path / "in.hdf5", np.random.default_rng(0)
    with h5py.File(path, "w") as made:
        made.create_group("data").attrs["env_args"] = json.dumps(ARGS)
        for number, steps in ((10, 3), (2, 4)):
            demo = made["data"].create_group(f"demo_{number}")
            demo["actions"] = rng.uniform(-1, 1, (steps, 7))
            half = np.sqrt(0.5) if number == 2 else 0.0
            demo["obs/robot0_eef_quat"] = np.tile([0, 0, half, np.sqrt(1 - half**2)], (steps, 1))
            demo["obs/robot0_eef_pos"] = rng.normal(size=(steps, 3))
            demo["obs/robot0_gripper_qpos"] = rng.normal(size=(steps, 2))
            demo["obs/agentview_image"] = np.full((steps, 6, 8, 3), number, np.uint8)
        made["mask/train"] = np.array([b"demo_10"])
    return path


def test_a_file_arrives_and_goes_out_as_it_came(tmp_path, file):
    store = converted(file)
    assert store.meta("source_episode").tolist() == [2, 10] and store.lengths.tolist() == [4, 3]
    assert (store.robot, store.attrs["rate_hz"], store.cameras) == ("Panda", 20, ("agentview",))
    assert store["images_agentview"][:, 0, 0, 0].tolist() == [2] * 4 + [10] * 3
    with h5py.File(file) as raw:
        actions, position = raw["data/demo_2/actions"][:], raw["data/demo_2/obs/robot0_eef_pos"][:]
    found, scale = store.episode(0), np.array([0.05] * 3 + [0.5] * 4)
    wanted = actions * scale + [0, 0, 0, 0, 0, 0, 0.5]
    np.testing.assert_allclose(found["action"], wanted, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(found["proprio"][:, :3], position.astype("f4"))
    np.testing.assert_allclose(found["proprio"][0, 3:9], [0, 1, 0, -1, 0, 0], atol=1e-6)  # x to y, y to -x
    assert [p["kind"] for p in store.attrs["action_parts"]] == ["delta", "rotation", "binary"]
    assert converted(file, Choice(mask="train"), "some.zarr").meta("source_episode").tolist() == [10]

    export(store, tmp_path / "out.hdf5", "robomimic", ExportSettings())
    assert converted(tmp_path / "out.hdf5", name="again.zarr").fingerprint == store.fingerprint
    with h5py.File(file) as first, h5py.File(tmp_path / "out.hdf5") as second:
        assert json.loads(second["data"].attrs["env_args"]) == ARGS
        for before, after in (("demo_2", "demo_0"), ("demo_10", "demo_1")):
            there, back = first["data"][before], second["data"][after]
            np.testing.assert_allclose(back["actions"], there["actions"], atol=1e-7)
            np.testing.assert_array_equal(back["obs/agentview_image"], there["obs/agentview_image"])


def test_a_file_says_its_world(file):
    about = converted(file).attrs
    found, world = bind(about, world_of_file(about), file)
    assert (world.env, world.robot, world.rate_hz, world.cameras) == ("Lift", "Panda", 20, ("agentview",))
    assert found["env_config"]["proprio"] == ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
    assert (
        found["action_parts"][0]["high"] == [0.05] * 3
        and found["camera_geometry"] == about["camera_geometry"]
    )
    assert world_of_file(about | {"env_args": {}}) is None


def replaced(name, values):
    def change(raw):
        del raw[name]
        if values is not None:
            raw[name] = values

    return change


def args(**changes):
    told = json.dumps({"env_name": "Lift", "env_kwargs": changes})
    return lambda raw: raw["data"].attrs.__setitem__("env_args", told)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replaced("data/demo_10/obs/robot0_eef_pos", np.zeros((2, 3))), "data/demo_10: obs/robot0_eef_pos: expected"),
        (replaced("data/demo_2/actions", np.ones(4)), "cannot be read (IndexError: tuple index out"),
        (replaced("data/demo_2/obs", np.ones(4)), "cannot be read (AttributeError: 'Dataset' object"),
        (replaced("data/demo_10/actions", np.full((3, 7), np.nan)), "data/demo_10: action: expected finite numbers"),
        (replaced("data", None), "cannot be read (KeyError"),
        (args(robots=[1, 2]), "cannot be read (TypeError: sequence item 0"),
        (args(control_freq=0), "rate_hz: expected > 0, got 0.0"),
    ],
)  # fmt: skip
def test_odd_contents_are_one_line_that_names_the_file(file, change, words):
    with h5py.File(file, "a") as raw:
        change(raw)
    assert refused(file, words).startswith(f"{file}: ")
    file.write_bytes(file.read_bytes()[:3000])
    refused(file, "in.hdf5: cannot be read")


@pytest.mark.parametrize(
    ("robots", "controllers", "prefixes"),
    [
        (["Panda", "Sawyer"], [OSC, OSC], ["robot0_", "robot1_"]),
        (["Panda", "Panda"], [{"body_parts": {"right": OSC}}] * 2, ["robot0_", "robot1_"]),
        (["Baxter"], [OSC], ["right_", "left_"]),
    ],
)
def test_two_arms_move_by_deltas_too(tmp_path, robots, controllers, prefixes):
    kwargs = {"robots": robots, "control_freq": 20, "controller_configs": controllers}
    path, rng = tmp_path / "two.hdf5", np.random.default_rng(0)
    with h5py.File(path, "w") as made:
        made.create_group("data").attrs["env_args"] = json.dumps(ARGS | {"env_kwargs": kwargs})
        demo = made["data"].create_group("demo_0")
        actions = demo["actions"] = rng.uniform(-1, 1, (4, 14))
        for i in range(2):
            demo[f"obs/robot{i}_eef_pos"] = rng.normal(size=(4, 3))
    store = converted(path)
    kinds = {"position": "delta", "rotation": "rotation", "gripper": "binary"}
    found = [(part["name"], part["kind"]) for part in store.attrs["action_parts"]]
    assert found == [(prefix + name, kind) for prefix in prefixes for name, kind in kinds.items()]
    scale, offset = np.tile([0.05] * 3 + [0.5] * 4, 2), np.tile([0.0] * 6 + [0.5], 2)
    np.testing.assert_allclose(store["action"], actions * scale + offset, rtol=1e-6, atol=1e-8)
    assert [p["name"] for p in store.attrs["proprio_parts"]] == ["robot0_eef_pos", "robot1_eef_pos"]


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"type": "JOINT_POSITION", "output_max": 0.05}, "delta"),
        ({"type": "OSC_POSITION", "output_max": [0.05] * 3, "input_type": "delta"}, "delta"),
        ({"type": "OSC_POSITION", "output_max": [0.05] * 3, "control_delta": False}, "absolute"),
        ({"type": "JOINT_VELOCITY", "output_max": 1}, "absolute"),
    ],
)
def test_other_controllers_decide_whether_actions_are_deltas(file, config, kind):
    kwargs = ARGS["env_kwargs"] | {"controller_configs": config}
    with h5py.File(file, "a") as made:
        made["data"].attrs["env_args"] = json.dumps(ARGS | {"env_kwargs": kwargs})
    assert converted(file).attrs["action_parts"][0]["kind"] == kind


# -------------------------------------------------------------------- out


def written(store: EpisodeStore, path: Path, **settings) -> Path:
    export(store, path, "robomimic", ExportSettings(**settings))
    return path


@pytest.fixture
def store(tmp_path):
    """Ours, with limits of the joints."""
    joints, gripper = made.PARTS["action_parts"]
    parts = [{**joints, "low": [-4] * 2, "high": [6] * 2}, gripper]
    return made.store(tmp_path / "own.zarr", action_parts=parts)


def test_our_store_as_a_file_and_back(tmp_path, store):
    path = written(store, tmp_path / "out.hdf5", valid=0.5)
    with h5py.File(path) as file:
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
        number = int(masks["valid"][0].decode().removeprefix("demo_"))
    assert converted(path).fingerprint == store.fingerprint
    some = converted(path, Choice(cameras=("left.up",), mask="valid"), "some.zarr")
    assert some.cameras == ("left.up",) and "images_hand" not in some.keys and len(some) == 1
    for key in some.keys:
        np.testing.assert_array_equal(some[key], store.episode(number)[key])
    refused(path, "rate_hz: expected 10", choice=Choice(rate_hz=5))


def test_actions_beyond_the_range_are_rejected_cut_or_stretched(tmp_path):
    store = made.store(tmp_path / "own.zarr")  # joints without limits
    numbers = np.array(store["action"])
    numbers[0, 0] = 2.5
    made.overwrite(store.path, "action", numbers)
    store = EpisodeStore.open(store.path)
    with pytest.raises(UserError, match=r"own.zarr: action: joints: expected -1 to 1 .* got -[\d.]+ to 2\.5"):
        written(store, tmp_path / "none.hdf5")
    with h5py.File(written(store, tmp_path / "cut.hdf5", action_range="clip")) as file:
        cut = np.clip(numbers[: made.LENGTHS[0], :2], -1, 1)
        np.testing.assert_array_equal(file["data/demo_0/actions"][:, :2], cut)
    assert converted(tmp_path / "cut.hdf5", name="cut.zarr")["action"].max() == 1  # cut for us as for all
    path = written(store, tmp_path / "stretched.hdf5", action_range="data")
    with h5py.File(path) as file:
        both = np.concatenate([file[f"data/demo_{i}/actions"] for i in range(2)])
    assert both.min(0).tolist() == [-1] * 3 and both.max(0).tolist() == [1] * 3
    assert converted(path)["action"].tobytes() == numbers.tobytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f["data"].attrs.__setitem__("s2robot", "{"), "out.hdf5: data: s2robot: cannot be read"),
        (lambda f: f["data/demo_1"].__delitem__("s2robot/grid"), "data/demo_1: s2robot/grid: expected"),
        (lambda f: f["data/demo_0"].attrs.__delitem__("s2robot:seed"), "data/demo_0: cannot be read (KeyError: 'seed')"),
    ],
)  # fmt: skip
def test_our_file_edited_by_others_is_one_line(tmp_path, store, change, words):
    path = written(store, tmp_path / "out.hdf5")
    with h5py.File(path, "a") as file:
        change(file)
    refused(path, words)


FULL = """
import resource, sys
from pathlib import Path
from s2robot.demos.errors import DiskError
from s2robot.demos.formats.export import ExportSettings, export
from s2robot.demos.store import EpisodeStore

store = EpisodeStore.open(sys.argv[1])
for room in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        export(store, Path(sys.argv[2]), "robomimic", ExportSettings(action_range="data"))
    except DiskError:
        print("refused")
"""


def test_a_disk_that_is_full(tmp_path):
    """The process lives on; hdf5 crashes at its end when it learns of a write that failed."""
    made.store(tmp_path / "in.zarr", sizes={"hand": (64, 64)})
    rooms = ["30000", "20000", "10000", "1000", "0"]
    words = [sys.executable, "-c", FULL, str(tmp_path / "in.zarr"), str(tmp_path / "out.hdf5"), *rooms]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\n" * 5, "")
    assert [path.name for path in tmp_path.iterdir()] == ["in.zarr"]
