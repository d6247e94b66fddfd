"""Packages that only some verbs need, asked for at their doors: one line where one is missing, no traceback.

require("mujoco", "sim")        # UserError: mujoco is not installed: pip install 's2robot[sim]'
"""

from importlib.util import find_spec

from s2robot.common.errors import UserError

SIMULATOR = ("mujoco", "robosuite", "mink")  # what `pip install s2robot[sim]` brings


def require(module: str, extra: str) -> None:
    """Refuse to go on without the package `module`, which the extra of pyproject.toml called `extra` brings.

    Only looks for it: the import, which may take seconds, is left to who uses it.

    Raises:
        UserError: it is not installed; the text holds the command that installs it.
    """
    if find_spec(module) is None:
        raise UserError(f"{module} is not installed: pip install 's2robot[{extra}]'")


def require_simulator() -> None:
    """Refuse to go on without the simulator.

    Raises:
        UserError: as :func:`require`.
        EnvError: MUJOCO_GL is set to what MuJoCo cannot be imported with.
    """
    for module in SIMULATOR:
        require(module, "sim")
    from s2robot.envs.gl import check_gl  # gymnasium comes with it, and listing the verbs needs neither

    check_gl()
