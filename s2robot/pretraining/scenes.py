"""Render frames for masked pre-training: tasks with a scripted expert in random colours, lights and camera poses.

    s2robot pretrain kind=scenes scenes.frames=20000          # writes <out>/frames.npy and <out>/meta.json
    s2robot pretrain kind=scenes scenes.tasks=[cube_pick,lift,stack,can,square]

Each frame shows a step of an expert's episode from the task's cameras in random poses; the first task also varies the
robot and the cube's size. No demo is used, so the encoder has not seen the frames that policies are trained or tested on.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.core.errors import UserError
from s2robot.core.files import replacing, write_json
from s2robot.core.settings import Settings, from_yaml
from s2robot.core.workers import worker_pool
from s2robot.envs.gl import require_simulator
from s2robot.envs.task import next_action
from s2robot.envs.tasks import DEFAULT, make, settings_class

_FREE = 0  # mujoco.mjtJoint.mjJNT_FREE; mujoco is imported after OpenGL is chosen
_FRAMES_A_SEED = 60  # about one episode: a worker's task takes some seconds
_EVERY = 4  # steps between frames: neighbours look alike


class ScenesSettings(Settings, at="scenes", file="scenes/default"):
    """configs/scenes/default.yaml documents each value."""

    tasks: tuple[str, ...] = from_yaml(min_length=1)
    robots: tuple[str, ...] = from_yaml(min_length=1)
    frames: int = from_yaml(ge=1)
    image_size: int = from_yaml(ge=1)
    vary: float = from_yaml(ge=0, le=1)
    seed: int = from_yaml(ge=0)
    workers: int = from_yaml(ge=1)


class _Look:
    """The colours, lights and cameras of a model, and their variation."""

    def __init__(self, env, vary: float, rng: np.random.Generator):
        self.env, self.vary, self.rng = env, vary, rng
        m = env.model
        # of a camera on the hand; robosuite's is so close that 2 cm move it inside
        self.held = 0.3 if env.settings.task == DEFAULT else 0.1
        names = ("mat_rgba", "light_diffuse", "light_pos", "cam_pos", "cam_quat", "cam_fovy")
        self.stock = {name: getattr(m, name).copy() for name in names}
        self.stock["headlight"] = m.vis.headlight.diffuse.copy()
        free = m.jnt_bodyid[m.jnt_type == _FREE]
        things = m.geom_matid[np.isin(m.geom_bodyid, free)]
        self.things = [material for material in things if material >= 0]  # of free objects

    def restore(self) -> None:
        m = self.env.model
        for name, value in self.stock.items():
            target = m.vis.headlight.diffuse if name == "headlight" else getattr(m, name)
            target[:] = value

    def draw(self) -> None:
        """Set a new look; with probability 1 - vary only the cameras move, and little."""
        self.restore()
        m, rng = self.env.model, self.rng
        wild = rng.random() < self.vary
        if wild:
            m.mat_rgba[:, :3] = np.clip(m.mat_rgba[:, :3] * rng.uniform(0.3, 1.2, (m.nmat, 3)), 0, 1)
            for material in self.things:
                m.mat_rgba[material, :3] = rng.uniform(0.1, 1.0, 3)
            m.light_diffuse[:] = self.stock["light_diffuse"] * rng.uniform(0.3, 1.3, (m.nlight, 1))
            m.light_pos[:] = self.stock["light_pos"] + rng.normal(0, 0.5, m.light_pos.shape)
            m.vis.headlight.diffuse[:] = self.stock["headlight"] * rng.uniform(0.5, 1.5)
        spread = 0.08 if wild else 0.01  # m
        for camera in self.env.camera_ids.values():
            scale = spread * (self.held if m.cam_bodyid[camera] else 1.0)
            m.cam_pos[camera] += rng.normal(0, scale, 3)
            turn = rng.normal(0, scale, 4)
            quat = m.cam_quat[camera] + turn
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


def _world(task: str, robot: str, image_size: int, rng: np.random.Generator) -> Any:
    """Make a task's world without a renderer; the first task's with this robot and a random cube size."""
    if task == DEFAULT:
        size = float(rng.choice([0.04, 0.04, rng.uniform(0.025, 0.055)]))
    chosen = {"robot": robot, "cube_size": round(size, 3)} if task == DEFAULT else {}
    usual: Any = settings_class(task)()
    env = make(usual.replace(image_size=image_size, **chosen), draw=False)
    if not hasattr(env, "model"):
        raise UserError(f"scenes.tasks: expected tasks in MuJoCo with a scripted expert, got '{task}'")
    return env


def render_scenes(
    seed: int, tasks: tuple[str, ...], robots: tuple[str, ...], image_size: int, vary: float
) -> np.ndarray:
    """Render the frames of one seed: episodes of one task, every camera.  # uint8 (N, S, S, 3)"""
    rng = np.random.default_rng([seed, 11])
    env = _world(tasks[seed % len(tasks)], robots[seed // len(tasks) % len(robots)], image_size, rng)
    look = _Look(env, vary, rng)
    frames: list[np.ndarray] = []
    episode = seed * 1000 + 500_000_000  # not a seed of demos or evaluations
    while len(frames) < _FRAMES_A_SEED:
        for _ in islice(_moments(env, episode), 0, None, _EVERY):
            look.draw()
            env._refresh_poses()
            frames.extend(env.render_cameras().values())
            look.restore()
            env._refresh_poses()
        episode += 1
    env.close()
    return np.stack(frames[:_FRAMES_A_SEED])


def make_scenes(
    settings: ScenesSettings, out: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """Render `settings.frames` frames, rounded up to whole episodes, into ``out/frames.npy``.

    Raises:
        UserError: ``out`` already holds frames, or the simulator is not installed.
    """
    require_simulator()
    path = out / "frames.npy"
    if path.exists():
        raise UserError(f"{path}: already there; remove it or choose another out")
    seeds = -(-settings.frames // _FRAMES_A_SEED)
    shape = (seeds * _FRAMES_A_SEED, settings.image_size, settings.image_size, 3)
    drawn = (settings.tasks, settings.robots, settings.image_size, settings.vary)
    with replacing(path) as part:
        bank = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
        with worker_pool(settings.workers, anywhere=True) as pool:
            tasks = [(settings.seed * 100_000 + i, *drawn) for i in range(seeds)]
            for i, frames in enumerate(pool.in_order(render_scenes, tasks)):
                bank[i * _FRAMES_A_SEED : (i + 1) * _FRAMES_A_SEED] = frames
                progress(i + 1, seeds)
        bank.flush()
        write_json(out / "meta.json", settings.model_dump(mode="json"))
    return path
