"""CubePick's scene as the emulated arm: the same physics and cameras, advanced at 250 Hz in real time."""

import asyncio
import copy
import threading
import time

import mujoco
import numpy as np

from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.mujoco_task import refresh_poses
from s2robot.envs.real.emulator.controller import KinematicPlant
from s2robot.envs.real.emulator.server import Faults
from s2robot.envs.renderer import OffscreenRenderer

_IDLE_S = 2.0  # s without a request, after which rendering pauses
_POLL_S = 0.002  # s between two checks for a newer frame


class ScenePlant:
    """A `Plant` in the CubePick scene of an xArm7.

    Joints follow their set point as in CubePick (inverse dynamics, critically damped), but stiffer: the bridge's
    interpolation adds half a period of lag that the simulated environment does not have.
    """

    stiffness = KinematicPlant.stiffness

    def __init__(self, config: CubePickConfig, seed: int = 0):
        self.env = CubePick(config, draw=False)
        self.model, self.data = self.env.model, self.env.data
        self._find_parts()
        self.env.reset(seed=seed)
        self._measure()
        self._until_judged = 0.0

    def _find_parts(self) -> None:
        model, env = self.model, self.env
        joints = [model.joint(name) for name in env.joint_names]
        self._dof = np.array([j.dofadr[0] for j in joints])  # (7,)
        moved = np.where(model.actuator_trntype == mujoco.mjtTrn.mjTRN_JOINT, model.actuator_trnid[:, 0], -1)
        self._motors = np.array([int(np.flatnonzero(moved == j.id)[0]) for j in joints])  # (7,)
        (self._finger_motor,) = set(range(model.nu)) - set(self._motors)
        self._torque_limit = model.actuator_ctrlrange[self._motors].T  # (2, 7)
        cube = model.joint("cube_joint0")
        q, v = cube.qposadr[0], cube.dofadr[0]
        self._robot_q = np.delete(np.arange(model.nq), np.s_[q : q + 7])
        self._robot_v = np.delete(np.arange(model.nv), np.s_[v : v + 6])
        root = model.body_rootid[model.jnt_bodyid[joints[0].id]]
        self._robot_geom = model.body_rootid[model.geom_bodyid] == root  # (ngeom,)
        self._cube_geom = model.geom_bodyid == model.jnt_bodyid[cube.id]
        self._mass = np.zeros((model.nv, model.nv))

    def step(self, set_point: np.ndarray, grip: float, dt: float) -> None:
        model, data = self.model, self.data
        low, high = model.actuator_ctrlrange[self._finger_motor]
        data.ctrl[self._finger_motor] = low + (1 - grip) * (high - low)
        q, dof = self.env.joint_index, self._dof
        for _ in range(round(dt / model.opt.timestep)):
            mujoco.mj_step1(model, data)
            mujoco.mj_fullM(model, self._mass, data.qM)
            pull = self.stiffness * (set_point - data.qpos[q]) - 2 * self.stiffness**0.5 * data.qvel[dof]
            torque = self._mass[np.ix_(dof, dof)] @ pull + data.qfrc_bias[dof]
            data.ctrl[self._motors] = np.clip(torque, *self._torque_limit)
            mujoco.mj_step2(model, data)
        self._measure()
        self._until_judged -= dt
        if self._until_judged <= 0:
            self._until_judged += 1 / self.env.config.rate_hz
            self.env._refresh_poses()
            self.env._judge()

    def place(self, joints: np.ndarray) -> None:
        self.data.qpos[self.env.joint_index] = joints
        self.data.qvel[self._robot_v] = 0
        mujoco.mj_forward(self.model, self.data)
        self._measure()

    def _measure(self) -> None:
        data = self.data
        self.joints = data.qpos[self.env.joint_index].copy()
        self.velocities = data.qvel[self._dof].copy()
        self.torques = data.qfrc_actuator[self._dof].copy()
        self.opening = self.env.opening
        self.contact = self._contact()
        self.positions = data.qpos.copy()  # for the cameras; a new array, since other threads read it
        self.clutter = self.model.geom_pos[self.env._clutter]  # likewise; it changes with each scene

    def _contact(self) -> float:
        """Return the strongest normal force, N, between the robot and anything but the cube and itself."""
        strongest, force = 0.0, np.zeros(6)
        for i, (a, b) in enumerate(self.data.contact.geom[: self.data.ncon]):
            if self._robot_geom[a] != self._robot_geom[b] and not (self._cube_geom[a] or self._cube_geom[b]):
                mujoco.mj_contactForce(self.model, self.data, i, force)
                strongest = max(strongest, float(force[0]))
        return strongest

    def reset(self, seed: int | None = None, **options) -> np.ndarray:
        """Place the cube as `CubePick.reset` does; the arm stays. Return the joints (7,) at which that episode starts."""
        data = self.data
        q, v, control = data.qpos[self._robot_q], data.qvel[self._robot_v], data.ctrl.copy()
        self.env.reset(seed=seed, options=options)
        start = self.env.commanded.copy()
        data.qpos[self._robot_q], data.qvel[self._robot_v], data.ctrl[:] = q, v, control
        mujoco.mj_forward(self.model, data)
        self._measure()
        return start

    def describe(self) -> dict:
        """Return cube pose, progress and success, as JSON types."""
        info = self.env.info()
        progress = {name: info[name] for name in ("is_success", "stage", "distance")}
        return {"cube_pose": info["cube_pose"].tolist(), **progress, "env": self.env.describe()}


class SceneRenderer:
    """Renders the scene's cameras from copies of the joint positions; OpenGL requires one thread for all calls."""

    def __init__(self, plant: ScenePlant):
        self._plant, self._model = plant, copy.deepcopy(plant.model)  # culling writes to it
        self._data = mujoco.MjData(self._model)
        self._cameras, self._sizes = dict(plant.env.camera_ids), plant.env.camera_sizes
        self._renderer = OffscreenRenderer(self._model, *self._sizes.values())

    def draw(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Render one frame per camera of the scene at `positions` (nq,).  # {camera: uint8 (H, W, 3)}"""
        self._data.qpos[:] = positions
        self._model.geom_pos[self._plant.env._clutter] = self._plant.clutter
        refresh_poses(self._model, self._data)
        draw = self._renderer.render
        return {name: draw(self._data, i, self._sizes[name]) for name, i in self._cameras.items()}

    def close(self) -> None:
        self._renderer.close()


class FrameServer:
    """Renders `fps` frames per second of each camera, in a thread, while clients request them."""

    def __init__(self, plant: ScenePlant, fps: float, faults: Faults):
        self._plant, self._period, self._faults = plant, 1 / fps, faults
        # camera -> number, from 1; capture time, s, monotonic; uint8 (H, W, 3) RGB, upright
        self._newest = dict.fromkeys(faults.cameras, (0, 0.0, np.zeros((0, 0, 3), np.uint8)))
        self._active, self._ended, self._requested = threading.Event(), threading.Event(), 0.0
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._draw_forever, name="frames", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._active.set()
        self._thread.join(10)

    async def frame(self, camera: str, after: int = 0) -> dict:
        """Return a camera's newest frame once its number exceeds `after`. Raises KeyError for an unknown camera."""
        while True:
            self._requested = time.monotonic()
            self._active.set()
            if self._failure:
                raise self._failure
            seq, captured, image = self._newest[camera]
            if seq > after:
                return {"seq": seq, "time": captured, "shape": image.shape, "data": image.tobytes()}
            await asyncio.sleep(_POLL_S)

    def _draw_forever(self) -> None:
        try:
            self._active.wait()
            if self._ended.is_set():
                return
            renderer = SceneRenderer(self._plant)
            due = time.monotonic()
            while True:
                self._active.wait()
                if self._ended.wait(max(0.0, due - time.monotonic())):
                    break
                now = time.monotonic()
                due = max(due + self._period, now)
                self._publish(now, renderer.draw(self._plant.positions))
                if now - self._requested > _IDLE_S:
                    self._active.clear()
            renderer.close()
        except Exception as error:
            self._failure = error  # sent to every client instead of a frame

    def _publish(self, now: float, images: dict[str, np.ndarray]) -> None:
        for name, image in images.items():
            seq, _, last = self._newest[name]
            if name not in self._faults.stale:
                frozen = seq > 0 and name in self._faults.frozen
                self._newest[name] = (seq + 1, now, last if frozen else image)
