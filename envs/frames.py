"""Sizes of the cameras' frames: one side for all, one (height, width) for all, or each camera's own."""

from collections.abc import Iterable, Mapping
from typing import Any

from s2robot.envs.errors import expect

ImageSize = Any  # px: a side, (height, width), or {camera: either}


def size_of(image_size: ImageSize, camera: str, where: str = "env.image_size") -> tuple[int, int]:
    """Return (H, W) of a camera's frames; EnvError if its size is missing or invalid."""
    size = image_size.get(camera) if isinstance(image_size, Mapping) else image_size
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    valid = len(sides) == 2 and all(type(side) is int and side >= 1 for side in sides)
    expected = "a side of 1 or more, [height, width], or a size for each camera"
    expect(valid, where, expected, f"{image_size!r} for '{camera}'")
    return sides


def sizes_of(
    image_size: ImageSize, cameras: Iterable[str], where: str = "env.image_size"
) -> dict[str, tuple[int, int]]:
    """Return (H, W) of each camera's frames; raises like :func:`size_of`."""
    return {name: size_of(image_size, name, where) for name in cameras}


def as_image_size(sizes: Mapping[str, tuple[int, int]]) -> ImageSize:
    """Return the shortest form of these sizes: one side if all are the same square."""
    different = {side for size in sizes.values() for side in size}
    return different.pop() if len(different) == 1 else dict(sizes)


def at_height(image_size: ImageSize, cameras: Iterable[str], height: int) -> ImageSize:
    """Return the same shapes, all scaled to `height` pixels, for images shown side by side."""
    sizes = sizes_of(image_size, cameras)
    return as_image_size({name: (height, max(1, round(w * height / h))) for name, (h, w) in sizes.items()})
