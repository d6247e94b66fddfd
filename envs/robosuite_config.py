"""Settings of any robosuite world; read and written where robosuite is not installed, too."""

from types import new_class
from typing import Any

from pydantic import Field

from s2robot.core.settings import from_yaml
from s2robot.envs.experts.settings import EXPERTS, ExpertSettings
from s2robot.envs.robots import MOST_HZ
from s2robot.envs.task_settings import CommonSettings

# worlds in which one thing is grasped -> description of a success
GRASPED = {
    "Lift": "lifted the object",
    "Stack": "stacked the objects",
    "PickPlaceCan": "put the can into its bin",
    "PickPlaceMilk": "put the milk into its bin",
    "PickPlaceBread": "put the bread into its bin",
    "PickPlaceCereal": "put the cereal into its bin",
    "NutAssemblySquare": "put the nut onto its peg",
    "NutAssemblyRound": "put the nut onto its peg",
}


class RobosuiteSettings(CommonSettings, at="task", file="task/robosuite"):
    """`task=robosuite task.env=Stack task.robot=Panda`; configs/task/robosuite.yaml documents each value."""

    target: str = Field(default="s2robot.envs.robosuite_task:RobosuiteTask", alias="class")
    rate_hz: float = from_yaml(gt=0, le=MOST_HZ)
    env: str = from_yaml()
    controller: str = from_yaml()
    proprio: tuple[str, ...] = from_yaml()
    kwargs: dict[str, Any] = from_yaml()

    failures = {
        "approach": "not grasped",
        "grasp": "grasped, not brought to its end",
        "start": "did not get there",
    }

    @property
    def version(self) -> str:
        return f"robosuite:{self.env}"

    @property
    def action_frame(self) -> str:
        return f"robosuite:{self.controller}"

    @property
    def stages(self) -> tuple[str, ...]:
        return ("approach", "grasp", "success") if self.env in GRASPED else ("start", "success")

    @property
    def success_text(self) -> str:
        return GRASPED.get(self.env, f"solved {self.env}")

    @property
    def Expert(self) -> type | None:
        """Class of the scripted expert's settings, if this world has one."""
        known = self.env in EXPERTS and self.robot == "Panda" and self.controller == "OSC_POSE"
        return ExpertSettings if known else None


def _named(task: str) -> type[RobosuiteSettings]:
    """The class of `task=<task>`, whose defaults are in configs/task/<task>.yaml."""
    where = {"at": "task", "file": f"task/{task}"}
    name = f"{task.capitalize()}Settings"
    return new_class(name, (RobosuiteSettings,), where, lambda own: own.update(__module__=__name__))


LiftSettings, StackSettings, CanSettings, SquareSettings = map(_named, ("lift", "stack", "can", "square"))
