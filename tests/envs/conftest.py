"""One world per arm and test file, with small frames."""

import pytest

from s2robot.envs.cube_pick import CubePick
from s2robot.envs.robots import ROBOTS


@pytest.fixture(scope="module", params=list(ROBOTS))
def env(request):
    env = CubePick(robot=request.param, image_size=128)
    yield env
    env.close()
