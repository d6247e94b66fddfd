"""Render the images of `s2robot pretrain kind=scenes` and `kind=objects`, for pre-training and for probes.

    s2robot pretrain kind=scenes scenes.frames=20000           # <out>/frames.npy: steps of experts' episodes
    s2robot pretrain kind=objects                              # <out>/{train,test}/{images,masks,depth}/<class>/<number>.png

Scenes show tasks with a scripted expert in random colours, lights and camera poses; the first task also varies the robot and
the cube's size. No demo is used, so the encoder is not trained on frames that policies are trained or tested on.

For objects, masks store indices into the "labels" of meta.json (8 bits), depth is in mm along the camera's axis (16 bits, 0 =
farther than 10 m). `s2robot.envs.object_scenes` renders them. Existing images are kept.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from s2robot.core.files import claim, read_json, replacing
from s2robot.core.progress import bar
from s2robot.core.settings import Settings, from_yaml
from s2robot.core.workers import worker_pool
from s2robot.envs.gl import require_simulator
from s2robot.envs.task import next_action
from s2robot.envs.tasks import DEFAULT, make, settings_class

FARTHEST = 10.0  # m, in depth images
_FREE = 0  # mujoco.mjtJoint.mjJNT_FREE; mujoco is imported after OpenGL is chosen
_FRAMES_PER_SEED = 60  # about one episode: a worker's task takes some seconds
_EVERY = 4  # steps between frames, because consecutive ones look alike
_FIRST_SEED = {"train": 0, "test": 1_000_000}  # of a split's images, plus 2 million times the seed
_IMAGES_PER_JOB = 24
_REMEDY = "remove it or choose another out"
_worlds: dict[int, Any] = {}  # a worker's object worlds by image size


class ScenesSettings(Settings, at="scenes", file="scenes/default"):
    tasks: tuple[Literal["cube_pick", "lift", "stack", "can", "square"], ...] = from_yaml(min_length=1)
    robots: tuple[str, ...] = from_yaml(min_length=1)
    frames: int = from_yaml(ge=1)
    image_size: int = from_yaml(ge=1)
    vary: float = from_yaml(ge=0, le=1)
    seed: int = from_yaml(ge=0)
    workers: int = from_yaml(ge=1)


class ObjectsSettings(Settings, at="objects", file="objects/default"):
    train: int = from_yaml(ge=2, le=999_999)
    test: int = from_yaml(ge=0, le=999_999)
    image_size: int = from_yaml(ge=1)
    small: float = from_yaml(ge=0, le=1)
    seed: int = from_yaml(ge=0)
    workers: int = from_yaml(ge=1)

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings that determine the images."""
        return self.model_dump(exclude={"workers"})


def make_scenes(settings: ScenesSettings, out: Path) -> Path:
    """Render `settings.frames` frames, rounded up to whole episodes, into ``out/frames.npy``, and return its path. UserError if
    ``out`` contains frames of other settings, or the simulator is not installed."""
    require_simulator()
    path, seeds = out / "frames.npy", -(-settings.frames // _FRAMES_PER_SEED)
    if path.exists():
        read_json(out / "meta.json")  # fails if missing: the frames are then of another origin
    claim(out / "meta.json", settings.model_dump(mode="json", exclude={"workers"}), _REMEDY)
    if path.exists():
        return path
    shape = (seeds * _FRAMES_PER_SEED, settings.image_size, settings.image_size, 3)
    drawn = (settings.tasks, settings.robots, settings.image_size, settings.vary)
    with (
        replacing(path) as part,
        worker_pool(settings.workers, anywhere=True) as pool,
        bar("rendering scenes") as update,
    ):
        bank = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
        jobs = [(settings.seed * 100_000 + i, *drawn) for i in range(seeds)]
        for i, frames in enumerate(pool.in_order(render_scenes, jobs)):
            bank[i * _FRAMES_PER_SEED : (i + 1) * _FRAMES_PER_SEED] = frames
            update(i + 1, seeds)
        bank.flush()
    return path


def render_scenes(
    seed: int, tasks: tuple[str, ...], robots: tuple[str, ...], image_size: int, vary: float
) -> np.ndarray:
    """Render the frames of one seed: episodes of one task, from every camera.  # uint8 (N, S, S, 3)"""
    rng = np.random.default_rng([seed, 11])
    task, chosen = tasks[seed % len(tasks)], dict[str, Any]()
    if task == DEFAULT:
        size = float(rng.choice([0.04, 0.04, rng.uniform(0.025, 0.055)]))
        chosen = {"robot": robots[seed // len(tasks) % len(robots)], "cube_size": round(size, 3)}
    defaults: Any = settings_class(task)()
    env: Any = make(defaults.replace(image_size=image_size, **chosen), draw=False)
    m = env.model
    names = "mat_rgba light_diffuse light_pos cam_pos cam_quat cam_fovy".split()
    looks = {name: getattr(m, name) for name in names} | {"headlight": m.vis.headlight.diffuse}
    stock = {name: values.copy() for name, values in looks.items()}
    frames: list[np.ndarray] = []
    episode = seed * 1000 + 500_000_000  # not a seed of demos or evaluations
    while len(frames) < _FRAMES_PER_SEED:
        for _ in islice(_moments(env, episode), 0, None, _EVERY):
            _change_look(env, rng.random() < vary, rng)
            env._refresh_poses()
            frames.extend(env.render_cameras().values())
            for name, values in stock.items():
                looks[name][:] = values
            env._refresh_poses()
        episode += 1
    env.close()
    return np.stack(frames[:_FRAMES_PER_SEED])


def _change_look(env: Any, wild: bool, rng: np.random.Generator) -> None:
    """Move the cameras slightly; if `wild`, move them farther and change colours and lights."""
    m = env.model
    if wild:
        m.mat_rgba[:, :3] = np.clip(m.mat_rgba[:, :3] * rng.uniform(0.3, 1.2, (m.nmat, 3)), 0, 1)
        free = m.jnt_bodyid[m.jnt_type == _FREE]
        for material in m.geom_matid[np.isin(m.geom_bodyid, free)]:  # of free objects
            if material >= 0:
                m.mat_rgba[material, :3] = rng.uniform(0.1, 1.0, 3)
        m.light_diffuse[:] *= rng.uniform(0.3, 1.3, (m.nlight, 1))
        m.light_pos[:] += rng.normal(0, 0.5, m.light_pos.shape)
        m.vis.headlight.diffuse[:] *= rng.uniform(0.5, 1.5)
    spread = 0.08 if wild else 0.01  # m
    # scale for a hand camera; robosuite's is so close to the hand that 2 cm would move it inside
    held = 0.3 if env.settings.task == DEFAULT else 0.1
    for camera in env.camera_ids.values():
        scale = spread * (held if m.cam_bodyid[camera] else 1.0)
        m.cam_pos[camera] += rng.normal(0, scale, 3)
        quat = m.cam_quat[camera] + rng.normal(0, scale, 4)
        m.cam_quat[camera] = quat / np.linalg.norm(quat)
        m.cam_fovy[camera] *= rng.uniform(0.8, 1.15) if wild else rng.uniform(0.98, 1.02)


def _moments(env: Any, seed: int) -> Iterator[None]:
    """Run one episode of the expert; yields after every step."""
    env.reset(seed=seed)
    expert = env.expert(np.random.default_rng([seed, 7]))
    for _ in range(env.settings.max_steps):
        env.step_physics(next_action(expert)[0])
        yield
        if env.is_success:
            return


def make_objects(settings: ObjectsSettings, out: Path) -> Path:
    """Render the images of both splits into `out`, cycling through the classes; existing ones are kept. Returns `out`. UserError
    if `out` contains images of other settings, or the simulator is not installed."""
    require_simulator()
    from s2robot.envs.object_scenes import CLASSES, LABELS, LOOK

    facts = {"look": LOOK, "classes": list(CLASSES), "labels": list(LABELS), "far_m": FARTHEST}
    claim(out / "meta.json", settings.recipe | facts, _REMEDY)
    counts = {"train": settings.train, "test": settings.test}
    jobs = [
        (part, range(first, min(first + _IMAGES_PER_JOB, count)))
        for part, count in counts.items()
        for first in range(0, count, _IMAGES_PER_JOB)
    ]
    done = 0
    with worker_pool(settings.workers) as pool, bar("rendering objects") as update:
        for job in [pool.submit(_draw_objects, settings, out, part, numbers) for part, numbers in jobs]:
            done += job.result()
            update(done, sum(counts.values()))
    return out


def _draw_objects(settings: ObjectsSettings, out: Path, part: str, numbers: range) -> int:
    """Render and save the missing images of these numbers; return the number of images, new and old."""
    from s2robot.envs.object_scenes import CLASSES, ObjectScene

    for number in numbers:
        kind = number % len(CLASSES)
        name = f"{CLASSES[kind]}/{number:06d}.png"
        paths = [out / part / folder / name for folder in ("images", "masks", "depth")]
        if all(path.is_file() for path in paths):
            continue
        if settings.image_size not in _worlds:
            _worlds[settings.image_size] = ObjectScene(settings.image_size)
        seed = 2_000_000 * settings.seed + _FIRST_SEED[part] + number
        small = bool(np.random.default_rng([seed, 29]).random() < settings.small)
        drawn = _worlds[settings.image_size].draw(kind, seed, small)
        millimetres = np.where(drawn.depth < FARTHEST, np.rint(1000 * drawn.depth), 0).astype(np.uint16)
        for path, pixels in zip(paths, (drawn.image, drawn.mask, millimetres), strict=True):
            with replacing(path) as temporary:
                Image.fromarray(pixels).save(temporary, compress_level=1)  # half the time, a fifth more bytes
    return len(numbers)
