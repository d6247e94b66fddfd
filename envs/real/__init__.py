"""The bridge to a real arm, with the same observations and actions as the simulated world.

XArmDriver was tested against the emulator, FrankaDriver against franky-sim; nothing here has run on a physical arm.
A software stop is not an emergency stop: the hardware button is required.
"""

import importlib
from typing import Any

from s2robot.core.errors import reported
from s2robot.envs.errors import EnvError


def import_extra(module: str, extra: str) -> Any:
    """Import a package that an extra installs. Raises EnvError if it is missing or fails to import."""
    hint = f"; pip install 's2robot[{extra}]'"  # a missing system library may raise other errors than ImportError
    with reported(f"{module}: expected it to be installed, got", hint, kind=EnvError):
        return importlib.import_module(module)
