"""The bridge to a real arm, with the same observations and actions as the simulated world.

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
        hint = f"pip install 's2robot[{extra}]'"
        raise EnvError(f"{module}: expected it to be installed, got {error}; {hint}") from None
