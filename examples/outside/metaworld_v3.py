"""Meta-World's tasks with only the image and the hand's state, and its own scripted policies as experts.

s2robot record task=gym task.id=examples.outside.metaworld_v3:MetaWorld-v3 task.kwargs.name=button-press \
    task.cameras=[top] task.success=success task.expert=examples.outside.metaworld_v3:Scripted out=demos.zarr
"""

import gymnasium
import metaworld.policies
import mujoco
import numpy as np
from gymnasium.spaces import Box, Dict
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as WORLDS


class MetaWorld(gymnasium.Env):
    """One task; a reset's seed places its objects. VC-1's camera `top_cap2` is missing: `topview` is closest."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}

    def __init__(self, name="button-press", camera="topview", size=256, render_mode=None):
        self.task, self.camera = name, camera
        self.world = WORLDS[f"{name}-v3-goal-observable"](seed=0)
        self.world._freeze_rand_vec, self.world.seeded_rand_vec, self.world.max_path_length = (
            False,
            True,
            10**6,
        )
        quality = self.world.model.vis.quality
        quality.shadowsize, quality.offsamples = 0, 0  # on a CPU, shadows take most of the time
        self._renderer = mujoco.Renderer(self.world.model, size, size)
        image, hand = Box(0, 255, (size, size, 3), np.uint8), Box(-np.inf, np.inf, (4,))
        self.observation_space, self.action_space = Dict({"top": image, "hand": hand}), Box(-1, 1, (4,))

    def _observe(self):
        self._renderer.update_scene(self.world.data, self.camera)
        return {"top": self._renderer.render().copy(), "hand": self.state[:4].astype(np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.world.seed(seed)
        self.state, _ = self.world.reset()
        return self._observe(), {}

    def step(self, action):
        self.state, reward, _, _, info = self.world.step(action)
        return self._observe(), float(reward), False, False, {"success": info["success"] > 0}


class Scripted:
    """Meta-World's own policy for the task, which uses the full state."""

    failed = False

    def __init__(self, task, rng):
        self.env = task.inner.unwrapped
        words = self.env.task.replace("-", " ").title().replace(" ", "")
        self.policy = getattr(metaworld.policies, f"Sawyer{words}V3Policy")()

    def act(self):
        return np.clip(self.policy.get_action(self.env.state), -1, 1).astype(np.float32)


gymnasium.register("MetaWorld-v3", MetaWorld, max_episode_steps=500)
