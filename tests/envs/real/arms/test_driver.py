"""Limits that make no sense are refused, and the xArm's agree with the simulator's model of it."""

import numpy as np
import pytest

from s2robot.core.errors import UserError
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.real.arms.driver import XARM7_LIMITS


@pytest.mark.parametrize(
    "wrong",
    [
        {"q_min": (0.0,) * 6}, {"q_max": (np.nan,) * 7}, {"dq_max": (0.0,) * 7}, {"dq_max": "fast"}, {"margin": 4.0},
        {"box": ((0.0, 1.0), (1.0, 0.0), (0.0, 1.0))}, {"arm_box": (0.0, 1.0)}, {"table_z": np.inf}, {"rate_hz": 0.0},
        {"step_max": 0.017},  # a stream at full speed would be stopped
    ],
)  # fmt: skip
def test_senseless_limits_are_refused_by_name(wrong):
    with pytest.raises(UserError, match=f"^bridge.limits.{next(iter(wrong))}"):
        XARM7_LIMITS.replace(**wrong)


def test_the_simulators_xarm7_agrees():
    env = CubePick(image_size=16, draw=False)
    np.testing.assert_allclose(XARM7_LIMITS.q_min, env.joint_low, atol=2e-5)
    np.testing.assert_allclose(XARM7_LIMITS.q_max, env.joint_high, atol=2e-5)
    env.reset(seed=0)
    base = env.data.body("robot0_base").xpos
    assert XARM7_LIMITS.table_z == pytest.approx(0.8 - base[2], abs=1e-6)
    home = env.grip_position + [0, 0, 0.8] - base
    low, high = np.array(XARM7_LIMITS.box).T
    assert (home > low).all() and (home < high).all()
