"""Settings of any gymnasium environment; read and written where it is not installed, too."""

import re
from importlib import import_module
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import Error, NamespaceNotFound
from pydantic import Field, field_validator, model_validator

from s2robot.core.settings import from_yaml, invalid
from s2robot.envs.errors import EnvError
from s2robot.envs.frames import ImageSize
from s2robot.envs.task_settings import CommonSettings

_REWARD = re.compile(r"\s*reward\s*>=(.*)")


class GymSettings(CommonSettings, at="task", file="task/gym"):
    """`task=gym task.id=FetchPickAndPlace-v4 task.success=is_success`; configs/task/gym.yaml documents each value."""

    task: str = from_yaml(alias="name")
    target: str = Field(default="s2robot.envs.gym_task:GymTask", alias="class")
    robot: str = from_yaml()
    rate_hz: float = from_yaml(gt=0)
    cameras: tuple[str, ...] = from_yaml()
    image_size: ImageSize = from_yaml()
    max_steps: int | None = from_yaml(ge=1)  # type: ignore[assignment]  # replaced by the environment's limit
    id: str = from_yaml(min_length=1)
    success: str = from_yaml()
    proprio: tuple[str, ...] | None = from_yaml()
    kwargs: dict[str, Any] = from_yaml()

    failures = {"start": "did not get there"}

    @field_validator("success")
    @classmethod
    def _is_a_rule(cls, success: str) -> str:
        if not success:
            rules = "an entry of its info such as is_success, terminated, or 'task.success=\"reward>=1\"' in both quotes"
            raise ValueError(f"expected {rules}, got nothing")
        if least := _REWARD.fullmatch(success):
            try:
                if abs(float(least[1])) < float("inf"):
                    return success
            except ValueError:
                pass
            raise ValueError(f"expected reward>=<number>, got '{success}'")
        return success

    @model_validator(mode="after")
    def _has_a_limit(self) -> "GymSettings":
        if self.max_steps is None:
            limit = spec_of(self.id).max_episode_steps
            if limit is None:
                raise invalid("max_steps", f"a number, as {self.id} has no limit of its own", None)
            object.__setattr__(self, "max_steps", limit)
        return self

    @property
    def version(self) -> str:
        return f"gym:{self.id}"

    action_frame = version

    @property
    def success_text(self) -> str:
        return f"solved {self.id}"

    @property
    def success_rule(self) -> str:
        return self.success


def spec_of(env_id: str) -> EnvSpec:
    """Return what gymnasium has registered for an id, gymnasium-robotics included if it is installed.

    Raises:
        EnvError: it is not installed.
    """
    package, _, name = env_id.rpartition(":")
    if package:
        try:
            import_module(package)  # registers its own
        except (ImportError, TypeError, ValueError) as error:  # a name that begins with a dot
            raise EnvError(f"task.id: found '{env_id}', but {package} is not installed ({error})") from None
    try:
        if env_id.startswith(("Fetch", "Hand", "Adroit", "PointMaze", "AntMaze", "FrankaKitchen")):
            import gymnasium_robotics  # registers its own

            gymnasium.register_envs(gymnasium_robotics)
        namespace = name.partition("/")[0] if "/" in name else ""
        try:
            return gymnasium.spec(name)
        except NamespaceNotFound:
            import_module(namespace)  # most packages have the name of their namespace
            return gymnasium.spec(name)
    except (Error, ImportError) as error:
        raise EnvError(f"task.id: '{env_id}' is not installed: {' '.join(str(error).split())}") from None
