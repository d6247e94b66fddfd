"""How the scripted experts of robosuite's worlds move; read where no simulator is installed, too."""

import math
from dataclasses import dataclass
from typing import Any

from s2robot.envs.errors import EnvError

# robosuite's name of a world -> its expert, "module:Class"
EXPERTS = {
    "Lift": "s2robot.envs.experts.lift:Lift",
    "Stack": "s2robot.envs.experts.stack:Stack",
    "PickPlaceCan": "s2robot.envs.experts.can:Can",
    "NutAssemblySquare": "s2robot.envs.experts.square:Square",
}


@dataclass(frozen=True)
class ExpertSettings:
    """`recording.picker`, whose comments are in configs/recording/default.yaml. Lengths in m, angles in rad, per control step
    where it says step."""

    gain: float | None = None  # of the distance to go, what a step asks for; None: the world's own
    speed: float | None = None  # farthest that a step asks for, as a share of what it may; None: likewise
    hover: float = 0.08  # height over the grasp from which the object is approached
    slope: float = 3.0  # height gained per metre of horizontal error
    turn: float = 0.06  # a turn of one rad counts as so many metres of horizontal error
    mouth: float = 0.008  # horizontal error below which the gripper goes all the way down
    close_xy: tuple[float, float] = (0.006, 0.012)  # the gripper closes when nearer than this
    close_yaw: tuple[float, float] = (0.08, 0.2)  # and turned as well as this; both drawn anew each episode
    kicks: tuple[int, int] = (1, 3)  # perturbations drawn for an episode, least and most
    kick_steps: tuple[int, int] = (1, 2)  # steps that one lasts
    kick_size: float = 0.05  # farthest displacement of a perturbation that a step asks for
    kick_yaw: float = 0.3  # farthest turn of a perturbation, a step
    misses: float = 0.3  # share of the episodes in which it closes on nothing
    miss_by: tuple[float, float] = (0.012, 0.04)  # how far over the grasp, beyond 3 cm
    miss_steps: tuple[int, int] = (6, 12)  # steps that the miss lasts
    habit: str = "nearest"  # the first task's picker alone has others

    def __post_init__(self) -> None:
        check_pushes(self)
        if self.habit != "nearest":
            raise EnvError(
                f"recording.picker.habit: found {self.habit!r}, expected 'nearest' in a world of robosuite's"
            )


def check_pushes(settings: Any) -> None:
    """Refuse kicks and misses that cannot be drawn; EnvError names the key. `kicks` are drawn from a dozen steps."""
    for name, least in (
        ("kicks", 0),
        ("kick_steps", 1),
        ("miss_steps", 1),
        ("miss_by", 0),
        ("close_xy", 0),
        ("close_yaw", 0),
    ):
        low, high = getattr(settings, name)
        if not least <= low <= high or (name == "kicks" and high > 12):
            expected = "0 to 12" if name == "kicks" else f"{least} or more"
            raise EnvError(
                f"recording.picker.{name}: found [{low}, {high}], expected the least and the most, {expected}"
            )
    for name, most in (("misses", 1), ("kick_size", math.inf), ("kick_yaw", math.inf)):
        if not 0 <= (found := getattr(settings, name)) <= most:
            raise EnvError(
                f"recording.picker.{name}: found {found}, expected {'0 to 1' if most == 1 else '0 or more'}"
            )
