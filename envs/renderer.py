"""Render offscreen frames of a MuJoCo scene, at the cost of only the geometry that moves in the camera's view.

Stock settings cost more on a CPU (benchmarks/rendering.py): shadows, reflections and multi-sampling are off, and
geoms whose bounding sphere lies outside the camera's view are not sent to OpenGL. For a fixed camera, the fixed geoms
are drawn once and cached with their depths; later frames draw the moving geoms over them by depth, as OpenGL itself
does with opaque geoms. Moving meshes have an eighth of their triangles (`s2robot.envs.meshes`).
"""

import atexit
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import mujoco
import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.gl import choose_gl
from s2robot.envs.meshes import coarse_meshes

LOOK = 2  # version of the frames: increase it with any change here or in world.py to a state's image
Size = tuple[int, int]  # (height, width), px
_HIDDEN_GROUP = 5  # a geom group that is never drawn


def outside_view(
    model: mujoco.MjModel, data: mujoco.MjData, camera_id: int, aspect: float = 1.0
) -> np.ndarray:
    """Return True for each geom outside the camera's image, by bounding sphere.  # (ngeom,)"""
    rotation = data.cam_xmat[camera_id].reshape(3, 3)
    centre = (data.geom_xpos - data.cam_xpos[camera_id]) @ rotation  # (ngeom, 3): right, up, backward
    radius, half_y = model.geom_rbound, np.radians(model.cam_fovy[camera_id]) / 2
    outside = centre[:, 2] > radius  # behind the camera
    for axis, half in ((0, np.arctan(np.tan(half_y) * aspect)), (1, half_y)):
        # signed distance to the two side planes through the eye
        outside |= np.abs(centre[:, axis]) * np.cos(half) + centre[:, 2] * np.sin(half) > radius
    return outside & (radius > 0)  # planes have no bounding sphere and are always drawn


@dataclass
class _Still:
    """A camera's fixed geoms: everything that determines their image, and the image once the scene has repeated."""

    scene: bytes
    pixels: np.ndarray | None = None  # uint8 (H, W, 3), the bottom row first
    depth: np.ndarray | None = None  # float32 (H, W), larger is nearer and 0 where there is nothing
    mixed: bool = False  # something is transparent or not a geom: everything is drawn together


class OffscreenRenderer:
    """Draws named cameras of one model into uint8 RGB arrays, upright.

    Args:
        model: the scene; its ``vis.quality`` is lowered (no multi-sampling, a minimal shadow map).
        sizes: (height, width) in pixels of all frames to render; the first is the default.
        skip_hidden: skip geoms outside the camera's view, and draw fixed geoms once (the image is the same).
        coarse: draw moving meshes with fewer triangles (the image is nearly the same).

    EnvError if no offscreen OpenGL library is installed, or MUJOCO_GL disables it.
    """

    def __init__(self, model: mujoco.MjModel, *sizes: Size, skip_hidden=True, coarse=True):
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 1
        height, width = (max(sides) for sides in zip(*sizes, strict=True))
        model.vis.global_.offwidth = max(width, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(height, model.vis.global_.offheight)
        self.model, self.size, self.skip_hidden = model, sizes[0], skip_hidden
        self._fixed = model.body_weldid[model.geom_bodyid] == 0  # (ngeom,)
        self._stills: dict[tuple[int, ...], _Still] = {}  # by camera and size
        self._gl = _gl_context(width, height)
        self._gl.make_current()
        drawn = coarse_meshes(model) if coarse else model
        self._context = mujoco.MjrContext(drawn, mujoco.mjtFontScale.mjFONTSCALE_50)
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
        # also at interpreter exit, before EGL itself ends: the last handler registered is called first
        self._finalizer = weakref.finalize(self, _free, self._context, self._gl)
        atexit.register(self._finalizer)

    def render(self, data: mujoco.MjData, camera_id: int, size: Size | None = None) -> np.ndarray:
        """Return one frame of an up-to-date ``data`` (after mj_forward).  # uint8 (H, W, 3)"""
        size = size or self.size
        pixels = self._over_still(data, camera_id, size) if self.skip_hidden else None
        if pixels is None:
            rect = self._draw(data, camera_id, size)
            pixels = np.empty((*size, 3), np.uint8)
            mujoco.mjr_readPixels(pixels, None, rect, self._context)
        return pixels[::-1].copy()  # OpenGL's first row is the bottom one

    def truth(self, data: mujoco.MjData, camera_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Return each pixel's distance along the camera's axis, m, float64 (H, W), and geom, int (H, W), -1 for none."""
        flags = {mujoco.mjtRndFlag.mjRND_SEGMENT: True, mujoco.mjtRndFlag.mjRND_IDCOLOR: True}
        pixels, raw = self._read(data, camera_id, self.size, flags=flags)
        planes = self.model.vis.map
        near, far = (edge * self.model.stat.extent for edge in (planes.znear, planes.zfar))
        depth = near * far / (near + raw[::-1].astype(np.float64) * (far - near))
        colours = pixels[::-1].astype(np.int64)
        segments = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]  # 0: nothing drawn
        geoms = np.full(self._scene.ngeom + 1, -1)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and geom.segid >= 0:
                geoms[geom.segid + 1] = geom.objid
        return depth, geoms[segments]

    def _over_still(self, data: mujoco.MjData, camera_id: int, size: Size) -> np.ndarray | None:
        """Compose a frame, bottom row first, of fixed and moving geoms; None if it must be drawn as a whole."""
        key, scene = (camera_id, *size), self._scene_bytes(data, camera_id)
        still = self._stills.get(key)
        if still is None or still.scene != scene:  # the camera may move: wait for a repetition
            self._stills[key] = _Still(scene)
            return None
        if still.pixels is None and not still.mixed:
            self._update(data, camera_id, np.zeros(self.model.ngeom, bool))
            still.mixed = not self._only_opaque_geoms()
            if not still.mixed:
                still.pixels, still.depth = self._read(data, camera_id, size, ~self._fixed)
        if still.mixed:
            return None
        no_sky = {mujoco.mjtRndFlag.mjRND_SKYBOX: False}
        pixels, depth = self._read(data, camera_id, size, self._fixed, no_sky)
        assert still.pixels is not None and still.depth is not None
        rows, out = np.flatnonzero(depth.any(axis=1)), still.pixels.copy()
        if len(rows):
            part = slice(rows[0], rows[-1] + 1)
            depth, behind = depth[part], still.depth[part]
            if np.any((depth == behind) & (depth > 0)):  # OpenGL keeps the one drawn last
                return None
            out[part][depth > behind] = pixels[part][depth > behind]
        return out

    def _scene_bytes(self, data: mujoco.MjData, camera_id: int) -> bytes:
        """Return everything that determines the image of the fixed geoms, and whether it may be drawn separately."""
        m, fixed, head = self.model, self._fixed, self.model.vis.headlight
        parts = (
            data.cam_xpos[camera_id], data.cam_xmat[camera_id], m.cam_fovy[camera_id], m.cam_intrinsic[camera_id],
            data.geom_xpos[fixed], data.geom_xmat[fixed], m.geom_size, m.geom_group, m.geom_rgba, m.geom_matid,
            m.mat_rgba, m.mat_texid, m.mat_texrepeat, m.mat_emission, m.mat_specular, m.mat_shininess,
            data.light_xpos, data.light_xdir, m.light_active, m.light_ambient, m.light_diffuse, m.light_specular,
            head.ambient, head.diffuse, head.specular,
        )  # fmt: skip
        return b"".join(np.asarray(part).tobytes() for part in parts)

    def _only_opaque_geoms(self) -> bool:
        """Whether the scene contains nothing else, so that a pixel shows only the nearest geom."""
        drawn = self._scene.geoms[: self._scene.ngeom]
        geoms = all(geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and geom.rgba[3] == 1 for geom in drawn)
        return geoms and not self._scene.nskin and not self._scene.nflex

    def _read(
        self,
        data: mujoco.MjData,
        camera_id: int,
        size: Size,
        hidden: np.ndarray | None = None,
        flags: Mapping[int, bool] = MappingProxyType({}),
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels and depths of the scene without the hidden geoms, drawn with other flags, bottom row first."""
        before = self._scene.flags.copy()
        for flag, value in flags.items():
            self._scene.flags[flag] = value
        try:
            rect = self._draw(data, camera_id, size, hidden)
        finally:
            self._scene.flags[:] = before
        pixels, depth = np.empty((*size, 3), np.uint8), np.empty(size, np.float32)
        # far is 0, as in the depth buffer: only this rounds distant depths finely
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        mujoco.mjr_readPixels(pixels, depth, rect, self._context)
        return pixels, depth

    def _draw(
        self, data: mujoco.MjData, camera_id: int, size: Size, hidden: np.ndarray | None = None
    ) -> mujoco.MjrRect:
        height, width = size
        out = np.zeros(self.model.ngeom, bool) if hidden is None else hidden
        if self.skip_hidden:
            out = out | outside_view(self.model, data, camera_id, width / height)
        self._update(data, camera_id, out)
        self._gl.make_current()  # now: a renderer collected meanwhile has left none current
        rect = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(rect, self._scene, self._context)
        return rect

    def _update(self, data: mujoco.MjData, camera_id: int, hidden: np.ndarray) -> None:
        self._camera.fixedcamid = camera_id
        groups, everything = self.model.geom_group.copy(), mujoco.mjtCatBit.mjCAT_ALL
        self.model.geom_group[hidden] = _HIDDEN_GROUP
        mujoco.mjv_updateScene(self.model, data, self._option, None, self._camera, everything, self._scene)
        self.model.geom_group[:] = groups

    def close(self) -> None:
        self._finalizer()
        atexit.unregister(self._finalizer)


def opengl() -> str:
    """Return OpenGL's renderer and version, such as `llvmpipe (LLVM 15.0.6, 256 bits), 4.5 ...`."""
    context = _gl_context(1, 1)
    from OpenGL import GL  # a dependency of MuJoCo; imported after the platform is chosen

    try:
        context.make_current()
        return ", ".join(GL.glGetString(name).decode() for name in (GL.GL_RENDERER, GL.GL_VERSION))
    finally:
        context.free()


def _gl_context(width: int, height: int) -> "mujoco.GLContext":
    choose_gl()  # a one-line error if the library is missing
    if not hasattr(mujoco, "GLContext"):  # robosuite may have set MUJOCO_GL to another name meanwhile
        raise EnvError("MUJOCO_GL: expected egl or osmesa to render frames, got disable")
    return mujoco.GLContext(width, height)


def _free(context: mujoco.MjrContext, gl: "mujoco.GLContext") -> None:  # a string: MUJOCO_GL=disable lacks it
    gl.make_current()  # otherwise another renderer's buffers of the same names would be deleted
    context.free()
    gl.free()
