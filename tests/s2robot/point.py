"""A task without physics: a point goes where it is told, before a camera that sees a pattern of its place."""

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
    proprio = property(lambda self: self.place.astype(np.float32))
    is_success = property(lambda self: bool(np.abs(self.place).max() < 0.05))

    def __init__(self, settings, draw=True):
        self.settings, self.draw = settings, draw
        self.spaces([-0.3] * 2, [0.3] * 2, 2)

    def begin(self, rng, options):
        self.place = self.start = rng.uniform(-1, 1, 2)

    def apply(self, action):
        self.place = self.place + np.clip(action, -0.3, 0.3)

    def render_cameras(self):
        rng = np.random.default_rng(int(1e6 * np.abs(self.place).sum()))
        return {name: rng.integers(0, 256, (*size, 3), np.uint8) for name, size in self.camera_sizes.items()}

    def get_state(self):
        return self.place.copy()

    def set_state(self, state, find_contacts=True):
        self.place = np.array(state)

    def expert(self, rng, settings=None):
        return Expert(self)


class Expert:
    """Goes to the middle, but not from the right; it can be asked."""

    def __init__(self, env):
        self.env, self.failed = env, env.start[0] > 0.5

    def act(self):
        return np.clip(-self.env.place, -0.3, 0.3).astype(np.float32)

    def remember(self):
        return {}

    def ask(self, steps, memory=None):
        with self.env.rehearsal():
            return next_actions(self.env, self, steps)

    def take_over(self, actions):
        pass
