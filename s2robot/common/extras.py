"""Packages that only some verbs need: a missing one is a one-line error.

require("mujoco", "sim")        # UserError: mujoco is not installed: pip install 's2robot[sim]'
"""

from importlib.util import find_spec

from s2robot.common.errors import UserError

SIMULATOR = ("mujoco", "robosuite", "mink")  # what `pip install s2robot[sim]` brings


def require(module: str, extra: str) -> None:
    """Raise UserError unless the package `module` of the extra `extra` is installed. Does not import it."""
    if find_spec(module) is None:
        raise UserError(f"{module} is not installed: pip install 's2robot[{extra}]'")


def require_simulator() -> None:
    """Raise UserError without the simulator, EnvError for a MUJOCO_GL with which MuJoCo cannot be imported."""
    for module in SIMULATOR:
        require(module, "sim")
    from s2robot.envs.gl import check_gl  # gymnasium comes with it, and listing the verbs needs neither

    check_gl()
