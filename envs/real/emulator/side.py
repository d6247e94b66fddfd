"""The side channel: inject faults, read the journal and set up the scene, as JSON lines on loopback.

{"op": "fault", "name": "error", "code": 31}   ->   {"ok": true, "time": 1234.5}

``SideChannel`` is the client, for tests and for deployments that rehearse against the emulator.
"""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable

from s2robot.envs.errors import EnvError
from s2robot.envs.real.emulator.ports import HOST

Operation = Callable[..., dict | None]


def side_handler(operations: dict[str, Operation]):
    """A connection handler that calls ``operations[op](**rest)`` per line and answers with a line.

    An answer holds ``ok``, the monotonic ``time`` before the operation began, and what the operation returned; or
    ``error``, one line, for anything that is no such request.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(json.dumps(_answer(operations, line)).encode() + b"\n")
            await writer.drain()

    return serve


def _answer(operations: dict[str, Operation], line: bytes) -> dict:
    now = time.monotonic()
    try:
        request = json.loads(line)
        name = request.pop("op")
        if name not in operations:
            raise EnvError(f"op: found {name!r}, expected one of {', '.join(operations)}")
        return {"ok": True, "time": now} | (operations[name](**request) or {})
    except EnvError as error:
        return {"ok": False, "error": str(error)}
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, OverflowError) as error:
        return {"ok": False, "error": f"{type(error).__name__}: {error}"[:300]}


class SideChannel:
    """A client of the side channel; several threads may share it.

    Args:
        port: the emulator's side port.
        timeout_s: for each answer.
    """

    def __init__(self, port: int, timeout_s: float = 10.0):
        self._socket = socket.create_connection((HOST, port), timeout=timeout_s)
        self._lines = self._socket.makefile("rb")
        self._turn = threading.Lock()  # a question and its answer

    def __call__(self, op: str, **settings) -> dict:
        """Do ``op`` and return its answer; EnvError if the emulator refuses or is gone."""
        try:
            with self._turn:
                self._socket.sendall(json.dumps({"op": op, **settings}).encode() + b"\n")
                line = self._lines.readline()
        except OSError as error:
            raise EnvError(f"emulator: found no answer to '{op}' ({error}), expected one") from None
        if not line:
            raise EnvError(f"emulator: found the side channel closed during '{op}', expected an answer")
        answer = json.loads(line)
        if not answer["ok"]:
            raise EnvError(f"emulator: {answer['error']}")
        return answer

    def fault(self, name: str, **settings) -> float:
        """Inject a fault (``s2robot.envs.real.emulator.faults.NAMES``); its monotonic time, s."""
        return self("fault", name=name, **settings)["time"]

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
