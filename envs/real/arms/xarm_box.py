"""The settings of an xArm's control box: what a session changes and restores, and what it compares.

box = BoxSettings(ip, sdk)
box.check_tool(payload=0.82, tcp_offset=(0.0,) * 6)
for name, call in box.steps(limits, sensitivity): ...   # the box's own limits
box.restore()                                           # as they were before the first `steps`
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import ArmLimits

HAND_REACH = 0.2  # m from the flange to the farthest that the box's limits leave to the hand
_PAYLOAD_OFF, _OFFSET_OFF = 0.1, 2e-3  # kg; m and rad
_REPORT_S = 0.5  # s until a report says what the box has; five come a second

Steps = tuple[tuple[str, Callable[[], Any]], ...]


class BoxSettings:
    """Settings of the box at `ip`, over a connection with reports."""

    def __init__(self, ip: str, sdk: Any):
        self._ip, self._sdk = ip, sdk
        self._before: tuple[list[Any], int, bool] | None = (
            None  # reduced states, sensitivity, self-collision check
        )

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

    def steps(self, limits: ArmLimits, sensitivity: int) -> Steps:
        """Calls by name that set the box's own limits."""
        sdk = self._sdk
        if self._before is None:
            code, states = sdk.get_reduced_states()
            if code == 0 and len(states) > 5:  # old firmware knows fewer, and keeps what it is given
                self._before = states, int(sdk.collision_sensitivity), bool(sdk.self_collision_params[0])
        joints = np.stack([limits.q_min, limits.q_max], 1).ravel().tolist()
        fence = np.array(limits.box)[:, ::-1] + [HAND_REACH, -HAND_REACH]  # m, (high, low), of the flange
        boundary, speed = (1000 * fence).ravel().tolist(), limits.point_speed * 1000
        return self._calls([True, boundary, speed, max(limits.dq_max), joints, True], sensitivity, True)

    def restore(self) -> None:
        """Put the box's limits back; up to the first that fails, as where the connection is gone."""
        if self._before is None:
            return
        with suppress(Exception):
            for _, call in self._calls(*self._before):
                code = call()
                if (code[0] if isinstance(code, list | tuple) else code) not in (0, 1, 2, 9):
                    return
        self._before = None

    def _calls(self, reduced: list[Any], sensitivity: int, self_collision: bool) -> Steps:
        """`reduced`: on, boundary in mm, tool speed in mm/s, joint speed in rad/s, joint ranges in rad, fence on."""
        sdk, (on, boundary, tool_speed, joint_speed, ranges, fence) = self._sdk, reduced[:6]
        # a bare bus call where the SDK's own would wait for motion or set the state by the way
        return (
            ("set_collision_sensitivity", lambda: sdk._arm.arm_cmd.set_collis_sens(sensitivity)[0]),
            ("set_self_collision_detection", lambda: sdk.set_self_collision_detection(self_collision)),
            ("set_reduced_max_joint_speed", lambda: sdk.set_reduced_max_joint_speed(joint_speed)),
            ("set_reduced_max_tcp_speed", lambda: sdk.set_reduced_max_tcp_speed(tool_speed)),
            ("set_reduced_joint_range", lambda: sdk.set_reduced_joint_range(ranges)),
            ("set_reduced_tcp_boundary", lambda: sdk.set_reduced_tcp_boundary(boundary)),
            ("set_reduced_mode", lambda: sdk.set_reduced_mode(on)),
            ("set_fence_mode", lambda: sdk.set_fence_mode(fence)),
        )
