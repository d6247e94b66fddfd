"""What tasks in a MuJoCo model do alike: draw their cameras, say where these stand, and bring poses up to date."""

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from s2robot.envs.renderer import OffscreenRenderer
from s2robot.envs.task import Task


class MujocoTask(Task):
    """A task in ``model`` and ``data``, whose cameras ``camera_ids`` have frames of ``sizes``."""

    model: mujoco.MjModel
    data: mujoco.MjData
    camera_ids: dict[str, int]
    sizes: dict[str, tuple[int, int]]  # (H, W)
    _renderer: OffscreenRenderer | None = None

    def render_cameras(self) -> dict[str, np.ndarray]:
        """One frame per camera of the present state.  # {camera: uint8 (H, W, 3)}"""
        if self._renderer is None:
            self._renderer = OffscreenRenderer(self.model, *self.sizes.values())
        draw = self._renderer.render
        return {name: draw(self.data, i, self.sizes[name]) for name, i in self.camera_ids.items()}

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def camera_geometry(self) -> dict[str, dict[str, Any]]:
        return {
            name: {
                **about,
                "fovy": float(self.model.cam_fovy[i]),
                "position": [float(x) for x in self.model.cam_pos[i]],
                "quaternion": [float(x) for x in self.model.cam_quat[i]],
                "body": self.model.body(self.model.cam_bodyid[i]).name,
            }
            for (name, about), i in zip(
                super().camera_geometry().items(), self.camera_ids.values(), strict=True
            )
        }

    def _projected(self, position: np.ndarray) -> dict[str, np.ndarray]:
        """Where each camera sees a point of the world (3,), m: x to the right and y downwards in 0..1 of the upright frame,
        at its border if outside, NaN if behind the camera.  # {camera: float32 (2,)}"""
        points = {}
        for name, i in self.camera_ids.items():
            offset = position - self.data.cam_xpos[i]
            right, up, backward = offset @ self.data.cam_xmat[i].reshape(3, 3)
            # half the picture's height there, m
            half = -backward * np.tan(np.radians(self.model.cam_fovy[i]) / 2)
            height, width = self.sizes[name]
            seen = np.array([right * (height / width), -up]) / half if half > 0 else np.full(2, np.nan)
            points[name] = np.clip(0.5 + 0.5 * seen, 0, 1).astype(np.float32)
        return points

    def _geoms_of(self, body: str) -> set[int]:
        """Of a body and of all that hangs on it."""
        bodies = {self.model.body(body).id}
        for i in range(self.model.nbody):  # a body's parent has a smaller id
            if self.model.body_parentid[i] in bodies:
                bodies.add(i)
        return {g for g in range(self.model.ngeom) if self.model.geom_bodyid[g] in bodies}

    def _held_by(self, fingers: Sequence[set[int]], thing: set[int]) -> bool:
        """Whether each finger touches the thing, all told as geoms."""
        touched = [False] * len(fingers)
        for a, b in self.data.contact.geom[: self.data.ncon]:
            for this, other in ((a, b), (b, a)):
                if this in thing:
                    for side, finger in enumerate(fingers):
                        touched[side] |= other in finger
        return all(touched)

    def _physics(self) -> np.ndarray:
        """All of MuJoCo's state that decides the future.  # float64 (S,)"""
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(mujoco.mj_stateSize(self.model, kind))
        mujoco.mj_getState(self.model, self.data, physics, kind)
        return physics

    def _refresh_poses(self) -> None:
        """Derive the poses of bodies, cameras and lights from the joints; a step leaves them half a step old."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
