"""Rendered camera frames: drawn in a thread while somebody asks, served by the side channel, read by a deployment."""

import asyncio
import threading
import time
from collections.abc import Callable

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.control.clock import from_monotonic
from s2robot.envs.real.emulator.faults import Faults
from s2robot.envs.real.emulator.side import SideChannel

_FRAME_S = 2.0  # s until the next frame; as long without a question, nothing is drawn
Frame = tuple[
    int, float, np.ndarray
]  # number, from 1; s, monotonic, when it was taken; uint8 (H, W, 3) RGB, upright


class FrameServer:
    """Draws at a fixed rate in a thread; to be made in the event loop that serves.

    Args:
        cameras: their names.
        positions: returns what to draw now, from any thread.
        renderer: called in the drawing thread; gives an object with `draw(positions)` and `close()`.
        fps: frames per second and camera.
        faults: frozen and stale cameras.
    """

    def __init__(
        self,
        cameras: tuple[str, ...],
        positions: Callable[[], np.ndarray],
        renderer: Callable,
        fps: float,
        faults: Faults,
    ):
        self._positions, self._make_renderer = positions, renderer
        self._period, self._faults = 1 / fps, faults
        self._newest: dict[str, Frame | None] = dict.fromkeys(cameras)
        self._wanted, self._ended, self._asked = threading.Event(), threading.Event(), 0.0
        self._event, self._loop = asyncio.Event(), asyncio.get_running_loop()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._draw_forever, name="frames", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._wanted.set()
        self._thread.join(10)

    async def frame(self, camera: str, after: int = 0) -> dict:
        """The newest frame of a camera (KeyError for another), as soon as one is newer than number `after`."""
        while True:
            self._asked = time.monotonic()
            self._wanted.set()
            if self._failure:
                raise EnvError(f"drawing: {self._failure}")
            if (frame := self._newest[camera]) is not None and frame[0] > after:
                return {
                    "seq": frame[0],
                    "time": frame[1],
                    "shape": frame[2].shape,
                    "data": frame[2].tobytes(),
                }
            await self._event.wait()

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
                if now - self._asked > _FRAME_S:
                    self._wanted.clear()
            renderer.close()
        except Exception as error:
            self._failure = error  # sent to every client instead of a frame
            self._wake()

    def _publish(self, now: float, images: dict[str, np.ndarray]) -> None:
        for name, image in images.items():
            last = self._newest[name]
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
        port: the emulator's side port.
        camera: its name there.
        start_s: until the first frame, which takes as long as building a renderer.
    """

    def __init__(self, port: int, camera: str, start_s: float = 30.0):
        self._camera, self._seq = camera, 0
        with SideChannel(port, start_s) as self._side:
            self.read()
        self._side = SideChannel(port, _FRAME_S)

    def read(self) -> tuple[float, np.ndarray]:
        """The next frame: time, s, and image. EnvError if none comes within 2 s."""
        frame = self._side("frame", camera=self._camera, after=self._seq)
        self._seq = frame["seq"]
        return from_monotonic(frame["time"]), np.frombuffer(frame["data"], np.uint8).reshape(frame["shape"])

    def close(self) -> None:
        self._side.close()
