"""Descriptions and pictures of datasets."""

import io
import json

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from s2robot.demos import schema
from s2robot.demos.errors import DatasetError
from s2robot.demos.inspect import describe, dimension_names, draw_dataset, print_description
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


@pytest.mark.parametrize("cameras", [(), ("hand",), ("hand", "left")])
def test_draw(store, tmp_path, cameras):
    frames = {c: np.full((3, 8, 8 + 8 * i, 3), 90, np.uint8) for i, c in enumerate(cameras)}
    draw_dataset(store, frames, tmp_path / "a.png")
    image = imread(tmp_path / "a.png")
    assert image.std() > 0.05
    assert not list(tmp_path.glob(".*"))


def test_dataset_with_actions_alone(tmp_path, monkeypatch):
    """Three joints without gripper, as older versions took them, one step: nothing optional is there."""
    monkeypatch.setattr(schema, "_check_use", lambda *_: None)
    with EpisodeStore.create(tmp_path / "a.zarr", {**ATTRIBUTES, "cameras": [], "env_config": {}}) as store:
        store.append({"action": np.zeros((1, 3), np.float32)})
    d = describe(store)
    assert (d["success"], d["perturbed"], d["layout"], d["proprio"]) == (None, None, {}, [])
    assert dimension_names(store, 3) == ["dim 1", "dim 2", "dim 3"]
    print_description(store, Console(file=io.StringIO()))
    draw_dataset(store, {}, tmp_path / "a.png")


def test_yaw():
    yaws = np.array([-3.0, 0.0, 0.7, 3.0])
    np.testing.assert_allclose(
        [CubePickConfig.layout_of({"cube_pose": pose(0, 0, y, 1)[0]})["yaw"] for y in yaws], yaws
    )


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ({"front": np.zeros((2, 8, 8, 3), np.uint8)}, "found cameras hand, left, expected 'front'"),
        ({"hand": np.zeros((2, 8, 8, 3))}, "frames of hand: found float64"),
        (
            {"hand": np.zeros((2, 8, 8, 3), np.uint8), "left": np.zeros((3, 8, 8, 3), np.uint8)},
            "frames of left: found uint8 (3, 8, 8, 3), expected uint8 (2, H, W, 3)",
        ),
    ],
)
def test_wrong_frames(store, tmp_path, frames, message):
    with pytest.raises(DatasetError) as caught:
        draw_dataset(store, frames, tmp_path / "b.png")
    assert message in str(caught.value)
    assert not (tmp_path / "b.png").exists()


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
    draw_dataset(store, {}, tmp_path / "a.png")
    assert imread(tmp_path / "a.png").ndim == 3
