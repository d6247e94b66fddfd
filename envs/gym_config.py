"""Settings of any gymnasium environment; read and written where it is not installed, too."""

import math
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import Error, NamespaceNotFound

from s2robot.envs.errors import EnvError
from s2robot.envs.task import CommonSettings


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@dataclass(frozen=True)
class GymSettings(CommonSettings):
    """`task=gym task.id=FetchPickAndPlace-v4 task.success=is_success`; configs/task/gym.yaml says what each is."""

    task: str = "gym"
    target: str = "s2robot.envs.gym_task:GymTask"
    id: str = ""
    success: str = ""  # an entry of info, "reward>=x" or "terminated"
    cameras: tuple[str, ...] = ("render",)  # `render`: its own picture; else keys of its observation
    max_steps: int | None = None  # type: ignore[assignment]  # None: its own limit, found when they are read
    proprio: tuple[str, ...] | None = None  # keys of its observation; None: all that are no pictures
    kwargs: dict[str, Any] = field(default_factory=dict)  # further arguments of gymnasium.make

    def __post_init__(self) -> None:
        if not self.id:
            raise EnvError("task.id: found none, expected the id of a gymnasium environment")
        if not self.success:
            raise EnvError(
                f"task.success: found none, expected what tells that {self.id} has succeeded: an entry of its info "
                "such as is_success, terminated, or 'task.success=\"reward>=1\"' with both kinds of quotes"
            )
        name, sign, least = self.success.partition(">=")
        if sign and name.strip() == "reward" and not _is_number(least):
            raise EnvError(f"task.success: found '{self.success}', expected reward>=<number>")
        if self.max_steps is None:
            limit = spec_of(self.id).max_episode_steps
            if limit is None:
                raise EnvError(
                    f"task.max_steps: found none, expected a number: {self.id} has no limit of its own"
                )
            object.__setattr__(self, "max_steps", limit)
        super().__post_init__()

    @property
    def version(self) -> str:
        return f"gym:{self.id}"

    @property
    def action_frame(self) -> str:
        return f"gym:{self.id}"

    @property
    def success_text(self) -> str:
        return f"solved {self.id}"

    @property
    def success_rule(self) -> str:
        return self.success

    failures = {"start": "did not get there"}


def spec_of(env_id: str) -> EnvSpec:
    """What gymnasium has registered for an id; those of gymnasium-robotics are found where it is installed.

    Raises:
        EnvError: it is not installed.
    """
    package, _, name = env_id.rpartition(":")
    if package:
        try:
            import_module(package)  # registers its own
        except (ImportError, TypeError, ValueError) as error:  # a name that begins with a dot is no module's
            raise EnvError(f"task.id: found '{env_id}', but {package} is not installed ({error})") from None
    try:
        if env_id.startswith(("Fetch", "Hand", "Adroit", "PointMaze", "AntMaze", "FrankaKitchen")):
            import gymnasium_robotics  # registers its own

            gymnasium.register_envs(gymnasium_robotics)
        namespace = name.partition("/")[0] if "/" in name else ""
        try:
            return gymnasium.spec(name)
        except NamespaceNotFound:
            import_module(namespace)  # most packages are called as the namespace that they register
            return gymnasium.spec(name)
    except (Error, ImportError) as error:
        raise EnvError(f"task.id: '{env_id}' is not installed: {' '.join(str(error).split())}") from None
