"""The moving meshes of a scene with no more triangles than a small image shows.

Where a processor draws, an image costs what its triangles cost, whatever their size. The 24,000 of the xArm's gripper base
are half a millimetre wide, a fifth of a pixel from the side.
"""

from copy import copy
from functools import lru_cache

import fast_simplification
import mujoco
import numpy as np
from scipy.spatial import cKDTree

_SHARE, _LEAST = 1 / 8, 1500  # of a mesh's triangles stay, and of smaller meshes so many
_NEAREST = 16  # of a mesh's old corners, among which a new one looks for its normal


def coarse_meshes(model: mujoco.MjModel) -> mujoco.MjModel:
    """A copy for OpenGL, in which what moves has fewer triangles; physics keeps all of them.

    Triangles are merged where the surface moves least by it (quadric error, Garland and Heckbert 1997, as
    fast-simplification has it). Normals and texture coordinates are those of a near old corner, the one that faces most as the
    new triangle does, so that edges stay sharp and what is round looks round.
    """
    model = copy(model)
    moves = (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH) & (model.body_weldid[model.geom_bodyid] != 0)
    for mesh in np.unique(model.geom_dataid[moves]):
        if model.mesh_facenum[mesh] > _LEAST:
            _make_coarse(model, mesh)
    return model


def _make_coarse(model: mujoco.MjModel, mesh: int) -> None:
    def own(values: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return values[starts[mesh] : starts[mesh] + counts[mesh]]  # a view

    vertices = own(model.mesh_vert, model.mesh_vertadr, model.mesh_vertnum)  # (V, 3)
    normals = own(model.mesh_normal, model.mesh_normaladr, model.mesh_normalnum)  # (N, 3)
    of_faces = (model.mesh_face, model.mesh_facenormal, model.mesh_facetexcoord)
    corners = [own(values, model.mesh_faceadr, model.mesh_facenum) for values in of_faces]  # each (F, 3)
    points, *coarse = _coarse(vertices.tobytes(), normals.tobytes(), *(part.tobytes() for part in corners))
    vertices[: len(points)], model.mesh_facenum[mesh] = points, len(coarse[0])
    for part, fewer in zip(corners, coarse, strict=True):
        part[: len(fewer)] = fewer


@lru_cache(maxsize=64)  # the next world of a process has the same arm
def _coarse(
    vertices: bytes, normals: bytes, faces: bytes, facing: bytes, textured: bytes
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points (P, 3), and of the triangles' corners the points, normals and texture coordinates by number, each (T, 3)."""
    vertex, normal = (np.frombuffer(part, np.float32).reshape(-1, 3) for part in (vertices, normals))
    corners = [np.frombuffer(part, np.int32).reshape(-1, 3) for part in (faces, facing, textured)]
    count = max(_LEAST, round(_SHARE * len(corners[0])))
    points, at = np.unique(vertex, axis=0, return_inverse=True)  # one where a file has one a normal
    points, triangles = fast_simplification.simplify(
        points.astype(np.float64), at.ravel()[corners[0]].astype(np.int32), target_count=count
    )
    ranges = [int(part.max()) + 1 for part in corners]
    old = np.unravel_index(np.unique(np.ravel_multi_index(corners, ranges)), ranges)  # each (C,)
    near = cKDTree(vertex[old[0]]).query(points, k=_NEAREST)[1][triangles]  # (T, 3, 16)
    edges = np.diff(points[triangles], axis=1)  # (T, 2, 3)
    agree = normal[old[1][near]] @ np.cross(edges[:, 0], edges[:, 1])[:, None, :, None]  # (T, 3, 16, 1)
    chosen = np.take_along_axis(near, agree.argmax(2), -1)[..., 0]  # (T, 3)
    return points, triangles, old[1][chosen], old[2][chosen]
