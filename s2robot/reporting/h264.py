"""Encode images as H.264 that every browser plays, with imageio's ffmpeg.

encode(path, images, (256, 256), rate=10.0)
"""

from collections.abc import Iterable
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from s2robot.core.errors import reported
from s2robot.core.files import replacing


def encode(
    path: Path,
    images: Iterable[np.ndarray],
    shape: tuple[int, ...],
    rate: float,
    crf: int = 24,
    key_every: int | None = None,
) -> None:
    """Write uint8 RGB images of ``shape`` (even height and width) as yuv420p, with the index in front, atomically.

    ``crf``: x264's constant quality, 0 to 51. ``key_every``: distance of key frames, for seeking. UserError if ffmpeg is missing
    or did not finish (a full disk, a killed process).
    """
    seekable = [] if key_every is None else ["-g", str(key_every), "-bf", "0"]
    # one thread, because the other cores are simulating
    options = ["-crf", str(crf), "-preset", "veryfast", "-threads", "1", *seekable, "-movflags", "+faststart"]
    kind = {"codec": "libx264", "macro_block_size": 2, "ffmpeg_log_level": "error"}
    size = (shape[1], shape[0])
    with reported(f"{path}: cannot be written", kinds=(OSError, RuntimeError)), replacing(path) as part:
        writer = imageio_ffmpeg.write_frames(str(part), size, fps=rate, output_params=options, **kind)
        try:
            writer.send(None)
            for image in images:
                writer.send(np.ascontiguousarray(image))
        finally:
            writer.close()
        # imageio hides ffmpeg's exit status, but the index (moov) exists only if ffmpeg finished
        if not part.exists() or b"moov" not in part.read_bytes():
            raise OSError("ffmpeg left an incomplete file")
