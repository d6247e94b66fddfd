"""Offscreen frames of a MuJoCo scene, at the price of the geometry that the camera sees.

Stock settings cost three times as much on a CPU (docs/simulation.md): shadows, reflections and multi-sampling
are off (a frame drawn at twice the size and area-averaged is antialiased again), and geoms whose bounding sphere
lies outside the camera's view are not sent to OpenGL at all: the pixels are the same, the vertices are not.
"""

import atexit
import weakref

import mujoco
import numpy as np

from s2robot.envs.gl import choose_gl

LOOK = (
    1  # of the frames: to be raised with any change here or in world.py after which a state looks different
)
_HIDDEN_GROUP = 5  # a geom group that is never drawn


def outside_view(
    model: mujoco.MjModel, data: mujoco.MjData, camera_id: int, aspect: float = 1.0
) -> np.ndarray:
    """True for each geom that cannot touch the camera's picture, by bounding sphere.  # (ngeom,)"""
    rotation = data.cam_xmat[camera_id].reshape(3, 3)
    centre = (data.geom_xpos - data.cam_xpos[camera_id]) @ rotation  # (ngeom, 3): right, up, backward
    radius = model.geom_rbound
    half_y = np.radians(model.cam_fovy[camera_id]) / 2
    half_x = np.arctan(np.tan(half_y) * aspect)
    outside = centre[:, 2] > radius  # behind the camera
    for axis, half in ((0, half_x), (1, half_y)):
        # signed distance to the two side planes through the eye
        outside |= np.abs(centre[:, axis]) * np.cos(half) + centre[:, 2] * np.sin(half) > radius
    return outside & (radius > 0)  # planes have no bounding sphere and are always drawn


class OffscreenRenderer:
    """Draws named cameras of one model into uint8 RGB arrays, upright.

    A camera's field of view is vertical: a wider frame shows more at its sides.

    Args:
        model: the scene; its ``vis.quality`` is lowered (no multi-sampling, a minimal shadow map).
        sizes: (height, width) in pixels of the frames to come; the first is that of a frame whose size is not given.
        cull: leave out geoms that the camera cannot see (the picture is the same).

    Raises:
        EnvError: no offscreen OpenGL library is installed.
    """

    def __init__(self, model: mujoco.MjModel, *sizes: tuple[int, int], cull: bool = True):
        choose_gl()  # one clear line where the library is missing
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 1
        height, width = (max(sides) for sides in zip(*sizes, strict=True))
        model.vis.global_.offwidth = max(width, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(height, model.vis.global_.offheight)
        self.model, self.size, self.cull = model, sizes[0], cull
        self._gl = mujoco.GLContext(width, height)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = False
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = 0
        self._option.geomgroup[1] = 1  # robosuite's visual group
        self._option.sitegroup[:] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        # at interpreter exit too, and before EGL itself ends: the last registered is the first called
        self._finalizer = weakref.finalize(self, _free, self._context, self._gl)
        atexit.register(self._finalizer)

    def render(self, data: mujoco.MjData, camera_id: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """One frame of an up-to-date ``data`` (after mj_forward).  # uint8 (H, W, 3)"""
        height, width = size or self.size
        rect = self._draw(data, camera_id, height, width)
        pixels = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, rect, self._context)
        return pixels[::-1].copy()  # OpenGL's first row is the bottom one

    def truth(self, data: mujoco.MjData, camera_id: int) -> tuple[np.ndarray, np.ndarray]:
        """What each pixel of that frame shows: how far it is along the camera's axis, and the geom.

        Returns depth float64 (H, W) in m, and geom ids int (H, W), -1 where there is none.
        """
        flags = mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR
        for flag in flags:
            self._scene.flags[flag] = True
        try:
            rect = self._draw(data, camera_id, *self.size)
        finally:
            for flag in flags:
                self._scene.flags[flag] = False
        raw, pixels = np.empty(self.size, np.float32), np.empty((*self.size, 3), np.uint8)
        # far counted as 0: that is how it is kept, and the only way that rounds far things finely
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        mujoco.mjr_readPixels(pixels, raw, rect, self._context)
        near, far = (
            edge * self.model.stat.extent for edge in (self.model.vis.map.znear, self.model.vis.map.zfar)
        )
        depth = near * far / (near + raw[::-1].astype(np.float64) * (far - near))
        colours = pixels[::-1].astype(np.int64)
        segments = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]  # 0: nothing drawn
        geoms = np.full(self._scene.ngeom + 1, -1)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and geom.segid >= 0:
                geoms[geom.segid + 1] = geom.objid
        return depth, geoms[segments]

    def _draw(self, data: mujoco.MjData, camera_id: int, height: int, width: int) -> mujoco.MjrRect:
        self._camera.fixedcamid = camera_id
        groups = self.model.geom_group.copy()
        if self.cull:
            self.model.geom_group[outside_view(self.model, data, camera_id, width / height)] = _HIDDEN_GROUP
        mujoco.mjv_updateScene(
            self.model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        self.model.geom_group[:] = groups
        self._gl.make_current()  # only now: one collected meanwhile has left none current
        rect = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(rect, self._scene, self._context)
        return rect

    def close(self) -> None:
        """Free the OpenGL context."""
        self._finalizer()
        atexit.unregister(self._finalizer)


def opengl() -> str:
    """Who draws: OpenGL's own name of renderer and version, such as `llvmpipe (LLVM 15.0.6, 256 bits), 4.5 ...`.

    Raises:
        EnvError: no offscreen OpenGL library is installed.
    """
    choose_gl()
    from OpenGL import GL  # MuJoCo brings it; imported late, when the platform is chosen

    context = mujoco.GLContext(1, 1)
    try:
        context.make_current()
        return ", ".join(GL.glGetString(name).decode() for name in (GL.GL_RENDERER, GL.GL_VERSION))
    finally:
        context.free()


def _free(context: mujoco.MjrContext, gl: mujoco.GLContext) -> None:
    gl.make_current()  # else the buffers of these names in another renderer's context are deleted
    context.free()
    gl.free()
