"""Frames of a video file, by PyAV."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from s2robot.demos.errors import mismatch

NEAR = 0.4  # of a frame's duration: what a frame's time may be off to be still that frame's


def frames(path: Path, start_s: float, count: int, rate: float, whole: bool = False) -> Iterator[np.ndarray]:
    """`count` frames from the time `start_s` on, one each 1 / `rate` s.  # uint8 (H, W, 3)

    whole: the file must hold no further ones.

    Raises:
        DatasetError: no such file, one that cannot be decoded, fewer or more frames, or one at another time.
    """
    import av

    if not path.is_file():
        raise mismatch(path, "no such file", f"a video of {count} frames")
    done = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise mismatch(path, "no video stream", f"a video of {count} frames")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = 2
            if start_s > 0 and stream.time_base:
                container.seek(int((start_s - 0.5 / rate) / stream.time_base), stream=stream, backward=True)
            first: float | None = None if start_s > 0 else 0.0
            for frame in container.decode(stream):
                now = float(frame.time or 0.0)
                if first is None or done == 0:
                    if now < start_s - NEAR / rate:
                        continue
                    first = start_s
                if done == count:
                    if whole:
                        more = 1 + sum(1 for _ in container.decode(stream))
                        raise mismatch(path, f"{count + more} frames", f"{count} as the table has steps")
                    return
                due = first + done / rate
                if abs(now - due) > NEAR / rate:
                    raise mismatch(path, f"frame {done} at {now:.4f} s", f"{due:.4f} s ({rate:g} a second)")
                yield frame.to_ndarray(format="rgb24")
                done += 1
    except av.error.FFmpegError as error:
        raise mismatch(path, f"a file that cannot be decoded ({error.strerror})", "a video") from None
    if done < count:
        raise mismatch(path, f"{done} frames from {start_s:g} s on", f"{count} as the table has steps")
