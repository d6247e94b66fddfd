"""Camera readers, the age and equality of frames, and formats that are verified after they are set."""

import sys
import threading
import time

import cv2
import numpy as np
import pytest

from s2robot.envs.errors import EnvError
from s2robot.envs.real.cameras.camera import CameraReader, OpenCVCamera, RealSenseCamera, ReplayCamera, fitted
from s2robot.envs.real.control.clock import REAL, from_monotonic, now
from tests.envs.real.patience import PATIENCE, wait_for
from tests.errors import fails

NOISE = np.random.default_rng(0).integers(0, 256, (6, 24, 32, 3), np.uint8)


@pytest.fixture
def read():
    """`read(*frames, **settings)` returns a reader and its `Scripted` source, which has delivered the first frame."""
    made = []

    def make(*frames, **settings):
        source = Scripted(frames)
        made.append((CameraReader("hand", lambda: source, **settings), source))
        source.go.release()
        made[-1][0].start(PATIENCE)
        return made[-1]

    yield make
    for reader, source in made:
        source.go.release()
        reader.close()


class Scripted:
    """Deliver the given frames, one per release of `go`, then raise as if unplugged."""

    def __init__(self, frames):
        self.frames, self.go, self.closed = list(frames), threading.Semaphore(0), False

    def read(self):
        self.go.acquire()
        frame = self.frames.pop(0) if self.frames else EnvError("unplugged")
        if isinstance(frame, Exception):
            raise frame
        return frame

    def close(self):
        self.closed = True


def test_frames_are_numbered_and_timestamped():
    reader = CameraReader("hand", lambda: ReplayCamera(NOISE.__getitem__, len(NOISE), 200))
    reader.start(PATIENCE)
    first = reader.latest()
    wait_for(lambda: reader.latest().seq >= first.seq + 8)
    frame = reader.latest()
    reader.close()
    assert any(np.array_equal(frame.image, image) for image in NOISE) and not frame.image.flags.writeable
    assert first.t_capture < frame.t_capture <= now()
    assert frame.t_change == frame.t_capture  # every image differs from the previous one


def test_equal_images_keep_the_time_of_the_first(read):
    almost = NOISE[0].copy()
    almost[1, 1, 0] ^= 1  # a pixel that the quick comparison skips
    images = NOISE[0], NOISE[0].copy(), NOISE[0], NOISE[1], almost
    reader, source = read(*zip((1.0, 2.0, 3.0, 4.0, 5.0), images, strict=True))
    seen = []
    for seq in (2, 3, 4, 5):
        seen.append(reader.latest().t_change)
        source.go.release()
        wait_for(lambda seq=seq: reader.latest().seq == seq)
    assert [*seen, reader.latest().t_change] == [1.0, 1.0, 1.0, 4.0, 5.0]


def test_ages_of_new_and_future_frames_include_suspend_time(read, monkeypatch):
    """A frame newer than the clock reading has age 0, one from the far future a negative age; suspend time counts."""
    reader, _ = read((5.0, NOISE[0]))
    assert (reader.age(4.99), reader.age(5.25), reader.age(1.0)) == (0.0, 0.25, -4.0)
    clock = time.clock_gettime
    suspended = {time.CLOCK_BOOTTIME: 100.0}  # the monotonic clock does not advance
    monkeypatch.setattr(time, "clock_gettime", lambda which: clock(which) + suspended.get(which, 0.0))
    assert abs(REAL.now() - clock(time.CLOCK_BOOTTIME) - 100) < 1.0
    assert abs(from_monotonic(time.monotonic()) - now()) < 1.0


def test_delayed_camera_returns_the_newest_frame_older_than_the_delay(read, monkeypatch):
    time_now = [10.0]
    monkeypatch.setattr("s2robot.envs.real.cameras.camera.now", lambda: time_now[0])
    captured = 9.0, 10.0, 10.05, 10.1
    reader, source = read(*((t, NOISE[i]) for i, t in enumerate(captured)), delay_s=0.2)
    for seq in (2, 3, 4):
        source.go.release()
        wait_for(lambda seq=seq: reader._frame.seq == seq)
    for time_now[0], seq in ((10.1, 1), (10.19, 1), (10.22, 2), (10.31, 4)):
        assert reader.latest().seq == seq and reader.age(time_now[0]) == time_now[0] - captured[seq - 1]
    assert len(reader._late) == 1


def test_failed_source_leaves_an_ageing_frame_and_its_error(read):
    reader, source = read((time.monotonic(), NOISE[0]), RuntimeError("unplugged"))
    source.go.release()
    wait_for(lambda: reader.error)
    assert reader.error == "unplugged" and source.closed
    assert reader.age(reader.latest().t_capture + 9) == pytest.approx(9)


def test_missing_first_frame_is_one_error_line():
    source = Scripted([RuntimeError("never raised")])
    reader = CameraReader("hand", lambda: source)
    assert reader.latest() is None and reader.age(0.0) == np.inf
    threading.Timer(0.2, source.go.release).start()
    fails("camera hand: expected frames, got no frame within 0.05 s", reader.start, 0.05)


@pytest.mark.parametrize("image", [NOISE[0].astype(float), NOISE[0][..., 0], NOISE[0][..., :2], None])
def test_invalid_images_are_rejected(read, image):
    fails("not uint8", read, (0.0, image))


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_rotated_camera_images_are_rotated_back(read, quarters):
    reader, _ = read((1.0, np.rot90(NOISE[0], -quarters)), rotate=quarters)
    np.testing.assert_array_equal(reader.latest().image, NOISE[0])


@pytest.mark.parametrize(
    "shape, size, crop",
    [
        ((48, 64), (48, 48), (48, 48)), ((64, 48), (16, 16), (48, 48)), ((20, 20), (40, 40), (20, 20)),
        ((48, 64), (32, 24), (48, 36)), ((31, 47), (30, 60), (24, 47)), ((4, 3), (4, 3), (4, 3)),
    ],
)  # fmt: skip
def test_images_are_cropped_to_the_center_and_resized(shape, size, crop):
    image = np.zeros((*shape, 3), np.uint8)
    top, left = (shape[0] - crop[0]) // 2, (shape[1] - crop[1]) // 2
    image[top : top + crop[0], left : left + crop[1]] = 200
    out = fitted(image, size)
    assert out.shape == (*size, 3) and (out == 200).all()
    assert np.shares_memory(out, image) == (crop == size)


class FakeCapture:
    """A camera that stores each property that is set, except those in `fixed`."""

    def __init__(self, fixed=None, opened=True, stamp=None):
        self.values, self.fixed, self.stamp, self.released = {}, fixed or {}, stamp, False
        self.isOpened = lambda: opened
        self.read = lambda: (True, NOISE[0][..., ::-1])

    def set(self, prop, value):
        self.values[prop] = self.fixed.get(prop, value)
        return True  # V4L2 reports success in any case

    def get(self, prop):
        if prop == cv2.CAP_PROP_POS_MSEC:
            return 1000 * (self.stamp or time.monotonic() - 0.02)
        return self.values.get(prop, 0.0)

    def release(self):
        self.released = True


@pytest.fixture
def opened(monkeypatch):
    """Open a camera on a fake capture."""

    def open_camera(fake, **settings):
        monkeypatch.setattr(cv2, "VideoCapture", lambda device, api: fake)
        return OpenCVCamera("/dev/video9", 640, 480, 30, **settings)

    return open_camera


def test_opencv_frames_are_rgb_and_use_the_driver_timestamp(opened):
    """At any age: after a stall or suspend the queue returns frames captured before it."""
    fake = FakeCapture()
    camera = opened(fake)
    captured, image = camera.read()
    np.testing.assert_array_equal(image, NOISE[0])
    assert 0.01 < now() - captured < PATIENCE
    for age in (0.9, 60.0):
        fake.stamp = time.monotonic() - age
        assert now() - camera.read()[0] >= age - 1e-3
    fake.stamp = time.monotonic() + 5  # a timestamp in the future is from another clock
    assert not 0 <= now() - camera.read()[0]


def test_frame_from_before_a_suspend_is_old(opened, monkeypatch):
    """The monotonic clock stops while a machine is suspended; the clock used for ages does not."""
    suspended = [0.0]
    monkeypatch.setattr("s2robot.envs.real.cameras.camera.now", lambda: time.monotonic() + suspended[0])
    camera = opened(FakeCapture())
    camera.read()
    suspended[0] = 30.0
    ages = [time.monotonic() + 30 - camera.read()[0] for _ in range(2)]
    assert ages[0] > 29 > ages[1]  # stamped 0.02 s ago, possibly before the suspend


@pytest.mark.parametrize("stamp", [1.0e9, 0.001])
def test_frame_stamped_by_another_clock_dates_from_the_previous_receipt(opened, stamp):
    before = now()
    camera = opened(FakeCapture(stamp=stamp))
    assert camera.read()[0] >= before - 0.1
    received = now()
    time.sleep(0.1)  # a stall: the next frame waited in the queue
    assert camera.read()[0] <= received


@pytest.mark.parametrize(
    "prop, value, words",
    [
        (cv2.CAP_PROP_FRAME_WIDTH, 320.0, "width: expected 640, got 320 "),
        (cv2.CAP_PROP_FPS, 15.0, "fps: expected 30, got 15 "),
        (cv2.CAP_PROP_FOURCC, float(cv2.VideoWriter.fourcc(*"YUYV")), "fourcc: expected MJPG, got YUYV "),
        (cv2.CAP_PROP_EXPOSURE, 77.0, "exposure: expected 100.0, got 77 "),
    ],
)
def test_format_that_the_camera_did_not_apply_is_rejected(opened, prop, value, words):
    fake = FakeCapture({prop: value})
    fails(words, opened, fake, exposure=100.0, white_balance=4600.0)
    assert fake.released


def test_missing_camera_or_library_is_one_error_line(opened, monkeypatch):
    fails("camera /dev/video9: expected a V4L2 device", opened, FakeCapture(opened=False))
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)
    fails("^pyrealsense2: expected ", RealSenseCamera, "123", 640, 480, 30)


def test_realsense_frames_are_rgb_with_their_capture_time(realsense):
    realsense.pictures = np.tile(NOISE, (1, 3, 3, 1))
    camera = RealSenseCamera("0042", 96, 72, 20)
    for i in range(3):
        captured, image = camera.read()
        np.testing.assert_array_equal(image, realsense.pictures[i])
        assert 0.01 < now() - captured < PATIENCE
    assert realsense.options == {"global time": 1}
    realsense.late_s = 2.5
    captured = camera.read()[0]
    assert now() - captured >= 2.4
    realsense.domain, before = "hardware", now()  # the device's own clock is ignored
    assert camera.read()[0] <= before <= camera.read()[0]
    realsense.gone = True
    with pytest.raises(RuntimeError):
        camera.read()
    camera.close()
    camera.close()
    assert not realsense.running


def test_realsense_with_a_wrong_serial_or_no_colour_is_one_error_line(realsense):
    with pytest.raises(EnvError, match=r"camera 0043: cannot start 96 x 72 at 20 Hz \(No device connected\)"):
        RealSenseCamera("0043", 96, 72, 20)
    realsense.colour = False
    with pytest.raises(EnvError, match=r"camera 0042: cannot start .* \(Could not find requested sensor"):
        RealSenseCamera("0042", 96, 72, 20)
    assert not realsense.running
