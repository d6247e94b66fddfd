"""Settings of any robosuite world; read and written where robosuite is not installed, too."""

from dataclasses import dataclass, field
from typing import Any

from s2robot.envs.errors import EnvError
from s2robot.envs.experts.settings import EXPERTS, ExpertSettings
from s2robot.envs.robots import MOST_HZ
from s2robot.envs.task import CommonSettings


@dataclass(frozen=True)
class RobosuiteSettings(CommonSettings):
    """`task=robosuite task.env=Stack task.robot=Panda`; configs/task/robosuite.yaml says what each is."""

    task: str = "robosuite"
    target: str = "s2robot.envs.robosuite_task:RobosuiteTask"
    env: str = "Lift"
    robot: str = "Panda"  # of several arms: their names with a + between
    controller: str = "OSC_POSE"
    rate_hz: float = 20
    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    max_steps: int = 400
    # observables, in this order; quaternions become the first two columns of their matrix
    proprio: tuple[str, ...] = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
    kwargs: dict[str, Any] = field(default_factory=dict)  # further arguments of robosuite.make

    def __post_init__(self) -> None:
        if self.rate_hz > MOST_HZ:
            raise EnvError(f"task.rate_hz: found {self.rate_hz}, expected at most {MOST_HZ}")
        super().__post_init__()

    @property
    def version(self) -> str:
        return f"robosuite:{self.env}"

    @property
    def action_frame(self) -> str:
        return f"robosuite:{self.controller}"

    @property
    def stages(self) -> tuple[str, ...]:
        """Known where there is one thing to be grasped."""
        return ("approach", "grasp", "success") if self.env in GRASPED else ("start", "success")

    @property
    def success_text(self) -> str:
        return GRASPED.get(self.env, f"solved {self.env}")

    @property
    def Expert(self) -> type | None:
        """Settings of the scripted expert, where there is one."""
        known = self.env in EXPERTS and self.robot == "Panda" and self.controller == "OSC_POSE"
        return ExpertSettings if known else None

    failures = {
        "approach": "not grasped",
        "grasp": "grasped, not brought to its end",
        "start": "did not get there",
    }


@dataclass(frozen=True)
class LiftSettings(RobosuiteSettings):
    """`task=lift`: configs/task/lift.yaml says what each is, as of the three below."""

    task: str = "lift"
    env: str = "Lift"
    rate_hz: float = 10
    max_steps: int = 50


@dataclass(frozen=True)
class StackSettings(RobosuiteSettings):
    task: str = "stack"
    env: str = "Stack"
    rate_hz: float = 10
    max_steps: int = 150


@dataclass(frozen=True)
class CanSettings(RobosuiteSettings):
    task: str = "can"
    env: str = "PickPlaceCan"
    rate_hz: float = 10
    max_steps: int = 200


@dataclass(frozen=True)
class SquareSettings(RobosuiteSettings):
    task: str = "square"
    env: str = "NutAssemblySquare"
    rate_hz: float = 10
    max_steps: int = 200


# worlds in which one thing is grasped, and what a policy that succeeds has done
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
