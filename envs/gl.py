"""Choose how MuJoCo draws without a screen, before mujoco is first imported.

MuJoCo reads ``MUJOCO_GL`` once, at import. Set too late, or with the library missing, it fails deep inside
OpenGL with a message that helps nobody; here the choice is made and checked in one place.
"""

import ctypes.util
import logging
import os
import sys

from s2robot.envs.errors import EnvError

logging.getLogger("OpenGL").setLevel(logging.WARNING)  # it tells of an optional accelerator that nobody needs

# What to install where the library is missing (Debian/Ubuntu names).
_LIBRARIES = {"egl": ("EGL", "libegl1 libgl1-mesa-dri"), "osmesa": ("OSMesa", "libosmesa6")}


def choose_gl() -> str:
    """Set ``MUJOCO_GL`` (egl before osmesa) unless the user has set it, and return it.

    Raises:
        EnvError: neither EGL nor OSMesa is installed, or the one that the user asked for is not.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower()
    if asked and asked not in _LIBRARIES:  # glfw, wgl, cgl: the user's own screen
        return asked
    for name in [asked] if asked else list(_LIBRARIES):
        library, _ = _LIBRARIES[name]
        if sys.platform != "linux" or ctypes.util.find_library(library):
            if sys.platform == "linux":
                os.environ["MUJOCO_GL"] = name
                os.environ.setdefault("PYOPENGL_PLATFORM", name)
            return name
    wanted = asked or "egl"
    raise EnvError(
        f"no offscreen OpenGL: MUJOCO_GL={wanted} needs {_LIBRARIES[wanted][0]}, found none; "
        f"install it with: apt-get install {_LIBRARIES[wanted][1]}"
    )
