"""Descriptions of datasets."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from s2robot.demos import schema
from s2robot.demos.errors import DatasetError
from s2robot.demos.inspect import describe, dimension_names, print_description
from s2robot.demos.store import EpisodeStore
from s2robot.envs.cube_config import CubePickConfig

ATTRIBUTES = {
    "robot": "xarm7",
    "joint_names": [f"joint{i}" for i in range(1, 8)],
    "rate_hz": 10,
    "cameras": ["hand", "left"],
    "camera_geometry": {"hand": {"size": [8, 8]}},
    "action_frame": "joint_delta_commanded",
    "env_version": "CubePick-v0",
    "env_config": {"cube_size": 0.04, "box_x": [-0.12, 0.12], "box_y": [-0.16, 0.16]},
    "seed": 3,
    "kind": "states",
}


def pose(x: float, y: float, yaw: float, steps: int) -> np.ndarray:
    return np.tile([x, y, 0.02, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)], (steps, 1))


@pytest.fixture
def store(tmp_path):
    """Episodes of 4, 6 and 10 steps."""
    with EpisodeStore.create(tmp_path / "a.zarr", ATTRIBUTES) as store:
        for i, length in enumerate((4, 6, 10)):
            action = np.full((length, 8), 0.1, np.float32)
            action[0, :7] = 0
            action[-1, 2] = -0.25
            cube = pose(0.1 * i - 0.1, 0.05 * i, 0.3, length)
            cube[-1, :2] = 9  # only the start counts
            arrays = {"action": action, "proprio": action + 1, "cube_pose": cube}
            arrays["perturbed"] = np.arange(length) == 1
            store.append(arrays, {"seed": i, "success": i != 1})
    return EpisodeStore.open(store.path)


def test_describe(store):
    d = describe(store)
    assert (d["episodes"], d["steps"], d["seconds"], d["success"]) == (3, 20, 2.0, 2)
    assert d["length"] == {"min": 4, "median": 6.0, "max": 10}
    assert [r["name"] for r in d["action"]] == [f"joint {i}" for i in range(1, 8)] + ["gripper"]
    third = d["action"][2]
    assert (third["min"], third["median"], third["max"]) == pytest.approx((-0.25, 0.1, 0.1))
    assert d["proprio"][2]["min"] == pytest.approx(0.75)
    assert d["zero_actions"] == d["clipped_actions"] == d["perturbed"] == 3 / 20
    assert d["layout"]["x"] == pytest.approx([-0.1, 0.1])
    assert d["layout"]["y"] == pytest.approx([0.0, 0.1])
    assert d["cameras"] == ["hand", "left"]
    assert d["attributes"] == store.attrs
    json.dumps(d)


def test_print(store):
    out = io.StringIO()
    print_description(store, Console(file=out, width=100))
    text = out.getvalue()
    parts = ("3 (20 steps, 2.0 s at 10 Hz)", "4 to 10 steps, median 6", "2 of 3", "15.0 % clipped", "gripper")
    for part in (*parts, "x -0.1 to +0.1", "hand 8×8, left", "joint_delta_commanded", "-0.250"):
        assert part in text


def test_dataset_with_actions_alone(tmp_path, monkeypatch):
    """Three joints without gripper, as older versions took them, one step: nothing optional is there."""
    monkeypatch.setattr(schema, "_check_use", lambda *_: None)
    with EpisodeStore.create(tmp_path / "a.zarr", {**ATTRIBUTES, "cameras": [], "env_config": {}}) as store:
        store.append({"action": np.zeros((1, 3), np.float32)})
    d = describe(store)
    assert (d["success"], d["perturbed"], d["layout"], d["proprio"]) == (None, None, {}, [])
    assert dimension_names(store, 3) == ["dim 1", "dim 2", "dim 3"]
    print_description(store, Console(file=io.StringIO()))


def test_yaw():
    yaws = np.array([-3.0, 0.0, 0.7, 3.0])
    np.testing.assert_allclose(
        [CubePickConfig.layout_of({"cube_pose": pose(0, 0, y, 1)[0]})["yaw"] for y in yaws], yaws
    )


def test_nothing_to_describe(tmp_path):
    with EpisodeStore.create(tmp_path / "a.zarr", ATTRIBUTES) as store:
        with pytest.raises(DatasetError, match="found no episodes"):
            describe(store)
        store.append({"state": np.zeros((2, 3))})
        with pytest.raises(DatasetError, match="expected 'action'"):
            describe(store)


def test_a_dataset_with_parts_is_described_by_them(tmp_path):
    limited = {"name": "position", "size": 2, "kind": "delta", "low": [-0.1] * 2, "high": [0.1] * 2}
    parts = [limited, {"name": "claw", "size": 1, "kind": "binary"}]
    about = {
        **ATTRIBUTES,
        "joint_names": [],
        "action_parts": parts,
        "proprio_parts": [{**limited, "names": ["x", "y"]}],
    }
    with EpisodeStore.create(tmp_path / "a.zarr", about) as store:
        action = np.array([[0, 0, 1], [0.1, 0, 1], [0.05, 0, 0], [0, 0.02, 0]], np.float32)
        store.append({"action": action, "proprio": action[:, :2]})
        store.append({"action": action[:, :], "proprio": action[:, :2]})
    d = describe(store)
    assert [r["name"] for r in d["action"]] == ["position 1", "position 2", "claw"]
    assert [r["name"] for r in d["proprio"]] == ["x", "y"]
    assert (d["zero_actions"], d["clipped_actions"]) == (0.25, 0.25)
    console = Console(file=io.StringIO(), width=120)
    print_description(store, console)
    assert (
        "position 1 · x" in console.file.getvalue()
        and "25.0 % zero, 25.0 % clipped" in console.file.getvalue()
    )
