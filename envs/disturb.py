"""Disturbances that a policy meets on another machine, under other lighting or in another lab.

    world = Disturbed(make(settings), "blur", 0.02)      # a task; the seed of reset() also determines the disturbance
    available(make(settings))                            # the axes that this world allows

Image axes and those of the action work on any task, the others on MuJoCo models, whose arrays they change for an episode.
The random numbers depend only on the seed and the axis, so every strength disturbs an episode in the same direction.
"""

import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from PIL import Image, ImageFilter

from s2robot.core.parts import moves, parts_of
from s2robot.envs.task import Task

if TYPE_CHECKING:  # it loads MuJoCo
    from s2robot.envs.mujoco_task import MujocoTask

Frame = np.ndarray  # uint8 (H, W, 3)
_Random = np.random.Generator
_DEFAULT_RGBA = np.array((0.5, 0.5, 0.5, 1.0), np.float32)  # MuJoCo's, for a geom that shows its material


def _clipped(image: np.ndarray) -> Frame:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _jpeg(image: Frame, quality: float, rng: _Random) -> Frame:
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, "JPEG", quality=int(quality))
        return np.asarray(Image.open(file).convert("RGB"))


def _blurred(image: Frame, sigma: float, rng: _Random) -> Frame:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma * image.shape[1])))


# axis -> change of one frame, called with the axis's value and the episode's random numbers
IMAGES: Mapping[str, Callable[[Frame, float, _Random], Frame]] = {
    "exposure": lambda image, gain, rng: _clipped(image * gain),
    "contrast": lambda image, factor, rng: _clipped(image.mean() + (image - image.mean()) * factor),
    "blur": _blurred,
    "noise": lambda image, sd, rng: _clipped(image + rng.normal(0, sd, image.shape)),
    "compression": _jpeg,
}
# axes that need more than one frame: white balance of an episode, frames that repeat or are black, late actions
_EPISODES = ("white_balance", "dropped_frames", "dead_camera", "delay")


def _free_bodies(model: Any) -> list[int]:
    first = model.body_jntadr
    return [b for b in range(model.nbody) if first[b] >= 0 and model.jnt_type[first[b]] == 0]  # 0: mjJNT_FREE


def _objects(world: "MujocoTask") -> list[int]:
    """Return the geoms of all free objects."""
    from s2robot.envs.mujoco_task import geoms_of

    return sorted(g for body in _free_bodies(world.model) for g in geoms_of(world.model, body))


def _fixed(world: "MujocoTask") -> list[int]:
    model = world.model
    return [g for g in range(model.ngeom) if model.body_weldid[model.geom_bodyid[g]] == 0]


def _direction(rng: _Random) -> np.ndarray:
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)


def _random_colour(rng: _Random) -> np.ndarray:
    """Return a bright colour, (3,) in 0 to 1."""
    return (colour := _direction(rng) ** 2) / colour.max()


def _light(world: "MujocoTask", factor: float, rng: _Random) -> None:
    model, head = world.model, world.model.vis.headlight
    for light in (model.light_ambient, model.light_diffuse, head.ambient, head.diffuse):
        light *= factor


def _light_direction(world: "MujocoTask", degrees: float, rng: _Random) -> None:
    """Turn the lamps about the vertical, and dim all but the first, because several would hide the change."""
    angle = np.radians(degrees) * rng.choice((-1, 1))
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    world.model.light_pos[:] = world.model.light_pos @ turn.T
    world.model.light_dir[:] = world.model.light_dir @ turn.T
    world.model.light_diffuse[1:] *= 0.5


def _camera_shift(world: "MujocoTask", metres: float, rng: _Random) -> None:
    for i in world.camera_ids.values():
        world.model.cam_pos[i] += metres * _direction(rng)


def _camera_turn(world: "MujocoTask", degrees: float, rng: _Random) -> None:
    for i in world.camera_ids.values():
        half = np.radians(degrees) / 2
        w, v = np.cos(half), np.sin(half) * _direction(rng)
        q = world.model.cam_quat[i].copy()
        world.model.cam_quat[i] = [w * q[0] - v @ q[1:], *(w * q[1:] + q[0] * v + np.cross(v, q[1:]))]


def _field_of_view(world: "MujocoTask", factor: float, rng: _Random) -> None:
    for i in world.camera_ids.values():
        world.model.cam_fovy[i] *= factor


def _tint(world: "MujocoTask", amount: float, rng: _Random) -> None:
    """Multiply the colours of all fixed geoms, and of what shares their materials, by a tinted light's; textures stay."""
    gain, model, geoms = 1 - amount * (1 - _random_colour(rng)), world.model, _fixed(world)
    model.mat_rgba[sorted({int(model.geom_matid[g]) for g in geoms} - {-1}), :3] *= gain
    own = [g for g in geoms if model.geom_matid[g] < 0 or (model.geom_rgba[g] != _DEFAULT_RGBA).any()]
    model.geom_rgba[own, :3] *= gain  # a non-default colour would replace the material's


def _object_colour(world: "MujocoTask", amount: float, rng: _Random) -> None:
    """Mix the mean colour of all objects with a random one; they lose their textures."""
    model, other, geoms = world.model, np.append(_random_colour(rng), 1), _objects(world)
    for geom in geoms:
        model.geom_rgba[geom] = (1 - amount) * _colour(model, geom) + amount * other
    model.geom_matid[geoms] = -1


def _colour(model: Any, geom: int) -> np.ndarray:
    """Return the mean colour of a geom, RGBA in 0 to 1."""
    material, own = model.geom_matid[geom], model.geom_rgba[geom]
    if material < 0 or (own != _DEFAULT_RGBA).any():
        return own
    colour = model.mat_rgba[material].astype(float)
    texture = np.ravel(model.mat_texid[material]).max()  # at most one of its roles is used here
    if texture >= 0:
        first, channels = model.tex_adr[texture], model.tex_nchannel[texture]
        count = model.tex_height[texture] * model.tex_width[texture] * channels
        colour[:3] *= model.tex_data[first : first + count].reshape(-1, channels)[:, :3].mean(0) / 255
    return colour


def _object_size(world: "MujocoTask", factor: float, rng: _Random) -> None:
    for sizes in (world.model.geom_size, world.model.geom_rbound, world.model.geom_aabb):
        sizes[_objects(world)] *= factor


def _object_mass(world: "MujocoTask", factor: float, rng: _Random) -> None:
    bodies = _free_bodies(world.model)
    world.model.body_mass[bodies] *= factor
    world.model.body_inertia[bodies] *= factor


def _friction(world: "MujocoTask", factor: float, rng: _Random) -> None:
    world.model.geom_friction *= factor


MODELS: Mapping[str, Callable[["MujocoTask", float, _Random], None]] = {
    "light": _light,
    "light_direction": _light_direction,
    "camera_shift": _camera_shift,
    "camera_turn": _camera_turn,
    "field_of_view": _field_of_view,
    "object_colour": _object_colour,
    "table_colour": _tint,
    "object_size": _object_size,
    "object_mass": _object_mass,
    "friction": _friction,
}
# axis -> the task's setting that it changes, if the task has it
SETTINGS = {"distractors": "clutter", "start_pose": "start_noise"}
AXES = (*IMAGES, *_EPISODES, *MODELS, *SETTINGS)
_CHANGED = (
    "light_ambient", "light_diffuse", "light_pos", "light_dir", "cam_pos", "cam_quat", "cam_fovy", "mat_rgba", "geom_rgba",
    "geom_matid", "geom_size", "geom_rbound", "geom_aabb", "geom_friction", "body_mass", "body_inertia",
)  # fmt: skip


def _in_mujoco(world: Task) -> TypeGuard["MujocoTask"]:
    return type(getattr(world, "model", None)).__name__ == "MjModel"


def available(world: Task) -> list[str]:
    """Return the axes that a world allows, in the order of :data:`AXES`."""
    axes = [*IMAGES, *_EPISODES]
    if _in_mujoco(world):
        kinds, cameras = {world.model.geom_type[g] for g in _objects(world)}, hasattr(world, "camera_ids")
        absent = ("object_",) * (not kinds) + ("camera_", "field_") * (not cameras)
        absent += ("object_size",) * (7 in kinds)  # mjGEOM_MESH: its size comes from its file
        axes += [axis for axis in MODELS if not axis.startswith(absent)]
    known = type(world.settings).model_fields
    return axes + [axis for axis, setting in SETTINGS.items() if setting in known]


def _arrays(model: Any) -> Iterator[tuple[Any, str, np.ndarray]]:
    """Yield everything that a disturbance may change: holder, attribute, value."""
    head = model.vis.headlight
    for holder, name in [*((model, name) for name in _CHANGED), (head, "ambient"), (head, "diffuse")]:
        yield holder, name, np.copy(getattr(holder, name))


class Disturbed:
    """A task with one disturbance: an ``axis`` of :data:`AXES`, "" for none, and its strength ``value`` in the axis's
    unit. Both may change between episodes."""

    def __init__(self, world: Task, axis: str = "", value: float = 0.0):
        self.world, self.axis, self.value = world, axis, value
        self._before = list(_arrays(world.model)) if _in_mujoco(world) else []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)

    def reset(self, *, seed: int, options: Any = None) -> tuple[dict, dict]:
        """Reset like a task; the original model is restored, then disturbed."""
        self._drawn_by = seed, zlib.crc32(self.axis.encode())
        rng = np.random.default_rng(self._drawn_by)
        for holder, name, value in self._before:
            np.copyto(getattr(holder, name), value)
        if self.axis in MODELS:
            MODELS[self.axis](self.world, self.value, rng)  # type: ignore[arg-type]  # as `available` checks
        self._queue, self._last = list[np.ndarray](), dict[str, Frame]()
        self._gain, self._dead = rng.uniform(-1, 1, 3), int(rng.integers(1 << 30))
        observation, info = self.world.reset(seed=seed, options=options)
        return self._disturbed(observation), info

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        return Task.step(self, action)  # type: ignore[arg-type]  # the world's own step would not be disturbed

    def step_physics(self, action: np.ndarray) -> None:
        """Step like a task; with a delay, execute the action from ``value`` steps ago."""
        if self.axis == "dropped_frames":  # a camera runs at every step, whether or not a policy looks
            self.observe()
        if self.axis == "delay":
            self._queue.append(np.asarray(action, float))
            if len(self._queue) > self.value:
                action = self._queue.pop(0)
            else:
                zero = moves(parts_of({"action_parts": self.world.action_parts}, "action"))
                action = np.where(zero, 0, self._queue[0])  # nothing has arrived yet
        self.world.step_physics(action)

    def observe(self) -> dict[str, Any]:
        return self._disturbed(self.world.observe())

    def _disturbed(self, observation: dict[str, Any]) -> dict[str, Any]:
        images = dict(observation["images"])
        # the same whether or not other steps are observed
        rng = np.random.default_rng([*self._drawn_by, self.world._steps])
        for i, (name, image) in enumerate(images.items()):
            if self.axis in IMAGES:
                images[name] = IMAGES[self.axis](image, self.value, rng)
            elif self.axis == "white_balance":
                images[name] = _clipped(image * (1 + self.value * self._gain))
            elif self.axis == "dropped_frames" and rng.random() < self.value and name in self._last:
                images[name] = self._last[name]
            elif self.axis == "dead_camera" and i == self._dead % len(images) and rng.random() < self.value:
                images[name] = np.zeros_like(image)
        self._last = images
        return {**observation, "images": images}
