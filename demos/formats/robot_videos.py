"""Pictures of diffusion_policy's real robots: `videos/<episode>/<camera>.mp4`, faster than its steps.

As their `real_data_to_replay_buffer`: a step sees the first frame from its time on; where a video ends early, its last frame
stands in for a few steps.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from s2robot.demos.errors import mismatch
from s2robot.demos.formats.source import require
from s2robot.demos.formats.video import opened

EARLY = 1e-5  # of a step: how much before its time a frame may be
MISSING = 10  # steps that a last frame may stand in for


def cameras_of(folder: Path) -> dict[str, str]:
    """Name -> file name of each camera that an episode's folder holds; `0.mp4` is `camera_0`."""
    stems = sorted((p.stem for p in folder.glob("*.mp4")), key=lambda s: (len(s), s))
    return {f"camera_{stem}" if stem.isdigit() else stem: f"{stem}.mp4" for stem in stems}


def size_of(path: Path) -> tuple[int, int]:
    """(H, W) of a video. Raises as :func:`frames_at`."""
    require("av")
    with opened(path) as (_, stream):
        return stream.codec_context.height, stream.codec_context.width


def frames_at(path: Path, times: np.ndarray) -> Iterator[np.ndarray]:
    """The frame of each time, s since the video's start (T,).  # uint8 (H, W, 3)

    Raises:
        DatasetError: no such file, one that cannot be decoded, or one that ends too early.
    """
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    done, frame = 0, None
    with opened(path) as (container, stream):
        for frame in container.decode(stream):
            picture = None
            while done < len(times) and float(frame.time or 0.0) >= times[done] - EARLY * step:
                picture = frame.to_ndarray(format="rgb24") if picture is None else picture
                yield picture
                done += 1
            if done == len(times):
                return
    if frame is None or len(times) - done > MISSING:
        end = "no frames" if frame is None else f"frames until {float(frame.time or 0.0):.3f} s"
        raise mismatch(path, end, f"some until {times[-1]:.3f} s as the episode has steps")
    for _ in times[done:]:
        yield frame.to_ndarray(format="rgb24")
