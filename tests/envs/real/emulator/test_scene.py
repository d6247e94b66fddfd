"""The MuJoCo scene behind the emulator: its arm, cube and cameras match those of CubePick."""

import numpy as np
import pytest

from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.geometry import ToolIK
from s2robot.envs.real.control.clock import now
from s2robot.envs.real.emulator import stand_in
from s2robot.envs.real.emulator.emulator import launch
from s2robot.envs.real.emulator.scene import ScenePlant, SceneRenderer
from s2robot.envs.real.emulator.stand_in import EmulatedCamera
from tests.envs.real.home import HOME
from tests.envs.real.patience import PATIENCE
from tests.errors import fails

ENV = {"image_size": 64, "cameras": ["hand", "left"]}


@pytest.fixture(scope="module")
def plant():
    return ScenePlant(CubePickConfig(image_size=64), seed=3)


@pytest.fixture(scope="module")
def emulator():
    with launch(env=ENV, seed=3, fps=10) as emulator:
        yield emulator


def test_reset_places_the_cube_like_cube_pick_and_leaves_the_arm(plant):
    env = CubePick(CubePickConfig(image_size=64), draw=False)
    env.reset(seed=11)
    away = HOME + 0.05
    plant.place(away)
    np.testing.assert_array_equal(plant.reset(seed=11), env.commanded)
    np.testing.assert_array_equal(plant.env.cube_pose, env.cube_pose)
    np.testing.assert_array_equal(plant.joints, away)


def test_pushing_into_the_table_reports_contact_force(plant):
    plant.reset(seed=0, cube_xy=[-0.1, 0.15])
    plant.place(HOME)
    depth = plant.env.grip_position[2] + 0.03
    ik, down = ToolIK(), HOME
    position, rotation = ik.pose(HOME)
    for k in range(20):
        down = ik.solve(down, position - [0, 0, depth * (k + 1) / 20], rotation)
    strongest = 0.0
    for k in range(500):
        plant.step(HOME + (down - HOME) * min(1, k / 250), 0.0, 0.004)
        strongest = max(strongest, plant.contact)
    assert strongest > 80


def test_frames_match_cube_pick_and_each_scene_has_its_own_clutter():
    plant = ScenePlant(CubePickConfig(image_size=64, clutter=5), seed=3)
    renderer, clutter = SceneRenderer(plant), []
    for seed in (3, 7):
        plant.reset(seed)
        frames = renderer.draw(plant.positions)
        plant.env._refresh_poses()
        for name, image in plant.env.render_cameras().items():
            assert np.abs(image.astype(int) - frames[name]).max() <= 1
        clutter.append(plant.clutter)
    assert not np.allclose(*clutter)
    renderer.close()
    plant.env.close()


def test_frames_arrive_over_loopback_with_faults_on_demand(emulator, monkeypatch):
    monkeypatch.setattr(stand_in, "_FRAME_S", PATIENCE)
    side, camera = emulator.side, EmulatedCamera(emulator.ports.side, "hand", PATIENCE)
    (first, image), (second, _) = camera.read(), camera.read()
    assert image.shape == (64, 64, 3) and image.std() > 5 and 0 < second - first and now() - second < PATIENCE

    fails("camera_stale: expected one of hand, left", side.fault, "camera_stale", camera="front")
    fails("KeyError: 'front'", EmulatedCamera, emulator.ports.side, "front", PATIENCE)
    side.fault("camera_freeze", camera="hand")
    frozen = [camera.read()[1] for _ in range(2)][1]
    side("reset_scene", seed=5, cube_xy=[0, 0])
    np.testing.assert_array_equal([camera.read()[1] for _ in range(2)], [frozen] * 2)
    side("clear")
    assert np.abs([camera.read()[1] for _ in range(2)][1].astype(int) - frozen).max() > 20

    monkeypatch.setattr(stand_in, "_FRAME_S", 0.3)
    hasty = EmulatedCamera(emulator.ports.side, "hand", PATIENCE)
    side.fault("camera_stale")
    with pytest.raises(EnvError, match="no answer to 'frame'"):
        for _ in range(3):
            hasty.read()
    side("clear")
    for one in (camera, hasty):
        one.close()


def test_scene_over_the_side_channel(emulator):
    answer = emulator.side("reset_scene", seed=7)
    assert emulator.side("scene")["cube_pose"][:2] == pytest.approx(answer["cube_pose"][:2], abs=1e-3)
    assert len(answer["start_joints"]) == 7 and answer["stage"] == "approach"
    for wrong in ({"seed": -1}, {"cube_xy": [1]}, {"cube_yaw": "x"}, {"colour": 1}, {"cube_xy": [0, 99]}):
        fails("bridge.emulator.port=", emulator.side, "reset_scene", **wrong)
    assert emulator.side("scene")["env"]["env_config"]["image_size"] == 64
