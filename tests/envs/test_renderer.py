"""The renderer: skipped and coarse geometry, cached backgrounds, independent contexts, and missing libraries."""

import ctypes.util
import importlib
import os
import sys
from functools import partial

import mujoco
import numpy as np
import pytest

import s2robot.envs
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.cube_picker import PickerConfig
from s2robot.envs.gl import choose_gl, require_simulator
from s2robot.envs.meshes import coarse_meshes
from s2robot.envs.renderer import OffscreenRenderer, outside_view
from s2robot.envs.tasks import make, register_user_task
from tests.envs.test_cube_pick import picked, states_of
from tests.errors import fails

SIZE = 128
linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system brings OpenGL")


@pytest.fixture(scope="module")
def moments(env):
    """Return states along a pick, from above the table to the lifted cube."""
    actions = picked(env, 0, PickerConfig())
    env.reset(seed=0)
    return states_of(env, actions)[::8]


def test_skipping_hidden_geometry_changes_no_pixel(env, moments):
    complete, left_out = OffscreenRenderer(env.model, (SIZE, SIZE), skip_hidden=False), 0
    groups = env.model.geom_group.copy()
    for state in moments:
        env.set_state(state)
        for name, frame in env.render_cameras().items():
            camera = env.camera_ids[name]
            assert np.array_equal(frame, complete.render(env.data, camera)), name
            left_out += outside_view(env.model, env.data, camera).sum()
    assert left_out > 0 and np.array_equal(groups, env.model.geom_group)
    complete.close()


def test_coarse_meshes_give_nearly_the_same_image(env, moments):
    """Coarse surfaces stay within a pixel, and their normals keep the shading nearly the same."""
    fine, coarse = (OffscreenRenderer(env.model, (SIZE, SIZE), coarse=few) for few in (False, True))
    for state in moments:
        env.set_state(state)
        for name, camera in env.camera_ids.items():
            depth, geoms = fine.truth(env.data, camera)
            coarse_depth, coarse_geoms = coarse.truth(env.data, camera)
            same = geoms == coarse_geoms
            assert same.mean() > 0.97, name
            assert np.median(np.abs(depth - coarse_depth)[same]) < 1e-4, name
            shade = [r.render(env.data, camera).astype(int)[same] for r in (fine, coarse)]
            assert np.abs(shade[0] - shade[1]).mean() < 2, name
    fine.close()
    coarse.close()


def test_only_moving_meshes_are_coarsened_and_only_in_a_copy(env):
    model = env.model
    before, drawn = model.mesh_facenum.copy(), coarse_meshes(model)
    moves = model.body_weldid[model.geom_bodyid] > 0
    meshes = [set(model.geom_dataid[moves == moving]) - {-1} for moving in (False, True)]
    fewer = set(np.flatnonzero(drawn.mesh_facenum < before))
    assert fewer and fewer <= meshes[1] and np.array_equal(model.mesh_facenum, before)
    assert drawn.mesh_facenum[[*fewer]].sum() < before[[*fewer]].sum() / 4


SCENE = """
<mujoco>
  <asset><texture name="sky" type="skybox" builtin="gradient" rgb1=".2 .3 .9" rgb2="1 1 1" width="64" height="64"/></asset>
  <worldbody>
    <light name="lamp" pos="0 0 3"/>
    <camera name="eye" pos="0 -2 1" xyaxes="1 0 0 0 .4 .9"/>
    <geom name="board" type="box" size=".6 .4 .05" group="1" rgba=".8 .7 .5 1"/>
    <body name="post" pos=".2 .1 0"><geom name="post" type="cylinder" size=".1 .4" group="1" rgba="0 .6 0 1"/></body>
    <body pos="0 0 .3">
      <joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 0 1"/>
      <geom name="block" type="box" size=".1 .1 .1" group="1" rgba="1 0 0 1"/>
    </body>
  </worldbody>
</mujoco>"""


def test_static_geometry_is_redrawn_only_when_it_changes():
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    size, complete = (48, 64), OffscreenRenderer(model, (48, 64), skip_hidden=False)
    renderer, rng = OffscreenRenderer(model, size), np.random.default_rng(0)

    def still():
        """Assert that frames equal those of the complete scene; return the cached background."""
        for position in (*rng.uniform(-0.6, 0.6, (6, 2)), (0.2, 0.1), (9.0, 9.0)):  # in the post, unseen
            data.qpos[:] = position
            mujoco.mj_forward(model, data)
            assert np.array_equal(renderer.render(data, 0), complete.render(data, 0)), position
        return renderer._stills[0, 48, 64]

    caches = [still(), still()]
    assert caches[0] is caches[1]
    for array in (
        model.geom("board").rgba, model.light("lamp").diffuse, model.vis.headlight.ambient, model.cam("eye").pos,
        model.body("post").pos, model.geom("post").size,
    ):  # fmt: skip
        array[:2] *= 0.7
        caches.append(still())
        assert caches[-1] is not caches[-2]
    assert all(cache.pixels is not None for cache in caches)
    model.geom("block").rgba[3] = 0.5  # transparent: the background behind it cannot be cached
    assert still().mixed and still().pixels is None
    complete.close()
    renderer.close()


def test_truth_matches_ray_casting(env, moments):
    renderer = OffscreenRenderer(env.model, (SIZE, SIZE), coarse=False)
    rng = np.random.default_rng(0)
    groups, geom = np.array([0, 1, 0, 0, 0, 0], np.uint8), np.zeros(1, np.int32)
    met = set()
    for state in moments:
        env.set_state(state)
        for name, camera in env.camera_ids.items():
            before = renderer.render(env.data, camera)
            depth, geoms = renderer.truth(env.data, camera)
            assert np.array_equal(before, renderer.render(env.data, camera)), name
            slope, wrong = np.tan(np.radians(env.model.cam_fovy[camera]) / 2), 0
            rotation, eye = env.data.cam_xmat[camera].reshape(3, 3), env.data.cam_xpos[camera]
            for row, column in rng.integers(0, SIZE, (60, 2)):
                across, down = ((2 * np.array([column, row]) + 1) / SIZE - 1) * slope
                ray = rotation @ [across, -down, -1.0]
                length = np.linalg.norm(ray)
                far = mujoco.mj_ray(env.model, env.data, eye, ray / length, groups, 1, -1, geom)
                if geom[0] == geoms[row, column]:
                    assert depth[row, column] == pytest.approx(far / length, rel=1e-2), name
                    met.add(env.model.geom(geom[0]).name)
                else:
                    wrong += 1
            assert wrong <= 3, name  # pixels that an edge crosses
    assert "table_visual" in met and any(name.startswith("gripper0_right") for name in met)
    renderer.close()


def test_freeing_one_world_leaves_the_images_of_others_alone(env, moments):
    env.set_state(moments[0])
    before = env.render_cameras()
    other = CubePick(robot="xarm7", cameras=("left",), image_size=32)
    other.reset(seed=0)
    env.render_cameras()  # env's context is current when the other's is freed
    other._renderer._finalizer()  # what the garbage collector calls
    assert all(np.array_equal(before[name], frame) for name, frame in env.render_cameras().items())
    env.set_state(moments[-1])
    assert not np.array_equal(before["left"], env.render_cameras()["left"])


BOTH = {"EGL", "OSMesa"}


@linux
@pytest.mark.parametrize(
    ("present", "requested", "expected"),
    [
        (BOTH, "", "egl"), ({"OSMesa"}, "", "osmesa"), (BOTH, "osmesa", "osmesa"), (set(), "glfw", "glfw"),
        (set(), "", "MUJOCO_GL=egl: expected EGL, .*libegl1"), (set(), "osmesa", "MUJOCO_GL=osmesa: expected OSMesa, .*libosmesa6"),
        (set(), "foo", "^MUJOCO_GL: expected one of egl, osmesa, .*, got 'foo'$"),
    ],
)  # fmt: skip
def test_egl_is_preferred_to_osmesa_and_a_missing_library_is_named(monkeypatch, present, requested, expected):
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")
    monkeypatch.setenv("MUJOCO_GL", requested)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: name if name in present else None)
    if ":" in expected:
        fails(expected, choose_gl)
    else:
        assert choose_gl() == expected == os.environ["MUJOCO_GL"]


@linux
def test_wrong_mujoco_gl_fails_in_one_line_only_when_a_world_is_made(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "foo")
    monkeypatch.delitem(sys.modules, "mujoco")  # as in a process that has not imported it yet
    with pytest.warns(UserWarning, match="Overriding environment"):
        importlib.reload(s2robot.envs)
    mine = partial(register_user_task, "mine", "nowhere:Mine")
    for world in (partial(make, CubePickConfig(), draw=False), mine, require_simulator):
        fails("^MUJOCO_GL: expected one of egl", world)
    assert "mujoco" not in sys.modules
