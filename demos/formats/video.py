"""Read and write the frames of video files, with PyAV."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.demos.bounds import check_frame, most_bytes
from s2robot.demos.errors import mismatch, readable

with suppress(ImportError):  # in the extra `data`, which readers and writers require
    import av
    from av.video.reformatter import VideoReformatter

Size = tuple[int, int]  # (H, W)
SLACK = 256  # px, of MPEG-4 for small frames
EARLY = 1e-5  # steps by which a frame "at or after" a time may be too early, for rounding
MISSING = 3  # steps for which the last frame may be repeated
ENCODER = "libx264"
OPTIONS = {"g": "2", "bf": "0", "preset": "veryfast"}  # with g=2, every second frame is seekable


@contextmanager
def open_video(path: Path, size: Size | None = None) -> Iterator[tuple[Any, Any]]:
    """Open a video to decode frames of at most `size` (H, W); DatasetError: missing, broken or implausibly large."""
    if not path.is_file():
        raise mismatch(path, "a video", "none")
    stored = path.stat().st_size
    # slack: codecs round sizes up to whole blocks
    max_pixels = (size[0] + SLACK) * (size[1] + SLACK) if size else most_bytes(stored) // 3
    options = {"max_pixels": str(min(max_pixels, 2**31 - 1))}
    # fix the format: others, such as playlists, could open further files
    with readable(path), av.open(str(path), format="mp4", options=options) as container:
        stream: Any = container.streams.video[0]
        stream.thread_type, stream.codec_context.options = "AUTO", options
        stream.codec_context.thread_count = 2
        found = stream.codec_context.height, stream.codec_context.width
        check_frame(path, found, size or found, stored)
        yield container, stream


def frames_at(
    path: Path, times: np.ndarray, near: float | None = None, size: Size | None = None, whole: bool = False
) -> Iterator[np.ndarray]:
    """Yield the first frame at or after each time, in s from the video's start (T,) (DatasetError).  # uint8 (H, W, 3)

    ``near``: tolerance of a frame's time in s; without it, the last frame may be repeated for a few steps. ``whole``: reject a
    file with further frames.
    """
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    early, late = (EARLY * step, np.inf) if near is None else (near, near)
    colours = VideoReformatter()  # shared: each frame would create its own
    done, now = 0, 0.0
    frame: Any = None
    with open_video(path, size) as (container, stream):
        if times[0] > 0 and stream.time_base:
            container.seek(int((times[0] - early) / stream.time_base), stream=stream, backward=True)
        for number, frame in enumerate(container.decode(stream), 1):
            if done == len(times) and not whole:
                return
            if whole and number > len(times):
                raise mismatch(path, f"{len(times)} frames, one per step", "more")
            now, image = float(frame.time or 0.0), None
            while done < len(times) and now >= times[done] - early:
                if now > times[done] + late:
                    raise mismatch(path, f"frame {done} at {times[done]:.4f} s", f"{now:.4f} s")
                image = colours.reformat(frame, format="rgb24").to_ndarray() if image is None else image
                yield image
                done += 1
        missing = len(times) - done
        if missing and (frame is None or missing > MISSING or near is not None):
            raise mismatch(path, f"{len(times)} frames until {times[-1]:.3f} s", f"{done} until {now:.3f} s")
        for _ in range(missing):
            yield colours.reformat(frame, format="rgb24").to_ndarray()


class VideoWriter:
    """An H.264 file of frames of one size (H, W) at a constant rate (DatasetError: the encoder rejects the size)."""

    def __init__(self, path: Path, rate: int, size: Size, crf: int):
        self.bytes, self.count, self._rate = 0, 0, rate
        self._where = f"{ENCODER}, {size[0]} x {size[1]} px"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = av.open(str(path), "w", format="mp4")
        with self._encodable():
            stream: Any = self._file.add_stream(ENCODER, rate=rate, options={"crf": str(crf), **OPTIONS})
            (stream.height, stream.width), stream.pix_fmt = size, pix_fmt(size)
            stream.codec_context.open(strict=False)
        self._stream = stream

    @contextmanager
    def _encodable(self) -> Iterator[None]:
        """Turn an encoder's error into one line; let disk errors pass."""
        try:
            yield
        except (av.error.FFmpegError, ValueError) as error:
            if isinstance(error, OSError):
                raise
            raise mismatch(self._where, "images that PyAV can encode, or image_codec=png", error) from None

    def write(self, frames: np.ndarray) -> None:
        """Append frames.  # uint8 (t, H, W, 3)"""
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = self.count, Fraction(1, self._rate)
            self._encode(frame)
            self.count += 1

    def _encode(self, frame: Any) -> None:
        """Encode a frame; None flushes the encoder."""
        with self._encodable():
            packets = self._stream.encode(frame)
            self.bytes += sum(packet.size for packet in packets)
            self._file.mux(packets)

    def close(self) -> None:
        try:
            if self.count:
                self._encode(None)
        finally:
            self._file.close()


def pix_fmt(size: Size) -> str:
    """Return the pixel format with half-resolution colour, or full resolution if a side is odd."""
    return "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
