"""Execute a chunk of actions in one call and draw only what the policy will look at."""

from typing import TYPE_CHECKING

import gymnasium
import numpy as np

if TYPE_CHECKING:
    from s2robot.envs.cube_config import CubePickConfig
    from s2robot.envs.cube_pick import CubePick


class ActionChunk(gymnasium.Wrapper):
    """A CubePick whose action is ``k`` actions, float32 (k, 8).

    The observation stacks the last ``k`` observations if ``every_step`` (a policy with a context needs them all),
    else it is the last one alone: drawing is most of a rollout's time. ``count`` says how many of the rows are
    new, at the front: all after a full chunk, one after a reset. A finished episode is not simulated further.
    ``info["steps"]`` counts the steps of the episode, ``info["closest"]`` is the least distance (m) so far.
    """

    def __init__(self, env: "CubePick", k: int, every_step: bool = False):
        super().__init__(env)
        self.world = env
        self.rows = k if every_step else 1
        stack = lambda box: gymnasium.spaces.Box(  # noqa: E731
            np.repeat(box.low[None], self.rows, 0),
            np.repeat(box.high[None], self.rows, 0),
            dtype=box.dtype.type,
        )
        space = env.observation_space
        images = {name: space["images"][name] for name in env.config.cameras}  # type: ignore[index]
        self.observation_space = gymnasium.spaces.Dict(
            {
                "images": gymnasium.spaces.Dict({n: stack(b) for n, b in images.items()}),
                "proprio": stack(space["proprio"]),
                "count": gymnasium.spaces.Discrete(k + 1),
            }
        )
        one = env.action_space
        self.action_space = gymnasium.spaces.Box(np.tile(one.low, (k, 1)), np.tile(one.high, (k, 1)))
        self._over = False

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed, options=options)
        self._over, self._last = False, observation
        self._steps, self._closest = 0, info["distance"]
        return self._stack([observation]), self._info(info)

    def step(self, action):
        seen: list[dict] = []
        world = self.world
        for i, one in enumerate(action):
            if self._over:
                break
            world.step_physics(one)
            self._steps += 1
            info = world._info()
            self._closest = min(self._closest, info["distance"])
            self._over = info["is_success"] or self._steps >= world.config.max_steps
            if not self._over and (self.rows > 1 or i == len(action) - 1):
                seen.append(world._observe())
        success = world.is_success
        return (
            self._stack(seen),
            float(success),
            success,
            self._over and not success,
            self._info(world._info()),
        )

    def _info(self, info: dict) -> dict:
        return {**info, "steps": self._steps, "closest": self._closest}

    def _stack(self, seen: list[dict]) -> dict:
        if seen:
            self._last = seen[-1]
        rows = seen + [self._last] * (self.rows - len(seen))
        images = {n: np.stack([row["images"][n] for row in rows]) for n in rows[0]["images"]}
        return {"images": images, "proprio": np.stack([row["proprio"] for row in rows]), "count": len(seen)}


def in_chunks(config: "CubePickConfig", k: int, every_step: bool = False) -> ActionChunk:
    """A CubePick by its chunks, for worker processes: what they find this function by loads the simulator alone."""
    from s2robot.envs.cube_pick import CubePick

    return ActionChunk(CubePick(config), k, every_step)
