"""One reader thread per camera; the newest frame and its age are always at hand.

    camera = CameraReader("hand", lambda: OpenCVCamera("/dev/v4l/by-id/usb-...", 640, 480, 30))
    camera.start(10.0)
    frame = camera.latest()        # never waits

A source has `read()` -> (time of capture, image), which waits for the next frame, and `close()`. It is made and used in
the reader's thread. Images are uint8 (H, W, 3), RGB and upright; times are those of `control.clock.now`, s.
"""

import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from s2robot.envs.errors import EnvError

_SINCE_S = 0.1  # s by which a frame may be newer than the time at which its age is asked for
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
        """Age of the newest frame, s; inf without one. One that has come since `now` was read is new."""
        frame = self._frame
        age = np.inf if frame is None else frame.age(now)
        return 0.0 if -_SINCE_S < age < 0 else age

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


def load_cv2() -> Any:
    """The package cv2. Raises EnvError where it is not installed."""
    try:
        import cv2
    except ImportError:
        raise EnvError(
            "camera: found no opencv-python, expected it (pip install 's2robot[opencv]')"
        ) from None
    return cv2


def fitted(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The largest middle part of a picture (H, W, 3) that has the shape of `size`, area-averaged or enlarged to it.

    >>> fitted(np.zeros((480, 640, 3), np.uint8), (256, 256)).shape
    (256, 256, 3)
    """
    h, w = part_seen((image.shape[0], image.shape[1]), size)
    top, left = (image.shape[0] - h) // 2, (image.shape[1] - w) // 2
    image = image[top : top + h, left : left + w]
    if (h, w) == size:
        return image
    cv2 = load_cv2()
    how = cv2.INTER_AREA if h > size[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=how))


def part_seen(picture: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the largest part of a picture (H, W) that has the shape of `size`."""
    scale = min(found / wanted for found, wanted in zip(picture, size, strict=True))
    h, w = (min(found, round(wanted * scale)) for found, wanted in zip(picture, size, strict=True))
    return h, w
