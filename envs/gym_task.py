"""Any gymnasium environment with continuous actions, as a task.

    make(GymSettings(id="FetchPickAndPlace-v4", success="is_success", rate_hz=25, max_steps=50))
    make(GymSettings(id="my_package:Mine-v0", success="reward>=1", cameras=("front",)))     # frames of its observation

A policy's proprioception is what the environment observes besides images. The image is that of ``render()``, or
entries of its observation, (H, W, 3) uint8. Its own limit of steps (``max_episode_steps``) is the task's.
"""

import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import Error
from gymnasium.spaces import Box, flatten, flatten_space
from PIL import Image, ImageOps

from s2robot.envs.errors import EnvError
from s2robot.envs.gym_config import GymSettings, spec_of
from s2robot.envs.task import Task

_RENDER = "render"  # the camera that is the environment's own image
_MOST = 1e3  # a limit beyond is none


class GymTask(Task):
    """One gymnasium environment; :attr:`inner` is it.

    Raises:
        EnvError: an id that is not installed, actions that are not continuous, a camera or entry that it lacks.
    """

    Settings = GymSettings
    settings: GymSettings

    def __init__(self, settings: GymSettings, draw: bool = True):
        self.settings, self.draw = settings, draw
        self.inner = _made(settings)
        space: Any = self.inner.action_space
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise EnvError(
                f"task.id: {settings.id} takes {space}, expected continuous actions: a Box of one axis"
            )
        self._seen: dict[str, Any] = {}
        self._check_observation()
        self.action_parts = [_part("action", space)]
        spaces: list[tuple[str, Any]] = [(key, flatten_space(self._space(key))) for key in self._felt]
        self.proprio_parts = [
            {"name": _name(key), "size": int(box.shape[0]), "kind": "absolute"} for key, box in spaces
        ]
        if not self.proprio_parts:
            raise EnvError(
                f"task.proprio: {settings.id} observes pictures alone, expected numbers beside them"
            )
        self.spaces(space.low, space.high, sum(part["size"] for part in self.proprio_parts))
        self._success = self._ended = False
        self._reward = math.nan

    def _check_observation(self) -> None:
        space = self.inner.observation_space
        known = list(space) if isinstance(space, gymnasium.spaces.Dict) else []
        pictures = [key for key in known if len(self._space(key).shape or ()) == 3]
        for name in self.settings.cameras:
            if name != _RENDER and name not in pictures:
                raise EnvError(
                    f"task.cameras: found '{name}', expected some of {', '.join([_RENDER, *pictures])}"
                )
            if name != _RENDER:
                _check_picture(name, self._space(name))
        self._felt = list(self.settings.proprio or [key for key in known if key not in pictures] or [""])
        if not known and len(space.shape or ()) == 3:
            self._felt = []
        for key in self.settings.proprio or ():
            if key not in known:
                raise EnvError(
                    f"task.proprio: found '{key}', expected some of {', '.join(known) or 'no keys'}"
                )
        for key in self._felt:
            if not isinstance(flatten_space(self._space(key)), Box):
                raise EnvError(
                    f"task.proprio: '{key}' is {self._space(key)}, expected numbers of a fixed count"
                )

    def _space(self, key: str) -> gymnasium.Space:
        space: Any = self.inner.observation_space
        return space[key] if key else space

    # ---------------------------------------------------------------- an episode

    def begin(self, rng: np.random.Generator, options: Mapping[str, Any]) -> None:
        seed = int(rng.integers(2**31))
        seen, _ = self.inner.reset(seed=seed)
        self._seen, self._success, self._ended = seen, False, False
        self._reward = math.nan  # none was given yet
        self._layout = _numbers(seen)

    def apply(self, action: np.ndarray) -> None:
        if self._ended:  # without success: nothing happens any more
            return
        space: Any = self.inner.action_space
        action = np.clip(action, space.low, space.high).astype(space.dtype)
        self._seen, reward, terminated, truncated, info = self.inner.step(action)
        self._ended = bool(terminated or truncated)
        self._reward = float(reward)
        self._success |= self._succeeded(terminated, info)

    def _succeeded(self, terminated: bool, info: Mapping[str, Any]) -> bool:
        rule = self.settings.success
        if rule == "terminated":
            return bool(terminated)
        name, sign, least = rule.partition(">=")
        if sign and name.strip() == "reward":
            return self._reward >= float(least)
        if rule not in info:
            raise EnvError(
                f"task.success: found '{rule}', expected reward>=<number>, terminated, or an entry of the info of "
                f"{self.settings.id}: {', '.join(info) or 'it has none'}"
            )
        return bool(info[rule])

    @property
    def proprio(self) -> np.ndarray:
        rows: Any = [flatten(self._space(key), self._seen[key] if key else self._seen) for key in self._felt]
        return np.concatenate(rows).astype(np.float32)

    @property
    def is_success(self) -> bool:
        return self._success

    @property
    def progress(self) -> float:
        """Its reward."""
        return self._reward

    @property
    def layout(self) -> dict[str, float]:
        """The goals that it observes at the start; the meaning of its other numbers is unknown."""
        return self._layout

    def render_cameras(self) -> dict[str, np.ndarray]:
        frames = {}
        for name in self.settings.cameras:
            picture: Any = np.asarray(self.inner.render() if name == _RENDER else self._seen[name])
            _check_picture(name, picture)
            height, width = self.camera_sizes[name]
            image = Image.fromarray(picture)
            frames[name] = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BOX))
        return frames

    def close(self) -> None:
        self.inner.close()


def _check_picture(name: str, found: Any) -> None:
    """Refuse an image, or the space of one, that is no uint8 (H, W, 3): cast to it, floats would be black."""
    shape = tuple(found.shape or ())
    if found.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
        raise EnvError(f"task.cameras: '{name}' is {found.dtype} {shape}, expected uint8 (H, W, 3)")


def _made(s: GymSettings) -> Any:
    spec_of(s.id)
    render: dict[str, Any] = {"render_mode": "rgb_array"} if _RENDER in s.cameras else {}
    try:
        return gymnasium.make(s.id, max_episode_steps=-1, **render, **s.kwargs)
    except (Error, ImportError, TypeError, ValueError) as error:
        words = " ".join(str(error).split())
        raise EnvError(f"task.id: '{s.id}' cannot be made here: {words}") from None


def _part(name: str, space: Box) -> dict[str, Any]:
    """An action as one part; what its numbers mean is the environment's affair, so they are values."""
    part: dict[str, Any] = {"name": name, "size": int(space.shape[0]), "kind": "absolute"}
    if np.abs([space.low, space.high]).max() <= _MOST:
        part |= {"low": space.low.astype(float).tolist(), "high": space.high.astype(float).tolist()}
    return part


def _name(key: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in key) or "state"


def _numbers(seen: Any) -> dict[str, float]:
    goal = seen.get("desired_goal") if isinstance(seen, Mapping) else None
    if goal is None:
        return {}
    return {f"goal_{i}": float(value) for i, value in enumerate(np.ravel(goal))}
