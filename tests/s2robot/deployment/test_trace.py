"""What was sent, counted and drawn."""

import numpy as np
import pytest

from s2robot.deployment.trace import EpisodeLog
from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.control.safety import Safe, Verdict
from s2robot.envs.real.control.watchdog import State


def test_a_trace_counts_speeds_and_room(tmp_path):
    trace = EpisodeLog(XARM7_LIMITS)
    trace.write(tmp_path / "none", "nothing")
    assert not list(tmp_path.iterdir())
    q = np.array([0, 0, 0, 0.7, 0, 0.7, 0])
    for i in range(11):
        verdict = Verdict.CLAMP if i == 3 else Verdict.PASS
        step = np.zeros(7)
        step[3] = -0.01 * i  # 1 rad/s towards the joint's lower limit
        trace.on_period(i / 100, State.RUNNING, Safe(q + step, 1.0, verdict, ("table",) if i == 3 else ()))
    found = trace.summary()
    assert found["verdicts"] == {"PASS": 10, "CLAMP": 1} and found["reasons"] == {"table": 1}
    assert found["speed_max"] == pytest.approx(1.0)
    assert found["room_joint"] == 4
    assert found["room_min"] == pytest.approx(0.6 - (XARM7_LIMITS.q_min[3] + XARM7_LIMITS.margin))
    trace.write(tmp_path / "some", "a test")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["some.json", "some.png"]
