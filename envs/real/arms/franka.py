"""A Franka arm (Panda, FR3) with its hand, through franky (`pip install 's2robot[franka]'`).

libfranka's 1 kHz loop runs in franky's own thread: a joint impedance controller follows the newest target. The arm is
compliant, lags by a few hundredths of a radian under load, and holds the last target if Python hangs. It accepts one
client and brakes when that client's commands stop, so the supervisor stops the arm by ending this process.

Tested only against franky-sim, which accepts commands that a real arm rejects and reports no errors. That shows nothing
about safety on a real arm.
"""

import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np

from s2robot.core.errors import reported
from s2robot.envs.errors import EnvError
from s2robot.envs.real import import_extra
from s2robot.envs.real.arms import driver as arms
from s2robot.envs.real.arms.driver import ArmLimits, ArmState, Array, CommandResult, DriverStatus
from s2robot.envs.real.control.clock import now

MOVING = 2  # franky's RobotMode.Move: a controller runs
GONE = 1  # CommandResult.code: the controller has ended after an error or a stop
ERROR = 1  # ArmState.error: any error; franky describes it only in words
GRIPPER_PERIOD = 0.1  # s between two readings of the hand
GRIPPER_LOST = 2.0  # s without an answer from the hand
HAND_SPEED = 0.1  # m/s
GRASP_FORCE = 40.0  # N
STIFFNESS = np.array([600.0, 600.0, 600.0, 600.0, 250.0, 150.0, 50.0])  # N m/rad


class FrankaDriver(arms.ArmDriver):
    """A Panda or FR3 at an address.

    Args:
        limits: `command` never exceeds its joint range and `step_max`.
        realtime: require a realtime kernel, as libfranka does; by default only if the arm is not simulated on this machine.
        gripper: False for an arm without a hand; the opening is then NaN.
    """

    armed_mode, one_client = MOVING, True

    def __init__(self, ip: str, limits: ArmLimits, gripper: bool = True, realtime: bool | None = None):
        super().__init__(limits, limits.step_max)
        self.ip, self._has_gripper = ip, gripper
        self._realtime = not ip.startswith("127.") if realtime is None else realtime
        self._robot: Any = None
        self._hand: Any = None
        self._tracker: Any = None
        self._heard, self._mode, self._error = -np.inf, -1, 0
        self._lock = threading.Lock()  # held by a stop or a command, which may come from different threads
        self._target_opening: float | None = None  # opening
        self._opening, self._hand_heard = np.nan, -np.inf
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def connect(self, timeout_s: float) -> None:
        """See `ArmDriver`; clears no error. Raises EnvError if franky, the arm or the hand is missing or silent."""
        franky = import_extra("franky", "franka")

        def build() -> tuple[Any, Any, Any]:
            config = franky.RealtimeConfig
            robot = franky.Robot(self.ip, realtime_config=config.Enforce if self._realtime else config.Ignore)
            hand = franky.Gripper(self.ip) if self._has_gripper else None
            return robot, hand, hand.state if hand else None

        made = arms.made_within(timeout_s, build, lambda late: None, f"franka {self.ip}")
        self._robot, self._hand, hand_state = made
        try:
            if self._hand is not None:
                self._update_hand(hand_state)
                self._closing.clear()
                self._thread = threading.Thread(target=self._run_hand, daemon=True, name="franka hand")
                self._thread.start()
            self.read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._robot is not None and not self.stopped:
            self.stop("closed")
        if self._tracker is not None:
            with suppress(Exception):
                self._robot.join_motion(2.0)
        self._closing.set()
        if self._thread is not None:
            self._thread.join(2.0)
        self._robot = self._hand = self._tracker = self._thread = None

    def arm(self) -> None:
        """Start the controller at the measured joints; the arm does not move.

        Raises EnvError and leaves the arm stopped if an error is pending (inspect the arm, then recover in Desk), the
        controller does not start, or `stop` was called meanwhile.
        """
        if self.read().error:
            errors = self._robot.state.current_errors
            hint = "inspect the arm, then recover in Desk"
            raise EnvError(f"franka {self.ip}: expected no error, got {errors}; {hint}")
        with self._arming():
            self._start()
            self._last, self.stopped = self.read().q, ""

    def _start(self) -> None:
        import franky

        with reported(f"franka {self.ip}: the controller does not start", kind=EnvError):
            with suppress(franky.ControlException):  # an error of the last motion was already reported
                self._robot.join_motion(2.0)
            low, high = np.array(self.limits.q_min), np.array(self.limits.q_max)
            self._tracker = franky.JointImpedanceTracker(
                self._robot, stiffness=STIFFNESS, lower_joint_limits=low, upper_joint_limits=high
            )
            end = time.monotonic() + 2.0
            while not (self._tracker.is_running and self.read().mode == MOVING):
                if time.monotonic() > end:
                    raise TimeoutError(f"expected mode {MOVING}, got {self._mode}")
                time.sleep(0.01)

    def read(self) -> ArmState:
        """See `ArmDriver`; the hand's opening is up to 0.2 s old. Raises EnvError also if the hand is silent for 2 s."""
        requested = now()
        why = "expected connect first, and an arm that answers, got no state"
        with reported(f"franka {self.ip}: {why}", kind=EnvError):
            state = self._robot.state
            q = np.array(state.q, float)
            mode, error = int(state.robot_mode.value), ERROR if self._robot.has_errors else 0
        silent = 0.0 if self._hand is None else requested - self._hand_heard
        q = arms.measured(f"franka {self.ip}", q, silent, GRIPPER_LOST)
        self._heard, self._mode, self._error = requested, mode, error
        return ArmState(q, self._opening, requested, mode, error)

    def status(self) -> DriverStatus:
        age = now() - self._heard
        return DriverStatus(self._robot is not None and age < 1.0, self._error, self._mode, age)

    def command(self, q: Array, gripper: float | None) -> CommandResult:
        """Set the controller's target, joints (7,) rad, and an opening; see `ArmDriver`. GONE: the controller has ended."""
        begin = now()
        with self._lock:
            if (target := self._sendable(q, gripper)) is None:
                return CommandResult(arms.REFUSED, begin, begin)
            if not self._tracker.is_running:
                return CommandResult(GONE, begin, begin)
            self._tracker.set_target(target)
            self._last = target
            if gripper is not None:
                self._target_opening = float(gripper)
        return CommandResult(arms.OK, begin, now())

    def stop(self, reason: str) -> bool:
        """Brake and end the controller without waiting for rest; see `ArmDriver`. True also if no controller was running."""
        self._last_stop = object()
        with self._lock:
            self.stopped, self._target_opening = reason or "stopped", None
            robot, tracker = self._robot, self._tracker
            if robot is None or tracker is None:
                return robot is not None
            with suppress(Exception):
                import franky

                if robot.is_in_control:
                    robot.move(franky.TorqueStopMotion(), asynchronous=True)
                return True
        with suppress(Exception):  # the braking motion was rejected: end the current motion directly
            robot.stop()
            return True
        return False

    def _update_hand(self, state: Any) -> None:
        self._opening = float(np.clip(state.width / max(state.max_width, 1e-6), 0.0, 1.0))
        self._hand_heard = now()

    def _run_hand(self) -> None:
        """Ten times a second, start a motion if the target has changed, and read the width."""
        sent: float | None = None
        under_way: Any = None
        while not self._closing.wait(GRIPPER_PERIOD):
            if self._target_opening is None:  # stopped: afterwards even the same opening is a new command
                sent = None
            with suppress(Exception):  # a failed motion prevents neither the next one nor the reading
                # wait for a motion to end: franky-sim never answers one that was interrupted
                free = under_way is None or under_way.wait(0.0)
                if free and (target := self._target_opening) is not None and target != sent:
                    if target < 0.5:
                        # every width counts as a grasp: the policy sees what it holds
                        under_way = self._hand.grasp_async(0.0, HAND_SPEED, GRASP_FORCE, 1.0, 1.0)
                    else:
                        under_way = self._hand.move_async(target * self._hand.max_width, HAND_SPEED)
                    sent = target
            with suppress(Exception):
                self._update_hand(self._hand.state)
        if under_way is not None:
            with suppress(Exception):
                under_way.wait(2.0)  # destroying an unfinished motion would wait for it without a timeout
