"""Read and write the frames of video files, with PyAV."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.demos.bounds import check_frame, most_bytes
from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.formats.source import require

NEAR = 0.4  # of a frame's duration: what a frame's time may be off to be still that frame's
SLACK = 128  # px
EARLY = 1e-5  # of a step: how much before its time the first frame after it may be
MISSING = 10  # steps for which the last frame may be repeated


@contextmanager
def open_video(path: Path, size: tuple[int, int] | None = None) -> Iterator[tuple[Any, Any]]:
    """A video's container and stream, to decode frames of the `size` (H, W) that the dataset says, at most.

    Raises:
        DatasetError: no such file, one that cannot be decoded, or frames that are larger or that its bytes do not explain.
    """
    import av

    if not path.is_file():
        raise mismatch(path, "no such file", "a video")
    stored = path.stat().st_size
    # slack: codecs round sizes up to their blocks
    most = (size[0] + SLACK) * (size[1] + SLACK) if size else most_bytes(stored) // 3
    options = {"max_pixels": str(min(most, 2**31 - 1))}
    try:
        # by its format: others, as playlists, would open further files
        with av.open(str(path), format="mp4", options=options) as container:
            if not container.streams.video:
                raise mismatch(path, "no video stream", "a video")
            stream: Any = container.streams.video[0]
            stream.thread_type, stream.codec_context.options = "AUTO", options
            stream.codec_context.thread_count = 2
            seen = stream.codec_context.height, stream.codec_context.width
            check_frame(path, seen, size or seen, stored)
            yield container, stream
    except av.error.FFmpegError as error:
        raise mismatch(path, f"a file that cannot be decoded ({error.strerror})", "a video") from None


def frames(
    path: Path, start_s: float, count: int, rate: float, whole: bool, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """`count` frames from the time `start_s` on, one each 1 / `rate` s; see :func:`frames_at`."""
    near = NEAR / rate
    return frames_at(path, start_s + np.arange(count) / rate, near, near, size, whole)


def frames_at(
    path: Path,
    times: np.ndarray,
    early: float | None = None,
    late: float = np.inf,
    size: tuple[int, int] | None = None,
    whole: bool = False,
) -> Iterator[np.ndarray]:
    """The first frame at or after each time, s since the video's start (T,).  # uint8 (H, W, 3)

    Args:
        early: s before its time that a frame may be.
        late: s after its time that a frame may be; without a limit, the last frame may be repeated for a few steps.
        size: (H, W) of a frame at most.
        whole: the file must hold no more frames.

    Raises:
        DatasetError: no such file, one that cannot be decoded, fewer or more frames, or one at another time.
    """
    from av.video.reformatter import VideoReformatter

    if early is None:
        early = EARLY * float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    colours = VideoReformatter()  # one for all frames: a frame's own is made anew for each
    done, now = 0, 0.0
    frame: Any = None
    with open_video(path, size) as (container, stream):
        if times[0] > 0 and stream.time_base:
            container.seek(int((times[0] - early) / stream.time_base), stream=stream, backward=True)
        for number, frame in enumerate(container.decode(stream), 1):
            if done == len(times) and not whole:
                return
            if whole and number > len(times):
                raise mismatch(path, f"more than {len(times)} frames", "as many as the table has steps")
            now, image = float(frame.time or 0.0), None
            while done < len(times) and now >= times[done] - early:
                if now > times[done] + late:
                    raise mismatch(path, f"frame {done} at {now:.4f} s", f"{times[done]:.4f} s")
                image = colours.reformat(frame, format="rgb24").to_ndarray() if image is None else image
                yield image
                done += 1
        missing = len(times) - done
        if missing and (frame is None or missing > MISSING or late < np.inf):
            raise mismatch(
                path, f"{done} frames, until {now:.3f} s", f"{len(times)}, until {times[-1]:.3f} s"
            )
        for _ in range(missing):
            yield colours.reformat(frame, format="rgb24").to_ndarray()


# diffusion_policy's real robots record `videos/<episode>/<camera>.mp4` faster than their control steps. As in their
# `real_data_to_replay_buffer`, a step gets the first frame at or after its time.


def camera_files(folder: Path) -> dict[str, str]:
    """Return name -> file name of the cameras in an episode's folder; `0.mp4` is `camera_0`."""
    stems = sorted((p.stem for p in folder.glob("*.mp4")), key=lambda s: (len(s), s))
    return {f"camera_{stem}" if stem.isdigit() else stem: f"{stem}.mp4" for stem in stems}


def frame_size(path: Path) -> tuple[int, int]:
    """(H, W) of a video. Raises as :func:`frames_at`."""
    require("av")
    with open_video(path) as (_, stream):
        return stream.codec_context.height, stream.codec_context.width


# our name -> FFmpeg's encoder and its options; with g=2 every second frame can be sought
ENCODERS = {
    "h264": ("libx264", {"g": "2", "bf": "0", "preset": "veryfast"}),
    "av1": ("libsvtav1", {"g": "2", "preset": "8"}),
}


def check_codec(name: str) -> None:
    """Refuse a codec that the installed PyAV cannot write (DatasetError)."""
    import av

    encoder = ENCODERS[name][0]
    if encoder not in av.codecs_available:
        found = f"{name}, which PyAV {av.__version__} as it is installed cannot write (no {encoder})"
        raise mismatch("pictures", found, "another codec, or png")


def pix_fmt(codec: str, size: tuple[int, int]) -> str:
    """Colours at half the resolution, or at full where H.264 cannot halve an odd side."""
    return "yuv444p" if codec == "h264" and (size[0] % 2 or size[1] % 2) else "yuv420p"


def video_info(codec: str, rate: int, size: tuple[int, int]) -> dict[str, Any]:
    """The entry of a video in LeRobot's info.json."""
    return {
        "video.height": size[0],
        "video.width": size[1],
        "video.codec": codec,
        "video.pix_fmt": pix_fmt(codec, size),
        "video.is_depth_map": False,
        "video.fps": rate,
        "video.channels": 3,
        "has_audio": False,
    }


class VideoWriter:
    """A file of frames at a constant rate; `codec`: h264 or av1.

    Raises:
        DatasetError: the encoder rejects images of this size.
    """

    def __init__(self, path: Path, codec: str, rate: int, size: tuple[int, int], crf: int):
        import av

        self.path, self.bytes, self.count, self._rate = path, 0, 0, rate
        encoder, options = ENCODERS[codec]
        os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 prints its settings otherwise
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = av.open(str(path), "w", format="mp4")
        stream: Any = self._file.add_stream(encoder, rate=rate, options={"crf": str(crf), **options})
        (stream.height, stream.width), stream.pix_fmt = size, pix_fmt(codec, size)
        self._stream = stream
        scheduling = _scheduling()
        try:
            stream.codec_context.open(strict=False)
        except av.error.FFmpegError as error:
            raise self._refused(error) from None
        finally:
            _restore(scheduling)

    def write(self, frames: np.ndarray) -> None:
        """The next ones.  # uint8 (t, H, W, 3)"""
        import av

        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = self.count, Fraction(1, self._rate)
            self._encode(frame)
            self.count += 1

    def _encode(self, frame: Any) -> None:
        """Pass a frame on, or with None all that the encoder still holds."""
        import av

        try:
            for packet in self._stream.encode(frame):
                self.bytes += packet.size
                self._file.mux(packet)
        except av.error.FFmpegError as error:
            raise self._refused(error) from None

    def _refused(self, error: Any) -> DatasetError:
        size = f"{self._stream.height} x {self._stream.width} pixels"
        found = f"{size} that {self._stream.codec_context.name} cannot write ({error.strerror})"
        return mismatch(self.path.name, found, "another codec, or pictures=png")

    def close(self) -> None:
        """Finish the file."""
        try:
            if self.count:
                self._encode(None)
        finally:
            self._file.close()


def _scheduling() -> tuple[int, Any] | None:
    """Of this thread; None where the system has none."""
    return (os.sched_getscheduler(0), os.sched_getparam(0)) if hasattr(os, "sched_getscheduler") else None


def _restore(scheduling: tuple[int, Any] | None) -> None:
    """Undo what SVT-AV1 does as root: it gives its threads and the caller's the highest realtime priority, so nothing else
    runs on their cores while the process lives."""
    if scheduling is None or os.sched_getscheduler(0) == scheduling[0]:
        return
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended
            os.sched_setscheduler(int(task.name), *scheduling)
