"""What `s2robot inspect` prints of a dataset."""

import numpy as np

from s2robot.demos.store import EpisodeStore
from s2robot.inspection.inspect import summary
from s2robot.inspection.tables import tables

ATTRIBUTES = {
    "robot": "xarm7", "joint_names": [f"joint{i}" for i in range(1, 8)], "rate_hz": 10, "cameras": ["hand", "left"],
    "camera_geometry": {}, "action_frame": "joint_delta_commanded", "env_version": "CubePick-v0", "seed": 3,
    "env_config": {"cube_size": 0.04, "box_x": [-0.12, 0.12], "box_y": [-0.16, 0.16]}, "kind": "states",
}  # fmt: skip
LIMITED = {"name": "position", "size": 2, "kind": "delta", "low": [-0.1] * 2, "high": [0.1] * 2}
PARTS = {
    "joint_names": [],
    "action_parts": [LIMITED, {"name": "claw", "size": 1, "kind": "binary"}],
    "proprio_parts": [{**LIMITED, "names": ["x", "y"]}],
}


def pose(x: float, y: float, yaw: float, steps: int) -> np.ndarray:
    return np.tile([x, y, 0.02, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)], (steps, 1))


def printed(store) -> str:
    return summary(store, tables(store, len(store)), store.episode_ends)


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"  {name} ")).removeprefix(
        f"  {name} "
    )


def test_facts_and_ranges(tmp_path):
    """Episodes of 4, 6 and 10 steps; of where the cube lies only the start counts."""
    with EpisodeStore.create(tmp_path / "a.zarr", ATTRIBUTES) as store:
        for i, length in enumerate((4, 6, 10)):
            action = np.full((length, 8), 0.1, np.float32)
            action[-1, 2] = -0.25
            cube = pose(0.1 * i - 0.1, 0.05 * i, 0.3, length)
            cube[-1, :2] = 9
            arrays = {"action": action, "proprio": action + 1, "cube_pose": cube}
            store.append(arrays | {"perturbed": np.arange(length) == 1}, {"success": i != 1})
    text = printed(store)
    for name, values in (
        ("episodes", "3 (20 steps)"), ("rate", "10 Hz"), ("steps an episode", "4 to 10, median 6"),
        ("successful", "2 of 3"), ("perturbed", "15.0 %"), ("x at the start", "-0.1 to +0.1"),
    ):  # fmt: skip
        assert values in row(text, name)
    assert row(text, "action joint 3").split() == ["-0.250", "+0.100", "+0.100"]
    assert "action gripper" in text and "proprio joint 7" in text


def test_parts_give_the_names(tmp_path):
    with EpisodeStore.create(tmp_path / "a.zarr", ATTRIBUTES | PARTS) as store:
        action = np.array([[0, 0, 1], [0.1, 0, 1]], np.float32)
        store.append({"action": action, "proprio": action[:, :2]})
    text = printed(store)
    for name in ("action position 2", "action claw", "proprio x", "proprio y"):
        assert len(row(text, name).split()) == 3
