"""The emulator's cameras as a driver reads them; the other side is `s2robot.envs.real.emulator.frames`."""

import json
import socket
from typing import Any

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.control.clock import from_monotonic
from s2robot.envs.real.emulator.frames import Frame
from s2robot.envs.real.emulator.ports import HOST


class FrameClient:
    """Reads one camera of the emulator.

    Args:
        port: the emulator's frames port.
        camera: its name.
        timeout_s: for each frame.
    """

    def __init__(self, port: int, camera: str, timeout_s: float = 2.0):
        self.camera = camera
        self._socket = socket.create_connection((HOST, port), timeout=timeout_s)
        self._stream = self._socket.makefile("rb")

    def read(self, after: int = 0) -> Frame:
        """The newest frame, as soon as one is newer than number ``after``.

        Raises:
            EnvError: an unknown camera, or the emulator is gone or cannot draw.
            TimeoutError: no newer frame within the time-out; the client cannot be used any more.
        """
        self._socket.sendall(json.dumps({"camera": self.camera, "after": after}).encode() + b"\n")
        line = self._stream.readline()
        header: dict[str, Any] = json.loads(line) if line else {"error": "the connection is closed"}
        if "error" in header:
            raise EnvError(f"emulator camera {self.camera}: {header['error']}")
        shape = tuple(header["shape"])
        data = self._stream.read(int(np.prod(shape)))
        if len(data) != int(np.prod(shape)):
            raise EnvError(f"emulator camera {self.camera}: the connection was closed within a frame")
        return Frame(header["seq"], header["time"], np.frombuffer(data, np.uint8).reshape(shape))

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


class EmulatedCamera:
    """A camera of the emulator, whose times are on this machine's clock.

    Args:
        port: the emulator's frames port.
        camera: its name there.
        start_s: until the first frame, which takes as long as building a renderer; 0: it is not waited for.

    Raises:
        EnvError: no first frame.
    """

    def __init__(self, port: int, camera: str, start_s: float = 0.0):
        self._seq = 0
        if start_s:
            self._client = FrameClient(port, camera, start_s)
            try:
                self.read()
            finally:
                self.close()
        self._client = FrameClient(port, camera)

    def read(self) -> tuple[float, np.ndarray]:
        """The next frame; EnvError if none comes within 2 s."""
        try:
            frame = self._client.read(self._seq)
        except OSError as error:
            raise EnvError(f"emulator camera {self._client.camera}: gave no frame ({error})") from None
        self._seq = frame.seq
        return from_monotonic(frame.time), frame.image

    def close(self) -> None:
        self._client.close()
