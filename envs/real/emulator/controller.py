"""The control box's state machine: enabling, modes and states, errors, the gripper, and checks while the arm moves.

The box reports these states: 1 moving, 2 ready, 4 stopped, 5 stopped because the mode was changed. A client must
clear errors, enable, set the mode and set state 0, in this order. The reduced mode limits joint speed and joint range;
its tool speed is only reported. Position mode (0) is emulated without motion.
"""

import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from s2robot.envs.real.arms import geometry as kin

POSITION, SERVO, MANUAL, ONLINE_JOINT = MODES = 0, 1, 2, 6
MOVING, READY, STOPPED, MODE_CHANGED = 1, 2, 4, 5

EMERGENCY_STOP, JOINT_LIMIT, OVERSPEED, COLLISION, BOUNDARY = 1, 23, 24, 31, 35
_UNPOWERING = (EMERGENCY_STOP, 2, 3, *range(10, 18))  # errors that switch the motors off

MAX_TCP_SPEED = 1.2  # m/s; users report errors 24 and 60 from about 1 to 1.2 m/s in servo mode
# N on the arm that raise error 31 if they last, per sensitivity 0 (off) to 5; [assumed]
COLLISION_FORCE = (np.inf, 180.0, 120.0, 80.0, 50.0, 30.0)
# s; a user observed about 2 s in servo mode, and closing fingers that scrape the table push hard for up to 0.1 s
COLLISION_TIME = 0.3
JOINT_TOLERANCE = np.radians(0.1)  # rad beyond the range of a joint
ALL_JOINTS = 0x7F
# rad, the vendor SDK's range of an xArm7 with a serial number below 1305
JOINT_LOW = np.array([-2 * np.pi, -2.059488, -2 * np.pi, -0.191986, -2 * np.pi, -1.692969, -2 * np.pi])
JOINT_HIGH = np.array([2 * np.pi, 2.094395, 2 * np.pi, 3.92699, 2 * np.pi, np.pi, 2 * np.pi])

MAX_SPEED = np.pi  # rad/s, 180 deg/s
MAX_ACCELERATION = 20.0  # rad/s²
STOP_DECELERATION = 20.0  # rad/s²; [assumed] for every stop, including the emergency stop
HAND_SPEED = 0.8  # rad/s, of an operator who guides the arm in manual mode
_ARRIVED = 1e-5  # rad


class Motion:
    """Set point `joints` (7,) and its `velocity`, advanced in small steps."""

    def __init__(self, joints: np.ndarray):
        self.speed_limit = MAX_SPEED  # lower in the box's reduced mode
        self.place(joints)

    def servo(self, target: np.ndarray, kind: str = "servo") -> None:
        """Go to `target` (7,) at full speed, from now, or with `kind="hand"` at that of an operator's hand."""
        self.kind, self.goal = kind, np.array(target, float)

    def plan(self, target: np.ndarray, speed: float, acceleration: float) -> None:
        """Go to `target` (7,) with this speed and acceleration, from now."""
        self.kind, self.goal = "plan", np.array(target, float)
        self._speed, self._acceleration = np.clip([speed, acceleration], 0.01, [MAX_SPEED, MAX_ACCELERATION])
        self._share = np.ones(7)  # fraction of both per joint, so that all joints arrive together

    def stop(self, joints: np.ndarray, velocity: np.ndarray) -> None:
        """Brake and hold, from the measured `joints` and `velocity` (7,); drop the target."""
        if self.kind not in ("hold", "stop"):
            self.joints, self.velocity, self.kind = np.array(joints, float), np.array(velocity, float), "stop"

    def place(self, joints: np.ndarray) -> None:
        """Put the arm at rest at `joints` (7,) at once, without motion."""
        self.joints, self.velocity = np.array(joints, float), np.zeros(7)
        self.kind, self.goal = "hold", self.joints.copy()  # hold, servo, plan, stop, hand

    @property
    def moving(self) -> bool:
        """Whether the set point will change with the next steps."""
        if self.kind in ("servo", "hand"):
            return bool(np.abs(self.goal - self.joints).max() > _ARRIVED)
        return self.kind != "hold"

    def advance(self, dt: float) -> np.ndarray:
        """Advance by `dt` and return the set point.  # (7,)"""
        if self.kind in ("servo", "hand"):
            speed = HAND_SPEED if self.kind == "hand" else self.speed_limit
            step = np.clip(self.goal - self.joints, -speed * dt, speed * dt)
            self.joints, self.velocity = self.joints + step, step / dt
        elif self.kind == "plan":
            self._follow_plan(dt)
        elif self.kind == "stop":
            self._change_velocity(np.zeros(7), STOP_DECELERATION, dt)
            if not self.velocity.any():
                self.place(self.joints)
        return self.joints

    def _change_velocity(self, target: np.ndarray, acceleration: np.ndarray | float, dt: float) -> None:
        change = np.clip(target - self.velocity, -acceleration * dt, acceleration * dt)
        self.velocity = self.velocity + change
        self.joints = self.joints + self.velocity * dt

    def _follow_plan(self, dt: float) -> None:
        error = self.goal - self.joints
        distance = np.abs(error)
        if not self.velocity.any():  # from rest, the joints arrive together
            self._share = np.maximum(distance / max(distance.max(), _ARRIVED), 0.02)
        speed, gain = min(self._speed, self.speed_limit) * self._share, self._acceleration * self._share
        # the highest speed from which the joint can still stop at the target, corrected for one step
        stoppable = np.sqrt(2 * gain * distance + (gain * dt / 2) ** 2) - gain * dt / 2
        velocity = np.sign(error) * np.minimum(np.minimum(speed, stoppable), distance / dt)
        self._change_velocity(velocity, gain, dt)
        if (np.abs(self.goal - self.joints) < 1e-4).all() and (np.abs(self.velocity) < 2e-2).all():
            self.place(self.goal)


class Plant(Protocol):
    """The emulated arm: follows a joint set point in fixed time steps. Radians, seconds, newtons."""

    joints: np.ndarray  # (7,) measured
    velocities: np.ndarray  # (7,) measured, rad/s
    torques: np.ndarray  # (7,) Nm
    opening: float  # of the gripper, measured: 0 closed to 1 open
    contact: float  # N, the strongest contact force on the arm, except from an object it holds

    def step(self, set_point: np.ndarray, grip: float, dt: float) -> None:
        """Move for `dt` towards `set_point` (7,), and the gripper towards opening `grip`."""

    def place(self, joints: np.ndarray) -> None:
        """Put the arm at rest at `joints` (7,)."""


class KinematicPlant:
    """A plant without physics: a critically damped spring per joint pulls it to its set point; the gripper follows at once."""

    stiffness = 4000.0  # 1/s²; the lag behind a moving set point is 2 / sqrt(stiffness)

    def __init__(self, joints: np.ndarray):
        self.torques, self.opening, self.contact = np.zeros(7), 1.0, 0.0
        self.place(joints)

    def place(self, joints: np.ndarray) -> None:
        self.joints, self.velocities = np.array(joints, float), np.zeros(7)

    def step(self, set_point: np.ndarray, grip: float, dt: float) -> None:
        for _ in range(2):  # stable for steps of 4 ms
            pull = self.stiffness * (set_point - self.joints) - 2 * self.stiffness**0.5 * self.velocities
            self.velocities = self.velocities + pull * dt / 2
            self.joints = self.joints + self.velocities * dt / 2
        self.opening = grip


class Journal:
    """All commands that reached the box, executed or not, and two minutes of motion: the evidence for every fault test."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self.commands: deque[dict] = deque(maxlen=100_000)
        self._motion: deque[dict] = deque(maxlen=30_000)  # at 250 Hz

    def command(
        self, kind: str, name: str, values: Any, client: int, accepted: bool, flags: Sequence[str] = ()
    ) -> None:
        """Record a command of a `kind` (motion, gripper, stop, state) that has just arrived. `flags`: nonfinite, limit, jump
        (these three could damage the arm), error, not_ready, mode."""
        unsafe = bool({"nonfinite", "limit", "jump"} & set(flags))
        row = {"time": self._clock(), "kind": kind, "name": name, "values": tuple(map(float, values))}
        row |= {"client": client, "accepted": accepted, "flags": tuple(flags), "unsafe": unsafe}
        self.commands.append(row)

    def moved(self, joints: np.ndarray, velocities: np.ndarray) -> None:
        """Record the arm's joints, rad, and velocities, rad/s; the arrays are not copied."""
        self._motion.append({"time": self._clock(), "joints": joints, "velocities": velocities})

    def motion_since(self, time_s: float) -> list[dict]:
        """Return the joints and velocities of each tick from `time_s` on."""
        return [row for row in self._motion if row["time"] >= time_s]


class Gripper:
    """The xArm gripper as a Modbus slave on the tool's RS485 bus; positions are pulses, 0 closed to 850 open."""

    STROKE, FULL_SPEED = 850, 5000  # pulses; the speed register's highest value
    PULSES_PER_SPEED = 2 * STROKE / FULL_SPEED  # per s: at full speed the stroke takes 0.5 s, as in CubePick
    SLAVE, READ, WRITE = 8, 0x03, 0x10
    ERROR, ENABLE, MODE, SPEED, TARGET, POSITION = 0x000F, 0x0100, 0x0101, 0x0303, 0x0700, 0x0702

    def __init__(self) -> None:
        self.enabled = False
        self.speed, self.target = self.FULL_SPEED, self.STROKE
        self.commanded = self.measured = float(self.STROKE)  # on its way to the target

    def advance(self, dt: float) -> float:
        """Advance by `dt` and return the commanded opening, 0 closed to 1 open."""
        step = self.speed * self.PULSES_PER_SPEED * dt
        self.commanded += min(max(self.target - self.commanded, -step), step)
        return self.commanded / self.STROKE

    def stop(self) -> None:
        self.target = round(self.commanded)
        self.commanded = float(self.target)

    def answer(self, frame: bytes) -> bytes | None:
        """Return the reply to one RTU frame; None if no slave has that address."""
        if len(frame) < 2 or frame[0] != self.SLAVE:
            return None
        function, size = frame[1], len(frame)
        if function not in (self.READ, self.WRITE):
            return bytes([self.SLAVE, function | 0x80, 1])  # illegal function
        address, count = struct.unpack_from(">HH", frame, 2) if size >= 6 else (0, 0)
        if function == self.READ:
            position = round(self.measured)
            held = {self.ERROR: 0, self.POSITION: position >> 16, self.POSITION + 1: position & 0xFFFF}
            if 1 <= count <= 2 and all(address + i in held for i in range(count)):
                values = struct.pack(f">{count}H", *(held[address + i] for i in range(count)))
                return bytes([self.SLAVE, self.READ, len(values)]) + values
        elif size >= 9 and frame[6] == 2 * count == size - 7:
            if (address, count) == (self.TARGET, 2):
                (target,) = struct.unpack_from(">i", frame, 7)
                self.target = min(max(target, 0), self.STROKE) if self.enabled else self.target
                return frame[:6]
            if count == 1 and address in (self.ENABLE, self.MODE, self.SPEED):
                (value,) = struct.unpack_from(">H", frame, 7)
                self.enabled = bool(value) if address == self.ENABLE else self.enabled
                if address == self.SPEED:
                    self.speed = min(max(value, 1), self.FULL_SPEED)
                return frame[:6]
        return bytes([self.SLAVE, function | 0x80, 2])  # illegal address


class Controller:
    """Executes commands, moves the plant and stops it on errors; the journal records all motion."""

    def __init__(self, plant: Plant, journal: Journal):
        self.plant, self.journal = plant, journal
        self.gripper = Gripper()
        self.motion = Motion(plant.joints)
        # what clients configure
        self.collision_sensitivity, self.reduced, self.fence, self.self_collision = 3, False, False, True
        self.boundary: tuple[int, ...] = (10000, -10000) * 3  # mm: x max, x min, y max, y min, z max, z min
        self.reduced_tcp_speed, self.reduced_joint_speed = 1000.0, np.pi  # mm/s, reported only; rad/s
        self.reduced_ranges = np.stack([JOINT_LOW, JOINT_HIGH], axis=1).ravel()  # rad: low, high per joint
        self.mode, self.error = POSITION, 0
        self.enabled = 0  # one bit per joint: motor on and brake released
        self.tcp_speed = 0.0
        self._base_state = STOPPED
        self._pushed = 0.0  # s
        self._frozen: dict | None = None  # reported instead of the arm's motion
        self._measure()

    @property
    def state(self) -> int:
        if self._base_state == READY:
            return MOVING if self.motion.moving else READY
        return self._base_state

    @property
    def ready(self) -> bool:
        """Whether motion commands are executed."""
        return self.enabled == ALL_JOINTS and self._base_state == READY and not self.error

    def reported(self) -> dict:
        """Return the arm's motion, rad, m, Nm and s; during the fault `freeze_joints`, as it was when that began."""
        p = self.plant
        motion = {"joints": p.joints, "velocities": p.velocities, "torques": p.torques}
        return self._frozen or {**motion, "tcp_speed": self.tcp_speed}

    def enable(self, joint: int, on: bool) -> bool:
        """Switch motor power of joint 1 to 7, or of all (8). Return False for another number."""
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
        """Change the mode; the arm stops and needs state 0 again [assumed]. Return False for a mode not emulated."""
        if mode not in MODES:
            return False
        self._halt(MODE_CHANGED if self._base_state != STOPPED else STOPPED)
        self.mode = mode
        return True

    def set_state(self, state: int) -> bool:
        """Set the state: 0 ready, 4 stop, 6 slow stop. Return False for any other."""
        if state == 0:
            if not self.error and self.enabled == ALL_JOINTS:
                self._base_state = READY
        elif state in (4, 6):
            self._halt(STOPPED)
        else:
            return False
        return True

    def clean_error(self) -> None:
        """Clear the error; the arm stays stopped."""
        self.error = 0

    def limit_flags(self, target: np.ndarray) -> list[str]:
        """Return the flags of an invalid joint target (7,); none if it is valid."""
        if not np.isfinite(target).all():
            return ["nonfinite"]
        low, high = JOINT_LOW, JOINT_HIGH
        if self.reduced:
            low, high = np.maximum(low, self.reduced_ranges[::2]), np.minimum(high, self.reduced_ranges[1::2])
        inside = (target >= low - JOINT_TOLERANCE) & (target <= high + JOINT_TOLERANCE)
        return [] if inside.all() else ["limit"]

    def raise_error(self, code: int) -> None:
        self.error = code
        self._halt(STOPPED)
        if code in _UNPOWERING:
            self.enabled = 0
            self.gripper.stop()

    def force_mode(self, mode: int) -> None:
        """Emulate another client that changes the mode and makes the arm ready again."""
        self._halt(MODE_CHANGED)
        self.mode = mode
        self.set_state(0)

    def freeze_report(self, frozen: bool = True) -> None:
        """Report the present joints from now on; or report measurements again."""
        self._frozen = self.reported() if frozen else None

    def hand(self, target: np.ndarray) -> bool:
        """Emulate an operator who guides the arm towards `target` (7,); return False unless in manual mode."""
        if not self.ready or self.mode != MANUAL or self.limit_flags(target):
            return False
        self.motion.servo(target, "hand")
        return True

    def tick(self, dt: float) -> None:
        """Advance by `dt` seconds and raise an error if a check fails."""
        plant, before = self.plant, self._flange[:3, 3]
        plant.step(self.motion.advance(dt), self.gripper.advance(dt), dt)
        self._measure()
        speed = float(np.linalg.norm(self._flange[:3, 3] - before)) / dt
        self.tcp_speed += (speed - self.tcp_speed) * min(1.0, dt / 0.012)
        self.journal.moved(plant.joints, plant.velocities)
        if not self.error and self.enabled:
            self._watch(dt)

    def place(self, joints: np.ndarray) -> None:
        """Put the arm at `joints` (7,) at once, as when a scene is set up; mode and state stay unchanged."""
        self.plant.place(joints)
        self.motion.place(joints)
        self._measure()
        self.tcp_speed = 0.0

    def _measure(self) -> None:
        self._flange = kin.frames(self.plant.joints)[-1]
        self.gripper.measured = self.plant.opening * Gripper.STROKE

    def _halt(self, state: int) -> None:
        self.motion.stop(self.plant.joints, self.plant.velocities)
        self._base_state = state

    def _watch(self, dt: float) -> None:
        fastest = self.reduced_joint_speed if self.reduced else MAX_SPEED
        self.motion.speed_limit = float(np.clip(fastest, 0.01, MAX_SPEED))
        pushes = self.plant.contact > COLLISION_FORCE[self.collision_sensitivity]
        self._pushed = self._pushed + dt if pushes else 0.0
        x, boundary = self._flange[:3, 3] * 1000, self.boundary
        if np.abs(self.plant.velocities).max() > 1.1 * MAX_SPEED or self.tcp_speed > MAX_TCP_SPEED:
            self.raise_error(OVERSPEED)
        elif self._pushed > COLLISION_TIME:
            self.raise_error(COLLISION)
        elif self.fence and self.motion.moving and ((x > boundary[::2]) | (x < boundary[1::2])).any():
            self.raise_error(BOUNDARY)
