"""Where the heat maps of several cameras lie in space: expected pixel -> ray -> the point where the rays meet.

    rays = Rays(("hand", "left", "right"), contract["camera_geometry"], [(8, 8)] * 3)
    rays(places).shape          # places (M, C, k, 2) of map_places -> (M, C, k, 4)

A camera whose pose is known (`body` is "world") gives a ray for each of its heat maps. The i-th rays of all such
cameras meet, as nearly as rays do, in the i-th point (least squares); each of those cameras then reads the point and
how far its own ray passes by it. A camera that moves, like one on the hand, reads the ray's direction in its own frame
and 0: where it stands follows from joints that the pooling does not see.

Frames are MuJoCo's: a camera looks along -z, x is to the right and y up; quaternions are w, x, y, z; lengths in m.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s2robot.policies.errors import PolicyError

UNIT = 0.1  # m: points and distances are told in this unit, in which a table's things are about 1
_PULL = 1e-3  # towards the middle of the views, against 1 of a ray: two rays decide, one alone stays defined


class Rays(nn.Module):
    """The geometry of cameras as tensors that no training changes, and that travel in the spec, not in the weights."""

    fixed: Tensor  # (C,) bool
    turn: Tensor  # (C, 3, 3), camera to world; the identity where the camera moves
    origin: Tensor  # (C, 3), m
    slope: Tensor  # (C, 2): tangent per unit of a place, x and y
    middle: Tensor  # (3,), m: what the fixed cameras look at

    def __init__(
        self,
        cameras: Sequence[str],
        geometry: Mapping[str, Mapping[str, Any]],
        maps: Sequence[tuple[int, int]],
    ):
        """maps: rows and columns of each camera's tokens, whose outermost centres are the places -1 and 1."""
        super().__init__()
        read = [_read(name, geometry.get(name), *shape) for name, shape in zip(cameras, maps, strict=True)]
        fixed, turn, origin, slope = (torch.tensor(x) for x in zip(*read, strict=True))
        for name, value in (("fixed", fixed), ("turn", turn), ("origin", origin), ("slope", slope)):
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("middle", torch.zeros(3), persistent=False)
        if fixed.any():
            ahead = self.directions(torch.zeros(1, len(read), 1, 2))
            self.middle.copy_(self.meet(ahead)[0, 0])

    def forward(self, places: Tensor) -> Tensor:
        """Places (M, C, k, 2), x to the right and y down, -1..1 -> what each camera reads (M, C, k, 4)."""
        ray = self.directions(places.float())  # (M, C, k, 3)
        point = self.meet(ray)[:, None]  # (M, 1, k, 3)
        off = point - self.origin[:, None]  # (M, C, k, 3)
        along = (off * ray).sum(-1, keepdim=True)
        # squared length under the root: a distance of 0 has no gradient, so a millimetre is added
        by = ((off - along * ray).square().sum(-1, keepdim=True) + 1e-6).sqrt()  # (M, C, k, 1)
        known = torch.cat([point - self.middle + torch.zeros_like(off), by], -1) / UNIT
        moving = torch.cat([ray, torch.zeros_like(by)], -1)
        return torch.where(self.fixed[:, None, None], known, moving)

    def directions(self, places: Tensor) -> Tensor:
        """Unit vectors (M, C, k, 3) of the rays through places (M, C, k, 2): in the world, or in the frame of a
        camera that moves."""
        right, down = (places * self.slope[:, None]).unbind(-1)
        seen = torch.stack([right, -down, -torch.ones_like(right)], -1)  # (M, C, k, 3)
        # sums instead of products of matrices: those would be rounded to bfloat16 in a mixed training
        ray = (self.turn[:, None] * seen[..., None, :]).sum(-1)
        return ray / ray.square().sum(-1, keepdim=True).sqrt()

    def meet(self, ray: Tensor) -> Tensor:
        """The points (M, k, 3) nearest to the rays (M, C, k, 3) of the fixed cameras, by least squares."""
        counts = self.fixed.float()[:, None, None]  # (C, 1, 1)
        across = torch.eye(3, device=ray.device) - ray[..., None] * ray[..., None, :]  # (M, C, k, 3, 3)
        across = across * counts[..., None]
        start = (across * (self.origin - self.middle)[:, None, None]).sum((1, -1))  # (M, k, 3)
        a, b, c = (across.sum(1) + _PULL * torch.eye(3, device=ray.device)).unbind(-1)  # columns (M, k, 3)
        bc = torch.linalg.cross(b, c)
        volume = (a * bc).sum(-1)  # Cramer's rule: a batched solver takes longer than all else here
        parts = [start * bc, a * torch.linalg.cross(start, c), a * torch.linalg.cross(b, start)]
        return torch.stack([part.sum(-1) / volume for part in parts], -1) + self.middle


def _read(
    name: str, camera: Mapping[str, Any] | None, rows: int, columns: int
) -> tuple[bool, list[list[float]], list[float], list[float]]:
    """Whether a camera stands still, its rotation, position, and slope of its rays.

    Raises:
        PolicyError: names a camera or a number that is missing.
    """
    where = f"pooling.points: the geometry of camera '{name}'"
    if camera is None or not isinstance(camera.get("fovy"), int | float):
        raise PolicyError(f"{where} has no fovy (degrees); policy.pooling.points=false does without")
    height, width = (float(x) for x in camera.get("size") or (rows, columns))
    shown = min(height, width * rows / columns)  # the policy sees what has the map's shape, from the middle
    up = math.tan(math.radians(camera["fovy"]) / 2) * shown / height
    slope = [up * columns / rows * (columns - 1) / columns, up * (rows - 1) / rows]
    if camera.get("body") != "world":
        return False, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [0.0] * 3, slope
    position, quaternion = camera.get("position"), camera.get("quaternion")
    if not position or not quaternion or len(position) != 3 or len(quaternion) != 4:
        raise PolicyError(f"{where} has no position (3 numbers) and quaternion (4), expected both")
    return True, _matrix(quaternion), [float(x) for x in position], slope


def _matrix(quaternion: Sequence[float]) -> list[list[float]]:
    """The rotation of a quaternion w, x, y, z."""
    size = math.sqrt(sum(x * x for x in quaternion))
    w, x, y, z = (value / size for value in quaternion)
    return [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]


def with_geometry(policy: Mapping[str, Any], geometry: Mapping[str, Any]) -> dict[str, Any]:
    """A policy's config with the geometry that `pooling.points` needs; without the key where it is off.

    So a spec tells what is used, and is that of an older version where nothing new is.
    """
    pooling = dict(policy.get("pooling") or {})
    if pooling.get("points"):
        kept = ("fovy", "size", "body", "position", "quaternion")
        pooling["geometry"] = {
            name: {key: geometry[name][key] for key in kept if key in geometry[name]}
            for name in policy["cameras"]
            if name in geometry
        }
    else:
        pooling.pop("points", None)
    return {**policy, "pooling": pooling}
