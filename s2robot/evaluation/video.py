"""Write episodes as videos that every browser plays: cameras side by side below a caption bar. Does not import torch.

write_video(run / "videos/episode_012.mp4", frames, record, stages=stages)
film(world, record, actions, path)        # reruns an episode from its seed and actions
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from s2robot.core.errors import UserError
from s2robot.core.progress import bar
from s2robot.core.timing import cores
from s2robot.core.workers import worker_pool
from s2robot.envs.frames import at_height
from s2robot.envs.task import TaskSettings
from s2robot.envs.tasks import make
from s2robot.reporting.h264 import encode

if TYPE_CHECKING:  # it would load torch
    from s2robot.evaluation.rollouts import Rollouts

Frame = Mapping[str, np.ndarray]  # camera -> uint8 (H, W, 3)

_BAR, _TEXT = (24, 26, 30), (240, 240, 240)
_GOOD, _BAD = (86, 180, 233), (230, 159, 0)  # Okabe and Ito's sky blue and orange, bright on the dark bar
_MIN_WIDTH = 24  # in font heights; narrower images get a margin so that the caption fits
_HOLD_S = 1.0  # s, duration of the last frame
_GAP = 4  # px between cameras


def film_episodes(world: TaskSettings, rollouts: "Rollouts", settings: Any, out: Path) -> dict[int, str]:
    """Write videos of some episodes, failures first, into ``out/videos``: episode -> path relative to ``out``. ``settings``: see
    `evaluate.EvaluateSettings`."""
    chosen = sorted(rollouts.records, key=lambda r: (r["success"], r["episode"]))[: settings.videos]
    config = world.replace(image_size=at_height(world.image_size, world.cameras, settings.video_size))
    names = {r["episode"]: f"videos/episode_{r['episode']:04d}.mp4" for r in chosen}
    tasks = [(config, r, rollouts.actions[r["episode"]], out / names[r["episode"]]) for r in chosen]
    with bar("filming") as update, worker_pool(settings.workers or cores()) as pool:
        for done, _ in enumerate(pool.in_order(film, tasks), 1):
            update(done, len(chosen))
    return names


def film(world: TaskSettings, record: Mapping[str, Any], actions: np.ndarray, path: Path) -> Path:
    """Rerun an episode and write it as a video; UserError if its final stage differs from its record."""
    with make(world) as env:
        frames, stages = rerun(env, record["seed"], actions)
    if stages[-1] != record["stage"]:
        expected = f"expected the recorded final stage {record['stage']}, got {stages[-1]}"
        raise UserError(f"{path}: seed {record['seed']}: {expected}; not repeatable, set evaluate.videos=0")
    return write_video(path, frames, record, stages=stages, rate=world.rate_hz)


def rerun(env: Any, seed: int, actions: np.ndarray) -> tuple[list[Frame], list[str]]:
    """Rerun an episode from its seed and its actions (T, A). Return images by camera, and stages; T + 1 of each."""
    frames, stages = [env.reset(seed=seed)[0]["images"]], [env.stage]
    for action in actions:
        frames.append(env.step(action)[0]["images"])
        stages.append(env.stage)
    return frames, stages


def write_video(
    path: Path,
    frames: Sequence[Frame],
    record: Mapping[str, Any],
    *,
    stages: Sequence[str] | None = None,
    rate: float = 10.0,
    height: int | None = None,
) -> Path:
    """Write an episode as H.264, atomically; UserError if that fails (disk full, no ffmpeg).

    Args:
        frames: camera -> uint8 (H, W, 3) RGB for each step, starting with the reset.
        record: holds episode, seed, success and stage.
        stages: stage at each frame; if None, the bar shows the furthest stage of the episode.
        rate: steps per second, which is also the frame rate.
        height: camera height in the video (px); None: the tallest camera's, at least 224.
    """
    size = height or max(224, *(image.shape[0] for image in frames[0].values()))
    upper, last = f"episode {record['episode']} · seed {record['seed']}", len(frames) - 1

    def draw_step(step: int) -> np.ndarray:
        views = side_by_side({camera: frames[step][camera] for camera in frames[0]}, size)
        stage = f"stage: {stages[step]}" if stages else f"furthest stage: {record['stage']}"
        lower = f"step {step}/{last} · {step / rate:.1f} s · {stage}"
        return _with_caption(views, upper, record["success"], lower)

    images = chain(map(draw_step, range(last)), [end := draw_step(last)] * (1 + round(_HOLD_S * rate)))
    encode(path, images, end.shape, rate)
    return path


def side_by_side(images: Frame, height: int) -> np.ndarray:
    """Return all cameras in one row, scaled to one height and labelled in the corner.  # uint8 (height, W, 3)"""
    tiles: list[np.ndarray] = []
    for camera, image in images.items():
        width = max(1, round(image.shape[1] * height / image.shape[0]))
        tile = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        # the black outline keeps white letters readable on a bright table
        style: dict[str, Any] = {"font": _font(max(11, height // 18)), "stroke_width": 2}
        ImageDraw.Draw(tile).text((6, 4), camera, fill=_TEXT, stroke_fill=(0, 0, 0), **style)
        if tiles:
            tiles.append(np.full((height, _GAP, 3), _BAR, dtype=np.uint8))
        tiles.append(np.asarray(tile))
    return np.concatenate(tiles, axis=1)


def _with_caption(views: np.ndarray, upper: str, success: bool, lower: str) -> np.ndarray:
    """Return (H, W, 3): cameras below a caption bar (browser controls cover the lower edge). yuv420p needs even H and W."""
    height = len(views)
    font = _font(max(13, height // 16))
    width = max(_MIN_WIDTH * round(font.size), views.shape[1])
    width += width % 2
    outcome, colour = ("✓ success", _GOOD) if success else ("✗ failure", _BAD)
    line = round(1.35 * font.size)
    bar = 2 * line + 8
    bar += (height + bar) % 2
    canvas = Image.new("RGB", (width, height + bar), _BAR)
    canvas.paste(Image.fromarray(views), ((width - views.shape[1]) // 2, bar))
    draw = ImageDraw.Draw(canvas)
    draw.text((8, 4), upper, font=font, fill=_TEXT)
    draw.text((width - 8, 4), outcome, font=font, fill=colour, anchor="ra")
    draw.text((8, 4 + line), lower, font=font, fill=_TEXT)
    return np.asarray(canvas)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans as shipped with matplotlib, so that no system font is needed."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)
