"""A task without physics: a point follows its actions, and the cameras show a pattern that depends on its position."""

import numpy as np

from s2robot.envs.task import CommonSettings, Task, next_actions
from tests.kills import ROOT

POINT = [
    "--config-dir", str(ROOT / "examples/own_task/configs"), "task=pusher", "task.class=tests.s2robot.point:Point",
    "task.name=point", "task.max_steps=6",
]  # fmt: skip


class PointSettings(CommonSettings):
    success_text = "reached the middle"


class Point(Task):
    Settings = PointSettings
    action_parts = [{"name": "move", "size": 2, "kind": "delta", "low": [-0.3] * 2, "high": [0.3] * 2}]
    proprio_parts = [{"name": "place", "size": 2, "kind": "absolute"}]
    layout = property(lambda self: {"x": float(self.start[0]), "y": float(self.start[1])})
    proprio = property(lambda self: self.position.astype(np.float32))
    is_success = property(lambda self: bool(np.abs(self.position).max() < 0.05))

    def __init__(self, settings, draw=True):
        self.settings, self.draw = settings, draw
        self.spaces([-0.3] * 2, [0.3] * 2, 2)

    def begin(self, rng, options):
        self.position = self.start = rng.uniform(-1, 1, 2)

    def apply(self, action):
        self.position = self.position + np.clip(action, -0.3, 0.3)

    def render_cameras(self):
        rng = np.random.default_rng(int(1e6 * np.abs(self.position).sum()))
        return {name: rng.integers(0, 256, (*size, 3), np.uint8) for name, size in self.camera_sizes.items()}

    def get_state(self):
        return self.position.copy()

    def set_state(self, state, find_contacts=True):
        self.position = np.array(state)

    def expert(self, rng, settings=None):
        return Expert(self)


class Expert:
    """Moves to the middle, except from the right; it can also label states."""

    def __init__(self, env):
        self.env, self.failed = env, env.start[0] > 0.5

    def act(self):
        return np.clip(-self.env.position, -0.3, 0.3).astype(np.float32)

    def remember(self):
        return {}

    def ask(self, steps, memory=None):
        with self.env.rehearsal():
            return next_actions(self.env, self, steps)

    def take_over(self, actions):
        pass
