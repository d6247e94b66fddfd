"""Images, masks and depth of an object of a known class on a table, with clutter, random light and camera.

The classes are robosuite's own objects, and tinted primitives that differ in their textures. Clutter consists of plain
primitives without a class. Nothing is simulated: an object has a random rotation and its lowest point on the table.
"""

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple
from xml.etree import ElementTree

import mujoco
import numpy as np
from robosuite.models import objects
from robosuite.models.arenas import TableArena
from robosuite.models.tasks import Task
from robosuite.utils.mjcf_utils import CustomMaterial

from s2robot.envs.mujoco_task import refresh_poses
from s2robot.envs.renderer import OffscreenRenderer
from s2robot.envs.world import TABLE_HEIGHT, look_at

LOOK = 1  # version of the images: increase it with any change to a seed's image
OBJECTS = {
    "bottle": "BottleObject", "can": "CanObject", "lemon": "LemonObject", "bread": "BreadObject",
    "milk": "MilkObject", "cereal": "CerealObject", "square-nut": "SquareNutObject", "round-nut": "RoundNutObject",
    "ring": "HollowCylinderObject", "hammer": "HammerObject", "pot": "PotWithHandlesObject", "hook": "HookFrame",
}  # fmt: skip
SHAPES = {"box": (0.03, 0.03, 0.03), "ball": (0.033,), "cylinder": (0.028, 0.035)}  # MuJoCo's sizes in m
TEXTURES = {"bricks": "BricksWhite", "tiles": "WoodTiles", "brass": "Brass", "felt": "FeltGray"}
CLASSES = (*OBJECTS, *(f"{shape}-{texture}" for shape in SHAPES for texture in TEXTURES))
LABELS = ("background", "table", "clutter", *CLASSES)  # a mask's values are indices of this
_CLUTTER, _TABLE = LABELS.index("clutter"), LABELS.index("table")
_PLAIN = (
    ("box", (0.02, 0.02, 0.03)), ("box", (0.045, 0.02, 0.012)), ("box", (0.012, 0.012, 0.06)),
    ("ball", (0.022,)), ("ball", (0.03,)), ("cylinder", (0.02, 0.05)), ("cylinder", (0.04, 0.01)),
    ("capsule", (0.015, 0.03)),
)  # fmt: skip
_AWAY = -30.0  # m, height of objects that are not in the image
_VISIBLE = 0.1  # least visible fraction of the square around the object; a hammer fills a fifth
_WIDE, _SMALL = (0.28, 0.6), (0.08, 0.15)  # of an image's side, the object's bounding sphere


class LabelledImage(NamedTuple):
    """image uint8 (S, S, 3); mask uint8 (S, S), indices of LABELS; depth float64 (S, S), m along the camera's axis."""

    image: np.ndarray
    mask: np.ndarray
    depth: np.ndarray


class ObjectScene:
    """All objects in one model, rendered at `size` x `size` px; those that an image does not show are far below it."""

    def __init__(self, size: int) -> None:
        arena = TableArena(
            table_full_size=(4.0, 4.0, 0.05), table_offset=(0, 0, TABLE_HEIGHT), has_legs=False
        )
        things = list(_things())
        task = Task(arena, [], things)
        ElementTree.SubElement(task.worldbody, "camera", name="still", pos="0 0 2")
        self.model = m = mujoco.MjModel.from_xml_string(task.get_xml())
        self.data = mujoco.MjData(m)
        self.camera = m.camera("still").id
        bodies = [m.body(thing.root_body).id for thing in things]
        self.addresses = [int(m.jnt_qposadr[m.body_jntadr[body]]) for body in bodies]
        visible, owner = m.geom_group == 1, m.body_rootid[m.geom_bodyid]
        self.geoms = [np.flatnonzero(visible & (owner == body)) for body in bodies]
        labels = np.zeros(m.ngeom + 1, np.uint8)  # of each geom; the last is for -1, no geom
        for i, geoms in enumerate(self.geoms):
            labels[geoms] = LABELS.index(CLASSES[i]) if i < len(CLASSES) else _CLUTTER
        labels[m.geom("table_visual").id] = _TABLE
        self.labels = labels
        self.points = [_outline(m, body, geoms) for body, geoms in zip(bodies, self.geoms, strict=True)]
        m.qpos0[[address + 2 for address in self.addresses]] = _AWAY
        names = "geom_rgba mat_rgba mat_texid mat_texrepeat light_pos light_dir light_diffuse".split()
        self.stock = {name: getattr(m, name).copy() for name in names}
        self.textures = np.unique(m.mat_texid[:, 1][m.mat_texid[:, 1] >= 0])
        self.renderer = OffscreenRenderer(m, (size, size), coarse=False)  # the objects are the subject

    def draw(self, kind: int, seed: int, small: bool) -> LabelledImage:
        """Return an image of an object of class CLASSES[kind], determined by the arguments; retried until visible."""
        for attempt in count():
            share, image = self._attempt(kind, np.random.default_rng([seed, kind, attempt, 23]), small)
            if (image.mask == LABELS.index(CLASSES[kind])).mean() > _VISIBLE * share**2:
                break
        return image

    def _attempt(self, kind: int, rng: np.random.Generator, small: bool) -> tuple[float, LabelledImage]:
        mujoco.mj_resetData(self.model, self.data)
        for name, value in self.stock.items():
            getattr(self.model, name)[:] = value
        radius = self._lay(kind, np.zeros(2), rng)
        target = self.data.qpos[self.addresses[kind] :][:3].copy()
        share = rng.uniform(*(_SMALL if small else _WIDE))
        fovy = rng.uniform(30, 55)
        distance = radius / share / np.tan(np.radians(fovy) / 2)
        self._scatter(radius, rng)
        self._light(kind, rng)
        self._look(target, distance, fovy, share, rng)
        # only poses: collisions of the objects far below would take a fifth of a second
        refresh_poses(self.model, self.data)
        depth, geoms = self.renderer.truth(self.data, self.camera)
        return share, LabelledImage(self.renderer.render(self.data, self.camera), self.labels[geoms], depth)

    def _lay(self, thing: int, position: np.ndarray, rng: np.random.Generator) -> float:
        """Put an object on the table, rotated at random but mostly upright; return its bounding sphere's radius, m."""
        quat = np.array([1.0, 0.0, 0.0, 0.0])
        tilt = rng.choice([0.0, 90.0, rng.uniform(0, 180)], p=[0.6, 0.25, 0.15])
        for axis, angle in (([1.0, 0, 0], np.radians(tilt)), ([0, 0, 1.0], rng.uniform(0, 2 * np.pi))):
            turn = np.empty(4)
            mujoco.mju_axisAngle2Quat(turn, np.array(axis), angle)
            mujoco.mju_mulQuat(quat, turn, quat.copy())
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, quat)
        turned = self.points[thing] @ rotation.reshape(3, 3).T  # (n, 3)
        centre, at = (turned.max(0) + turned.min(0)) / 2, self.addresses[thing]
        height = TABLE_HEIGHT - turned[:, 2].min()
        self.data.qpos[at : at + 7] = [*(position - centre[:2]), height, *quat]
        return float(np.linalg.norm(turned - centre, axis=1).max())

    def _scatter(self, radius: float, rng: np.random.Generator) -> None:
        """Place some clutter around the object at random distances, without touching it."""
        for piece in rng.permutation(len(_PLAIN))[: rng.integers(0, len(_PLAIN) + 1)]:
            away, angle = radius + rng.uniform(0.06, 0.3), rng.uniform(0, 2 * np.pi)
            self._lay(len(CLASSES) + piece, away * np.array([np.cos(angle), np.sin(angle)]), rng)

    def _light(self, kind: int, rng: np.random.Generator) -> None:
        m = self.model
        m.light_pos[:] = [*rng.uniform(-2, 2, 2), TABLE_HEIGHT + rng.uniform(1, 2.5)]
        m.light_dir[:] = np.array([0, 0, TABLE_HEIGHT]) - m.light_pos
        m.light_dir[:] /= np.linalg.norm(m.light_dir, axis=1, keepdims=True)
        m.light_diffuse[:] = rng.uniform(0.3, 0.9) * rng.uniform(0.85, 1, 3)
        m.vis.headlight.diffuse[:] = rng.uniform(0.15, 0.5)
        m.vis.headlight.ambient[:] = rng.uniform(0.1, 0.35)
        names = [m.mat(i).name for i in range(m.nmat)]
        for material in (i for i, n in enumerate(names) if "table" in n or n in ("floorplane", "walls_mat")):
            m.mat_texid[material, 1] = rng.choice(self.textures)
            m.mat_texrepeat[material] = rng.uniform(4, 40)
            m.mat_rgba[material, :3] = rng.uniform(0.4, 1) * rng.uniform(0.8, 1, 3)
        for piece in range(len(CLASSES), len(self.geoms)):
            m.geom_rgba[self.geoms[piece], :3] = rng.uniform(0.05, 1, 3)
        if kind >= len(OBJECTS):
            for material in np.unique(m.geom_matid[self.geoms[kind]]):
                m.mat_rgba[material, :3] = rng.uniform(0.35, 1, 3)

    def _look(self, target: np.ndarray, distance: float, fovy: float, share: float, rng: np.random.Generator):
        """Place the camera so that the whole object is somewhere in the image, except for occlusions."""
        m = self.model
        up, around = np.radians(rng.uniform(20, 75)), rng.uniform(0, 2 * np.pi)
        eye = np.array([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)])
        axes = look_at(eye, np.zeros(3)).reshape(2, 3)  # right, up
        room = (1 - share) * distance * np.tan(np.radians(fovy) / 2)
        aside = rng.uniform(-0.8, 0.8, 2) * room
        m.cam_pos[self.camera] = target + distance * eye + aside @ axes
        mujoco.mju_mat2Quat(m.cam_quat[self.camera], np.stack([*axes, np.cross(*axes)], 1).flatten())
        m.cam_fovy[self.camera] = fovy

    def close(self) -> None:
        self.renderer.close()


def _things() -> Iterator[objects.MujocoObject]:
    fixed: dict[str, dict] = {
        "hammer": {"rng": np.random.default_rng(0)},
        "pot": {"body_half_size": (0.05, 0.05, 0.04)},
        "ring": {"rgba": [0.45, 0.5, 0.55, 1], "outer_radius": 0.05, "height": 0.02},
        "hook": {"frame_length": 0.16, "frame_height": 0.12, "frame_thickness": 0.02},
    }
    for name, made in OBJECTS.items():
        yield getattr(objects, made)(name, **fixed.get(name, {}))
    for shape, size in SHAPES.items():
        for name, texture in TEXTURES.items():
            wood = CustomMaterial(texture, name, f"{name}_mat")
            yield _shape(f"{shape}-{name}", shape, size, material=wood)
    for i, (shape, size) in enumerate(_PLAIN):
        yield _shape(f"clutter{i}", shape, size, rgba=[1, 1, 1, 1])


def _shape(name: str, shape: str, size: tuple[float, ...], **look: object) -> objects.MujocoObject:
    return getattr(objects, f"{shape.capitalize()}Object")(name, size=list(size), **look)


def _outline(model: mujoco.MjModel, body: int, geoms: np.ndarray) -> np.ndarray:
    """Return points of an object's surface in its own frame: a mesh's vertices, else those of a fine hull.  # (n, 3)"""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    ball = np.random.default_rng(0).normal(size=(2000, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    corners = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3), -1).reshape(-1, 3)
    ring = ball[:, :2] / np.linalg.norm(ball[:, :2], axis=1, keepdims=True)
    points = []
    for geom in geoms:
        size, kind = model.geom_size[geom], mujoco.mjtGeom(model.geom_type[geom])
        if kind == mujoco.mjtGeom.mjGEOM_MESH:
            mesh = model.geom_dataid[geom]
            local = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]]
        elif kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
            local = np.concatenate([ring * size[0], np.sign(ball[:, 2:]) * size[1]], 1)
        elif kind == mujoco.mjtGeom.mjGEOM_BOX:
            local = corners * size
        else:  # a ball, or a capsule: a ball at each end
            half = size[1] if kind == mujoco.mjtGeom.mjGEOM_CAPSULE else 0.0
            local = ball * size[0] + np.sign(ball[:, 2:]) * [0, 0, half]
        turned = local @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]
        points.append((turned - data.xpos[body]) @ data.xmat[body].reshape(3, 3))
    return np.concatenate(points)
