"""Base class of tasks in a MuJoCo model: cameras with their geometry, states and contacts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import mujoco
import numpy as np

from s2robot.envs.errors import expect
from s2robot.envs.renderer import OffscreenRenderer
from s2robot.envs.task import Task


class MujocoTask(Task):
    """A task in ``model`` and ``data``, whose cameras have the ids ``camera_ids``."""

    model: mujoco.MjModel
    data: mujoco.MjData
    camera_ids: dict[str, int]
    keeps_contacts = False  # whether its recordings used the contacts left by a step
    _renderer: OffscreenRenderer | None = None
    _furthest = 0  # index of the furthest stage in this episode

    is_success = property(lambda self: self._furthest == len(self.settings.stages) - 1)
    stage = property(lambda self: self.settings.stages[self._furthest])

    def render_cameras(self) -> dict[str, np.ndarray]:
        sizes = self.camera_sizes
        if self._renderer is None:
            self._renderer = OffscreenRenderer(self.model, *sizes.values())
        draw = self._renderer.render
        return {name: draw(self.data, i, sizes[name]) for name, i in self.camera_ids.items()}

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def camera_geometry(self) -> dict[str, dict[str, Any]]:
        known, model = super().camera_geometry(), self.model
        return {
            name: {
                **known[name],
                "fovy": float(model.cam_fovy[i]),
                "position": model.cam_pos[i].tolist(),
                "quaternion": model.cam_quat[i].tolist(),
                "body": model.body(model.cam_bodyid[i]).name,
            }
            for name, i in self.camera_ids.items()
        }

    def projected(self, position: np.ndarray) -> dict[str, np.ndarray]:
        """Return where each camera sees a world point (3,): x to the right, y downwards, 0 to 1; NaN if behind it."""
        points, sizes = {}, self.camera_sizes
        for name, i in self.camera_ids.items():
            offset = position - self.data.cam_xpos[i]
            right, up, backward = offset @ self.data.cam_xmat[i].reshape(3, 3)
            # half the image's height at the point, m
            half = -backward * np.tan(np.radians(self.model.cam_fovy[i]) / 2)
            height, width = sizes[name]
            seen = np.array([right * (height / width), -up]) / half if half > 0 else np.full(2, np.nan)
            points[name] = np.clip(0.5 + 0.5 * seen, 0, 1).astype(np.float32)
        return points

    settled = property(lambda self: self.data.qpos)

    # arrays that determine the next step besides MuJoCo's state: (holder, attribute)
    _memory: Callable[[], list[tuple[Any, str]]]

    def _counters(self) -> list[tuple[Any, str]]:
        """Return an episode's counters, which no state contains: (holder, attribute)."""
        return [(self, "_steps")]

    def _drop_poses(self) -> None:
        """Drop the poses that controllers have cached from another state."""

    def get_state(self) -> np.ndarray:
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(mujoco.mj_stateSize(self.model, kind))
        mujoco.mj_getState(self.model, self.data, physics, kind)
        return np.concatenate([physics, *(np.ravel(getattr(o, name)) for o, name in self._memory())])

    def set_state(self, state: np.ndarray, find_contacts: bool = True) -> None:
        """Like a task's. Without ``find_contacts``, a task with ``keeps_contacts`` has those left by the last step."""
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        memory, end = self._memory(), mujoco.mj_stateSize(self.model, kind)
        physics, size = state[:end], end + sum(np.size(getattr(o, name)) for o, name in memory)
        expect(np.shape(state) == (size,), "state", f"({size},) for this scene", np.shape(state))
        mujoco.mj_setState(self.model, self.data, physics, kind)
        for holder, name in memory:
            now = np.asarray(getattr(holder, name))
            setattr(holder, name, state[end : end + now.size].reshape(now.shape).copy())
            end += now.size
        self._drop_poses()
        if not find_contacts and self.keeps_contacts:
            return self._refresh_poses()
        mujoco.mj_forward(self.model, self.data)
        # mj_forward overwrites the warm start of the next step: restore the recorded one
        mujoco.mj_setState(self.model, self.data, physics, kind)

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Like :class:`Task`'s, but bit-exact: ``set_state`` would recompute the contacts."""
        physics = copy(self.data)
        before = [(o, name, np.copy(getattr(o, name))) for o, name in self._memory()]
        before += [(o, name, getattr(o, name)) for o, name in self._counters()]
        try:
            yield
        finally:
            mujoco.mj_copyData(self.data, self.model, physics)
            for holder, name, value in before:
                setattr(holder, name, value)

    def _refresh_poses(self) -> None:
        refresh_poses(self.model, self.data)


def refresh_poses(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """Derive the poses of bodies, cameras and lights from the joints; a step leaves them half a step old."""
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)


def geoms_of(model: mujoco.MjModel, body: int) -> set[int]:
    """Return the geoms of a body and of everything fixed to it."""
    bodies = {body}
    for i in range(body + 1, model.nbody):  # a body's parent has a smaller id
        if model.body_parentid[i] in bodies:
            bodies.add(i)
    return {g for g in range(model.ngeom) if model.geom_bodyid[g] in bodies}


def touching(data: mujoco.MjData, fingers: Sequence[set[int]], geoms: set[int]) -> list[bool]:
    touched = [False] * len(fingers)
    for a, b in data.contact.geom[: data.ncon]:
        for this, other in ((a, b), (b, a)):
            if this in geoms:
                for side, finger in enumerate(fingers):
                    touched[side] |= other in finger
    return touched
