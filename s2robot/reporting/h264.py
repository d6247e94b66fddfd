"""Images as H.264 that every browser plays, through imageio's ffmpeg.

with replacing(path) as part:
    encode(part, images, (256, 256), rate=10.0)
"""

from collections.abc import Iterable
from pathlib import Path

import imageio_ffmpeg
import numpy as np


def encode(
    path: Path,
    images: Iterable[np.ndarray],
    shape: tuple[int, ...],
    rate: float,
    crf: int = 24,
    key_every: int | None = None,
) -> None:
    """Write images of ``shape``, uint8 RGB and even in both sizes, as yuv420p with the index in front.

    ``crf``: x264's constant quality, 0 to 51; ``key_every``: distance of key frames, for players that seek. OSError: ffmpeg did
    not finish (a full disk, a killed process); RuntimeError: there is none.
    """
    seekable = [] if key_every is None else ["-g", str(key_every), "-bf", "0"]
    # one thread: the other cores are simulating
    options = ["-crf", str(crf), "-preset", "veryfast", "-threads", "1", *seekable, "-movflags", "+faststart"]
    kind = {"codec": "libx264", "macro_block_size": 2, "ffmpeg_log_level": "error"}
    size = (shape[1], shape[0])
    writer = imageio_ffmpeg.write_frames(str(path), size, fps=rate, output_params=options, **kind)
    try:
        writer.send(None)
        for image in images:
            writer.send(np.ascontiguousarray(image))
    finally:
        writer.close()
    # ffmpeg's exit status is not handed on, but the index (moov) is only there if it got to the end
    if not path.exists() or b"moov" not in path.read_bytes():
        raise OSError("ffmpeg left an incomplete file")
