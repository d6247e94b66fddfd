"""An evaluation that is killed at any of its writes ends, when it is started again, as one that was not."""

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from s2robot.envs.gym_task import GymSettings
from s2robot.envs.tasks import make
from s2robot.evaluation.evaluate import EvaluateSettings, evaluate_checkpoint
from tests.inline import do_inline
from tests.kills import kill_at_every_write

CAMERAS, SIDE = ("hand", "left"), 64


class Reach(gymnasium.Env):
    """Eight joints that move as they are told, before cameras that see noise; half of the episodes succeed."""

    def __init__(self, render_mode=None):
        images = {camera: Box(0, 255, (SIDE, SIDE, 3), np.uint8) for camera in CAMERAS}
        self.observation_space = Dict({"joints": Box(-99, 99, (8,)), **images})
        self.action_space = Box(-1, 1, (8,))

    def _see(self):
        images = {c: self.np_random.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for c in CAMERAS}
        return {"joints": self.joints, **images}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.joints, self.good = np.zeros(8, np.float32), self.np_random.random() < 0.5
        return self._see(), {}

    def step(self, action):
        self.joints = self.joints + action
        return self._see(), 0.0, False, False, {"is_success": self.good and np.abs(self.joints).sum() > 0.2}


gymnasium.register("Reach-v0", Reach, max_episode_steps=4)
WORLD = GymSettings(id="Reach-v0", success="is_success", image_size=SIDE, cameras=CAMERAS)
SETTINGS = EvaluateSettings(episodes=3, workers=1, videos=2, video_size=SIDE, threads=1, device="cpu")


def evaluation(folder: Path) -> None:
    do_inline(pytest.MonkeyPatch())
    evaluate_checkpoint(folder.parent / "checkpoint", folder / "run", SETTINGS, WORLD)


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
    about = make(WORLD).describe()
    parts = {key: about[key] for key in ("action_parts", "proprio_parts")}
    save_untrained(tmp_path / "checkpoint", about, execute=2, **parts)
    killed = kill_at_every_write(evaluation, tmp_path, every)
    whole = what_is_left(tmp_path / "whole")
    assert whole["files"] == {"actions", "videos", "episodes.jsonl", "episodes.settings.json", "summary.json"}
    assert whole["summary"]["episodes"] == 3 and len(whole["actions"]) == 3 and len(whole["videos"]) == 2
    for write, folder in killed.items():
        assert what_is_left(folder) == whole, write
