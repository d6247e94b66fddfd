"""Videos of diffusion_policy's real robots, `videos/<episode>/<camera>.mp4`, recorded faster than the control steps.

As in their `real_data_to_replay_buffer`, a step gets the first frame at or after its time. If a video ends early, its last
frame is repeated for a few steps.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from s2robot.demos.errors import mismatch
from s2robot.demos.formats.source import require
from s2robot.demos.formats.video import open_video

EARLY = 1e-5  # of a step: how much before its time a frame may be
MISSING = 10  # steps for which the last frame may be repeated


def camera_files(folder: Path) -> dict[str, str]:
    """Return name -> file name of the cameras in an episode's folder; `0.mp4` is `camera_0`."""
    stems = sorted((p.stem for p in folder.glob("*.mp4")), key=lambda s: (len(s), s))
    return {f"camera_{stem}" if stem.isdigit() else stem: f"{stem}.mp4" for stem in stems}


def frame_size(path: Path) -> tuple[int, int]:
    """(H, W) of a video. Raises as :func:`frames_at`."""
    require("av")
    with open_video(path) as (_, stream):
        return stream.codec_context.height, stream.codec_context.width


def frames_at(path: Path, times: np.ndarray) -> Iterator[np.ndarray]:
    """The frame of each time, s since the video's start (T,).  # uint8 (H, W, 3)

    Raises:
        DatasetError: no such file, one that cannot be decoded, or one that ends too early.
    """
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    done, frame = 0, None
    with open_video(path) as (container, stream):
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
