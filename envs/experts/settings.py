"""Settings of the scripted experts; read where no simulator is installed, too."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from s2robot.core.settings import Settings, from_yaml


def _ordered(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    if not pair[0] <= pair[1]:
        raise ValueError(f"expected the least and the most, got {list(pair)}")
    return pair


Ordered = AfterValidator(_ordered)
Range = Annotated[tuple[float, float], Ordered]
NotNegative = Annotated[float, Field(ge=0)]
Lengths = Annotated[tuple[NotNegative, NotNegative], Ordered]
_Count = Annotated[int, Field(ge=0, le=12)]  # kicks are drawn from a dozen steps
Kicks = Annotated[tuple[_Count, _Count], Ordered]
_Step = Annotated[int, Field(ge=1)]
Steps = Annotated[tuple[_Step, _Step], Ordered]
Share = Annotated[float, Field(ge=0, le=1)]

# robosuite's names of the worlds that have an expert, a class of that name in `s2robot.envs.experts.worlds`
EXPERTS = ("Lift", "Stack", "PickPlaceCan", "NutAssemblySquare")


class PushSettings(Settings, at="recording.picker", file="recording/default"):
    """Perturbations of a scripted expert; configs/recording/default.yaml documents each value."""

    kicks: Kicks = from_yaml()
    kick_steps: Steps = from_yaml()
    kick_size: NotNegative = from_yaml()
    kick_yaw: NotNegative = from_yaml()
    misses: Share = from_yaml()
    miss_by: Lengths = from_yaml()
    miss_steps: Steps = from_yaml()


class ExpertSettings(PushSettings):
    """The experts of robosuite's worlds. Lengths in m, angles in rad; a step is a control step."""

    gain: float | None = None  # share of the remaining distance that a step asks for; None: the world's own
    speed: float | None = (
        None  # farthest that a step asks for, as a share of its limit; None: the world's own
    )
    hover: float = 0.08  # height over the grasp from which the object is approached
    slope: float = 3.0  # height gained per metre of horizontal error
    turn: float = 0.06  # metres of horizontal error that a turn of one rad counts as
    mouth: float = 0.008  # horizontal error below which the gripper goes all the way down
    close_xy: Lengths = (0.006, 0.012)  # the gripper closes when nearer than this
    close_yaw: Lengths = (0.08, 0.2)  # and turned as well as this; both drawn for each episode
    habit: Literal["nearest"] = from_yaml()  # only the picker of `task=cube_pick` has others
