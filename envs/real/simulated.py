"""Any arm with a model, simulated in this process by MuJoCo: `deploy` without an arm (`bridge=simulated`).

Each driver call first advances the simulation to the clock's time; with a test's clock, this is fast and deterministic.
Computed torques make the arm's joints follow their commands, independently of the model's actuators; other joints are not
driven, and the gripper's opening is only a number. There is no scene: the arm cannot pick up anything.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import mujoco
import numpy as np

from s2robot.envs.errors import expect
from s2robot.envs.real.arms import driver as arms
from s2robot.envs.real.arms.description import ArmDescription
from s2robot.envs.real.arms.driver import ArmState, Array, CommandResult, DriverStatus
from s2robot.envs.real.arms.model import compiled
from s2robot.envs.real.control.clock import REAL, Clock, now
from s2robot.envs.real.operator.prompts import Operator, Placing

FPS = 20.0  # frames per second
SIZE = 256, 320  # pixels, height and width of a frame
STIFFNESS = 5000.0  # 1/s², critically damped: an arm that moves at v lags 28 ms · v behind
STROKE_S = 0.5  # s from open to closed gripper
ASLEEP_S = 1.0  # s, longest gap between calls that is simulated in full


class SimulatedArm(arms.ArmDriver):
    """The arm of `robot.model`, at its start joints. It also provides cameras, and an operator that asks no questions."""

    def __init__(
        self, robot: ArmDescription, limits: arms.ArmLimits, gripper: bool = True, clock: Clock = REAL
    ):
        super().__init__(limits, 5 * np.array(limits.dq_max) / limits.rate_hz)
        self._robot, self._clock, self._has_gripper = robot, clock, gripper and robot.gripper is not None
        self.data: Any = None  # MjData, once connected
        self._views: dict[str, int] = {}  # camera -> its id in the model, or -1

    def connect(self, timeout_s: float) -> None:
        """Build the model. Raises EnvError if the model does not fit the description."""
        self.model, joints = compiled(self._robot, _paint_sky)
        self.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ACTUATION
        self._q, self._dof = self.model.jnt_qposadr[joints], self.model.jnt_dofadr[joints]
        self.data = mujoco.MjData(self.model)
        self.data.qpos[self._q] = self._goal = self._robot.start
        mujoco.mj_forward(self.model, self.data)
        self._mass = np.empty((self.model.nv, self.model.nv))
        self._time, self._opening, self._target_opening = self._clock.now(), 1.0, 1.0

    def arm(self) -> None:
        with self._arming():
            self._last = self._goal = self.read().q
            self.stopped = ""

    def read(self) -> ArmState:
        expect(self.data is not None, "simulated arm", "connect first", "no connection")
        self._advance(requested := self._clock.now())
        opening = self._opening if self._has_gripper else np.nan
        return ArmState(self.data.qpos[self._q].copy(), opening, requested, self._mode, 0)

    def command(self, q: Array, gripper: float | None) -> CommandResult:
        sent, target = self._clock.now(), self._sendable(q, gripper)
        if target is None:
            return CommandResult(arms.REFUSED, sent, sent)
        self._advance(sent)
        self._last = self._goal = target
        self._target_opening = self._target_opening if gripper is None else float(gripper)
        return CommandResult(arms.OK, sent, self._clock.now())

    def stop(self, reason: str) -> bool:
        self._last_stop, self.stopped = object(), reason or "stopped"
        if self.data is not None:
            self._goal = self.data.qpos[self._q].copy()
        return True

    def status(self) -> DriverStatus:
        return DriverStatus(self.data is not None, 0, self._mode, 0.0)

    def close(self) -> None:
        self.stop("closed")

    @property
    def _mode(self) -> int:
        return 0 if self.stopped else self.armed_mode

    def _advance(self, until: float) -> None:
        model, data, dof = self.model, self.data, self._dof
        begin, step = self._time, model.opt.timestep
        self._time = max(self._time, until - ASLEEP_S)
        while self._time + step <= until:
            mujoco.mj_fullM(model, self._mass, data.qM)
            gap, speed = self._goal - data.qpos[self._q], data.qvel[dof]
            acceleration = STIFFNESS * gap - 2 * np.sqrt(STIFFNESS) * speed
            torque = self._mass[np.ix_(dof, dof)] @ acceleration
            data.qfrc_applied[dof] = torque + data.qfrc_bias[dof] - data.qfrc_passive[dof]
            mujoco.mj_step(model, data)
            self._time += step
        change = (self._time - begin) / STROKE_S
        self._opening += float(np.clip(self._target_opening - self._opening, -change, change))

    def camera(self, name: str) -> Callable[[], "SimulatedCamera"]:
        self._views[name] = number = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_CAMERA, name)
        view = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(self.model, view)
        view.azimuth += 60 * len(self._views)  # a different view for each camera
        if number >= 0:
            view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, number
        return partial(SimulatedCamera, self, view)

    def cameras(self) -> tuple[float, dict[str, dict]]:
        """Return the frames per second, and the field of view, degrees, of each requested camera."""
        default, fovys = float(self.model.vis.global_.fovy), self.model.cam_fovy
        return FPS, {name: {"fovy": default if i < 0 else float(fovys[i])} for name, i in self._views.items()}

    def operator(self) -> Operator:
        return Unattended()


def _paint_sky(spec: Any) -> None:
    """Add a background, so that a camera without a visible geom does not show an empty frame."""
    kind, style = mujoco.mjtTexture.mjTEXTURE_SKYBOX, mujoco.mjtBuiltin.mjBUILTIN_GRADIENT
    light, dark = (0.8, 0.8, 0.8), (0.3, 0.3, 0.4)
    spec.add_texture(name="s2robot sky", type=kind, builtin=style, rgb1=light, rgb2=dark, width=64, height=64)


class SimulatedCamera:
    def __init__(self, arm: SimulatedArm, view: mujoco.MjvCamera):
        self._arm, self._view, self._data = arm, view, mujoco.MjData(arm.model)
        self._renderer = mujoco.Renderer(arm.model, *SIZE)

    def read(self) -> tuple[float, np.ndarray]:
        time.sleep(1 / FPS)
        captured, self._data.qpos[:] = now(), self._arm.data.qpos
        mujoco.mj_fwdPosition(self._arm.model, self._data)
        self._renderer.update_scene(self._data, self._view)
        return captured, self._renderer.render()

    def close(self) -> None:
        self._renderer.close()


class Unattended(Operator):
    """No person beside the arm: it may always move, and no one places the cube or judges episodes."""

    def free(self, fault: tuple[str, ...]) -> bool:
        return True

    def place(self, placing: Placing) -> bool:
        return True

    def success(self) -> bool:
        return False

    def stage(self) -> str:
        return ""
