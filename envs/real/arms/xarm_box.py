"""An xArm's control box: its settings, which a session changes, compares and restores, and its gripper."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import ArmLimits
from s2robot.envs.real.control.clock import now

HAND_REACH = 0.2  # m from the flange to the farthest that the box's limits leave to the hand
_PAYLOAD_OFF, _OFFSET_OFF = 0.1, 2e-3  # kg; m and rad
_REPORT_S = 0.5  # s until a report says what the box has; five come a second

PULSES = 850  # the gripper's, open
PERIOD = 0.1  # s between two requests to it
STROKE_S = 1.0  # s after a target in which fingers that stand may be about to move
# the SDK's calls that arming takes, with their arguments; the speed is the highest of its register, pulses/s
GRIPPER_STEPS = (("set_gripper_enable", True), ("set_gripper_mode", 0), ("set_gripper_speed", 5000))


def call(sdk: Any, name: str, *args: Any) -> int:
    """Call the SDK by name; return its code."""
    if name == "set_collision_sensitivity":  # its own would wait for motion and set the state by the way
        answer = sdk._arm.arm_cmd.set_collis_sens(*args)
    else:
        answer = getattr(sdk, name)(*args)
    return int(answer[0] if isinstance(answer, list | tuple) else answer)  # some return what the bus returned


class BoxSettings:
    """Settings of the box at `ip`, over a connection with reports."""

    def __init__(self, ip: str, sdk: Any):
        self._ip, self._sdk = ip, sdk
        # reduced states, sensitivity, self-collision check
        self._before: tuple[list[Any], int, bool] | None = None

    def check_tool(self, payload: float | None, tcp_offset: tuple[float, ...] | None) -> None:
        """Compare payload (kg) and TCP offset (m and rad) with the box's; None is not compared.

        Raises EnvError if they differ: the box's collision detection, its fence and an arm led by hand depend on them.
        """
        end = time.monotonic() + _REPORT_S
        while wrong := self._wrong_tool(payload, tcp_offset):
            if time.monotonic() > end:
                raise EnvError(
                    f"xarm {self._ip}: {wrong}; set it in UFACTORY Studio, or give the box's value here"
                )
            time.sleep(0.01)

    def _wrong_tool(self, payload: float | None, tcp_offset: tuple[float, ...] | None) -> str:
        weight, offset = float(self._sdk.tcp_load[0]), np.array(self._sdk.tcp_offset, float)
        offset[:3] /= 1000
        if payload is not None and abs(weight - payload) > _PAYLOAD_OFF:
            return f"bridge.arm.payload: expected the box's {weight:g} kg, got {payload:g}"
        if tcp_offset is not None and np.abs(offset - tcp_offset).max() > _OFFSET_OFF:
            return f"bridge.arm.tcp_offset: expected the box's {offset.tolist()}, got {list(tcp_offset)}"
        return ""

    def steps(self, limits: ArmLimits, sensitivity: int) -> tuple[tuple[Any, ...], ...]:
        """Return the calls, with their arguments, that set the box's own limits."""
        sdk = self._sdk
        if self._before is None:
            code, states = sdk.get_reduced_states()
            if code == 0 and len(states) > 5:  # old firmware knows fewer, and keeps what it is given
                self._before = states, int(sdk.collision_sensitivity), bool(sdk.self_collision_params[0])
        joints = np.stack([limits.q_min, limits.q_max], 1).ravel().tolist()
        fence = np.array(limits.box)[:, ::-1] + [HAND_REACH, -HAND_REACH]  # m, (high, low), of the flange
        boundary, speed = (1000 * fence).ravel().tolist(), limits.point_speed * 1000
        return _limits([True, boundary, speed, max(limits.dq_max), joints, True], sensitivity, True)

    def restore(self) -> None:
        """Put the box's limits back; up to the first that fails, as where the connection is gone."""
        if self._before is None:
            return
        with suppress(Exception):
            for step in _limits(*self._before):
                if call(self._sdk, *step) not in (0, 1, 2, 9):
                    return
        self._before = None


def _limits(reduced: list[Any], sensitivity: int, self_collision: bool) -> tuple[tuple[Any, ...], ...]:
    """`reduced`: on, boundary in mm, tool speed in mm/s, joint speed in rad/s, joint ranges in rad, fence on."""
    on, boundary, tool_speed, joint_speed, ranges, fence = reduced[:6]
    return (
        ("set_collision_sensitivity", sensitivity), ("set_self_collision_detection", self_collision),
        ("set_reduced_max_joint_speed", joint_speed), ("set_reduced_max_tcp_speed", tool_speed),
        ("set_reduced_joint_range", ranges), ("set_reduced_tcp_boundary", boundary), ("set_reduced_mode", on),
        ("set_fence_mode", fence),
    )  # fmt: skip


class XArmGripper:
    """Sends a changed target and reads the opening, ten times a second, on a connection that never holds up the arm's.

    Args:
        sdk: the arm's connection, whose second port this opens.
        ours: whether the gripper may move now.
        timeout_s, end: for an answer; s, monotonic, when the first one must be there (EnvError).

    Attributes: `opening` (measured, 0 closed to 1 open), `heard` (s, when it was), `code` (of the last answer).
    """

    def __init__(self, ip: str, sdk: Any, ours: Callable[[], bool], timeout_s: float, end: float):
        self._sdk, self._ours = sdk, ours
        self._wanted: int | None = None  # pulses
        self.opening, self.heard, self.code = np.nan, -np.inf, 0
        self._closing, self._news = threading.Event(), threading.Event()
        if sdk.set_rs485_use_503_port() != 0:
            raise EnvError(f"xarm {ip}: found no second port for the gripper, expected one (502 + 1)")
        sdk._arm.arm_cmd_503.set_timeout(timeout_s)
        self._thread = threading.Thread(target=self._tend, daemon=True, name="xarm gripper")
        self._thread.start()
        while not np.isfinite(self.opening):
            if time.monotonic() > end:
                self.close()
                raise EnvError(
                    f"xarm {ip}: found no answer from the gripper (code {self.code}), expected its opening; is it "
                    "plugged in, and its bus at 2 Mbaud?"
                )
            time.sleep(0.01)

    def want(self, opening: float | None) -> None:
        """The target, 0 closed to 1 open; None: none, and fingers under way halt (those that hold something stay)."""
        self._wanted = None if opening is None else round(float(opening) * PULSES)
        self._news.set()

    def close(self) -> None:
        """End the thread; may be repeated."""
        self._closing.set()
        self._news.set()
        self._thread.join(2.0)

    def _tend(self) -> None:
        sdk, sent, sent_at, before = self._sdk, None, -np.inf, None
        closing = False
        while not closing:
            self._news.wait(PERIOD)
            self._news.clear()
            closing = self._closing.is_set()  # a stop that came before is still obeyed
            try:
                wanted, ours = self._wanted, self._ours()
                if wanted != sent and wanted is not None and ours:
                    if sdk.set_gripper_position(wanted, wait=False, no_check=True) == 0:
                        sent, sent_at = wanted, time.monotonic()
                code, pulses = sdk.get_gripper_position(check_baud=False)
                if not ours and sent is not None and code == 0 and pulses is not None:
                    under_way = pulses != before or time.monotonic() - sent_at < STROKE_S
                    if pulses == sent or not under_way or self._halt(pulses):
                        sent = None
            except Exception:  # whatever the SDK makes of a broken answer
                code, pulses = -1, None
            self.code, before = code, pulses
            if code == 0 and pulses is not None:
                self.opening = float(np.clip(pulses / PULSES, 0.0, 1.0))
                self.heard = now()

    def _halt(self, pulses: int) -> bool:
        """Make where the fingers are their target; whether the gripper took it."""
        return self._sdk.set_gripper_position(pulses, wait=False, no_check=True) == 0
