"""robosuite's own environment of a task's settings, and what is refused before robosuite is asked for it."""

import logging
from typing import Any

from s2robot.envs.errors import EnvError
from s2robot.envs.robosuite_config import RobosuiteSettings

logging.disable(logging.WARNING)  # robosuite warns at import about optional parts
import robosuite  # noqa: E402
from robosuite.controllers import load_part_controller_config  # noqa: E402
from robosuite.environments.base import REGISTERED_ENVS  # noqa: E402
from robosuite.robots import ROBOT_CLASS_MAPPING, FixedBaseRobot  # noqa: E402

logging.disable(logging.NOTSET)

VERSION = robosuite.__version__
# arguments of robosuite.make that task.kwargs must not give, and what is expected in their place: a hard reset would leave
# us the old scene, and an episode that robosuite ends cannot be stepped on
_RESERVED = {
    "robots": "task.robot", "controller_configs": "task.controller", "control_freq": "task.rate_hz",
    "horizon": "task.max_steps", "ignore_done": "task.max_steps", "hard_reset": "none: resets are soft",
}  # fmt: skip


def made(s: RobosuiteSettings) -> Any:
    """The environment of these settings.

    Raises:
        EnvError: one, a robot, a controller or an argument that robosuite lacks, or that is not to be given.
    """
    robots = s.robot.split("+")
    known = {name for name, world in REGISTERED_ENVS.items() if world.__module__.startswith("robosuite.")}
    if s.env not in known:
        raise EnvError(f"task.env: found '{s.env}', expected one of {', '.join(sorted(known))}")
    # the others have a second arm, a base or legs, and of the parts of a robot an arm alone has a controller here
    arms = [name for name, kind in ROBOT_CLASS_MAPPING.items() if kind is FixedBaseRobot and name != "Baxter"]
    if unknown := [robot for robot in robots if robot not in arms]:
        raise EnvError(
            f"task.robot: found '{unknown[0]}', expected one of {', '.join(sorted(arms))}: one arm on a fixed base"
        )
    known = set(robosuite.ALL_PART_CONTROLLERS) - {"IK_POSE"}  # whose limits are those of joints
    if s.controller not in known:
        raise EnvError(f"task.controller: found '{s.controller}', expected one of {', '.join(sorted(known))}")
    given = {"seed": 0, **arguments(s)}
    try:
        return robosuite.make(s.env, **given)
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise EnvError(f"task: robosuite refuses {s.env} with {s.robot} and {s.kwargs}: {error}") from None


def arguments(s: RobosuiteSettings) -> dict[str, Any]:
    """Of `robosuite.make`, beside the environment and the seed."""
    for key in (key for key in s.kwargs if key in _RESERVED):
        raise EnvError(f"task.kwargs.{key}: found {s.kwargs[key]}, expected {_RESERVED[key]}")
    robots = s.robot.split("+")
    part = load_part_controller_config(default_controller=s.controller)
    config = {"type": "BASIC", "body_parts": {"right": {**part, "gripper": {"type": "GRIP"}}}}
    usual = {
        "has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False, "use_object_obs": False,
        "reward_shaping": True, "hard_reset": False, "ignore_done": True,
    }  # fmt: skip
    return dict(
        robots=robots if len(robots) > 1 else robots[0],
        controller_configs=[config] * len(robots) if len(robots) > 1 else config,
        control_freq=s.rate_hz,
        **{**usual, **s.kwargs},
    )
