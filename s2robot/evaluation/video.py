"""Episodes as videos that every browser plays: cameras side by side below a bar that says what one sees.

write_video(run / "videos/episode_012.mp4", frames, record, stages=stages)
# also writes videos/episode_012.png, the poster: the last frame
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from s2robot.common.errors import UserError
from s2robot.common.files import replacing
from s2robot.reporting.h264 import encode

Frame = Mapping[str, np.ndarray]  # camera -> uint8 (H, W, 3)

_BAR = (24, 26, 30)
_TEXT = (240, 240, 240)
_GOOD = (86, 180, 233)  # Okabe and Ito's sky blue and orange, both bright on the dark bar
_BAD = (230, 159, 0)
_LEAST_WIDTH = 224  # px; narrower pictures get a margin so that the caption stays readable
_GAP = 4  # px between cameras
_SPLIT = (128, 128, 128)  # between two episodes


def write_video(
    path: Path,
    frames: Sequence[Frame],
    record: Mapping[str, Any],
    *,
    stages: Sequence[str] | None = None,
    rate: float = 10.0,
    height: int | None = None,
    hold_s: float = 1.0,
) -> Path:
    """Write one episode as H.264 (yuv420p, fast start) and its last frame as a PNG beside it.

    frames: one mapping camera -> uint8 (H, W, 3) RGB a step, the first being the reset; cameras keep the
    order of the first frame and are scaled to one `height` (px; default: the tallest camera's, at least 224).
    record: needs episode, seed, success and stage. stages: the stage at each frame; without it the bar names
    the furthest stage of the episode. rate: steps a second, which is also the video's. hold_s: how long the
    last frame stays. Files appear whole or not at all. Raises UserError for frames that do not fit together
    and for a video that cannot be written (disk full, no ffmpeg).
    """
    _check_frames(frames, stages, path)
    if height is None:
        height = max(224, *(image.shape[0] for image in frames[0].values()))
    last = _picture(frames, len(frames) - 1, record, stages, rate, height)  # (H, W, 3)
    return _write(
        path, _pictures(frames, record, stages, rate, height, last, round(hold_s * rate)), last, rate
    )


@dataclass(frozen=True)
class Side:
    """One of two episodes that are shown together: who acted, and what `write_video` takes."""

    label: str
    frames: Sequence[Frame]
    record: Mapping[str, Any]
    stages: Sequence[str] | None = None


def write_pair(
    path: Path,
    left: Side,
    right: Side,
    *,
    rate: float = 10.0,
    height: int | None = None,
    hold_s: float = 1.0,
) -> Path:
    """Write two episodes side by side as one video and poster; the shorter one waits at its last frame.

    As `write_video` otherwise, with the label in place of the episode's number.
    """
    for side in (left, right):
        _check_frames(side.frames, side.stages, path)
    if height is None:
        height = max(224, *(image.shape[0] for side in (left, right) for image in side.frames[0].values()))
    longest = max(len(left.frames), len(right.frames))

    def picture(step: int) -> np.ndarray:
        halves = []
        for side in (left, right):
            at = min(step, len(side.frames) - 1)
            halves.append(_picture(side.frames, at, side.record, side.stages, rate, height, side.label))
        tallest = max(half.shape[0] for half in halves)
        canvas = Image.new("RGB", (sum(half.shape[1] for half in halves) + 3 * _GAP, tallest), _SPLIT)
        # at the bottom, so that the cameras of both are level also where one caption is smaller
        for half, x in zip(halves, (0, halves[0].shape[1] + 3 * _GAP), strict=True):
            canvas.paste(_BAR, (x, 0, x + half.shape[1], tallest))
            canvas.paste(Image.fromarray(half), (x, tallest - half.shape[0]))
        return np.asarray(canvas)

    last = picture(longest - 1)
    hold = [last] * max(round(hold_s * rate), 0)
    return _write(path, chain(map(picture, range(longest - 1)), [last], hold), last, rate)


def _write(path: Path, pictures: Iterable[np.ndarray], last: np.ndarray, rate: float) -> Path:
    """Pictures (H, W, 3) as a video, `last` as its poster, whole or not at all."""
    try:
        with replacing(path) as video, replacing(path.with_suffix(".png")) as poster:
            encode(video, pictures, last.shape, rate)
            Image.fromarray(last).save(poster)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()
        raise UserError(f"{path}: the video cannot be written: {reason[0] if reason else error!r}") from error
    return path


def side_by_side(images: Frame, height: int) -> np.ndarray:
    """All cameras in one row, each scaled to `height` px with its aspect kept and its name in the corner.

    images: camera -> uint8 (H, W, 3). Returns uint8 (height, sum of widths + gaps, 3).
    """
    tiles: list[np.ndarray] = []
    for camera, image in images.items():
        width = max(1, round(image.shape[1] * height / image.shape[0]))
        tile = Image.fromarray(image)
        if tile.size != (width, height):
            tile = tile.resize((width, height), Image.Resampling.BICUBIC)
        # black rim: white letters stay readable on a bright table
        ImageDraw.Draw(tile).text(
            (6, 4),
            camera,
            font=_font(max(11, height // 18)),
            fill=_TEXT,
            stroke_width=2,
            stroke_fill=(0, 0, 0),
        )
        if tiles:
            tiles.append(np.full((height, _GAP, 3), _BAR, dtype=np.uint8))
        tiles.append(np.asarray(tile))
    return np.concatenate(tiles, axis=1)  # (height, W, 3)


def _pictures(
    frames: Sequence[Frame],
    record: Mapping[str, Any],
    stages: Sequence[str] | None,
    rate: float,
    height: int,
    last: np.ndarray,
    hold: int,
) -> Iterator[np.ndarray]:
    for step in range(len(frames) - 1):
        yield _picture(frames, step, record, stages, rate, height)
    for _ in range(1 + max(hold, 0)):
        yield last


def _picture(
    frames: Sequence[Frame],
    step: int,
    record: Mapping[str, Any],
    stages: Sequence[str] | None,
    rate: float,
    height: int,
    label: str | None = None,
) -> np.ndarray:
    """The cameras of one step below the caption bar, even in both sizes as yuv420p demands. (H, W, 3)

    The bar is on top because browsers lay their controls over the lower edge.
    """
    views = side_by_side({camera: frames[step][camera] for camera in frames[0]}, height)
    width = max(_LEAST_WIDTH, views.shape[1])
    width += width % 2
    final = len(frames) - 1
    if label is None:
        upper = f"episode {record['episode']} · seed {record['seed']}"
    else:  # a label may name a training seed
        upper = f"{label} · position {record['seed']}"
    outcome = "✓ success" if record["success"] else "✗ failure"
    stage = f"stage: {stages[step]}" if stages is not None else f"furthest stage: {record['stage']}"
    lower = f"step {step}/{final} · {step / rate:.1f} s · {stage}"
    # fitted to the longest text that this episode can show, so that the letters never change size
    widest = f"step {final}/{final} · {final / rate:.1f} s · furthest stage: approach"
    size = _fit([f"{upper}   {outcome}", widest], width - 16, max(13, height // 16))
    font, line = _font(size), round(1.35 * size)
    bar = 2 * line + 8
    bar += (height + bar) % 2
    canvas = Image.new("RGB", (width, height + bar), _BAR)
    canvas.paste(Image.fromarray(views), ((width - views.shape[1]) // 2, bar))
    draw = ImageDraw.Draw(canvas)
    draw.text((8, 4), upper, font=font, fill=_TEXT)
    draw.text((width - 8, 4), outcome, font=font, fill=_GOOD if record["success"] else _BAD, anchor="ra")
    draw.text((8, 4 + line), lower, font=font, fill=_TEXT)
    return np.asarray(canvas)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as it comes with matplotlib, so that no system font is needed."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _fit(lines: Sequence[str], width: int, size: int, least: int = 9) -> int:
    while size > least and max(_font(size).getlength(text) for text in lines) > width:
        size -= 1
    return size


def _check_frames(frames: Sequence[Frame], stages: Sequence[str] | None, path: Path) -> None:
    if not frames or not frames[0]:
        raise UserError(f"{path}: no frames to write, expected at least 1 frame of 1 camera")
    if stages is not None and len(stages) != len(frames):
        raise UserError(f"{path}: {len(stages)} stages for {len(frames)} frames, expected one a frame")
    for step, frame in enumerate(frames):
        for camera, first in frames[0].items():
            if camera not in frame:
                raise UserError(f"{path}: frame {step} lacks camera {camera!r}, found {', '.join(frame)}")
            image = frame[camera]
            valid = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0
            if not valid or image.shape != first.shape:
                expected = first.shape if valid else "(H, W, 3)"
                raise UserError(
                    f"{path}: frame {step}, camera {camera!r}: found {image.dtype} {image.shape}, "
                    f"expected uint8 {expected}"
                )
