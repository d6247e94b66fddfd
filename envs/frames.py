"""Sizes of the cameras' frames: one side for all, one (height, width) for all, or each camera's own.

size_of(256, "hand")                                   # (256, 256)
size_of({"hand": 256, "top": [480, 640]}, "top")       # (480, 640)
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from s2robot.envs.errors import EnvError

ImageSize = Any  # px: a side, (height, width), or {camera: either}


def size_of(image_size: ImageSize, camera: str, where: str = "env.image_size") -> tuple[int, int]:
    """(H, W) of a camera's frames.

    Raises:
        EnvError: no size of this camera, or one that is none.
    """
    found = image_size
    if isinstance(image_size, Mapping):
        if camera not in image_size:
            raise EnvError(
                f"{where}: found sizes of {', '.join(image_size) or 'no camera'}, expected one of '{camera}' too"
            )
        found = image_size[camera]
    sides = (found, found) if _is_side(found) else tuple(found) if isinstance(found, list | tuple) else ()
    if len(sides) != 2 or not all(map(_is_side, sides)):
        raise EnvError(
            f"{where}: found {found!r}, expected a side of 1 or more, [height, width], or a size of each camera"
        )
    return sides


def sizes_of(
    image_size: ImageSize, cameras: Iterable[str], where: str = "env.image_size"
) -> dict[str, tuple[int, int]]:
    """(H, W) of each camera's frames; raises as :func:`size_of`."""
    return {name: size_of(image_size, name, where) for name in cameras}


def as_image_size(sizes: Mapping[str, tuple[int, int]]) -> ImageSize:
    """The shortest form of these sizes: one side where all are the same square."""
    different = {side for size in sizes.values() for side in size}
    return different.pop() if len(different) == 1 else dict(sizes)


def at_height(image_size: ImageSize, cameras: Iterable[str], height: int) -> ImageSize:
    """The same shapes, each so many pixels high: images that stand side by side."""
    sizes = sizes_of(image_size, cameras)
    return as_image_size({name: (height, max(1, round(w * height / h))) for name, (h, w) in sizes.items()})


def image_space(sizes: Mapping[str, tuple[int, int]]) -> Any:
    """What gymnasium calls the images of an observation: {camera: uint8 (H, W, 3)}."""
    from gymnasium.spaces import Box, Dict

    return Dict({name: Box(0, 255, (*size, 3), np.uint8) for name, size in sizes.items()})


def side_by_side(frames: Iterable[np.ndarray]) -> np.ndarray:
    """One image of several, uint8 (H_i, W_i, 3), black below the lower ones.  # (max H, sum W, 3)"""
    parts = list(frames)
    height = max(len(part) for part in parts)
    return np.concatenate([np.pad(p, ((0, height - len(p)), (0, 0), (0, 0))) for p in parts], axis=1)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
