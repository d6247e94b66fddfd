"""The emulator's ports, and its side channel: faults, journal, scene and camera frames, as JSON lines on loopback.

`SideChannel` is its client, for tests and for rehearsed deployments.
"""

import asyncio
import inspect
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pydantic import validate_call

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.sdk import EMULATED_IP as HOST
from s2robot.envs.real.arms.sdk import BoxPorts

Operation = Callable[..., Any]  # returns a dict, None, or an awaitable of either
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Ports(BoxPorts):
    """The emulator's loopback ports; the defaults need no privileges. The gripper's port is `control` + 1."""

    control: int = 15502  # 502 on a control box
    report: int = 15302  # 30002 on a control box, at 5 Hz
    side: int = 15800  # the side channel

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Ports":
        return cls(**json.loads(line))


def free_ports() -> Ports:
    with ExitStack() as held:

        def hold(port: int = 0) -> int:
            s = held.enter_context(socket.socket())
            s.bind((HOST, port))
            return s.getsockname()[1]

        while True:
            control = hold()
            with suppress(OSError, OverflowError):
                hold(control + 1)
                return Ports(control, hold(), hold())


def side_handler(operations: dict[str, Operation]) -> Handler:
    """Return a connection handler that calls `operations[op](**arguments)` for each line and answers with a line.

    An answer contains `ok`, the monotonic `time` before the call, and the operation's result (`data`: number of bytes that
    follow the line); or, for an invalid request or a failed operation, `error`, one line.
    """
    checked = {name: validate_call(operation) for name, operation in operations.items()}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            answer = await _answer(checked, line)
            data = answer.pop("data", b"")
            answer |= {"data": len(data)} if data else {}
            # in a thread: encoding minutes of motion takes seconds, and must not block the box
            text = await asyncio.to_thread(json.dumps, answer, default=np.ndarray.tolist)
            writer.write(text.encode() + b"\n" + data)
            await writer.drain()

    return serve


async def _answer(operations: dict[str, Operation], line: bytes) -> dict:
    now = time.monotonic()
    try:
        request = json.loads(line)
        result = operations[request.pop("op")](**request)
        result = await result if inspect.isawaitable(result) else result
        return {"ok": True, "time": now} | (result or {})
    except Exception as error:  # sent to the client
        return {"ok": False, "error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


class SideChannel(AbstractContextManager["SideChannel"]):
    """A client of the side channel at `port`; it connects at the first request. Several threads may share it.

    After an answer that did not arrive within `timeout_s`, the next request opens a new connection.
    """

    def __init__(self, port: int, timeout_s: float = 10.0):
        self._port, self._timeout_s = port, timeout_s
        self._lock = threading.Lock()  # held for one request and its answer
        self._stream: Any = None

    def __call__(self, op: str, **settings) -> dict:
        """Run `op` and return its answer. Raises EnvError if the emulator rejects it, or no emulator answers."""
        request = json.dumps({"op": op, **settings}).encode() + b"\n"
        try:
            with self._lock:
                answer = self._send(request)
        except (OSError, ValueError, KeyError) as error:
            why = f"expected a running `s2robot emulate`, got no answer to '{op}' ({error})"
            answer = {"ok": False, "error": why}
        if not answer["ok"]:
            raise EnvError(f"bridge.emulator.port={self._port}: {answer['error']}")
        return answer

    def fault(self, name: str, **settings) -> float:
        """Inject a fault of `server.Faults`; return its monotonic time, s."""
        return self(f"fault {name}", **settings)["time"]

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _send(self, request: bytes) -> dict:
        try:
            if self._stream is None:
                with socket.create_connection((HOST, self._port), self._timeout_s) as connection:
                    self._stream = connection.makefile("rwb")
            self._stream.write(request)
            self._stream.flush()
            first = self._stream.read(1)  # on a report port, a whole line might never arrive
            answer = json.loads(first + self._stream.readline() if first == b"{" else b"no answer")
            answer["ok"]
            if "data" in answer:
                size, answer["data"] = answer["data"], self._stream.read(answer["data"])
                if len(answer["data"]) < size:
                    raise ValueError("the answer is incomplete")
            return answer
        except BaseException:
            with suppress(OSError):  # unsent bytes may fail again
                self.close()  # a late answer must not be mistaken for the next one
            self._stream = None
            raise

    def __exit__(self, *_):
        self.close()
