"""The emulator's ports, and its side channel: faults, journal, scene and camera frames, as JSON lines on loopback.

`SideChannel` is the client, for tests and for deployments that rehearse against the emulator.
"""

import asyncio
import inspect
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pydantic import validate_call

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.sdk import EMULATED_IP as HOST
from s2robot.envs.real.arms.sdk import BoxPorts

Operation = Callable[..., Any]  # returns a dict, None, or what to await for one
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Ports(BoxPorts):
    """Where the emulator listens on loopback; the defaults need no privilege. The gripper's is `control` + 1."""

    control: int = 15502  # the box's 502
    report: int = 15302  # its 30002, 5 Hz
    side: int = 15800  # see the module

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
    """A connection handler that calls `operations[op](**rest)` per line and answers with a line.

    An answer holds `ok`, the monotonic `time` before it, and what the operation returned (`data`: so many bytes follow the
    line); or `error`, one line, for anything that is no such request.
    """
    checked = {name: validate_call(operation) for name, operation in operations.items()}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            answer = await _answer(checked, line)
            data = answer.pop("data", b"")
            answer |= {"data": len(data)} if data else {}
            # in a thread: minutes of motion are seconds of work, in which the box has to go on
            text = await asyncio.to_thread(json.dumps, answer, default=np.ndarray.tolist)
            writer.write(text.encode() + b"\n" + data)
            await writer.drain()

    return serve


async def _answer(operations: dict[str, Operation], line: bytes) -> dict:
    now = time.monotonic()
    try:
        request = json.loads(line)
        found = operations[request.pop("op")](**request)
        found = await found if inspect.isawaitable(found) else found
        return {"ok": True, "time": now} | (found or {})
    except Exception as error:  # the client gets it, whatever the request is
        return {"ok": False, "error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


class SideChannel:
    """A client of the side channel at `port`, connected from its first question on; several threads may share it.

    After an answer that did not come within `timeout_s`, the next question has a new connection.
    """

    def __init__(self, port: int, timeout_s: float = 10.0):
        self._port, self._timeout_s = port, timeout_s
        self._turn = threading.Lock()  # a question and its answer
        self._stream: Any = None

    def __call__(self, op: str, **settings) -> dict:
        """Do `op` and return its answer; EnvError if the emulator rejects it, is gone, or is something else."""
        question = json.dumps({"op": op, **settings}).encode() + b"\n"
        try:
            with self._turn:
                answer = self._ask(question)
        except (OSError, ValueError, KeyError) as error:
            why = f"expected a running `s2robot emulate`, got no answer to '{op}' ({error})"
            answer = {"ok": False, "error": why}
        if not answer["ok"]:
            raise EnvError(f"bridge.emulator.port={self._port}: {answer['error']}")
        return answer

    def fault(self, name: str, **settings) -> float:
        """Inject a fault, see `emulator.faults`; its monotonic time, s."""
        return self(f"fault {name}", **settings)["time"]

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _ask(self, question: bytes) -> dict:
        try:
            if self._stream is None:
                with socket.create_connection((HOST, self._port), self._timeout_s) as connection:
                    self._stream = connection.makefile("rwb")
            self._stream.write(question)
            self._stream.flush()
            first = self._stream.read(1)  # the box's reports never end
            answer = json.loads(first + self._stream.readline() if first == b"{" else b"no answer")
            answer["ok"]
            if "data" in answer:
                size, answer["data"] = answer["data"], self._stream.read(answer["data"])
                if len(answer["data"]) < size:
                    raise ValueError("it ended early")
            return answer
        except BaseException:
            with suppress(OSError):  # of what could not be sent
                self.close()  # the answer may come yet, and is not the next one's
            self._stream = None
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
