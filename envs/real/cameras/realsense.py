"""An Intel RealSense camera (`pip install 's2robot[realsense]'`)."""

import time
from contextlib import suppress

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.control.clock import now


class RealSenseCamera:
    """The colour stream of an Intel RealSense camera (needs `pyrealsense2`). Not tried on a camera by this project.

    Raises:
        EnvError: no library, no camera of that serial number, or no such format.
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
