"""robosuite's own recordings in: real physics, drawn from their states, in the scene that each demo keeps."""

import contextlib
import io
import json
from glob import glob

import h5py
import numpy as np
import pytest

from s2robot.core.errors import UserError
from s2robot.demos.formats.convert import read
from s2robot.demos.formats.export import pieces
from s2robot.demos.formats.source import Choice
from s2robot.demos.store import EpisodeStore
from s2robot.envs.robosuite_config import RobosuiteSettings
from s2robot.envs.tasks import make
from tests.demos.formats.made import changed, converted, refused, written

CHOICE = Choice(cameras=("agentview",), image_size=24)
STEPS = 3


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """(demo.hdf5 as robosuite's script makes it of what its own wrapper recorded, pictures and poses as they were)."""
    from robosuite.wrappers import DataCollectionWrapper

    folder = tmp_path_factory.mktemp("raw")
    task = make(RobosuiteSettings(env="Lift", cameras=CHOICE.cameras, image_size=24))
    with contextlib.redirect_stdout(io.StringIO()):
        wrapper = DataCollectionWrapper(task.raw, str(folder / "tmp"))
        rng, seen = np.random.default_rng(0), []
        for _ in range(2):
            wrapper.reset()
            task._look_at_scene()
            for _ in range(STEPS):
                task._refresh_poses()  # a step leaves them half a step old
                seen.append((task.proprio, task.render_cameras()["agentview"]))
                wrapper.step(rng.uniform(-1, 1, 7))
            task.close()
        wrapper._flush()
    kwargs = task.arguments()["env_kwargs"]
    info = {"env_name": "Lift", "robots": ["Panda"], "controller_configs": kwargs["controller_configs"]}
    path = folder / "demo.hdf5"
    with h5py.File(
        path, "w"
    ) as file:  # as gather_demonstrations_as_hdf5 of collect_human_demonstrations.py does
        data = file.create_group("data")
        about = {"date": "1-1-2026", "time": "0:0:0", "repository_version": "1.5.2", "env": "Lift"}
        data.attrs.update(about | {"env_info": json.dumps(info)})
        for number, episode in enumerate(sorted((folder / "tmp").iterdir()), 1):
            found = [np.load(name, allow_pickle=True) for name in sorted(glob(f"{episode}/state_*.npz"))]
            demo = data.create_group(f"demo_{number}")
            demo.attrs["model_file"] = (episode / "model.xml").read_text()
            demo["states"] = np.concatenate([f["states"] for f in found])[:-1]
            demo["actions"] = np.stack([a["actions"] for f in found for a in f["action_infos"]])
    return path, seen


def test_a_recording_is_drawn_as_it_was(recording):
    path, seen = recording
    store = converted(path, CHOICE)
    assert store.lengths.tolist() == [STEPS] * 2 and store.meta("source_episode").tolist() == [1, 2]
    assert (store.robot, store.attrs["rate_hz"]) == ("Panda", 20)
    assert store.attrs["action_frame"] == "robosuite:OSC_POSE"
    np.testing.assert_array_equal(store["images_agentview"], [picture for _, picture in seen])
    np.testing.assert_allclose(store["proprio"], [proprio for proprio, _ in seen], atol=1e-6)
    with h5py.File(path) as file:
        moves = file["data/demo_1/actions"][:, :3] * 0.05
    np.testing.assert_allclose(store["action"][:STEPS, :3], moves, rtol=1e-6)


def test_our_states_go_out_with_their_world(tmp_path):
    """What we write, robomimic's scripts can draw: its states alone, in its scene, give the pictures again."""
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
    back, (drawn,) = converted(path), pieces(store, 0)
    assert {**back.attrs, "kind": "states"} == store.attrs and back.cameras == store.cameras
    assert set(back.keys) == {*store.keys, "images_agentview"}
    for key, array in drawn.items():
        assert back[key].dtype == array.dtype
        np.testing.assert_array_equal(back[key], array)

    with h5py.File(path, "a") as file:
        about = json.loads(file["data"].attrs["env_args"])
        assert (about["env_name"], about["type"], about["env_kwargs"]["control_freq"]) == ("Lift", 1, 10)
        for name in ("obs", "s2robot"):
            del file[f"data/demo_0/{name}"]
    again = converted(path, CHOICE, "again.zarr")
    # a scene's text has fewer digits than its numbers: a pixel may fall on the other side of a grey level
    apart = again["images_agentview"].astype(int) - drawn["images_agentview"]
    assert np.abs(apart).max() <= 1 and (apart != 0).mean() < 0.01
    np.testing.assert_allclose(again["proprio"], store["proprio"], atol=1e-6)
    assert again.attrs["action_parts"] == store.attrs["action_parts"]
    np.testing.assert_array_equal(again["action"], store["action"])


@pytest.fixture
def copy(tmp_path, recording):
    path = tmp_path / "in.hdf5"
    path.write_bytes(recording[0].read_bytes())
    return path


def test_robomimics_file_of_states_reads_alike(tmp_path, recording, copy):
    with h5py.File(copy, "a") as file:
        data = file["data"]
        kwargs = json.loads(data.attrs.pop("env_info"))
        kwargs |= {"control_freq": 10, "use_camera_obs": True, "camera_heights": 20, "camera_widths": 30}
        about = {"env_name": kwargs.pop("env_name"), "env_version": "1.5.2", "type": 1, "env_kwargs": kwargs}
        data.attrs["env_args"] = json.dumps(about)
        file["mask/train"] = np.array([b"demo_2"])
    source = read(copy, Choice(cameras=("agentview",), mask="train", proprio=("robot0_joint_pos",)))
    assert source.attributes["rate_hz"] == 10
    assert source.attributes["camera_geometry"] == {"agentview": {"size": [20, 30]}}
    (piece,) = source.pieces(0)
    with h5py.File(copy) as file:
        states = file["data/demo_2/states"][:]
    assert len(source) == 1 and piece["images_agentview"].shape == (STEPS, 20, 30, 3)
    np.testing.assert_array_equal(piece["proprio"], states[:, 1:8].astype("f4"))  # the arm's come first


def test_a_file_that_does_not_fit_is_one_line(copy):
    for change, words in (
        (lambda d: d.attrs.update(env_info=json.dumps({"env_name": "Kitchen"})), "env_args (of robosuite 1.5.2): task.env"),
        (lambda d: d.attrs.update(env_args=json.dumps({"env_name": "Maze", "type": 2})), "Maze, type 2"),
        (lambda d: d.attrs.update(env_info="{"), "data: env_info: cannot be read"),
        (lambda d: d["demo_2"].__delitem__("states"), "data/demo_2: states: expected"),
        (lambda d: d["demo_1/states"].__setitem__((1, 2), np.nan), "demo_1: states: expected finite numbers, got nan at step 1"),
        (lambda d: d["demo_1"].attrs.update(model_file="<mujoco/>"), "demo_1: model_file (of robosuite 1.5.2)"),
    ):  # fmt: skip
        refused(changed(copy, lambda file, change=change: change(file["data"])), words, choice=CHOICE)


def test_without_robosuite_it_says_how_to_have_it(copy, monkeypatch):
    monkeypatch.setattr("s2robot.demos.formats.source.find_spec", {"h5py": True}.get)
    with pytest.raises(UserError, match=r"^robosuite is not installed: pip install 's2robot\[sim\]'$"):
        read(copy, CHOICE)
