"""Choose how MuJoCo draws without a screen, before mujoco is first imported.

MuJoCo reads ``MUJOCO_GL`` once, at import; set too late, or with the library missing, it fails deep inside OpenGL.
"""

import ctypes.util
import logging
import os
import sys

from s2robot.core.errors import require
from s2robot.envs.errors import EnvError, expect

logging.getLogger("OpenGL").setLevel(logging.WARNING)  # it mentions an optional accelerator

SIMULATOR = ("mujoco", "robosuite", "mink")  # what `pip install s2robot[sim]` brings
# library, and what to install where it is missing (Debian/Ubuntu names)
_LIBRARIES = {"egl": ("EGL", "libegl1 libgl1-mesa-dri"), "osmesa": ("OSMesa", "libosmesa6")}
# What MuJoCo itself takes (mujoco/rendering/classic/gl_context.py); its import fails at any other name.
_SYSTEMS = {"linux": ("egl", "osmesa", "glx"), "win32": ("wgl",), "darwin": ("cgl",)}
_NAMES = (*_SYSTEMS.get(sys.platform, ()), "glfw", "enable", "disable")
_ALIASES = ("enabled", "on", "true", "1", "disabled", "off", "false", "0")


def choose_gl() -> str:
    """Set ``MUJOCO_GL`` (egl before osmesa) unless the user has set it, and return it.

    EnvError if neither EGL nor OSMesa is installed, or the one that the user asked for is not, or is unknown.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower().strip()
    known = not asked or asked in (*_NAMES, *_ALIASES)
    expect(known, "MUJOCO_GL", f"one of {', '.join(_NAMES)}", f"'{asked}'")
    if asked and asked not in _LIBRARIES:  # glfw, wgl, cgl: the user's own screen
        return asked
    for name in [asked] if asked else list(_LIBRARIES):
        if sys.platform != "linux" or ctypes.util.find_library(_LIBRARIES[name][0]):
            if sys.platform == "linux":
                os.environ["MUJOCO_GL"] = name
                os.environ.setdefault("PYOPENGL_PLATFORM", name)
            return name
    library, packages = _LIBRARIES[wanted := asked or "egl"]
    hint = f"install it with: apt-get install {packages}"
    raise EnvError(f"MUJOCO_GL={wanted}: expected {library}, got no offscreen OpenGL; {hint}")


def check_gl() -> None:
    """Reject a choice of the user's (as :func:`choose_gl`) at which the import of mujoco would end in a traceback.

    Where nothing is chosen and no library is found, all that is never drawn still works.
    """
    if os.environ.get("MUJOCO_GL") and "mujoco" not in sys.modules:
        choose_gl()


def require_simulator() -> None:
    """Raise UserError without the simulator, EnvError for a MUJOCO_GL with which MuJoCo cannot be imported."""
    require(*SIMULATOR, extra="sim")
    check_gl()
