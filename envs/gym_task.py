"""Any gymnasium environment with continuous actions, as a task.

    make(GymSettings(id="FetchPickAndPlace-v4", success="is_success", rate_hz=25, max_steps=50))
    make(GymSettings(id="my_package:Mine-v0", success="reward>=1", cameras=("pixels/top",)))  # observed frames

A policy's proprioception is the observation without images. Images come from ``render()`` or from entries of the
observation, (H, W, 3) uint8; `pixels/top` is the entry `top` of the dict `pixels`.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from functools import reduce
from importlib import import_module
from typing import Any, Self

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import Error, NamespaceNotFound
from gymnasium.spaces import Box, Dict, flatten, flatten_space
from PIL import Image, ImageOps
from pydantic import Field, field_validator, model_validator

from s2robot.core.errors import reported
from s2robot.core.settings import from_yaml, invalid
from s2robot.envs.errors import EnvError, check_known, expect
from s2robot.envs.frames import as_image_size, size_of
from s2robot.envs.task import CommonSettings, Expert, Task
from s2robot.envs.tasks import import_class

_RENDER = "render"  # the camera of the environment's own image
_MAX_LIMIT = 1e3  # larger limits count as unbounded
_CREATION = Error, ImportError, AttributeError, OSError, TypeError, ValueError  # of wrong ids and arguments
_RULE = re.compile(r"\s*reward\s*>=\s*(?P<least>[-+]?[\d.]+([eE][-+]?\d+)?)\s*|[^>]+")


class GymSettings(CommonSettings, at="task", file="task/gym"):
    """`task=gym task.id=FetchPickAndPlace-v4 task.success=is_success`; configs/task/gym.yaml documents each value."""

    target: str = Field(default="s2robot.envs.gym_task:GymTask", alias="class")
    # null selects the environment's own value
    rate_hz: float | None = from_yaml(gt=0)  # type: ignore[assignment]
    max_steps: int | None = from_yaml(ge=1)  # type: ignore[assignment]
    names: dict[str, str] = from_yaml()
    id: str = from_yaml(min_length=1)
    success: str = from_yaml()
    proprio: tuple[str, ...] | None = from_yaml()
    bounded: bool = from_yaml()
    measure: str | None = from_yaml()
    expert: str | None = from_yaml(exclude=True)  # datasets and checkpoints cannot name code to run
    kwargs: dict[str, Any] = from_yaml()

    failures = {"start": "not solved"}
    version = action_frame = property(lambda self: f"gym:{self.id}")
    success_text = property(lambda self: f"solved {self.id}")
    success_rule = property(lambda self: self.success)

    @field_validator("success")
    @classmethod
    def _is_a_rule(cls, success: str) -> str:
        if not _RULE.fullmatch(success):
            rules = "an entry of info such as is_success, terminated, or 'task.success=\"reward>=1\"' with both quotes"
            raise ValueError(f"expected {rules}, got '{success}'")
        return success

    @model_validator(mode="after")
    def _has_a_limit(self) -> "GymSettings":
        if self.max_steps is None:
            if (limit := spec_of(self.id).max_episode_steps) is None:
                raise invalid("max_steps", f"a number, because {self.id} has no step limit", None)
            object.__setattr__(self, "max_steps", limit)
        if self.rate_hz is None:
            with closing(_create(self)) as created:  # many classes know their rate only then
                object.__setattr__(self, "rate_hz", created.metadata.get("render_fps"))
        if not self.rate_hz:
            raise invalid("rate_hz", f"a number, because the metadata of {self.id} has no render_fps", None)
        return self

    def seen_as(self, cameras: Sequence[str], names: Mapping[str, str] | None = None) -> Self:
        """Like :class:`TaskSettings`'s. ``names`` are those of the checkpoint; without them, an unknown camera name stands
        for the entry that ends with it (`top` for `pixels/top`), or for the only camera."""
        entries = {own: self.names.get(own, own) for own in self.cameras}
        if names is not None:
            owners = {entry: own for own, entry in entries.items()}
            matches = {name: owners.get(names.get(name, name)) for name in cameras}
        else:
            endings = {entry.rpartition("/")[2]: own for own, entry in entries.items()}
            only = next(iter(entries)) if len(entries) == len(cameras) == 1 else None
            matches = {name: name if name in entries else endings.get(name, only) for name in cameras}
        if None in matches.values():
            return self
        names = {name: entries[own] for name, own in matches.items() if name != entries[own]}  # type: ignore[index]
        sizes = {name: size_of(self.image_size, str(own)) for name, own in matches.items()}
        return self.replace(cameras=tuple(cameras), names=names, image_size=as_image_size(sizes))


def spec_of(env_id: str) -> EnvSpec:
    """Return gymnasium's spec of an id, including gymnasium-robotics; EnvError if it is not installed."""
    package, _, name = env_id.rpartition(":")
    namespace = name.partition("/")[0] if "/" in name else ""
    with _one_line(env_id):
        if package:
            import_module(package)  # registers its environments
        if env_id.startswith(("Fetch", "Hand", "Adroit", "PointMaze", "AntMaze", "FrankaKitchen")):
            gymnasium.register_envs(import_module("gymnasium_robotics"))
        try:
            return gymnasium.spec(name)
        except NamespaceNotFound:
            import_module(namespace)  # most packages are named like their namespace
            return gymnasium.spec(name)


def _one_line(env_id: str, kinds: tuple[type[Exception], ...] = _CREATION) -> AbstractContextManager[None]:
    """Turn errors about an id, its environment's arguments or packages into a one-line EnvError."""
    where = f"task.id: expected an installed environment that can be created, got '{env_id}'"
    return reported(where, kinds=kinds, kind=EnvError)


def _number(key: str, value: Any) -> float:
    """Return a number or flag of `info`, also from an array of one; EnvError for anything else."""
    array = np.asarray(value)
    expect(array.size == 1 and array.dtype.kind in "biuf", key, "a number or a flag", repr(value))
    return float(array.item())


class GymTask(Task):
    """A task around one gymnasium environment, :attr:`inner`; :attr:`seen` is its last observation. EnvError for
    missing entries and for actions that are not continuous."""

    Settings = GymSettings
    settings: GymSettings

    def __init__(self, settings: GymSettings, draw: bool = True):
        self.settings, self.draw = settings, draw
        self.inner = _create(settings)
        space: Any = self.inner.action_space
        valid = isinstance(space, Box) and len(space.shape) == 1 and space.dtype.kind == "f"
        expect(valid, "task.id", "continuous actions, a Box of one axis", space)
        self.seen: dict[str, Any] = {}
        self._proprio_keys = self._entries()
        endless: Any = np.full(space.shape, np.inf)
        self._low, self._high = (space.low, space.high) if settings.bounded else (-endless, endless)
        self.action_parts = [_part(self._low, self._high)]
        sizes: list[int] = [flatten_space(self._space(key)).shape[0] for key in self._proprio_keys]  # type: ignore[index]
        sized = zip(map(_name, self._proprio_keys), sizes, strict=True)
        self.proprio_parts = [{"name": name, "size": size, "kind": "absolute"} for name, size in sized]
        self.spaces(self._low, self._high, sum(sizes))
        self._success, self._ended, self._measured = False, False, math.nan

    def _entries(self) -> list[str]:
        """Check the cameras; return the observation's entries that are proprioception ("": all of it)."""
        space, s = self.inner.observation_space, self.settings
        self._paths = {"/".join(path): path for path in _paths(space)}
        known = [key for key in self._paths if key]
        images = [key for key in known if _has_image(self._space(key))]
        check_known("task.names", s.names, s.cameras)
        check_known("task.cameras", map(self._entry, s.cameras), [_RENDER, *images])
        check_known("task.proprio", s.proprio or (), known)
        for name in (name for name in map(self._entry, s.cameras) if name != _RENDER):
            _check_image(name, self._space(name))
        proprio = list(s.proprio or [key for key in known if key not in images])
        if not known and not _has_image(space):
            proprio = [""]
        fixed = proprio and all(isinstance(flatten_space(self._space(key)), Box) for key in proprio)
        expect(fixed, "task.proprio", "a fixed number of values besides images", space)
        return proprio

    def _space(self, key: str) -> gymnasium.Space:
        return self._at(self.inner.observation_space, key)

    def _at(self, tree: Any, key: str) -> Any:
        """Return an entry of an observation, or of its space."""
        return reduce(lambda node, name: node[name], self._paths[key], tree)

    def _entry(self, camera: str) -> str:
        return self.settings.names.get(camera, camera)

    def begin(self, rng: np.random.Generator, options: Mapping[str, Any]) -> None:
        seed = int(rng.integers(2**31))
        np.random.seed(seed)  # some worlds, such as gym-hil's, draw from the global generator
        with _one_line(self.settings.id, (Error,)):  # such as a missing package for images
            self.seen, info = self.inner.reset(seed=seed)
        texts = [info.get(key) for key in ("instruction", "task", "task_description")]
        self.instruction = next((text for text in texts if isinstance(text, str)), None)
        self._success, self._ended, self._measured = False, False, math.nan  # no reward yet
        goal: Any = self.seen.get("desired_goal", ()) if isinstance(self.seen, Mapping) else ()
        goals = goal.values() if isinstance(goal, Mapping) else [goal]
        self.layout = {f"goal_{i}": float(x) for i, x in enumerate(np.concatenate([*map(np.ravel, goals)]))}

    def apply(self, action: np.ndarray) -> None:
        if self._ended:  # without success: ignore further actions
            return
        action = np.clip(action, self._low, self._high).astype(self.inner.action_space.dtype)
        self.seen, reward, terminated, truncated, info = self.inner.step(action)
        self._ended, measure = bool(terminated or truncated), self.settings.measure
        check_known("task.measure", [measure] if measure else [], info)
        self._measured = _number("task.measure", info[measure]) if measure else float(reward)
        self._success |= self._succeeded(float(reward), terminated, info)

    def _succeeded(self, reward: float, terminated: bool, info: Mapping[str, Any]) -> bool:
        rule = self.settings.success
        if rule == "terminated":
            return bool(terminated)
        if (match := _RULE.fullmatch(rule)) and match["least"]:
            return reward >= float(match["least"])
        check_known("task.success, in each step's info", [rule], ["reward>=<number>", "terminated", *info])
        flag = _number("task.success", info[rule])
        expect(flag in (0, 1), "task.success", f"'{rule}' to be true or false, or 0 or 1", flag)
        return bool(flag)

    @property
    def proprio(self) -> np.ndarray:
        rows: Any = [flatten(self._space(key), self._at(self.seen, key)) for key in self._proprio_keys]
        return np.concatenate(rows).astype(np.float32)

    model = property(lambda self: self.inner.unwrapped.model)  # of a MuJoCo environment, for disturbances
    is_success = property(lambda self: self._success)
    progress = property(lambda self: self._measured)

    def expert(self, rng: np.random.Generator, settings: Any = None) -> Expert:
        if self.settings.expert is None:
            return super().expert(rng, settings)
        expert = import_class(self.settings.expert, "task.expert")(self, rng)
        usable, got = hasattr(expert, "act") and hasattr(expert, "failed"), type(expert).__name__
        expect(usable, "task.expert", "a function that returns an object with act() and failed", got)
        return expert

    def render_cameras(self) -> dict[str, np.ndarray]:
        frames = {}
        for name, (height, width) in self.camera_sizes.items():
            image = Image.fromarray(self._image(name))
            frames[name] = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BOX))
        return frames

    def _image(self, camera: str) -> np.ndarray:
        entry = self._entry(camera)
        with _one_line(self.settings.id, (Error,)):
            image: Any = np.asarray(self.inner.render() if entry == _RENDER else self._at(self.seen, entry))
        _check_image(camera, image)
        return image

    def native_sizes(self) -> dict[str, tuple[int, int]]:
        self.begin(np.random.default_rng(0), {})
        images = {name: self._image(name) for name in self.settings.cameras}
        return {name: (image.shape[0], image.shape[1]) for name, image in images.items()}

    def close(self) -> None:
        self.inner.close()


def _check_image(name: str, image: Any) -> None:
    """Raise EnvError unless an image, or its space, is uint8 (H, W, 3): floats cast to uint8 would be black."""
    shape = tuple(image.shape or ())
    valid = image.dtype == np.uint8 and shape[2:] == (3,)
    expect(valid, f"task.cameras: '{name}'", "uint8 (H, W, 3)", f"{image.dtype} {shape}")


def _create(s: GymSettings) -> Any:
    spec_of(s.id)
    draws = _RENDER in (s.names.get(name, name) for name in s.cameras)
    render: dict[str, Any] = {"render_mode": "rgb_array"} if draws else {}
    with _one_line(s.id):
        return gymnasium.make(s.id, max_episode_steps=-1, **render, **s.kwargs)


def _part(low: np.ndarray, high: np.ndarray) -> dict[str, Any]:
    """Return an action as one part of absolute values; only the environment defines their meaning."""
    part: dict[str, Any] = {"name": "action", "size": len(low), "kind": "absolute"}
    if np.abs([low, high]).max() <= _MAX_LIMIT:
        part |= {"low": low.astype(float).tolist(), "high": high.astype(float).tolist()}
    return part


def _has_image(space: gymnasium.Space) -> bool:
    return any(map(_has_image, space.values())) if isinstance(space, Dict) else len(space.shape or ()) == 3


def _paths(space: gymnasium.Space, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of an observation's entries; a dict without images inside is one entry."""
    if isinstance(space, Dict) and (not at or _has_image(space)):
        for name, inner in space.items():
            yield from _paths(inner, (*at, name))
    else:
        yield at


def _name(key: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in key) or "state"
