"""A small arm like the SO-101 picks up a cube: gymnasium environment, scripted expert and demonstrations of it.

    python so101.py demos.zarr --episodes 100      # LeRobot's names and units: degrees, and the gripper from 0 to 100

The environment's id is `so101:So101Pick-v0`. Everything is simulated; so101.xml is no model of the real arm.
"""

import argparse
from pathlib import Path

import s2robot.envs  # noqa: F401  # chooses OpenGL, before mujoco is imported

# isort: split
import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from s2robot.demos.store import EpisodeStore
from s2robot.envs.renderer import OffscreenRenderer

MODEL = Path(__file__).with_name("so101.xml")
NAMES = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
CAMERAS = ("front", "hand")
HOME = np.array([0.0, -0.3, 0.2, 1.3, 0.0])  # rad, the gripper above the table
SHOULDER, UPPER, FORE, HAND = 0.12, 0.116, 0.135, 0.13  # m: shoulder height; lengths, HAND from wrist to grip
MOST_FLEX = 1.4  # rad
BOX = ((0.14, 0.20), (-0.08, 0.08))  # m, x and y of the cube
TURN = 0.5  # rad, most between a cube's side and the direction to the arm
WIDEST = 0.032  # m of each finger
HALF = 0.0125  # m of the cube
LIFTED, HELD_S = 0.04, 0.5  # success: so high above its start, m, for so long
RATE_HZ, SIZE, MOST = 10, 256, 80  # control steps a second; pixels; steps of an episode


class Scene:
    """The model and what happens in it, for the environment and for the emulator; targets are rad and an opening, 0 to 1."""

    def __init__(self):
        self.model = mujoco.MjModel.from_xml_path(str(MODEL))
        self.data = mujoco.MjData(self.model)
        self.success, self._held = False, 0.0

    def reset(self, seed: int, noise: float = 0.0, arm: bool = True) -> np.ndarray:
        """Place the cube of an episode and, if `arm`, move the arm home with up to `noise` rad; return its joints."""
        rng = np.random.default_rng(seed)
        x, y = rng.uniform(*BOX[0]), rng.uniform(*BOX[1])
        half = (np.arctan2(y, x) + rng.uniform(-TURN, TURN)) / 2
        start = HOME + rng.uniform(-noise, noise, 5)
        if arm:
            mujoco.mj_resetData(self.model, self.data)
            self.data.qpos[:7] = [*start, WIDEST, WIDEST]
            self.data.ctrl[:] = [*start, WIDEST]
        self.data.qpos[7:] = [x, y, HALF, np.cos(half), 0, 0, np.sin(half)]
        self.data.qvel[7:] = 0
        self.success, self._held = False, 0.0
        mujoco.mj_forward(self.model, self.data)
        return start

    @property
    def measured(self) -> np.ndarray:
        """Joints, rad, and the opening.  # (6,)"""
        return np.append(self.data.qpos[:5], self.data.qpos[5:7].mean() / WIDEST)

    @property
    def height(self) -> float:
        """Height of the cube above its start, m."""
        return float(self.data.qpos[9] - HALF)

    def step(self) -> None:
        """Advance the physics and the success rule by one step."""
        mujoco.mj_step(self.model, self.data)
        self._held = self._held + self.model.opt.timestep if self.height > LIFTED else 0.0
        self.success |= self._held >= HELD_S


def to_lerobot(values: np.ndarray) -> np.ndarray:
    return np.append(np.degrees(values[:5]), 100 * values[5])


def from_lerobot(values: np.ndarray) -> np.ndarray:
    return np.append(np.radians(values[:5]), values[5] / 100)


class So101Pick(gymnasium.Env):
    """Observation: both cameras and `state` (6,), LeRobot's numbers; action: targets (6,), likewise, reached within the step."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": RATE_HZ}

    def __init__(self, noise: float = 0.15, render_mode: str | None = None):
        self.scene, self.noise, self.render_mode = Scene(), noise, render_mode
        self._renderer: OffscreenRenderer | None = None
        low, high = self.scene.model.actuator_ctrlrange.T
        scale = [1] * 5 + [WIDEST]
        self.action_space = spaces.Box(*(to_lerobot(x / scale).astype(np.float32) for x in (low, high)))
        images = {name: spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8) for name in CAMERAS}
        state = spaces.Box(-np.inf, np.inf, (6,), np.float32)
        self.observation_space = spaces.Dict({**images, "state": state})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        start = self.scene.reset(int(self.np_random.integers(2**31)) if seed is None else seed, self.noise)
        self.target = np.append(start, 1.0)
        return self._observe(), {"is_success": False, "height": 0.0}

    def step(self, action):
        before, self.target = self.target, from_lerobot(np.asarray(action, float))
        substeps = round(1 / RATE_HZ / self.scene.model.opt.timestep)
        for i in range(1, substeps + 1):
            now = before + (self.target - before) * i / substeps
            self.scene.data.ctrl[:] = np.append(now[:5], now[5] * WIDEST)
            self.scene.step()
        success = self.scene.success
        return (
            self._observe(),
            float(success),
            success,
            False,
            {"is_success": success, "height": self.scene.height},
        )

    def _observe(self):
        return {**self._frames(), "state": to_lerobot(self.scene.measured).astype(np.float32)}

    def _frames(self):
        self._renderer = self._renderer or OffscreenRenderer(self.scene.model, (SIZE, SIZE))
        return frames(self.scene.model, self.scene.data, self._renderer)

    def render(self):
        return np.concatenate([*self._frames().values()], 1)


def frames(model: mujoco.MjModel, data: mujoco.MjData, renderer: OffscreenRenderer) -> dict[str, np.ndarray]:
    """Render all cameras at `data.qpos`.  # {camera: uint8 (SIZE, SIZE, 3)}"""
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)
    return {name: renderer.render(data, model.camera(name).id) for name in CAMERAS}


def reach(place: np.ndarray, yaw: float) -> np.ndarray:
    """Joints (5,) with the grip at a place, m, and the jaw turned by `yaw`; it points straight down, high up less steeply."""
    pan = np.arctan2(place[1], place[0])
    for pitch in np.arange(np.pi / 2, 0.5, -0.05):
        forward = np.hypot(*place[:2]) - HAND * np.cos(pitch)
        up = place[2] + HAND * np.sin(pitch) - SHOULDER
        far = min(np.hypot(forward, up), UPPER + FORE - 1e-3)
        at_elbow = np.arccos((UPPER**2 + FORE**2 - far**2) / (2 * UPPER * FORE))
        at_shoulder = np.arccos((UPPER**2 + far**2 - FORE**2) / (2 * UPPER * far))
        lift = np.pi / 2 - np.arctan2(up, forward) - at_shoulder
        elbow = np.pi / 2 - at_elbow
        flex = pitch - lift - elbow
        if flex < MOST_FLEX and elbow > -1.2:
            break
    roll = (pan - yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4  # a cube looks the same every quarter turn
    return np.array([pan, lift, elbow, flex, roll])


class Expert:
    """A picker by the true state of a scene: above the cube, down, close, up."""

    def __init__(self, scene: Scene, step: float = 0.018):
        self.scene, self.step_most = scene, step  # m of the grip in a control step
        self.data = mujoco.MjData(scene.model)

    def act(self) -> np.ndarray:
        """The next targets, rad and an opening.  # (6,)"""
        data, now = self.scene.data, self.scene.measured
        cube, (w, _, _, z) = data.qpos[7:10], data.qpos[10:14]
        grip, opening = data.site("grip").xpos, 1.0
        away = grip - cube
        beside = np.hypot(*away[:2])
        place = cube + [0, 0, np.clip(6 * (beside - 0.008), 0, 0.05)]  # straight down over it only
        if np.abs(away).max() < 0.008 or (now[5] < 0.6 and np.abs(away).max() < 0.015):
            opening = 0.0
        if now[5] < 0.37 and opening == 0:  # it has the cube
            place = np.array([*cube[:2], LIFTED + HALF + 0.02])
        way = place - grip
        place = grip + way * min(1.0, self.step_most / max(np.linalg.norm(way), 1e-9))
        goal = reach(np.maximum(place, [-1, -1, 0.011]), 2 * np.arctan2(z, w)) - now[:5]
        target = now[:5] + goal * min(1.0, 4 * self.step_most / np.abs(goal).max())
        return np.append(target + self._sag(target), opening)

    def _sag(self, joints: np.ndarray) -> np.ndarray:
        """Return how far the servos sag under the arm's weight at these joints, rad."""
        self.data.qpos[:] = self.scene.data.qpos
        self.data.qpos[:5], self.data.qvel[:] = joints, 0
        mujoco.mj_forward(self.scene.model, self.data)
        return self.data.qfrc_bias[:5] / self.scene.model.actuator_gainprm[:5, 0]


def record(path: str, episodes: int, seed: int, shake: float) -> EpisodeStore:
    """Write demonstrations that succeeded; what is executed is off what is stored by noise, for recoveries to be seen."""
    part = {"size": 6, "kind": "absolute", "names": [f"{name}.pos" for name in NAMES]}
    about = {
        "kind": "images", "source": "so101.py", "robot": "so101_follower", "joint_names": part["names"], "rate_hz": RATE_HZ,
        "action_frame": "parts", "cameras": list(CAMERAS), "camera_geometry": {n: {"size": [SIZE, SIZE]} for n in CAMERAS},
        "env_version": "so101", "env_config": {}, "seed": seed,
        "action_parts": [{"name": "action", **part}], "proprio_parts": [{"name": "state", **part}],
    }  # fmt: skip
    env = So101Pick(noise=0.2)
    with EpisodeStore.create(path, about) as store:
        while len(store) < episodes:
            rng, (seen, _), done = np.random.default_rng(seed), env.reset(seed=seed), False
            seed, steps, expert, push = seed + 1, [], Expert(env.scene), np.zeros(6)
            while not done and len(steps) < MOST:
                action = to_lerobot(expert.act()).astype(np.float32)
                arrays = {f"images_{name}": seen[name] for name in CAMERAS}
                steps.append({**arrays, "proprio": seen["state"], "action": action})
                push[:5] = 0.6 * push[:5] + rng.normal(0, shake, 5)  # degrees
                seen, _, done, *_ = env.step(action + push)
            if done:
                store.append({key: np.stack([s[key] for s in steps]) for key in steps[0]})
            print(f"seed {seed - 1}: {len(steps)} steps, {'success' if done else 'FAILED'}", flush=True)
    return EpisodeStore.open(path)


gymnasium.register("So101Pick-v0", "so101:So101Pick", max_episode_steps=MOST)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", help="folder to write")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=100000)
    parser.add_argument("--shake", type=float, default=1.0, help="degrees of noise")
    args = parser.parse_args()
    made = record(args.path, args.episodes, args.seed, args.shake)
    print(f"{len(made)} episodes, {made.num_steps} steps: {made.path}")
