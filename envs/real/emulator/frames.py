"""Rendered camera frames over loopback, as `s2robot.envs.real.emulator.camera` reads them: number, time, picture.

A client asks with a line, ``{"camera": "hand", "after": 12}``, and gets the newest frame once it is newer than
number 12: a line ``{"seq": 15, "time": 1234.5, "shape": [256, 256, 3]}`` and then the bytes.
"""

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.emulator.faults import Faults


@dataclass(frozen=True)
class Frame:
    """One picture of one camera."""

    seq: int  # counts the camera's frames, from 1
    time: float  # monotonic, s, at which it was taken
    image: np.ndarray  # uint8 (H, W, 3) RGB, upright


class FrameServer:
    """Draws at a fixed rate in a thread while somebody is connected, and serves the newest frames.

    Args:
        cameras: their names.
        positions: returns what to draw now, from any thread.
        renderer: called in the drawing thread; gives an object with ``draw(positions)`` and ``close()``.
        fps: frames per second and camera.
        faults: frozen, stale and slow cameras.
    """

    def __init__(
        self, cameras, positions: Callable[[], np.ndarray], renderer: Callable, fps: float, faults: Faults
    ):
        self.cameras = tuple(cameras)
        self._positions, self._make_renderer, self._period, self._faults = (
            positions,
            renderer,
            1 / fps,
            faults,
        )
        self._newest: dict[str, Frame] = {}
        self._late: dict[str, deque[tuple[float, Frame]]] = {name: deque() for name in self.cameras}
        self._clients = 0
        self._wanted = threading.Event()
        self._ended = threading.Event()
        self._event = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._draw_forever, name="frames", daemon=True)

    def start(self) -> None:
        """Begin to draw; inside the event loop that serves."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join(10)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection."""
        self._clients += 1
        self._wanted.set()
        try:
            while line := await reader.readline():
                header, data = {}, b""
                try:
                    request = json.loads(line)
                    camera, after = request["camera"], int(request.get("after", 0))
                    if camera not in self.cameras:
                        raise EnvError(f"camera: expected one of {', '.join(self.cameras)}, got {camera!r}")
                    frame = await self._newer(camera, after, reader)
                    if frame is None:
                        return
                    header, data = (
                        {"seq": frame.seq, "time": frame.time, "shape": frame.image.shape},
                        frame.image.tobytes(),
                    )
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
            if (frame := self._newest.get(camera)) is not None and frame.seq > after:
                return frame
            await self._event.wait()
        return None

    # --------------------------------------------------------------------------------------------- thread

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
                due = max(due + self._period, time.monotonic())
                now = time.monotonic()
                self._publish(now, renderer.draw(self._positions()))
            renderer.close()
        except Exception as error:
            self._failure = error  # sent to every client instead of a frame
            self._wake()

    def _publish(self, now: float, images: dict[str, np.ndarray]) -> None:
        for name, image in images.items():
            before, late = self._newest.get(name), self._late[name]
            last = late[-1][1] if late else before
            if self._faults.camera("camera_stale", name):
                continue
            if last is not None and self._faults.camera("camera_freeze", name):
                image = last.image
            slow = self._faults.camera("camera_slow", name)
            frame = Frame(last.seq + 1 if last else 1, now, image)
            late.append((now + (slow["seconds"] if slow else 0.0), frame))
            while late and (late[0][0] <= time.monotonic() or not slow):
                self._newest[name] = late.popleft()[1]
        self._wake()

    def _wake(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._renew_event)

    def _renew_event(self) -> None:
        event, self._event = self._event, asyncio.Event()
        event.set()
