"""robomimic files in: order of demos, OSC actions in our units, cameras, masks, and what is broken."""

import json

import h5py
import numpy as np
import pytest

from s2robot.demos.errors import DatasetError
from s2robot.demos.formats.convert import convert
from s2robot.demos.formats.export import ExportSettings, export
from s2robot.demos.formats.source import Choice
from s2robot.demos.store import EpisodeStore

OSC = {"type": "OSC_POSE", "control_delta": True, "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5]}
ARGS = {
    "env_name": "Lift", "env_version": "1.4.1", "type": 1,
    "env_kwargs": {"robots": ["Panda"], "control_freq": 20, "controller_configs": OSC},
}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    """Demos 2 and 10, whose pictures hold their numbers; demo 2 turns a quarter about z."""
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


def test_a_file_arrives(tmp_path, file):
    convert(file, tmp_path / "out.zarr")
    store = EpisodeStore.open(tmp_path / "out.zarr")
    assert store.meta("source_episode").tolist() == [2, 10] and store.lengths.tolist() == [4, 3]
    assert (store.robot, store.attrs["rate_hz"], store.cameras) == ("Panda", 20, ("agentview",))
    assert store["images_agentview"][:, 0, 0, 0].tolist() == [2] * 4 + [10] * 3
    with h5py.File(file) as raw:
        demo = raw["data/demo_2"]
        actions, position = demo["actions"][:], demo["obs/robot0_eef_pos"][:]
    found = store.episode(0)
    np.testing.assert_allclose(found["action"][:, :3], actions[:, :3] * 0.05, rtol=1e-6)
    np.testing.assert_allclose(found["action"][:, 3:6], actions[:, 3:6] * 0.5, rtol=1e-6)
    np.testing.assert_allclose(found["action"][:, 6], actions[:, 6] / 2 + 0.5, rtol=1e-6)
    np.testing.assert_array_equal(found["proprio"][:, :3], position.astype("f4"))
    np.testing.assert_allclose(found["proprio"][0, 3:9], [0, 1, 0, -1, 0, 0], atol=1e-6)  # x to y, y to -x
    assert [p["kind"] for p in store.attrs["action_parts"]] == ["delta", "rotation", "binary"]


def test_a_mask_chooses(tmp_path, file):
    convert(file, tmp_path / "out.zarr", Choice(mask="train"))
    assert EpisodeStore.open(tmp_path / "out.zarr").meta("source_episode").tolist() == [10]


def test_a_file_goes_out_as_it_came(tmp_path, file):
    """The controller's actions in its own range, to what float32 holds of them; the world by its own arguments."""
    convert(file, tmp_path / "in.zarr")
    store = EpisodeStore.open(tmp_path / "in.zarr")
    export(store, tmp_path / "out.hdf5", "robomimic", ExportSettings())
    convert(tmp_path / "out.hdf5", tmp_path / "back.zarr")
    assert EpisodeStore.open(tmp_path / "back.zarr").fingerprint == store.fingerprint
    with h5py.File(file) as first, h5py.File(tmp_path / "out.hdf5") as second:
        assert json.loads(second["data"].attrs["env_args"]) == ARGS
        for before, after in (("demo_2", "demo_0"), ("demo_10", "demo_1")):
            there, back = first["data"][before], second["data"][after]
            np.testing.assert_allclose(back["actions"], there["actions"], atol=1e-7)
            np.testing.assert_array_equal(back["obs/agentview_image"], there["obs/agentview_image"])


def test_keys_of_other_lengths_are_one_line(tmp_path, file):
    with h5py.File(file, "a") as made:
        del made["data/demo_10/obs/robot0_eef_pos"]
        made["data/demo_10/obs/robot0_eef_pos"] = np.zeros((2, 3))
    words = r"in.hdf5: data/demo_10: obs/robot0_eef_pos: found 2 steps, expected 3 as in actions"
    with pytest.raises(DatasetError, match=words):
        convert(file, tmp_path / "out.zarr")
    with h5py.File(file, "a") as made:
        del made["data/demo_10/obs/robot0_eef_pos"]
    with pytest.raises(
        DatasetError, match=r"in.hdf5: data/demo_10: found no obs/robot0_eef_pos, expected one"
    ):
        convert(file, tmp_path / "out.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["in.hdf5"]


def replaced(name, values):
    def change(raw):
        del raw[name]
        raw[name] = values

    return change


def args(**changes):
    told = {"env_name": "Lift", "env_kwargs": changes}
    return lambda raw: raw["data"].attrs.__setitem__("env_args", json.dumps(told))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replaced("data/demo_2/actions", np.ones(4)), "cannot be read (IndexError: tuple index out"),
        (replaced("data/demo_2/obs", np.ones(4)), "cannot be read (AttributeError: 'Dataset' object"),
        (replaced("data/demo_10/actions", np.ones((0, 7))), "data/demo_10: found no steps, expected at least one"),
        (args(control_freq="fast"), "cannot be read (ValueError: could not convert string to float: 'fast')"),
        (args(robots=[1, 2]), "cannot be read (TypeError: sequence item 0"),
        (args(control_freq=0), "rate_hz: expected > 0, got 0.0"),
    ],
)  # fmt: skip
def test_odd_contents_are_one_line_that_names_the_file(tmp_path, file, change, words):
    with h5py.File(file, "a") as raw:
        change(raw)
    with pytest.raises(DatasetError) as caught:
        convert(file, tmp_path / "out.zarr")
    assert str(caught.value).startswith(f"{file}: {words}") and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in.hdf5"]


def test_what_is_broken_is_one_line(tmp_path, file):
    with h5py.File(file, "a") as made:
        made["data/demo_10/actions"][1, 2] = np.nan
    with pytest.raises(DatasetError, match="demo_10: action: found nan at step 1, expected finite numbers"):
        convert(file, tmp_path / "out.zarr")
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(DatasetError, match="in.hdf5: found an hdf5 file that cannot be read"):
        convert(file, tmp_path / "out.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["in.hdf5"]


@pytest.mark.parametrize(
    ("robots", "controllers", "prefixes"),
    [
        (["Panda", "Sawyer"], [OSC, OSC], ["robot0_", "robot1_"]),
        (["Panda", "Panda"], OSC, ["robot0_", "robot1_"]),
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
    convert(path, tmp_path / "out.zarr")
    store = EpisodeStore.open(tmp_path / "out.zarr")
    assert [(p["name"], p["kind"]) for p in store.attrs["action_parts"]] == [
        (f"{prefix}{name}", kind)
        for prefix in prefixes
        for name, kind in (("position", "delta"), ("rotation", "rotation"), ("gripper", "binary"))
    ]
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
def test_other_controllers_say_whether_they_move_by_deltas(tmp_path, file, config, kind):
    kwargs = ARGS["env_kwargs"] | {"controller_configs": config}
    with h5py.File(file, "a") as made:
        made["data"].attrs["env_args"] = json.dumps(ARGS | {"env_kwargs": kwargs})
    convert(file, tmp_path / "out.zarr")
    assert EpisodeStore.open(tmp_path / "out.zarr").attrs["action_parts"][0]["kind"] == kind
