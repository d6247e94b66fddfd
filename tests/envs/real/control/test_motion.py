"""The law of braking, against stepping it through."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2robot.envs.real.control.motion import braking_steps, stopping_speed

DT = 0.01


def way_of(speed: float, acceleration: float) -> float:
    """What a step at `speed` and the braking after it cover."""
    way = 0.0
    while speed > 0:
        way += speed * DT
        speed -= acceleration * DT
    return way


@given(st.floats(0, 10), st.floats(0.5, 50))
def test_a_joint_at_stopping_speed_stops_at_the_distance(distance, acceleration):
    speed = float(stopping_speed(distance, acceleration, DT))
    assert way_of(speed, acceleration) == pytest.approx(distance, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("distance", [0.0, -1e-9, -3.0])
def test_no_way_left_means_no_speed(distance):
    assert stopping_speed(distance, 20.0, DT) == 0


@given(st.lists(st.floats(-3, 3), min_size=7, max_size=7))
def test_braking_ends_at_rest_within_the_deceleration(speed):
    steps = np.concatenate([[speed], braking_steps(np.array(speed), 20.0, DT)])
    assert not steps[-1].any()
    assert (np.abs(np.diff(steps, axis=0)) <= 20.0 * DT + 1e-12).all()
    assert (np.abs(steps) <= np.abs(speed)).all() and (steps * speed >= 0).all()
