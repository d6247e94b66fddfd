"""One reader thread a camera; whoever needs a picture takes the newest one and learns how old it is.

    camera = CameraReader("hand", lambda: OpenCVCamera("/dev/v4l/by-id/usb-...", 640, 480, 30))
    camera.start(10.0)
    frame = camera.latest()        # never waits
    frame.age(time.monotonic())    # s since it was taken

A source is anything with `read()` -> (time of capture, picture), which waits for the next frame, and `close()`.
It is made and used in the reader's thread. Pictures are uint8 (H, W, 3), RGB and upright; times are the host's
monotonic clock, s.
"""

import threading
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from s2robot.envs.errors import EnvError

_PROBE = 16  # every 16th row and column tells whether two pictures are the same


@dataclass(frozen=True)
class Frame:
    """One picture of one camera."""

    seq: int  # counts the frames that this reader got, from 1
    t_capture: float  # s
    image: np.ndarray  # uint8 (H, W, 3) RGB, upright; not to be written to
    t_change: float  # s, capture of the first of the equal pictures that this is the last of

    def age(self, now: float) -> float:
        """Seconds since it was taken."""
        return now - self.t_capture


class Source(Protocol):
    """Where frames come from."""

    def read(self) -> tuple[float, np.ndarray]:
        """Wait for the next frame. Raises EnvError where there is none any more."""

    def close(self) -> None: ...


class CameraReader:
    """Reads one source for ever and keeps the newest frame.

    Args:
        name: the camera's.
        source: makes the source; called in the reader's thread.
        rotate: quarter turns counterclockwise, for a camera that is mounted turned.
    """

    def __init__(self, name: str, source: Callable[[], Source], rotate: int = 0):
        self.name, self._make, self._rotate = name, source, rotate
        self._frame: Frame | None = None
        self._error = ""
        self._news = threading.Condition()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"camera {name}")

    def start(self, timeout_s: float) -> None:
        """Begin to read and wait for the first frame. Raises EnvError if there is none in time."""
        self._thread.start()
        with self._news:
            came = self._news.wait_for(lambda: self._frame is not None or self._error, timeout_s)
        if not came or self._error:
            reason = self._error or f"no frame within {timeout_s:g} s"
            self.close()
            raise EnvError(f"camera {self.name}: found {reason}, expected frames")

    def latest(self) -> Frame | None:
        """The newest frame; None before the first."""
        return self._frame

    def age(self, now: float) -> float:
        """Age of the newest frame, s; inf without one."""
        frame = self._frame
        return np.inf if frame is None else frame.age(now)

    @property
    def error(self) -> str:
        """Why reading has ended; empty while it goes on."""
        return self._error

    def close(self) -> None:
        """End reading; may be repeated. Waits 2 s at most for a source that hangs."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _run(self) -> None:
        source = None
        try:
            source = self._make()
            mark = None
            while not self._ended.is_set():
                captured, image = source.read()
                _check(self.name, image)
                image = np.ascontiguousarray(np.rot90(image, self._rotate))
                image.flags.writeable = False
                last, now_mark = self._frame, zlib.crc32(image[::_PROBE, ::_PROBE].tobytes())
                same = last is not None and now_mark == mark and np.array_equal(image, last.image)
                changed = last.t_change if last is not None and same else captured
                frame = Frame(last.seq + 1 if last else 1, captured, image, changed)
                mark = now_mark
                with self._news:
                    self._frame = frame
                    self._news.notify_all()
        except Exception as error:  # of any driver: the last frame's age tells the rest
            with self._news:
                self._error = str(error) or type(error).__name__
                self._news.notify_all()
        finally:
            if source is not None:
                with suppress(Exception):
                    source.close()


def _check(name: str, image: Any) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}"
        raise EnvError(f"camera {name}: found a picture {found}, expected uint8 (H, W, 3)")


def square(image: np.ndarray, size: int) -> np.ndarray:
    """The middle square of a picture (H, W, 3), area-averaged or enlarged to (size, size, 3).

    >>> square(np.zeros((480, 640, 3), np.uint8), 256).shape
    (256, 256, 3)
    """
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    image = image[top : top + side, left : left + side]
    if side == size:
        return image
    import cv2

    how = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (size, size), interpolation=how))


class OpenCVCamera:
    """A V4L2 camera through OpenCV, with its format checked after it was set.

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
        import cv2

        cv2.setNumThreads(1)  # decoding must not take the cores from the control loop
        self._cv2, self.device = cv2, device
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
            if abs(found - value) > 0.01 * abs(value):
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
        now = time.monotonic()
        if not good or image is None:
            raise EnvError(f"camera {self.device}: gave no frame")
        # V4L2 stamps on the monotonic clock; drivers that do not give nonsense, and then the receipt counts
        stamp = self._capture.get(self._cv2.CAP_PROP_POS_MSEC) / 1000
        captured = stamp if 0 <= now - stamp < 1 else now
        return captured, self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        self._capture.release()


def _fourcc(value: float) -> str:
    number = int(value)
    return "".join(chr(number >> 8 * i & 0xFF) for i in range(4)) if number > 0 else repr(number)


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
                f"camera {serial}: found no pyrealsense2, expected it (pip install pyrealsense2)"
            ) from None
        self.serial, self._rs = serial, rs
        self._pipeline, config = rs.pipeline(), rs.config()
        config.enable_device(serial)
        config.enable_stream(rs.stream.color, width, height, rs.format.rgb8, fps)
        try:
            profile = self._pipeline.start(config)
        except RuntimeError as error:
            raise EnvError(
                f"camera {serial}: cannot start {width} x {height} at {fps} Hz ({error})"
            ) from None
        sensor = profile.get_device().first_color_sensor()
        if sensor.supports(rs.option.global_time_enabled):
            sensor.set_option(rs.option.global_time_enabled, 1)  # stamps on the host's clock
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
        now = time.monotonic()
        captured = now
        if frame.get_frame_timestamp_domain() == self._rs.timestamp_domain.global_time:
            captured = now - min(max(time.time() - frame.get_timestamp() / 1000, 0.0), 1.0)
        return captured, np.array(frame.get_data())

    def close(self) -> None:
        with suppress(RuntimeError):
            self._pipeline.stop()


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
        return time.monotonic(), np.asarray(image)

    def close(self) -> None: ...


class RenderedCamera:
    """Pictures that a function draws, at a fixed rate. The reader's thread makes it, so OpenGL stays in one thread.

    Args:
        draw: gives uint8 (H, W, 3).
        fps: frames per second.
        end: called on closing.
    """

    def __init__(self, draw: Callable[[], np.ndarray], fps: float, end: Callable[[], None] = lambda: None):
        self._draw, self._end, self._period, self._due = draw, end, 1 / fps, time.monotonic()

    def read(self) -> tuple[float, np.ndarray]:
        """A picture of now, when it is due."""
        time.sleep(max(0.0, self._due - time.monotonic()))
        self._due = max(self._due + self._period, time.monotonic())
        captured = time.monotonic()  # before drawing: the picture is of no later moment
        return captured, self._draw()

    def close(self) -> None:
        self._end()
