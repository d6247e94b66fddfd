"""Recorded pictures in the place of a camera."""

import time
from collections.abc import Sequence

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.control.clock import now


class ReplayCamera:
    """Recorded pictures at a fixed rate, from the first again after the last.

    Args:
        images: uint8 (T, H, W, 3).
        fps: frames per second.
    """

    def __init__(self, images: Sequence[np.ndarray] | np.ndarray, fps: float):
        if len(images) == 0 or not fps > 0:
            raise EnvError(f"replay camera: found {len(images)} pictures at {fps} Hz, expected some")
        self._images, self._period, self._next, self._due = images, 1 / fps, 0, time.monotonic()

    def read(self) -> tuple[float, np.ndarray]:
        """The next picture when it is due."""
        time.sleep(max(0.0, self._due - time.monotonic()))
        self._due = max(self._due + self._period, time.monotonic())
        image = self._images[self._next % len(self._images)]
        self._next += 1
        return now(), np.asarray(image)

    def close(self) -> None: ...
