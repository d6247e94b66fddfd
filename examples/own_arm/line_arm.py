"""A driver for an arm whose controller accepts one JSON line per request, in degrees and with openings from 0 to 1."""

import json
import math
import socket
from contextlib import suppress
from typing import BinaryIO

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import (
    OK,
    REFUSED,
    ArmDriver,
    ArmLimits,
    ArmState,
    CommandResult,
    DriverStatus,
    measured,
)
from s2robot.envs.real.control.clock import now


class LineArm(ArmDriver):
    answer_s, gone_s = 0.1, 1.0  # timeout of a response; silence after which the arm counts as disconnected

    def __init__(self, ip: str, limits: ArmLimits, gripper: bool = True):
        super().__init__(limits, limits.step_max)
        host, _, port = ip.partition(":")
        self.address = (host, int(port or 5000))
        self._links: dict[str, BinaryIO] | None = None  # two, so that a stop does not wait behind a command
        self._heard, self._mode, self._error = -math.inf, -1, 0

    def connect(self, timeout_s: float) -> None:
        self._links = {}
        try:
            for name in ("commands", "stops"):
                self._links[name] = self._open(timeout_s / 2)
        except OSError as error:
            self.close()
            raise EnvError(f"line arm {self.address}: expected an arm, got none ({error})") from None

    def _open(self, timeout_s: float) -> BinaryIO:
        link = socket.create_connection(self.address, timeout=timeout_s)
        link.settimeout(self.answer_s)
        return link.makefile("rwb")

    def _request(self, name: str, **request) -> dict:
        if self._links is None:
            raise EnvError(f"line arm {self.address}: expected connect first, got no connection")
        try:
            link = self._links[name] = self._links.get(name) or self._open(self.answer_s)
            link.write(json.dumps(request).encode() + b"\n")
            link.flush()
            return json.loads(link.readline())  # a closed connection yields an empty line: not JSON either
        except (OSError, ValueError) as error:
            self._drop(name)  # the next request reconnects; a late answer must not be taken for its own
            raise EnvError(f"line arm {self.address}: expected a response, got none ({error})") from None

    def _drop(self, name: str) -> None:
        if self._links and (link := self._links.pop(name, None)):
            with suppress(OSError):
                link.close()

    def arm(self) -> None:
        if error := self.read().error:
            hint = "check the arm and clear the error there"
            raise EnvError(f"line arm: expected no error, got error {error} pending; {hint}")
        with self._arming():  # stops the arm if a step fails or `stop` is called meanwhile
            if self._request("commands", do="enable")["code"] != 0:
                raise EnvError("line arm: expected it to enable, got a refusal")
            self._last, self.stopped = self.read().q, ""

    def read(self) -> ArmState:
        sent = now()
        r = self._request("commands", do="state")
        self._heard, self._mode, self._error = sent, r["mode"], r["error"]
        q = measured(f"line arm {self.address}", np.radians(r["q_deg"]))
        return ArmState(q, r["opening"], sent, r["mode"], r["error"])

    def command(self, q, gripper: float | None) -> CommandResult:
        sent, target = now(), self._sendable(q, gripper)  # None: not armed, NaN, out of range, too far, ...
        if target is None:
            return CommandResult(REFUSED, sent, sent)
        response = self._request("commands", do="move", q_deg=np.degrees(target).tolist(), opening=gripper)
        self._last = target
        return CommandResult(OK if response["code"] == 0 else response["code"], sent, now())

    def stop(self, reason: str) -> bool:
        self._last_stop, self.stopped = object(), reason  # first, so that no command follows the stop
        for name in ("stops", "commands"):
            with suppress(EnvError):
                return self._request(name, do="stop").get("code") == 0
        return False  # not acknowledged: the supervisor stops the arm

    def status(self) -> DriverStatus:
        age = now() - self._heard
        heard = self._heard < 0 or age < self.gone_s  # the supervisor's driver never reads
        return DriverStatus(self._links is not None and heard, self._error, self._mode, age)

    def close(self) -> None:
        if not self.stopped:
            self.stop("closed")
        for name in ("commands", "stops"):
            self._drop(name)
        self._links = None
