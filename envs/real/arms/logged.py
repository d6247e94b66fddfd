"""An xArm's driver whose SDK talks into a file.

In a file of its own: the supervisor's process imports it, and is to watch the arm before a deployment's imports are done.
"""

from pathlib import Path
from typing import Any

from s2robot.envs.real.arms.sdk_log import log_to
from s2robot.envs.real.arms.xarm import XArmDriver


def logged_driver(log: Path, *args: Any, **settings: Any) -> XArmDriver:
    """`XArmDriver(*args, **settings)`; in whatever process it is made, the SDK's lines go to `log`."""
    log_to(log)
    return XArmDriver(*args, **settings)
