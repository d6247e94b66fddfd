"""Camera readers, one thread each, that provide the newest frame and its age; and the sources of frames.

A source is created and used in the reader's thread. Images are uint8 (H, W, 3), RGB and upright; times, in s, are those
of `control.clock.now`.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle
from typing import NamedTuple, Protocol

import numpy as np

from s2robot.envs.errors import EnvError, expect
from s2robot.envs.real import import_extra
from s2robot.envs.real.control.clock import now

_SINCE_S = 0.1  # s by which a frame may be newer than the time for which its age is computed


class Frame(NamedTuple):
    seq: int  # number of this frame, from 1
    t_capture: float  # s
    image: np.ndarray  # uint8 (H, W, 3) RGB, upright, read-only
    t_change: float  # s, capture time of the first in an unbroken series of identical images that ends with this one


class Source(Protocol):
    def read(self) -> tuple[float, np.ndarray]:
        """Wait for the next frame; return its capture time, s, and image. Raises an exception if no more frames come."""

    def close(self) -> None: ...


class CameraReader:
    """Reads frames from `source()` and stores the newest one, rotated by `rotate` quarter turns counterclockwise.

    delay_s: frames become visible only at this age.

    Attributes: `error`, why reading has ended; empty while it continues.
    """

    def __init__(self, name: str, source: Callable[[], Source], rotate: int = 0, delay_s: float = 0.0):
        self.name, self._make, self._rotate, self._delay_s = name, source, rotate, delay_s
        self._frame: Frame | None = None
        self._late: deque[Frame] = deque()  # the visible frame, then those not yet visible
        self.error = ""
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"camera {name}")

    def start(self, timeout_s: float) -> None:
        """Start reading and wait for the first frame. Raises EnvError if none arrives in time."""
        self._thread.start()
        with self._changed:
            arrived = self._changed.wait_for(lambda: self.latest() is not None or self.error, timeout_s)
        if not arrived or self.error:
            reason = self.error or f"no frame within {timeout_s:g} s"
            self.close()
            raise EnvError(f"camera {self.name}: expected frames, got {reason}")

    def latest(self) -> Frame | None:
        """Return the newest frame; None before the first."""
        if not self._delay_s:
            return self._frame
        with self._changed:
            while len(self._late) > 1 and now() - self._late[1].t_capture >= self._delay_s:
                self._late.popleft()
            first = self._late[0] if self._late else None
        return first if first and now() - first.t_capture >= self._delay_s else None

    def age(self, now: float) -> float:
        """Return the age of the newest frame, s; inf without one, and 0 for one that arrived since `now` was read."""
        frame = self.latest()
        age = np.inf if frame is None else now - frame.t_capture
        return 0.0 if -_SINCE_S < age < 0 else age

    def close(self) -> None:
        """Stop reading; may be called repeatedly. Waits at most 2 s for a source that hangs."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _run(self) -> None:
        source = None
        try:
            source = self._make()
            while not self._ended.is_set():
                captured, image = source.read()
                if getattr(image, "dtype", None) != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                    shape = getattr(image, "shape", image)
                    raise ValueError(f"an image {shape} that is not uint8 (H, W, 3)")
                image = np.ascontiguousarray(np.rot90(image, self._rotate))
                image.flags.writeable = False
                changed, last = captured, self._frame
                if last is not None and np.array_equal(image[::16, ::16], last.image[::16, ::16]):
                    changed = last.t_change if np.array_equal(image, last.image) else captured
                with self._changed:
                    self._frame = Frame(last.seq + 1 if last else 1, captured, image, changed)
                    if self._delay_s:
                        self._late.append(self._frame)
                        self.latest()  # drops outdated frames
                    self._changed.notify_all()
        except Exception as error:  # any driver's; from here on the last frame grows old
            with self._changed:
                self.error = str(error) or type(error).__name__
                self._changed.notify_all()
        finally:
            if source is not None:
                with suppress(Exception):
                    source.close()


def fitted(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Crop the largest central part of an image (H, W, 3) with the aspect ratio of `size`, and resize it to `size`."""
    h, w = part_seen((image.shape[0], image.shape[1]), size)
    top, left = (image.shape[0] - h) // 2, (image.shape[1] - w) // 2
    image = image[top : top + h, left : left + w]
    if (h, w) == size:
        return image
    cv2 = import_extra("cv2", "opencv")
    how = cv2.INTER_AREA if h > size[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=how))


def part_seen(image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return (h, w) of the largest part of an image (H, W) with the aspect ratio of `size`."""
    scale = min(length / target for length, target in zip(image, size, strict=True))
    h, w = (min(length, round(target * scale)) for length, target in zip(image, size, strict=True))
    return h, w


class OpenCVCamera:
    """A V4L2 camera, read through OpenCV. Raises EnvError if there is no camera, or it does not accept the format.

    V4L2 timestamps frames on the monotonic clock. If the first timestamp is not on that clock, the driver's timestamps are
    ignored: a frame then counts as captured when the previous one was received, so a queued frame never counts as new.

    Args:
        device: path, preferably in /dev/v4l/by-id, which survives replugging.
        exposure, white_balance: fixed values in the driver's own units; None: automatic.
    """

    def __init__(
        self, device: str, width: int, height: int, fps: float, fourcc: str = "MJPG",
        exposure: float | None = None, white_balance: float | None = None,
    ):  # fmt: skip
        self._cv2 = cv2 = import_extra("cv2", "opencv")
        self.device = device
        cv2.setNumThreads(1)  # leave the other cores to the control loop
        self._stamped: bool | None = None  # timestamps on the monotonic clock; None: no frame yet
        self._received = now()
        self._offset = self._received - time.monotonic()
        self._capture = cv2.VideoCapture(device, cv2.CAP_V4L2)
        expected = "a V4L2 device (ls /dev/v4l/by-id)"
        expect(self._capture.isOpened(), f"camera {device}", expected, "none")
        settings = {
            "fourcc": (cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*fourcc)), "fps": (cv2.CAP_PROP_FPS, fps),
            "width": (cv2.CAP_PROP_FRAME_WIDTH, width), "height": (cv2.CAP_PROP_FRAME_HEIGHT, height),
        }  # fmt: skip
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest frame, not the oldest of a queue
        if exposure is not None:
            self._capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, 1)  # V4L2's number for manual
            settings["exposure"] = (cv2.CAP_PROP_EXPOSURE, exposure)
        if white_balance is not None:
            self._capture.set(cv2.CAP_PROP_AUTO_WB, 0)
            settings["white_balance"] = (cv2.CAP_PROP_WB_TEMPERATURE, white_balance)
        for prop, value in settings.values():
            self._capture.set(prop, float(value))  # the return value is unreliable: read back below
        for name, (prop, value) in settings.items():
            actual = self._capture.get(prop)
            if not abs(actual - value) <= 0.01 * abs(value):  # also rejects NaN
                self.close()
                shown = f"{actual:g}"
                if name == "fourcc":
                    shown, value = int(actual).to_bytes(4, "little", signed=True).decode("latin1"), fourcc
                raise EnvError(f"camera {device}: {name}: expected {value}, got {shown} after setting it")

    def read(self) -> tuple[float, np.ndarray]:
        good, image = self._capture.read()
        expect(good and image is not None, f"camera {self.device}", "a frame", "none")
        stamp = self._capture.get(self._cv2.CAP_PROP_POS_MSEC) / 1000
        if self._stamped is None:  # the first frame is fresh
            self._stamped = 0 <= time.monotonic() - stamp < 1
        # use the clock offset from before this frame: if the machine slept since, the frame looks older, never newer
        captured = stamp + self._offset if self._stamped else self._received
        self._received = now()
        self._offset = self._received - time.monotonic()
        return captured, self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        self._capture.release()


class RealSenseCamera:
    """The colour stream of an Intel RealSense camera, through `pyrealsense2`. Not tested on a real camera.

    Raises EnvError if the library, a camera with that serial number, or the format is missing.
    """

    def __init__(self, serial: str, width: int, height: int, fps: int):
        rs = import_extra("pyrealsense2", "realsense")
        self._rs, self._received = rs, now()
        self._pipeline, config = rs.pipeline(), rs.config()
        config.enable_device(serial)
        config.enable_stream(rs.stream.color, width, height, rs.format.rgb8, fps)  # this format or an error
        try:
            sensor = self._pipeline.start(config).get_device().first_color_sensor()
            if sensor.supports(rs.option.global_time_enabled):
                sensor.set_option(rs.option.global_time_enabled, 1)  # timestamps on the host's clock
        except RuntimeError as error:
            self.close()
            requested = f"{width} x {height} at {fps} Hz"
            raise EnvError(f"camera {serial}: cannot start {requested} ({error})") from None

    def read(self) -> tuple[float, np.ndarray]:
        """Return the next frame's capture time and image. Raises RuntimeError if none arrives within a second."""
        frame = self._pipeline.wait_for_frames(1000).get_color_frame()
        before, self._received = self._received, now()
        if frame.get_frame_timestamp_domain() == self._rs.timestamp_domain.global_time:
            captured = self._received - max(time.time() - frame.get_timestamp() / 1000, 0.0)
        else:  # on the camera's own clock: not older than the previous frame's receipt
            captured = before
        return captured, np.array(frame.get_data())

    def close(self) -> None:
        with suppress(RuntimeError):
            self._pipeline.stop()


class ReplayCamera:
    """Replays recorded images at a fixed rate, in a loop; `image` returns one of `count` images by its number."""

    def __init__(self, image: Callable[[int], np.ndarray], count: int, fps: float):
        self._image, self._numbers = image, cycle(range(count))
        self._period, self._due = 1 / fps, time.monotonic()

    def read(self) -> tuple[float, np.ndarray]:
        time.sleep(max(0.0, self._due - time.monotonic()))
        self._due = max(self._due + self._period, time.monotonic())
        image = self._image(next(self._numbers))
        return now(), image

    def close(self) -> None: ...
