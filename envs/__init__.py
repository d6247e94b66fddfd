"""The worlds a policy acts in, behind one gymnasium interface."""

import logging
from contextlib import suppress

from gymnasium.envs.registration import register

from s2robot.envs.errors import EnvError
from s2robot.envs.gl import choose_gl

# before anything imports mujoco; errors are raised later, by `check_gl` or the renderer, where OpenGL is needed
with suppress(EnvError):
    choose_gl()

# robosuite warns at import about optional parts
logging.getLogger("robosuite_logs").addFilter(lambda record: record.module not in ("macros", "__init__"))

register(id="s2robot/CubePick-v0", entry_point="s2robot.envs.cube_pick:CubePick")
