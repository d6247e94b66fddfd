"""An evaluation that is killed at any of its writes ends, when it is started again, as one that was not.

The world is a toy of this process and films are of noise: what is tried here is what stands on the disk, not physics.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from s2robot.core.parts import default_parts, plain
from s2robot.envs.cube_config import CubePickConfig
from s2robot.evaluation import evaluate, rollouts, video
from tests.inline import do_inline
from tests.kills import kill_at_every_write

CAMERAS, STEPS, SIDE = ("hand", "left"), 4, 64
WORLD = CubePickConfig(cameras=CAMERAS, max_steps=STEPS)
SETTINGS = evaluate.EvaluateSettings(
    episodes=3, workers=1, videos=2, video_size=SIDE, threads=1, device="cpu"
)


class Toy(gymnasium.Env):
    """What `ActionChunk` tells of a world: pictures and joints by the seed and the actions alone."""

    world, settled = property(lambda self: self), np.zeros(1)

    def __init__(self, config: CubePickConfig, execute: int, every_step: bool) -> None:
        image = Box(0, 255, (1, config.image_size, config.image_size, 3), np.uint8)
        images, proprio = Dict(dict.fromkeys(CAMERAS, image)), Box(-np.inf, np.inf, (1, 8), np.float32)
        self.observation_space = Dict({"images": images, "proprio": proprio, "count": Discrete(execute + 1)})
        self.action_space = Box(-1, 1, (execute, 8), np.float32)

    def reset(self, *, seed=None, options=None):
        self.draw, self.seed, self.steps = np.random.default_rng(seed), seed, 0
        return self._see(np.zeros(8))

    def step(self, action):
        self.steps += len(action)
        over = self.steps >= STEPS
        observation, info = self._see(action.sum(0))
        return observation, 0.0, over and info["is_success"], over and not info["is_success"], info

    def _see(self, joints):
        boxes = self.observation_space["images"].items()
        images = {camera: self.draw.integers(0, 255, box.shape, dtype=np.uint8) for camera, box in boxes}
        x, good = 0.01 * (self.seed % 7), self.seed % 2 == 0
        info = {
            "layout": json.dumps({"x": x, "y": 0.02, "yaw": 0.0}), "where": json.dumps({"cube_xy": [x, 0.02], "cube_yaw": 0.0}),
            "best": '{"closest_m": 0.02}', "grip_points": {camera: np.zeros(2) for camera in CAMERAS}, "is_success": good,
            "stage": "held" if good else "approach", "steps": self.steps,
        }  # fmt: skip
        return {"images": images, "proprio": joints[None].astype(np.float32), "count": 1}, info


def noise(config: CubePickConfig, seed: int, actions: np.ndarray) -> tuple[list[dict], list[str]]:
    drawn = np.random.default_rng(seed).integers(0, 255, (len(actions) + 1, SIDE, SIDE, 3), dtype=np.uint8)
    return [{"hand": frame} for frame in drawn], ["approach" if seed % 2 else "held"] * len(drawn)


def evaluation(folder: Path) -> None:
    rollouts.in_chunks = Toy
    do_inline(pytest.MonkeyPatch())
    action, proprio = (plain(default_parts(name, 7)) for name in ("action_parts", "proprio_parts"))
    world = SimpleNamespace(action_parts=action, proprio_parts=proprio, camera_geometry=dict)
    evaluate.make = lambda config, draw: world
    video.rerun = noise
    evaluate.evaluate_checkpoint(folder.parent / "checkpoint", folder / "run", SETTINGS, WORLD)


def what_is_left(folder: Path) -> dict:
    run = folder / "run"
    summary = json.loads((run / "summary.json").read_text())
    del summary["timing"]
    return {
        "summary": summary,
        "records": (run / "episodes.jsonl").read_text(),
        "actions": {path.name: np.load(path).tolist() for path in sorted((run / "actions").glob("*.npy"))},
        "videos": {path.name: path.read_bytes() for path in sorted((run / "videos").glob("[!.]*"))},
        "files": {path.name for path in run.iterdir()},
    }


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_write_changes_nothing(save_untrained, tmp_path, every):
    save_untrained(tmp_path / "checkpoint", {"env_config": {}}, execute=2)
    killed = kill_at_every_write(evaluation, tmp_path, every)
    whole = what_is_left(tmp_path / "whole")
    assert whole["files"] == {"actions", "videos", "episodes.jsonl", "episodes.settings.json", "summary.json"}
    assert whole["summary"]["episodes"] == 3 and len(whole["actions"]) == 3 and len(whole["videos"]) == 2
    for write, folder in killed.items():
        assert what_is_left(folder) == whole, write
