"""Rendered camera frames: drawn in a thread while somebody asks, served by the side channel, read by a deployment."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from s2robot.envs.real.control.clock import from_monotonic
from s2robot.envs.real.emulator.server import Faults
from s2robot.envs.real.emulator.side import SideChannel

_FRAME_S = 2.0  # s until the next frame; as long without a question, nothing is drawn
_POLL_S = 0.002  # s between two looks for a newer frame


class FrameServer:
    """Draws `fps` frames a second of each camera, in a thread.

    Args:
        positions: returns what to draw now, from any thread.
        renderer: called in the drawing thread; gives an object with `draw(positions)` and `close()`.
    """

    def __init__(
        self, positions: Callable[[], np.ndarray], renderer: Callable[[], Any], fps: float, faults: Faults
    ):
        self._positions, self._make_renderer = positions, renderer
        self._period, self._faults = 1 / fps, faults
        # camera -> number, from 1; s, monotonic, when it was taken; uint8 (H, W, 3) RGB, upright
        self._newest = dict.fromkeys(faults.cameras, (0, 0.0, np.zeros((0, 0, 3), np.uint8)))
        self._wanted, self._ended, self._asked = threading.Event(), threading.Event(), 0.0
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
                raise self._failure
            seq, taken, image = self._newest[camera]
            if seq > after:
                return {"seq": seq, "time": taken, "shape": image.shape, "data": image.tobytes()}
            await asyncio.sleep(_POLL_S)

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

    def _publish(self, now: float, images: dict[str, np.ndarray]) -> None:
        for name, image in images.items():
            seq, _, last = self._newest[name]
            if name not in self._faults.stale:
                frozen = seq > 0 and name in self._faults.frozen
                self._newest[name] = (seq + 1, now, last if frozen else image)


class EmulatedCamera:
    """A camera of the emulator at a side port, whose times are on this machine's clock.

    `start_s`, for the first frame: as long as building a renderer takes. EnvError: no such camera, or no first frame.
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
