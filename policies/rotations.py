"""Convert rotations between matrices and the forms of networks and arms.

    turned = matrices(vectors, "axis_angle")          # (..., 3) rad -> (..., 3, 3)
    numbers(matrix, "rot6d")                          # (..., 3, 3) -> (..., 6)

`rot6d` is the first two columns of the matrix, one after the other (Zhou et al., 2019): continuous, so a network can
learn it, and any two columns that are not parallel define a rotation (Gram-Schmidt). `axis_angle` is the axis times
the angle in rad. All operations are plain products and sums, which autocast leaves in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def matrices(values: Tensor, form: str) -> Tensor:
    """(..., 3 or 6) -> (..., 3, 3); degenerate rot6d values return finite numbers."""
    if form == "axis_angle":
        half = torch.linalg.vector_norm(values, dim=-1, keepdim=True) / 2  # rad
        scaled = values * torch.sinc(half / torch.pi) / 2  # sin(angle / 2) times the axis
        return _of_quaternion(torch.cat([half.cos(), scaled], -1))
    first = F.normalize(values[..., :3], dim=-1)
    second = values[..., 3:] - (first * values[..., 3:]).sum(-1, keepdim=True) * first
    second = F.normalize(second, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], -1)


def numbers(matrix: Tensor, form: str) -> Tensor:
    """Convert rotation matrices (..., 3, 3) to a form; axis_angle has angles 0 to pi.  # (..., 3 or 6)"""
    if form == "rot6d":
        return matrix[..., :2].transpose(-1, -2).flatten(-2)
    w, vector = _quaternion(matrix).split([1, 3], -1)
    length = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)  # sin(angle / 2)
    small = length < 1e-6
    factor = 2 * torch.atan2(length, w) / length.masked_fill(small, 1)
    return vector * torch.where(small, 2 / w.clamp(min=0.5), factor)


def compose(later: Tensor, earlier: Tensor) -> Tensor:
    """Return the product (..., 3, 3): `earlier`, then `later`, both about the axes of the base."""
    return (later[..., :, :, None] * earlier[..., None, :, :]).sum(-2)


def composed(steps: Tensor) -> Tensor:
    """Accumulate turns per step (..., K, 3, 3) into total turns since before the first step."""
    total = [steps[..., 0, :, :]]
    for k in range(1, steps.shape[-3]):
        total.append(compose(steps[..., k, :, :], total[-1]))
    return torch.stack(total, -3)


def between(total: Tensor) -> Tensor:
    """Invert `composed`: return the turn of each step."""
    before = total[..., :-1, :, :].transpose(-1, -2)
    return torch.cat([total[..., :1, :, :], compose(total[..., 1:, :, :], before)], -3)


def angle(one: Tensor, other: Tensor) -> Tensor:
    """Return the angle between two rotations (..., 3, 3), rad.  # (...)"""
    return torch.linalg.vector_norm(numbers(compose(one, other.transpose(-1, -2)), "axis_angle"), dim=-1)


def _of_quaternion(q: Tensor) -> Tensor:
    """Convert unit quaternions (..., 4), w first, to matrices (..., 3, 3)."""
    w, x, y, z = q.unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _quaternion(m: Tensor) -> Tensor:
    """Convert matrices (..., 3, 3) to unit quaternions (..., 4), w >= 0 first; exact at half turns, too.

    Each row of the table is the quaternion times four times one of its components; the largest component's row is used.
    """
    a, b, c = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    x, y, z = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    table = torch.stack(
        [
            torch.stack([1 + a + b + c, x, y, z], -1),
            torch.stack([x, 1 + a - b - c, xy, xz], -1),
            torch.stack([y, xy, 1 - a + b - c, yz], -1),
            torch.stack([z, xz, yz, 1 - a - b + c], -1),
        ],
        -2,
    )  # (..., 4, 4)
    largest = table.diagonal(dim1=-2, dim2=-1).argmax(-1)  # (...)
    row = table.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4)).squeeze(-2)
    q = F.normalize(row, dim=-1)
    return torch.where(q[..., :1] < 0, -q, q)
