"""Settings of any robosuite environment, usable without robosuite."""

from types import new_class
from typing import Any, Literal

from pydantic import Field

from s2robot.core.settings import from_yaml
from s2robot.envs.robots import MAX_HZ
from s2robot.envs.task_settings import CommonSettings, Lengths, PushSettings

# environments in which one object is grasped -> description of a success
GRASPED = {
    "Lift": "lifted the object",
    "Stack": "stacked the objects",
    **{f"PickPlace{x}": f"put the {x.lower()} into its bin" for x in ("Can", "Milk", "Bread", "Cereal")},
    **dict.fromkeys(("NutAssemblySquare", "NutAssemblyRound"), "put the nut onto its peg"),
}
# robosuite's environments with an expert, a class of the same name in `s2robot.envs.experts.worlds`
EXPERTS = ("Lift", "Stack", "PickPlaceCan", "NutAssemblySquare")


class ExpertSettings(PushSettings):
    """Settings of robosuite's experts. Lengths in m, angles in rad; a step is a control step."""

    gain: float | None = None  # commanded fraction of the remaining distance; None: the environment's
    speed: float | None = None  # largest command, as a fraction of its limit; None: the environment's
    hover: float = 0.08  # height above the grasp from which the object is approached
    slope: float = 3.0  # height gained per metre of horizontal error
    turn: float = 0.06  # metres of horizontal error that one rad of yaw error counts as
    mouth: float = 0.008  # horizontal error below which the gripper moves all the way down
    close_xy: Lengths = (0.006, 0.012)  # the gripper closes if its horizontal error is below this
    close_yaw: Lengths = (0.08, 0.2)  # and its yaw error below this; both are sampled per episode
    habit: Literal["nearest"] = from_yaml()  # other habits are not implemented here


class RobosuiteSettings(CommonSettings, at="task", file="task/robosuite"):
    """`task=robosuite task.env=Stack task.robot=Panda`; configs/task/robosuite.yaml documents each value."""

    target: str = Field(default="s2robot.envs.robosuite_task:RobosuiteTask", alias="class")
    rate_hz: float = from_yaml(gt=0, le=MAX_HZ)
    env: str = from_yaml()
    controller: str = from_yaml()
    proprio: tuple[str, ...] = from_yaml()
    kwargs: dict[str, Any] = from_yaml()

    simulator = True
    failures = {"approach": "not grasped", "grasp": "grasped, not solved", "start": "not solved"}
    version = property(lambda self: f"robosuite:{self.env}")
    action_frame = property(lambda self: f"robosuite:{self.controller}")
    success_text = property(lambda self: GRASPED.get(self.env, f"solved {self.env}"))

    @property
    def stages(self) -> tuple[str, ...]:
        return ("approach", "grasp", "success") if self.env in GRASPED else ("start", "success")

    @property
    def Expert(self) -> type | None:
        """Class of the scripted expert's settings, if this world has one."""
        known = self.env in EXPERTS and self.robot == "Panda" and self.controller == "OSC_POSE"
        return ExpertSettings if known else None


def _named(task: str) -> type[RobosuiteSettings]:
    """Return the class of `task=<task>`, whose defaults are in configs/task/<task>.yaml."""
    arguments = {"at": "task", "file": f"task/{task}"}
    name = f"{task.capitalize()}Settings"
    return new_class(name, (RobosuiteSettings,), arguments, lambda own: own.update(__module__=__name__))


LiftSettings, StackSettings, CanSettings, SquareSettings = map(_named, ("lift", "stack", "can", "square"))
