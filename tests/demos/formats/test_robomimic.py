"""Import and export of robomimic files: units, cameras, masks, broken files; robosuite recordings rendered from states."""

import contextlib
import io
import json
import subprocess
import sys
from glob import glob

import h5py
import numpy as np
import pytest

from s2robot.core.errors import UserError
from s2robot.demos.binding import bind
from s2robot.demos.formats.convert import read
from s2robot.demos.formats.export import all_pieces
from s2robot.demos.formats.robomimic import world_of_file
from s2robot.demos.formats.source import Choice
from s2robot.demos.store import EpisodeStore
from s2robot.envs.robosuite_config import RobosuiteSettings
from s2robot.envs.tasks import make
from tests.demos.formats import made
from tests.demos.formats.made import ARGS, OSC, changed, converted, refused, written
from tests.errors import refuses

BASE = {"body_parts": {"right": OSC | {"input_ref_frame": "base"}}}


@pytest.fixture
def file(tmp_path):
    return made.robomimic(tmp_path / "in.hdf5")


def test_file_round_trips_through_a_store(tmp_path, file):
    store = converted(file)
    assert store.meta("source_episode").tolist() == [2, 10] and store.lengths.tolist() == [4, 3]
    assert (store.robot, store.attrs["rate_hz"], store.cameras) == ("Panda", 20, ("agentview",))
    assert store["images_agentview"][:, 0, 0, 0].tolist() == [2] * 4 + [10] * 3
    with h5py.File(file) as raw:
        actions, position = raw["data/demo_2/actions"][:], raw["data/demo_2/obs/robot0_eef_pos"][:]
    episode, scale = store.episode(0), np.array([0.05] * 3 + [0.5] * 4)
    expected = actions * scale + [0, 0, 0, 0, 0, 0, 0.5]
    np.testing.assert_allclose(episode["action"], expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(episode["proprio"][:, :3], position.astype("f4"))
    np.testing.assert_allclose(episode["proprio"][0, 3:9], [0, 1, 0, -1, 0, 0], atol=1e-6)  # x to y, y to -x
    assert [p["kind"] for p in store.attrs["action_parts"]] == ["delta", "rotation", "binary"]
    assert converted(file, Choice(mask="train"), "some.zarr").meta("source_episode").tolist() == [10]

    out = written(store, tmp_path / "out.hdf5")
    assert converted(out, name="again.zarr").fingerprint == store.fingerprint
    with h5py.File(file) as first, h5py.File(out) as second:
        assert json.loads(second["data"].attrs["env_args"]) == ARGS
        for before, after in (("demo_2", "demo_0"), ("demo_10", "demo_1")):
            original, exported = first["data"][before], second["data"][after]
            np.testing.assert_allclose(exported["actions"], original["actions"], atol=1e-7)
            np.testing.assert_array_equal(exported["obs/agentview_image"], original["obs/agentview_image"])


def test_integers_and_unknown_quaternions_can_be_proprio(file):
    with h5py.File(file, "a") as raw:
        for demo in raw["data"].values():
            demo["obs/phase"] = np.arange(len(demo["actions"]))[:, None]
            demo["obs/eef_quat"] = np.eye(4)[[0] * len(demo["actions"])]  # w, x, y, z, or any other order
    store = converted(file, Choice(proprio=("phase", "eef_quat")))
    assert store["proprio"][:, 0].tolist() == [0, 1, 2, 3, 0, 1, 2] and store["proprio"].shape[1] == 5


def test_world_is_read_from_the_file(file):
    about = converted(file).attrs
    bound, world = bind(about, world_of_file(about), file)
    assert (world.env, world.robot, world.rate_hz, world.cameras) == ("Lift", "Panda", 20, ("agentview",))
    assert bound["env_config"]["proprio"] == ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
    assert bound["action_parts"][0]["high"] == [0.05] * 3
    assert bound["camera_geometry"] == about["camera_geometry"]
    assert world_of_file(about | {"env_args": {}}) is None
    refused(file, "rate_hz: expected 20", choice=Choice(rate_hz=10))


def replaced(name, values):
    def change(raw):
        del raw[name]
        if values is not None:
            raw[name] = values

    return change


def args(**kwargs):
    return lambda raw: raw["data"].attrs.__setitem__("env_args", json.dumps(ARGS | {"env_kwargs": kwargs}))


def test_invalid_contents_are_one_error_line_naming_the_file(file):
    for change, words in (
        (replaced("data/demo_10/obs/robot0_eef_pos", np.zeros((2, 3))), "data/demo_10: obs/robot0_eef_pos: expected"),
        (replaced("data/demo_2/actions", np.ones(4)), "action, numbers (T, n): expected some of "),
        (replaced("data/demo_2/obs/agentview_image", np.zeros((2, 8, 9, 4), "u1")), "obs/agentview_image: expected images uint8"),
        (replaced("data/demo_2/obs", np.ones(4)), "cannot be read: 'Dataset' object"),
        (replaced("data/demo_10/actions", np.full((3, 7), np.nan)), "data/demo_10: action: expected finite numbers"),
        (replaced("data", None), "expected robomimic's group data with demo_0, demo_1 ..., got mask"),
        (args(), "env_args: control_freq: expected a rate, or rate_hz=20, got none"),
        (args(robots=[1, 2], control_freq=20), "cannot be read: sequence item 0"),
        (args(control_freq=0), "rate_hz: expected > 0, got 0.0"),
    ):  # fmt: skip
        path = changed(file, change)
        assert refused(path, words).startswith(f"{path}: ")
    file.write_bytes(file.read_bytes()[:3000])
    refused(file, "in.hdf5: cannot be read")


@pytest.mark.parametrize(
    ("robots", "controllers", "prefixes", "axes"),
    [
        (["Panda", "Sawyer"], [OSC, OSC], ["robot0_", "robot1_"], " in world axes"),
        (["Panda"] * 2, [BASE] * 2, ["robot0_", "robot1_"], ""),
        (["Baxter"], [OSC], ["right_", "left_"], ""),
    ],
)
def test_two_arms_use_delta_actions(tmp_path, robots, controllers, prefixes, axes):
    """Two robots may stand turned: their deltas cannot be replayed in the axes of the other kind."""
    path, rng = tmp_path / "two.hdf5", np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        actions = file["data/demo_0/actions"] = rng.uniform(-1, 1, (4, 14))
        args(robots=robots, control_freq=20, controller_configs=controllers)(file)
        for i in range(2):
            file[f"data/demo_0/obs/robot{i}_eef_pos"] = rng.normal(size=(4, 3))
    store = converted(path)
    kinds = {"position": "delta", "rotation": "rotation", "gripper": "binary"}
    actual = [(part["name"], part["kind"]) for part in store.attrs["action_parts"]]
    assert actual == [(prefix + name, kind) for prefix in prefixes for name, kind in kinds.items()]
    scale, offset = np.tile([0.05] * 3 + [0.5] * 4, 2), np.tile([0.0] * 6 + [0.5], 2)
    np.testing.assert_allclose(store["action"], actions * scale + offset, rtol=1e-6, atol=1e-8)
    assert [p["name"] for p in store.attrs["proprio_parts"]] == ["robot0_eef_pos", "robot1_eef_pos"]
    assert store.attrs["action_frame"] == "robosuite:OSC_POSE" + axes


def test_controller_decides_whether_actions_are_deltas(file):
    for i, (config, kind) in enumerate((
        ({"type": "JOINT_POSITION", "output_max": 0.05}, "delta"),
        ({"type": "OSC_POSITION", "output_max": [0.05] * 3, "input_type": "delta"}, "delta"),
        ({"type": "OSC_POSITION", "output_max": [0.05] * 3, "control_delta": False}, "absolute"),
        ({"type": "JOINT_VELOCITY", "output_max": 1}, "absolute"),
    )):  # fmt: skip
        path = changed(file, args(**ARGS["env_kwargs"] | {"controller_configs": config}))
        assert converted(path, name=f"{i}.zarr").attrs["action_parts"][0]["kind"] == kind


def test_poses_and_images_of_other_programs(file):
    """diffusion_policy stores poses beside the arguments of deltas, LIBERO images with the bottom row first."""
    poses = np.float32([0.1, 0.2, 1.1, 3.1, 0.1, -0.2, 1]) + np.zeros((4, 1), "f4")

    def change(raw):
        raw["data/demo_2/actions"][:] = poses
        raw["data"].attrs["macros_image_convention"] = "opengl"
        raw["data/demo_2/obs/agentview_image"][:, 0] = 99

    store = converted(changed(file, change))
    assert [part["kind"] for part in store.attrs["action_parts"]] == ["absolute"]
    np.testing.assert_array_equal(store.episode(0)["action"], poses)
    assert store["images_agentview"][0, :, 0, 0].tolist() == [2] * 5 + [99]


def test_store_exported_as_a_file_round_trips(tmp_path):
    joints, gripper = made.PARTS["action_parts"]
    parts = [{**joints, "low": [-4] * 2, "high": [6] * 2}, gripper]
    store = made.store(tmp_path / "own.zarr", action_parts=parts)
    path = written(store, tmp_path / "out.hdf5", valid=0.5)
    with h5py.File(path) as file:
        data, masks = file["data"], {k: file["mask"][k][:].tolist() for k in file["mask"]}
        assert data.attrs["total"] == sum(made.LENGTHS) and list(data) == ["demo_0", "demo_1"]
        assert json.loads(data.attrs["env_args"])["env_name"] == "mine"
        assert sorted(masks["train"] + masks["valid"]) == [b"demo_0", b"demo_1"]
        demo, episode = data["demo_1"], store.episode(1)
        assert demo.attrs["num_samples"] == made.LENGTHS[1]
        assert demo["dones"][:].tolist() == [0] * 6 + [1] and demo["rewards"][:].tolist() == [0] * 6 + [1]
        assert data["demo_0/rewards"][:].sum() == 0  # episode 0 failed
        joints = demo["actions"][:, :2] * 5 + 1  # -4 to 6
        np.testing.assert_allclose(joints, episode["action"][:, :2], rtol=1e-6)
        np.testing.assert_array_equal(demo["actions"][:, 2], episode["action"][:, 2] * 2 - 1)
        np.testing.assert_array_equal(demo["obs/pose"], episode["proprio"])
        for camera in made.CAMERAS:
            np.testing.assert_array_equal(demo[f"obs/{camera}_image"], episode[f"images_{camera}"])
            assert demo[f"obs/{camera}_image"].chunks[0] == 1
        number = int(masks["valid"][0].decode().removeprefix("demo_"))
    assert converted(path).fingerprint == store.fingerprint
    subset = converted(path, Choice(cameras=("left.up",), mask="valid"), "some.zarr")
    assert subset.cameras == ("left.up",) and "images_hand" not in subset.keys and len(subset) == 1
    for key in subset.keys:
        np.testing.assert_array_equal(subset[key], store.episode(number)[key])
    refused(path, "rate_hz: expected 10", choice=Choice(rate_hz=5))
    for change, words in (  # changed by other tools
        (lambda f: f["data/demo_1"].__delitem__("s2robot/grid"), "data/demo_1: s2robot/grid: expected"),
        (lambda f: f["data/demo_0"].attrs.__delitem__("s2robot:seed"), "data/demo_0: cannot be read: KeyError: 'seed'"),
        (lambda f: f["data"].attrs.__setitem__("s2robot", "{"), "data: s2robot: cannot be read"),
    ):  # fmt: skip
        refused(changed(path, change), words)


def test_out_of_range_actions_are_rejected_clipped_or_rescaled(tmp_path):
    store = made.store(tmp_path / "own.zarr")  # joints without limits
    numbers = np.array(store["action"])
    numbers[0, 0] = 2.5
    made.overwrite(store.path, "action", numbers)
    store = EpisodeStore.open(store.path)
    with pytest.raises(UserError, match=r"own.zarr: action: joints: expected -1 to 1 .* got -[\d.]+ to 2\.5"):
        written(store, tmp_path / "none.hdf5")
    path = written(store, tmp_path / "cut.hdf5", action_range="clip")
    with h5py.File(path) as file:
        clipped = np.clip(numbers[: made.LENGTHS[0], :2], -1, 1)
        np.testing.assert_array_equal(file["data/demo_0/actions"][:, :2], clipped)
    assert converted(path, name="cut.zarr")["action"].max() == 1  # our importer reads the clipped values too
    path = written(store, tmp_path / "stretched.hdf5", action_range="data")
    with h5py.File(path) as file:
        both = np.concatenate([file[f"data/demo_{i}/actions"] for i in range(2)])
    assert both.min(0).tolist() == [-1] * 3 and both.max(0).tolist() == [1] * 3
    assert converted(path)["action"].tobytes() == numbers.tobytes()


FULL = """
import resource, sys
from pathlib import Path
from s2robot.demos.errors import DiskError
from s2robot.demos.formats.export import ExportSettings, export
from s2robot.demos.store import EpisodeStore

store = EpisodeStore.open(sys.argv[1])
for limit in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        export(store, Path(sys.argv[2]), "robomimic", ExportSettings(action_range="data"))
    except DiskError:
        print("refused")
"""


def test_full_disk_is_reported_without_a_crash(tmp_path):
    """The process survives; HDF5 would crash at exit after a failed write."""
    made.store(tmp_path / "in.zarr", sizes={"hand": (64, 64)})
    limits = ["30000", "20000", "10000", "1000", "0"]
    words = [sys.executable, "-c", FULL, str(tmp_path / "in.zarr"), str(tmp_path / "out.hdf5"), *limits]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\n" * 5, "")
    assert [path.name for path in tmp_path.iterdir()] == ["in.zarr"]


CHOICE = Choice(cameras=("agentview",), image_size=24)
STEPS = 3


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Return (demo.hdf5 as robosuite's script writes it, the images and poses seen while its wrapper recorded)."""
    from robosuite.wrappers import DataCollectionWrapper

    folder = tmp_path_factory.mktemp("raw")
    task = make(RobosuiteSettings(env="Lift", cameras=CHOICE.cameras, image_size=24))
    with contextlib.redirect_stdout(io.StringIO()):
        wrapper = DataCollectionWrapper(task.raw, str(folder / "tmp"))
        rng, seen = np.random.default_rng(0), []
        for _ in range(2):
            wrapper.reset()
            task._bind_scene()
            for _ in range(STEPS):
                task._refresh_poses()  # after a step, poses lag by half a step
                seen.append((task.proprio, task.render_cameras()["agentview"]))
                wrapper.step(rng.uniform(-1, 1, 7))
            task.close()
        wrapper._flush()
    kwargs = task.arguments()["env_kwargs"]
    info = {"env_name": "Lift", "robots": ["Panda"], "controller_configs": kwargs["controller_configs"]}
    path = folder / "demo.hdf5"
    with h5py.File(path, "w") as file:  # as in collect_human_demonstrations.py of robosuite
        data = file.create_group("data")
        about = {"date": "1-1-2026", "time": "0:0:0", "repository_version": "1.5.2", "env": "Lift"}
        data.attrs.update(about | {"env_info": json.dumps(info)})
        for number, episode in enumerate(sorted((folder / "tmp").iterdir()), 1):
            parts = [np.load(name, allow_pickle=True) for name in sorted(glob(f"{episode}/state_*.npz"))]
            demo = data.create_group(f"demo_{number}")
            demo.attrs["model_file"] = (episode / "model.xml").read_text()
            demo["states"] = np.concatenate([f["states"] for f in parts])[:-1]
            demo["actions"] = np.stack([a["actions"] for f in parts for a in f["action_infos"]])
    return path, seen


def test_recording_is_rendered_identically(recording):
    path, seen = recording
    store = converted(path, CHOICE)
    assert store.lengths.tolist() == [STEPS] * 2 and store.meta("source_episode").tolist() == [1, 2]
    assert (store.robot, store.attrs["rate_hz"]) == ("Panda", 20)
    assert store.attrs["action_frame"] == "robosuite:OSC_POSE"
    np.testing.assert_array_equal(store["images_agentview"], [image for _, image in seen])
    np.testing.assert_allclose(store["proprio"], [proprio for proprio, _ in seen], atol=1e-6)
    with h5py.File(path) as file:
        moves = file["data/demo_1/actions"][:, :3] * 0.05
    np.testing.assert_allclose(store["action"][:STEPS, :3], moves, rtol=1e-6)


def test_states_are_exported_with_their_world(tmp_path):
    """robomimic's scripts can render the export: its states and scene alone reproduce the images."""
    task = make(RobosuiteSettings(env="Lift", rate_hz=10, cameras=CHOICE.cameras, image_size=24))
    task.reset(seed=5)
    task.action_space.seed(2)
    with EpisodeStore.create(tmp_path / "in.zarr", task.describe() | {"seed": 5, "kind": "states"}) as store:
        rows = []
        for _ in range(STEPS):
            action = task.action_space.sample()
            rows.append({"state": task.get_state(), "proprio": task.proprio, "action": action})
            task.step_physics(action)
        store.append({key: np.stack([row[key] for row in rows]) for key in rows[0]}, {"seed": 5})
    path = written(store, tmp_path / "out.hdf5")
    back, ((_, _, rendered),) = converted(path), all_pieces(store)
    assert {**back.attrs, "kind": "states"} == store.attrs and back.cameras == store.cameras
    assert set(back.keys) == {*store.keys, "images_agentview"}
    for key, array in rendered.items():
        assert back[key].dtype == array.dtype
        np.testing.assert_array_equal(back[key], array)

    with h5py.File(path, "a") as file:
        about = json.loads(file["data"].attrs["env_args"])
        assert (about["env_name"], about["type"], about["env_kwargs"]["control_freq"]) == ("Lift", 1, 10)
        for name in ("obs", "s2robot"):
            del file[f"data/demo_0/{name}"]
    again = converted(path, CHOICE, "again.zarr")
    # the scene's XML has fewer digits than its numbers: a pixel may differ by one grey level
    difference = again["images_agentview"].astype(int) - rendered["images_agentview"]
    assert np.abs(difference).max() <= 1 and (difference != 0).mean() < 0.01
    np.testing.assert_allclose(again["proprio"], store["proprio"], atol=1e-6)
    assert again.attrs["action_parts"] == store.attrs["action_parts"]
    np.testing.assert_array_equal(again["action"], store["action"])


def test_robomimic_state_files_are_read(recording):
    def change(file):
        data = file["data"]
        kwargs = json.loads(data.attrs.pop("env_info"))
        kwargs |= {"control_freq": 10, "use_camera_obs": True, "camera_heights": 20, "camera_widths": 30}
        about = {"env_name": kwargs.pop("env_name"), "env_version": "1.5.2", "type": 1, "env_kwargs": kwargs}
        data.attrs["env_args"] = json.dumps(about)
        file["mask/train"] = np.array([b"demo_2"])

    path = changed(recording[0], change)
    source = read(path, Choice(cameras=("agentview",), mask="train", proprio=("robot0_joint_pos",)))
    assert source.attributes["rate_hz"] == 10
    assert source.attributes["camera_geometry"] == {"agentview": {"size": [20, 30]}}
    (piece,) = source.pieces(0)
    with h5py.File(path) as file:
        states = file["data/demo_2/states"][:]
    assert len(source) == 1 and piece["images_agentview"].shape == (STEPS, 20, 30, 3)
    np.testing.assert_array_equal(piece["proprio"], states[:, 1:8].astype("f4"))  # the arm's joints


def test_unsupported_file_is_one_error_line(recording):
    for change, words in (
        (lambda d: d.attrs.update(env_info=json.dumps({"env_name": "Kitchen"})), "env_args (of robosuite 1.5.2): task.env"),
        (lambda d: d.attrs.update(env_args=json.dumps({"env_name": "Maze", "type": 2})), "Maze, type 2"),
        (lambda d: d.attrs.update(env_info="{"), "data: env_info: cannot be read"),
        (lambda d: d["demo_2"].__delitem__("states"), "data/demo_2: states: expected"),
        (lambda d: d["demo_1/states"].__setitem__((1, 2), np.nan), "demo_1: states: expected finite numbers, got nan at step 1"),
        (lambda d: d["demo_1"].attrs.update(model_file="<mujoco/>"), "demo_1: model_file (of robosuite 1.5.2)"),
    ):  # fmt: skip
        refused(changed(recording[0], lambda file, change=change: change(file["data"])), words, choice=CHOICE)


def test_missing_robosuite_names_the_install_command(recording, monkeypatch):
    monkeypatch.setattr("s2robot.core.errors.find_spec", {"h5py": True}.get)
    refuses(r"^robosuite is not installed: pip install 's2robot\[sim\]'$", read, recording[0], CHOICE)
