"""A V4L2 camera through OpenCV."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.cameras.camera import load_cv2
from s2robot.envs.real.control.clock import now


class OpenCVCamera:
    """A V4L2 camera through OpenCV, with its format checked after it was set.

    V4L2 stamps frames on the monotonic clock. A driver whose first stamp is on no such clock gives no times of capture:
    its frames count as old as the receipt of the frame before, so that one that waited in a queue is never new.

    Args:
        device: path, best one of /dev/v4l/by-id, which survives replugging.
        width, height, fps: what is asked for, and refused if the camera does something else.
        fourcc: pixel format on the wire.
        exposure, white_balance: fixed values in the driver's own units; None leaves them automatic, and then
            pictures change with what is in view.
        capture: makes the capture object; for tests.

    Raises:
        EnvError: no camera, or another format than asked for.
    """

    def __init__(
        self,
        device: str,
        width: int,
        height: int,
        fps: float,
        fourcc: str = "MJPG",
        exposure: float | None = None,
        white_balance: float | None = None,
        capture: Callable[[str], Any] | None = None,
    ):
        if len(fourcc) != 4 or not fourcc.isascii():
            raise EnvError(f"camera {device}: found fourcc {fourcc!r}, expected four letters such as MJPG")
        cv2 = load_cv2()
        cv2.setNumThreads(1)  # decoding must not take the cores from the control loop
        self._cv2, self.device = cv2, device
        self._stamped: bool | None = None  # whether stamps are on the monotonic clock; None before the first
        self._received = now()
        self._offset = self._received - time.monotonic()
        self._capture = capture(device) if capture else cv2.VideoCapture(device, cv2.CAP_V4L2)
        if not self._capture.isOpened():
            raise EnvError(f"camera {device}: found none, expected a V4L2 device (ls /dev/v4l/by-id)")
        wanted = {
            "fourcc": (cv2.CAP_PROP_FOURCC, float(cv2.VideoWriter.fourcc(*fourcc))),
            "width": (cv2.CAP_PROP_FRAME_WIDTH, float(width)),
            "height": (cv2.CAP_PROP_FRAME_HEIGHT, float(height)),
            "fps": (cv2.CAP_PROP_FPS, float(fps)),
        }
        self._set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest frame, not the oldest of a queue
        for prop, value in wanted.values():
            self._set(prop, value)
        if exposure is not None:
            self._set(cv2.CAP_PROP_AUTO_EXPOSURE, 1)  # V4L2's number for manual
            wanted["exposure"] = (cv2.CAP_PROP_EXPOSURE, float(exposure))
            self._set(*wanted["exposure"])
        if white_balance is not None:
            self._set(cv2.CAP_PROP_AUTO_WB, 0)
            wanted["white_balance"] = (cv2.CAP_PROP_WB_TEMPERATURE, float(white_balance))
            self._set(*wanted["white_balance"])
        for name, (prop, value) in wanted.items():
            found = self._capture.get(prop)
            if not abs(found - value) <= 0.01 * abs(value):  # NaN is as good as nothing
                self.close()
                shown = (_fourcc(found), fourcc) if name == "fourcc" else (f"{found:g}", f"{value:g}")
                raise EnvError(
                    f"camera {device}: found {name} {shown[0]} after setting it, expected {shown[1]}"
                )

    def _set(self, prop: int, value: float) -> None:
        self._capture.set(prop, value)  # its answer says little: what was set is read back

    def read(self) -> tuple[float, np.ndarray]:
        """The next frame. Raises EnvError where the camera gives none."""
        good, image = self._capture.read()
        if not good or image is None:
            raise EnvError(f"camera {self.device}: gave no frame")
        stamp = self._capture.get(self._cv2.CAP_PROP_POS_MSEC) / 1000
        if self._stamped is None:  # the first frame is fresh
            self._stamped = 0 <= time.monotonic() - stamp < 1
        # the clocks' distance is that before this frame came: a machine that has slept since makes it older, not newer
        captured = stamp + self._offset if self._stamped else self._received
        self._received = now()
        self._offset = self._received - time.monotonic()
        return captured, self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        self._capture.release()


def _fourcc(value: float) -> str:
    number = int(value)
    return "".join(chr(number >> 8 * i & 0xFF) for i in range(4)) if number > 0 else repr(number)
