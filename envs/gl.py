"""Choose how MuJoCo renders without a display, before mujoco is first imported.

MuJoCo reads ``MUJOCO_GL`` once, at import; set too late, or with the library missing, it fails deep inside OpenGL.
"""

import ctypes.util
import logging
import os
import sys

from s2robot.core.errors import require
from s2robot.envs.errors import EnvError, expect
from s2robot.envs.task_settings import TaskSettings

logging.getLogger("OpenGL").setLevel(logging.WARNING)  # it logs a missing optional accelerator

SIMULATOR = ("mujoco", "robosuite", "mink")  # installed by `pip install s2robot[sim]`
# library, and the packages that contain it (Debian/Ubuntu names)
_LIBRARIES = {"egl": ("EGL", "libegl1 libgl1-mesa-dri"), "osmesa": ("OSMesa", "libosmesa6")}
# Names that MuJoCo accepts (mujoco/rendering/classic/gl_context.py); its import fails with any other.
_SYSTEMS = {"linux": ("egl", "osmesa", "glx"), "win32": ("wgl",), "darwin": ("cgl",)}
_NAMES = (*_SYSTEMS.get(sys.platform, ()), "glfw", "enable", "disable")
_ALIASES = ("enabled", "on", "true", "1", "disabled", "off", "false", "0")


def choose_gl() -> str:
    """Set ``MUJOCO_GL`` (egl before osmesa) unless the user has set it, and return it.

    EnvError if neither EGL nor OSMesa is installed, or if the user's choice is unknown or not installed.
    """
    choice = os.environ.get("MUJOCO_GL", "").lower().strip()
    known = not choice or choice in (*_NAMES, *_ALIASES)
    expect(known, "MUJOCO_GL", f"one of {', '.join(_NAMES)}", f"'{choice}'")
    if choice and choice not in _LIBRARIES:  # glfw, wgl, cgl: the user's own display
        return choice
    for name in [choice] if choice else list(_LIBRARIES):
        if sys.platform != "linux" or ctypes.util.find_library(_LIBRARIES[name][0]):
            if sys.platform == "linux":
                os.environ["MUJOCO_GL"] = name
                os.environ.setdefault("PYOPENGL_PLATFORM", name)
            return name
    library, packages = _LIBRARIES[name := choice or "egl"]
    raise EnvError(f"MUJOCO_GL={name}: expected {library}, got none: apt-get install {packages}")


def check_gl() -> None:
    """Raise EnvError for a choice with which mujoco cannot be imported; without one, everything but rendering works."""
    if os.environ.get("MUJOCO_GL") and "mujoco" not in sys.modules:
        choose_gl()


def require_simulator(world: TaskSettings | None = None) -> None:
    """Raise UserError without the simulator, unless ``world`` does without; EnvError for a MUJOCO_GL that MuJoCo rejects."""
    if world is None or world.simulator:
        require(*SIMULATOR, extra="sim")
    check_gl()
