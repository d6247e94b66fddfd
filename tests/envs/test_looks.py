"""Appearance changes of an evaluation that demos never contain: images change, physics and seeds do not."""

import numpy as np
import pytest

from s2robot.demos.errors import DatasetError
from s2robot.demos.record import record
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.cube_picker import PickerConfig
from s2robot.envs.world import CLUTTER
from tests.envs.test_cube_pick import some_actions

SIZE = 96
SIDES = ("left", "right")


def frames(seed: int = 3, **changes) -> tuple[dict[str, np.ndarray], CubePick]:
    env = CubePick(CubePickConfig(image_size=SIZE, **changes))
    observation, _ = env.reset(seed=seed)
    return observation["images"], env


@pytest.fixture(scope="module")
def usual():
    return frames()


def change(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of pixels that differ by more than 20 grey levels in any channel."""
    return float((np.abs(a.astype(int) - b).max(-1) > 20).mean())


def test_lighting_scales_the_image_brightness(usual):
    dark, dark_env = frames(lighting=0.5)
    views = (dark, usual[0], frames(lighting=1.4)[0])
    for camera in ("hand", *SIDES):
        means = [image[camera].mean() for image in views]
        assert means[0] < 0.8 * means[1] < 0.8 * means[2] / 1.02
    assert np.array_equal(dark_env.get_state(), usual[1].get_state())


def test_a_shifted_camera_sees_the_cube_further_left(usual):
    images, env = frames(camera_shift=0.04)
    for camera in SIDES:
        moved = np.subtract(*(e.project(e.cube_pose[:3])[camera] for e in (env, usual[1])))
        assert moved[0] < -0.03 and abs(moved[1]) < 1e-3
        assert change(images[camera], usual[0][camera]) > 0.02
        places = [e.model.cam_pos[e.camera_ids[camera]] for e in (env, usual[1])]
        assert np.linalg.norm(places[0] - places[1]) == pytest.approx(0.04)
    assert np.array_equal(images["hand"], usual[0]["hand"])
    assert env.camera_geometry()["left"] != usual[1].camera_geometry()["left"]


def test_clutter_is_visible_seeded_and_touches_nothing(usual):
    images, env = frames(clutter=8)
    assert all(change(images[camera], usual[0][camera]) > 0.01 for camera in SIDES)
    places = env.model.geom_pos[env._clutter].copy()
    assert len(places) == len(CLUTTER)
    cube = env.cube_pose[:2]
    assert np.linalg.norm(places[:, :2] - cube, axis=1).min() > 0.085
    assert cube == pytest.approx(usual[1].cube_pose[:2], abs=1e-9)  # clutter does not move the cube
    env.reset(seed=4)
    assert not np.allclose(env.model.geom_pos[env._clutter], places)
    again = env.reset(seed=3)[0]["images"]
    assert all(np.array_equal(again[camera], images[camera]) for camera in images)
    usual[1].reset(seed=3)
    for action in some_actions(15):
        env.step_physics(action)
        usual[1].step_physics(action)
    assert np.array_equal(env.joints, usual[1].joints) and np.array_equal(env.cube_pose, usual[1].cube_pose)


def test_recording_demos_with_clutter_is_rejected(tmp_path):
    with pytest.raises(DatasetError, match=r"env\.clutter: expected 0"):
        record(tmp_path / "d.zarr", CubePickConfig(clutter=2), PickerConfig(), episodes=1, seed=1)
