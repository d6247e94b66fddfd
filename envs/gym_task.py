"""Any gymnasium environment with continuous actions, as a task.

    make(GymSettings(id="FetchPickAndPlace-v4", success="is_success", rate_hz=25, max_steps=50))
    make(GymSettings(id="my_package:Mine-v0", success="reward>=1", cameras=("front",)))     # frames of its observation

A policy's proprioception is what the environment observes besides images. The image is that of ``render()``, or
entries of its observation, (H, W, 3) uint8. Its own limit of steps (``max_episode_steps``) is the task's.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import Error, NamespaceNotFound
from gymnasium.spaces import Box, flatten, flatten_space
from PIL import Image, ImageOps
from pydantic import Field, field_validator, model_validator

from s2robot.core.settings import from_yaml, invalid
from s2robot.envs.errors import EnvError, check_known, expect
from s2robot.envs.task import CommonSettings, Task

_RENDER = "render"  # the camera that is the environment's own image
_MOST = 1e3  # larger limits count as unbounded
_RULE = re.compile(r"\s*reward\s*>=\s*(?P<least>[-+]?[\d.]+([eE][-+]?\d+)?)\s*|[^>]+")


class GymSettings(CommonSettings, at="task", file="task/gym"):
    """`task=gym task.id=FetchPickAndPlace-v4 task.success=is_success`; configs/task/gym.yaml documents each value."""

    target: str = Field(default="s2robot.envs.gym_task:GymTask", alias="class")
    max_steps: int | None = from_yaml(ge=1)  # type: ignore[assignment]  # replaced by the environment's limit
    id: str = from_yaml(min_length=1)
    success: str = from_yaml()
    proprio: tuple[str, ...] | None = from_yaml()
    kwargs: dict[str, Any] = from_yaml()

    failures = {"start": "did not get there"}
    version = action_frame = property(lambda self: f"gym:{self.id}")
    success_text = property(lambda self: f"solved {self.id}")
    success_rule = property(lambda self: self.success)

    @field_validator("success")
    @classmethod
    def _is_a_rule(cls, success: str) -> str:
        if not _RULE.fullmatch(success):
            rules = "an entry of its info such as is_success, terminated, or 'task.success=\"reward>=1\"' in both quotes"
            raise ValueError(f"expected {rules}, got '{success}'")
        return success

    @model_validator(mode="after")
    def _has_a_limit(self) -> "GymSettings":
        if self.max_steps is None:
            limit = spec_of(self.id).max_episode_steps
            if limit is None:
                raise invalid("max_steps", f"a number, as {self.id} has no limit of its own", None)
            object.__setattr__(self, "max_steps", limit)
        return self


def spec_of(env_id: str) -> EnvSpec:
    """Return what gymnasium has registered for an id, gymnasium-robotics included; EnvError if it is not installed."""
    package, _, name = env_id.rpartition(":")
    namespace = name.partition("/")[0] if "/" in name else ""
    with _one_line(env_id):
        if package:
            import_module(package)  # registers its own
        if env_id.startswith(("Fetch", "Hand", "Adroit", "PointMaze", "AntMaze", "FrankaKitchen")):
            gymnasium.register_envs(import_module("gymnasium_robotics"))
        try:
            return gymnasium.spec(name)
        except NamespaceNotFound:
            import_module(namespace)  # most packages have the name of their namespace
            return gymnasium.spec(name)


@contextmanager
def _one_line(env_id: str) -> Iterator[None]:
    """Raise EnvError for what gymnasium says of an id, or of the arguments of its environment."""
    try:
        yield
    except (Error, ImportError, TypeError, ValueError) as error:  # the last two: it begins with a dot
        why = f"'{env_id}': {' '.join(str(error).split())}"
        raise EnvError(f"task.id: expected what is installed and can be made, got {why}") from None


class GymTask(Task):
    """One gymnasium environment; :attr:`inner` is it. EnvError for what it lacks, and for actions that are not continuous."""

    Settings = GymSettings
    settings: GymSettings

    def __init__(self, settings: GymSettings, draw: bool = True):
        self.settings, self.draw = settings, draw
        self.inner = _made(settings)
        space: Any = self.inner.action_space
        right = isinstance(space, Box) and len(space.shape) == 1
        expect(right, "task.id", "continuous actions, a Box of one axis", space)
        self._seen: dict[str, Any] = {}
        self._felt = self._entries()
        self.action_parts = [_part(space)]
        sizes: list[int] = [flatten_space(self._space(key)).shape[0] for key in self._felt]  # type: ignore[index]
        named = zip(map(_name, self._felt), sizes, strict=True)
        self.proprio_parts = [{"name": name, "size": size, "kind": "absolute"} for name, size in named]
        self.spaces(space.low, space.high, sum(sizes))
        self._success, self._ended, self._reward = False, False, math.nan

    def _entries(self) -> list[str]:
        """Check the cameras; return the entries of its observation that are proprioception ("": all of it)."""
        space, s = self.inner.observation_space, self.settings
        known = list(space) if isinstance(space, gymnasium.spaces.Dict) else []
        pictures = [key for key in known if len(self._space(key).shape or ()) == 3]
        check_known("task.cameras", s.cameras, [_RENDER, *pictures])
        check_known("task.proprio", s.proprio or (), known)
        for name in (name for name in s.cameras if name != _RENDER):
            _check_picture(name, self._space(name))
        felt = list(s.proprio or [key for key in known if key not in pictures])
        if not known and len(space.shape or ()) != 3:
            felt = [""]
        fixed = felt and all(isinstance(flatten_space(self._space(key)), Box) for key in felt)
        expect(fixed, "task.proprio", "numbers of a fixed count beside pictures", space)
        return felt

    def _space(self, key: str) -> gymnasium.Space:
        space: Any = self.inner.observation_space
        return space[key] if key else space

    def begin(self, rng: np.random.Generator, options: Mapping[str, Any]) -> None:
        self._seen, _ = self.inner.reset(seed=int(rng.integers(2**31)))
        self._success, self._ended, self._reward = False, False, math.nan  # none was given yet
        goal = self._seen.get("desired_goal", ()) if isinstance(self._seen, Mapping) else ()
        self.layout = {f"goal_{i}": float(value) for i, value in enumerate(np.ravel(goal))}

    def apply(self, action: np.ndarray) -> None:
        if self._ended:  # without success: nothing happens any more
            return
        space: Any = self.inner.action_space
        action = np.clip(action, space.low, space.high).astype(space.dtype)
        self._seen, reward, terminated, truncated, info = self.inner.step(action)
        self._ended, self._reward = bool(terminated or truncated), float(reward)
        self._success |= self._succeeded(terminated, info)

    def _succeeded(self, terminated: bool, info: Mapping[str, Any]) -> bool:
        rule = self.settings.success
        if rule == "terminated":
            return bool(terminated)
        if (found := _RULE.fullmatch(rule)) and found["least"]:
            return self._reward >= float(found["least"])
        check_known("task.success", [rule], ["reward>=<number>", "terminated", *info])
        return bool(info[rule])

    @property
    def proprio(self) -> np.ndarray:
        rows: Any = [flatten(self._space(key), self._seen[key] if key else self._seen) for key in self._felt]
        return np.concatenate(rows).astype(np.float32)

    is_success = property(lambda self: self._success)
    progress = property(lambda self: self._reward)

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
    """Reject an image, or the space of one, that is no uint8 (H, W, 3): cast to it, floats would be black."""
    shape = tuple(found.shape or ())
    right = found.dtype == np.uint8 and shape[2:] == (3,)
    expect(right, f"task.cameras: '{name}'", "uint8 (H, W, 3)", f"{found.dtype} {shape}")


def _made(s: GymSettings) -> Any:
    spec_of(s.id)
    render: dict[str, Any] = {"render_mode": "rgb_array"} if _RENDER in s.cameras else {}
    with _one_line(s.id):
        return gymnasium.make(s.id, max_episode_steps=-1, **render, **s.kwargs)


def _part(space: Box) -> dict[str, Any]:
    """An action as one part; what its numbers mean is the environment's affair, so they are values."""
    part: dict[str, Any] = {"name": "action", "size": int(space.shape[0]), "kind": "absolute"}
    if np.abs([space.low, space.high]).max() <= _MOST:
        part |= {"low": space.low.astype(float).tolist(), "high": space.high.astype(float).tolist()}
    return part


def _name(key: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in key) or "state"
