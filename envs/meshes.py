"""Reduce the moving meshes of a scene to the triangles that a small image can show.

On a CPU, the time of an image depends on the number of triangles, whatever their size. The 24,000 of the xArm's gripper
base are half a millimetre wide, a fifth of a pixel from the side.
"""

from copy import copy
from functools import lru_cache

import fast_simplification
import mujoco
import numpy as np
from scipy.spatial import cKDTree

_SHARE, _MIN_TRIANGLES = 1 / 8, 1500  # the fraction of a mesh's triangles that stays, and its minimum
_NEAREST = 16  # old corners of a mesh among which a new corner's normal is chosen


def coarse_meshes(model: mujoco.MjModel) -> mujoco.MjModel:
    """Return a copy for OpenGL in which moving meshes have fewer triangles; physics keeps all of them.

    Triangles are merged where this changes the surface least (quadric error, Garland and Heckbert 1997, by
    fast-simplification). Normals and texture coordinates are those of a nearby old corner, the one whose normal agrees
    best with the new triangle's, so that edges stay sharp and round surfaces look round.
    """
    model = copy(model)
    moves = (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH) & (model.body_weldid[model.geom_bodyid] != 0)
    for mesh in np.unique(model.geom_dataid[moves]):
        if model.mesh_facenum[mesh] > _MIN_TRIANGLES:
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


@lru_cache(maxsize=64)  # a process's next world has the same arm
def _coarse(
    vertices: bytes, normals: bytes, faces: bytes, facing: bytes, textured: bytes
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return points (P, 3), and the triangles' indices of points, normals and texture coordinates, each (T, 3)."""
    vertex, normal = (np.frombuffer(part, np.float32).reshape(-1, 3) for part in (vertices, normals))
    corners = [np.frombuffer(part, np.int32).reshape(-1, 3) for part in (faces, facing, textured)]
    count = max(_MIN_TRIANGLES, round(_SHARE * len(corners[0])))
    points, at = np.unique(vertex, axis=0, return_inverse=True)  # files repeat points per normal
    fine = points.astype(np.float64), at.ravel()[corners[0]].astype(np.int32)
    points, triangles = fast_simplification.simplify(*fine, target_count=count)
    ranges = [int(part.max()) + 1 for part in corners]
    old = np.unravel_index(np.unique(np.ravel_multi_index(corners, ranges)), ranges)  # each (C,)
    near = cKDTree(vertex[old[0]]).query(points, k=_NEAREST)[1][triangles]  # (T, 3, 16)
    edges = np.diff(points[triangles], axis=1)  # (T, 2, 3)
    agree = normal[old[1][near]] @ np.cross(edges[:, 0], edges[:, 1])[:, None, :, None]  # (T, 3, 16, 1)
    chosen = np.take_along_axis(near, agree.argmax(2), -1)[..., 0]  # (T, 3)
    return points, triangles, old[1][chosen], old[2][chosen]
