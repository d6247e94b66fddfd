"""Sources of frames: V4L2 cameras through OpenCV, Intel RealSense (`pip install 's2robot[realsense]'`), recordings."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.cameras.camera import load_cv2
from s2robot.envs.real.control.clock import now


class OpenCVCamera:
    """A V4L2 camera through OpenCV. Raises EnvError: no camera, or another format than requested.

    V4L2 stamps frames on the monotonic clock. A driver whose first stamp is on no such clock gives no times of capture:
    its frames count as old as the receipt of the frame before, so that one that waited in a queue is never new.

    Args:
        device: path, best one of /dev/v4l/by-id, which survives replugging.
        exposure, white_balance: fixed values in the driver's own units; None: automatic, and images change with the scene.
        capture: makes the capture object; for tests.
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


class RealSenseCamera:
    """The colour stream of an Intel RealSense camera, through `pyrealsense2`. Not tested on a camera.

    Raises EnvError: no library, no camera of that serial number, or no such format.
    """

    def __init__(self, serial: str, width: int, height: int, fps: int):
        try:
            import pyrealsense2 as rs
        except ImportError:
            raise EnvError(
                f"camera {serial}: found no pyrealsense2, expected it (pip install 's2robot[realsense]')"
            ) from None
        self.serial, self._rs = serial, rs
        self._received = now()
        self._pipeline, config = rs.pipeline(), rs.config()
        config.enable_device(serial)
        config.enable_stream(rs.stream.color, width, height, rs.format.rgb8, fps)
        try:
            profile = self._pipeline.start(config)
            sensor = profile.get_device().first_color_sensor()
            if sensor.supports(rs.option.global_time_enabled):
                sensor.set_option(rs.option.global_time_enabled, 1)  # stamps on the host's clock
        except RuntimeError as error:
            self.close()
            raise EnvError(
                f"camera {serial}: cannot start {width} x {height} at {fps} Hz ({error})"
            ) from None
        stream = profile.get_stream(rs.stream.color).as_video_stream_profile()
        found = (stream.width(), stream.height(), stream.fps())
        if found != (width, height, fps):
            self.close()
            raise EnvError(
                f"camera {serial}: found {found} (width, height, fps), expected {(width, height, fps)}"
            )

    def read(self) -> tuple[float, np.ndarray]:
        """The next frame; EnvError if none comes within a second."""
        try:
            frame = self._pipeline.wait_for_frames(1000).get_color_frame()
        except RuntimeError as error:
            raise EnvError(f"camera {self.serial}: gave no frame ({error})") from None
        before, self._received = self._received, now()
        if frame.get_frame_timestamp_domain() == self._rs.timestamp_domain.global_time:
            captured = self._received - max(time.time() - frame.get_timestamp() / 1000, 0.0)
        else:  # the camera's own clock: no older than the receipt of the frame before
            captured = before
        return captured, np.array(frame.get_data())

    def close(self) -> None:
        with suppress(RuntimeError):
            self._pipeline.stop()


class ReplayCamera:
    """Recorded images (T, H, W, 3) at a fixed rate, from the first again after the last."""

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
