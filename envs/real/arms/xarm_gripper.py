"""The gripper of an xArm: tended by a thread on a connection of its own, which never holds up the arm's."""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.control.clock import now

PULSES = 850  # open
SPEED = 5000  # pulses/s of its register, the highest
PERIOD = 0.1  # s between two words with it
STROKE_S = 1.0  # s after a target in which fingers that stand may be about to move


class XArmGripper:
    """Sends a changed target, and asks for the opening, ten times a second.

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

    def steps(self) -> tuple[tuple[str, Callable[[], Any]], ...]:
        """What arming it takes: the SDK's calls by name."""
        sdk = self._sdk
        return (
            ("set_gripper_enable", lambda: sdk.set_gripper_enable(True)),
            ("set_gripper_mode", lambda: sdk.set_gripper_mode(0)),
            ("set_gripper_speed", lambda: sdk.set_gripper_speed(SPEED)),
        )

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
