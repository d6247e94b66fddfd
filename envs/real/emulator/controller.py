"""The box's state machine: enabling, modes and states, errors, and what it watches while the arm moves.

States as the box reports them: 1 moving, 2 ready, 4 stopped, 5 stopped because the mode was changed. A client must
clear errors, enable, set the mode and set state 0, in this order. The reduced mode limits joint speed and joint range;
its tool speed is only reported. Position mode (0) is emulated without motion.
"""

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms import kinematics as kin
from s2robot.envs.real.emulator.gripper import Gripper
from s2robot.envs.real.emulator.journal import Journal
from s2robot.envs.real.emulator.motion import MAX_ACCELERATION, MAX_SPEED, Motion, Plan, Plant
from s2robot.envs.real.emulator.wire import Report

POSITION, SERVO, MANUAL, ONLINE_JOINT = MODES = 0, 1, 2, 6
MOVING, READY, STOPPED, MODE_CHANGED = 1, 2, 4, 5

EMERGENCY_STOP, JOINT_LIMIT, OVERSPEED, COLLISION, BOUNDARY = 1, 23, 24, 31, 35
_UNPOWERING = (EMERGENCY_STOP, 2, 3, *range(10, 18))  # errors after which the motors are off

MAX_TCP_SPEED = 1.2  # m/s; users report errors 24 and 60 from about 1 to 1.2 m/s in servo mode
# N on the arm that raise error 31, per sensitivity 0 (off) to 5, if they last; [assumed]
COLLISION_FORCE = (np.inf, 180.0, 120.0, 80.0, 50.0, 30.0)
# s; a user saw about 2 s in servo mode, and closing fingers that scrape the table push hard for up to 0.1 s
COLLISION_TIME = 0.3
JOINT_TOLERANCE = np.radians(0.1)  # beyond the range of a joint
ALL_JOINTS = 0x7F
# rad, the vendor SDK's range of an xArm7 with a serial number below 1305
JOINT_LOW = np.array([-2 * np.pi, -2.059488, -2 * np.pi, -0.191986, -2 * np.pi, -1.692969, -2 * np.pi])
JOINT_HIGH = np.array([2 * np.pi, 2.094395, 2 * np.pi, 3.92699, 2 * np.pi, np.pi, 2 * np.pi])


class Controller:
    """Obeys commands, moves the plant and stops it on errors.

    Args:
        plant: the body to move.
        journal: takes note of all motion.
    """

    def __init__(self, plant: Plant, journal: Journal):
        self.plant, self.journal = plant, journal
        self.gripper = Gripper()
        self.motion = Motion(plant.joints)
        self.settings = Report()  # what clients configure, under the names of the report
        self.settings.load = np.array([0.82, 0.0, 0.0, 48.0])  # its own gripper
        self.settings.boundary = (10000, -10000, 10000, -10000, 10000, -10000)
        self.settings.reduced_ranges = np.stack([JOINT_LOW, JOINT_HIGH], axis=1).reshape(-1)
        self.mode, self.error, self.warning = POSITION, 0, 0
        self.enabled = 0  # bit per joint; its brake is released with it
        self.frames = kin.frames(plant.joints)
        self.tcp_speed = 0.0
        self._base_state = STOPPED
        self._held_error = 0
        self._pushed = 0.0  # s
        self._frozen: Report | None = None

    # ---------------------------------------------------------------------------------------------- state

    @property
    def state(self) -> int:
        if self._base_state == READY:
            return MOVING if self.motion.moving else READY
        return self._base_state

    @property
    def ready(self) -> bool:
        """Whether motion commands are obeyed."""
        return self.enabled == ALL_JOINTS and self._base_state == READY and not self.error

    def tool_pose(self) -> np.ndarray:
        """x, y, z (m), roll, pitch, yaw (rad) of the flange, as they are.  # (6,)"""
        return np.concatenate([self.frames[-1][:3, 3], kin.to_rpy(self.frames[-1][:3, :3])])

    def report(self) -> Report:
        """Return the present report; joints as they are, or were when the fault ``freeze_joints`` began."""
        frozen, plant, s = self._frozen, self.plant, self.settings
        if frozen is None:
            pose, joints, velocities = self.tool_pose(), plant.joints, plant.velocities
            torques, speed = plant.torques, self.tcp_speed
        else:
            pose, joints, velocities = frozen.pose, frozen.joints, frozen.velocities
            torques, speed = frozen.torques, frozen.tcp_speed
        s.mode, s.state, s.commands = self.mode, self.state, int(self.motion.kind == "plan")
        s.joints, s.velocities, s.torques, s.pose, s.tcp_speed = joints, velocities, torques, pose, speed
        s.brakes = s.enabled = self.enabled
        s.error, s.warning = self.error, self.warning
        return s

    # -------------------------------------------------------------------------------------------- clients

    def enable(self, joint: int, on: bool) -> bool:
        """Motor power of joint 1 to 7, or of all (8). False for another number."""
        if not 1 <= joint <= 8:
            return False
        bits = ALL_JOINTS if joint == 8 else 1 << joint - 1
        if on and not self.error:
            self.enabled |= bits
        elif not on:
            self.enabled &= ~bits
            self._halt(STOPPED)
        return True

    def set_mode(self, mode: int) -> bool:
        """Change the mode; the arm stops and needs state 0 again [assumed]. False for a mode not emulated."""
        if mode not in MODES:
            return False
        self._halt(MODE_CHANGED if self._base_state != STOPPED else STOPPED)
        self.mode = mode
        return True

    def set_state(self, state: int) -> bool:
        """0 go on, 4 stop, 6 slow stop. False for another."""
        if state == 0:
            if not self.error and self.enabled == ALL_JOINTS:
                self._base_state = READY
        elif state in (4, 6):
            self._halt(STOPPED)
        else:
            return False
        return True

    def clean_error(self) -> None:
        """Forget the error; its cause, if it lasts, brings it back. The arm stays stopped."""
        self.error = self._held_error

    def limit_flags(self, target: np.ndarray) -> list[str]:
        """What is wrong with a joint target (7,)."""
        if not np.isfinite(target).all():
            return ["nonfinite"]
        low, high = self._joint_range()
        return ["limit"] if (target < low).any() or (target > high).any() else []

    def servo(self, target: np.ndarray) -> None:
        """Mode 1: the newest target, at full speed."""
        if self._allowed(target):
            self.motion.servo(target)

    def plan(self, target: np.ndarray, speed: float, acceleration: float) -> None:
        """Mode 6: a planned joint motion, in place of the one before."""
        if self._allowed(target):
            speed = float(np.clip(speed, 0.01, MAX_SPEED))
            self.motion.plan(Plan(target, speed, float(np.clip(acceleration, 0.01, MAX_ACCELERATION))))

    # --------------------------------------------------------------------------------------------- faults

    def raise_error(self, code: int, hold: bool = False) -> None:
        """Stop the arm with an error; ``hold`` makes it come back after cleaning, whatever errors come between."""
        self.error = code
        if hold:
            self._held_error = code
        self._halt(STOPPED)
        if code in _UNPOWERING:
            self.enabled = 0
            self.gripper.stop()

    def release_error(self) -> None:
        """End the cause of a held error and report joints as they are again; the error stays."""
        self._held_error, self._frozen = 0, None

    def force_mode(self, mode: int, state: int) -> None:
        """Another client changed the mode, and the state to 2 (ready) or 5."""
        if mode not in MODES or state not in (READY, MODE_CHANGED):
            raise EnvError(f"fault mode: expected one of {MODES} and state 2 or 5, got {mode} and {state}")
        self._halt(MODE_CHANGED)
        self.mode = mode
        if state == READY:
            self.set_state(0)

    def freeze_report(self) -> None:
        """Tell the present joints from now on, until :meth:`release_error`."""
        r = self.report()
        self._frozen = Report(
            joints=r.joints, velocities=r.velocities, torques=r.torques, pose=r.pose, tcp_speed=r.tcp_speed
        )

    def hand(self, target: np.ndarray) -> bool:
        """A person leads the arm towards ``target`` (7,); only manual mode lets them."""
        if not self.ready or self.mode != MANUAL or self.limit_flags(target):
            return False
        self.motion.hand(target)
        return True

    # ----------------------------------------------------------------------------------------------- time

    def tick(self, dt: float) -> None:
        """Let ``dt`` seconds pass."""
        set_point = self.motion.advance(dt)
        grip = self.gripper.advance(dt)
        before = self.frames[-1][:3, 3]
        plant = self.plant
        plant.step(set_point, grip, dt)
        self.gripper.observe(plant.opening, dt)
        self.frames = kin.frames(plant.joints)
        speed = float(np.linalg.norm(self.frames[-1][:3, 3] - before)) / dt
        self.tcp_speed += (speed - self.tcp_speed) * min(1.0, dt / 0.012)
        self.journal.moved(plant.joints, plant.velocities, set_point)
        if not self.error and self.enabled:
            self._watch(dt)

    def place(self, joints: np.ndarray) -> None:
        """The arm stands at ``joints`` (7,) at once, as when a scene is set up; its state is kept."""
        self.plant.place(joints)
        self.motion.place(joints)
        self.frames = kin.frames(joints)
        self.tcp_speed = 0.0

    # --------------------------------------------------------------------------------------------- inside

    def _joint_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest joint angles that are no error.  # (7,), (7,)"""
        low, high = JOINT_LOW, JOINT_HIGH
        if self.settings.reduced:
            reduced = self.settings.reduced_ranges.reshape(7, 2)
            low, high = np.maximum(low, reduced[:, 0]), np.minimum(high, reduced[:, 1])
        return low - JOINT_TOLERANCE, high + JOINT_TOLERANCE

    def _allowed(self, target: np.ndarray) -> bool:
        if "limit" in self.limit_flags(target):
            self.raise_error(JOINT_LIMIT)
            return False
        return True

    def _halt(self, state: int) -> None:
        self.motion.stop(self.plant.joints, self.plant.velocities)
        self._base_state = state

    def _watch(self, dt: float) -> None:
        """Raise the error of whatever has gone wrong."""
        s = self.settings
        s_limit = s.reduced_joint_speed if s.reduced else MAX_SPEED
        self.motion.speed_limit = min(MAX_SPEED, max(s_limit, 0.01))
        self._pushed = (
            self._pushed + dt if self.plant.contact > COLLISION_FORCE[s.collision_sensitivity] else 0.0
        )
        if np.abs(self.plant.velocities).max() > 1.1 * MAX_SPEED or self.tcp_speed > MAX_TCP_SPEED:
            self.raise_error(OVERSPEED)
        elif self._pushed > COLLISION_TIME:
            self.raise_error(COLLISION)
        elif s.fence and self.motion.moving and self._outside_boundary():
            self.raise_error(BOUNDARY)

    def _outside_boundary(self) -> bool:
        x = self.frames[-1][:3, 3] * 1000
        high, low = np.array(self.settings.boundary[::2]), np.array(self.settings.boundary[1::2])
        return bool((x > high).any() or (x < low).any())
