"""Advise before training which scale of S2 should help: 2 if the moved object spans less than a token at scale 1.

    advise(store, count, AdviceSettings())
    # object 21 px in frames of 256 px: 0.7 tokens at scale 1, 1.3 tokens at scale 2; s2.scales=[2] should help (tested with mvp-tiny)

The object is found by motion, without labels. It lies somewhere else at the start of each episode, stays there while the arm
approaches, and is gone in the end. Cameras on the arm, in which everything moves, are ignored.
"""

from collections.abc import Sequence

import numpy as np

from s2robot.core.settings import Settings, from_yaml
from s2robot.demos.replay import frame_inputs, frames_of, world_of_demos
from s2robot.demos.store import EpisodeStore

SCALES = (1, 2)  # not 3, which was worse than 2 with objects of 13 and of 22 px (docs/s2.md)


class AdviceSettings(Settings, at="scales", file="inspect"):
    episodes: int = from_yaml(ge=2)
    tokens: int = from_yaml(ge=1)
    change: float = from_yaml(gt=0)
    approach: float = from_yaml(gt=0, lt=1)


def advise(store: EpisodeStore, count: int, settings: AdviceSettings) -> str:
    """Return one line about the first `count` episodes; it says so if no object is found."""
    found = []
    for frames in _moments(store, min(count, settings.episodes), settings.approach):
        height, width = frames.shape[2:4]
        if np.isfinite(size := object_size(frames, settings.change)):
            found.append((size / min(height, width), size, min(height, width)))
    if not found:
        return "no moved object with varying start positions found; no advice on s2.scales"
    share, size, side = sorted(found)[len(found) // 2]  # of the cameras
    spans = {scale: scale * settings.tokens * share for scale in SCALES}
    best = next((scale for scale, span in spans.items() if span >= 1), SCALES[-1])
    but = "" if spans[best] >= 1 else ", but the object stays below a token"
    tokens = ", ".join(f"{span:.1f} tokens at scale {scale}" for scale, span in spans.items())
    return f"object {size:.0f} px in frames of {side} px: {tokens}; s2.scales=[{best}] should help{but} (tested with mvp-tiny)"


def object_size(frames: np.ndarray, change: float) -> float:
    """Return the median side in pixels of the moved object, NaN if fewer than half of the episodes show one.

    frames: uint8 (3, E, H, W, 3), the first frame of E episodes, one while the arm approaches, and the last. change: the
    smallest difference of a pixel that moves.
    """
    from scipy import ndimage  # takes long to import

    first, during, last = frames.astype(np.int16)
    unlike, left, gone = (np.abs(first - x).max(-1) > change for x in (np.median(first, 0), during, last))
    labels = (ndimage.label(mask)[0].ravel() for mask in unlike & ~left & gone)
    areas = [np.bincount(each, minlength=2)[1:].max() for each in labels]
    side = float(np.sqrt(np.median(areas)))
    return side if side >= 2 else float("nan")  # single pixels are noise


def _moments(store: EpisodeStore, count: int, approach: float) -> Sequence[np.ndarray]:
    """Return the three frames of each episode that `object_size` compares, one array per camera."""
    world, rows = world_of_demos(store) if store.attrs["kind"] == "states" else None, []
    for i in range(count):
        seen, drawn = frame_inputs(store, i, store.cameras, world and world.image_size, world)
        last = len(seen[0]) - 1
        steps = [0, round(approach * last), last]
        rows.append(frames_of([part[steps] for part in seen], drawn, i))
    return [np.stack(frames, 1) for frames in zip(*rows, strict=True)]
