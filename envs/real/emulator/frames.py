"""Rendered camera frames over loopback: the server that draws them, and the camera that a deployment reads.

A client asks with a line, `{"camera": "hand", "after": 12}`, and gets the newest frame once it is newer than number 12:
a line `{"seq": 15, "time": 1234.5, "shape": [256, 256, 3]}` and then the bytes.
"""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.control.clock import from_monotonic
from s2robot.envs.real.emulator.faults import Faults
from s2robot.envs.real.emulator.side import HOST

_FRAME_S = 2.0  # s until the next frame
Frame = tuple[
    int, float, np.ndarray
]  # number, from 1; s, monotonic, when it was taken; uint8 (H, W, 3) RGB, upright


class FrameServer:
    """Draws at a fixed rate in a thread while somebody is connected, and serves the newest frames.

    Args:
        cameras: their names.
        positions: returns what to draw now, from any thread.
        renderer: called in the drawing thread; gives an object with `draw(positions)` and `close()`.
        fps: frames per second and camera.
        faults: frozen and stale cameras.
    """

    def __init__(
        self,
        cameras: Iterable[str],
        positions: Callable[[], np.ndarray],
        renderer: Callable,
        fps: float,
        faults: Faults,
    ):
        self._cameras, self._positions, self._make_renderer = tuple(cameras), positions, renderer
        self._period, self._faults = 1 / fps, faults
        self._newest: dict[str, Frame] = {}
        self._clients = 0
        self._wanted, self._ended = threading.Event(), threading.Event()
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._draw_forever, name="frames", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._wanted.set()
        self._thread.join(10)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection."""
        self._clients += 1
        self._wanted.set()
        try:
            while line := await reader.readline():
                data = b""
                try:
                    request = json.loads(line)
                    camera, after = request["camera"], int(request.get("after", 0))
                    if camera not in self._cameras:
                        raise EnvError(f"camera: expected one of {', '.join(self._cameras)}, got {camera!r}")
                    frame = await self._newer(camera, after, reader)
                    if frame is None:
                        return
                    header: dict = {"seq": frame[0], "time": frame[1], "shape": frame[2].shape}
                    data = frame[2].tobytes()
                except Exception as error:  # the client gets it, whatever the request is
                    header = {"error": str(error)[:300]}
                writer.write(json.dumps(header).encode() + b"\n" + data)
                await writer.drain()
        finally:
            self._clients -= 1
            if not self._clients and not self._ended.is_set():
                self._wanted.clear()

    async def _newer(self, camera: str, after: int, reader: asyncio.StreamReader) -> Frame | None:
        while not reader.at_eof():
            if self._failure:
                raise EnvError(f"drawing: {self._failure}")
            if (frame := self._newest.get(camera)) is not None and frame[0] > after:
                return frame
            await self._event.wait()
        return None

    def _draw_forever(self) -> None:
        try:
            self._wanted.wait()
            if self._ended.is_set():
                return
            renderer = self._make_renderer()
            due = time.monotonic()
            while True:
                self._wanted.wait()
                if self._ended.wait(max(0.0, due - time.monotonic())):
                    break
                now = time.monotonic()
                due = max(due + self._period, now)
                self._publish(now, renderer.draw(self._positions()))
            renderer.close()
        except Exception as error:
            self._failure = error  # sent to every client instead of a frame
            self._wake()

    def _publish(self, now: float, images: dict[str, np.ndarray]) -> None:
        for name, image in images.items():
            last = self._newest.get(name)
            if self._faults.strikes("camera_stale", name):
                continue
            if last is not None and self._faults.strikes("camera_freeze", name):
                image = last[2]
            self._newest[name] = (last[0] + 1 if last else 1, now, image)
        self._wake()

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._renew_event)

    def _renew_event(self) -> None:
        event, self._event = self._event, asyncio.Event()
        event.set()


class EmulatedCamera:
    """A camera of the emulator, whose times are on this machine's clock. EnvError: no such camera, or no first frame.

    Args:
        port: the emulator's frames port.
        camera: its name there.
        start_s: until the first frame, which takes as long as building a renderer.
    """

    def __init__(self, port: int, camera: str, start_s: float = 30.0):
        self._camera, self._seq = camera, 0
        self._socket = socket.create_connection((HOST, port), timeout=start_s)
        self._stream = self._socket.makefile("rb")
        try:
            self.read()
        except EnvError:
            self.close()
            raise
        self._socket.settimeout(_FRAME_S)

    def read(self) -> tuple[float, np.ndarray]:
        """The next frame: time, s, and image. EnvError if none comes within 2 s, and the camera is of no use then."""
        request, data, size = {"camera": self._camera, "after": self._seq}, b"", 0
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._stream.readline()
            header: dict[str, Any] = json.loads(line) if line else {"error": "the connection is closed"}
            size = int(np.prod(header.get("shape", 0)))
            data = self._stream.read(size)
        except OSError as error:
            header = {"error": f"gave no frame ({error})"}
        if "error" in header or len(data) < size:
            why = header.get("error", "the connection was closed within a frame")
            raise EnvError(f"emulator camera {self._camera}: {why}")
        image = np.frombuffer(data, np.uint8).reshape(header["shape"])
        self._seq = header["seq"]
        return from_monotonic(header["time"]), image

    def close(self) -> None:
        self._stream.close()
        self._socket.close()
