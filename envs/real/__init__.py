"""The bridge to a real arm, with the same observations and actions as the simulated world.

arms/            what is asked of a driver; an arm's description and model; XArmDriver, FrankaDriver (Panda, FR3)
cameras/         one reader thread a camera: V4L2, RealSense, recorded pictures
control/         the control loop, its safety filter and watchdog, and a supervisor in a process of its own
operator/        questions to the operator, hand guiding, teleoperation, taking over from a policy
emulator/        the xArm7's control box, its cameras and its operator, for rehearsals without an arm
runtime          loop, filter, watchdog, supervisor and the operator's stop, for deploy, evaluate and record
simulated        any arm with a model, in MuJoCo, in this process

XArmDriver was tried against the emulator, FrankaDriver against franky-sim.
Nothing here was run on a physical arm. Software stops are no emergency stop: the hardware button is required.
"""

import importlib
from typing import Any

from s2robot.envs.errors import EnvError


def import_extra(module: str, extra: str) -> Any:
    """Import a package that an extra brings. Raises EnvError where it is not installed, or cannot be imported."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # some raise more than ImportError without a library of the system
        raise EnvError(f"found no {module} ({error}), expected it: pip install 's2robot[{extra}]'") from None
