"""The bridge to a real arm, with the same observations and actions as the simulated world.

XArmDriver was tested against the emulator, FrankaDriver against franky-sim; nothing here has run on a physical arm.
A software stop is not an emergency stop: the hardware button is required.
"""

import importlib
from typing import Any

from s2robot.envs.errors import EnvError


def import_extra(module: str, extra: str) -> Any:
    """Import a package that an extra installs. Raises EnvError if it is missing or fails to import."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # a missing system library may raise other errors than ImportError
        hint = f"pip install 's2robot[{extra}]'"
        raise EnvError(f"{module}: expected it to be installed, got {error}; {hint}") from None
