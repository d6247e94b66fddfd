"""The one law behind every speed limit here: how fast may a joint be, so that it can still stop in time?

Time is discrete. A joint at speed v that brakes with a moves (v - a dt) dt in the next step, (v - 2 a dt) dt in
the one after, and so on to rest.
"""

import numpy as np
from numpy.typing import ArrayLike

from s2robot.envs.real.arms.driver import Array


def stopping_speed(distance: ArrayLike, acceleration: ArrayLike, dt: float) -> Array:
    """The greatest speed for the coming step, such that it and the braking after it cover at most `distance`.

    Exact for the discrete law above; 0 where `distance` is 0 or less. Shapes broadcast.
    """
    unit = np.asarray(acceleration) * dt * dt  # what one step of braking takes off each step's way
    units = np.maximum(distance, 0.0) / unit
    n = np.floor((np.sqrt(1 + 8 * units) - 1) / 2)  # whole steps of braking after the coming one
    return (units + n * (n + 1) / 2) / (n + 1) * unit / dt


def pursuit_speed(
    q: Array, before: Array, target: Array, speed: ArrayLike, acceleration: ArrayLike, dt: float
) -> Array:
    """The speed for the coming step of a joint at `q` that pursues a target, now at `target` and a step ago `before`.

    It goes along with the target, at `speed` at most, and closes the gap such that it could stop relative to the
    target without overshoot. On a target that it has met it stays exactly. All (7,), rad and rad/s.
    """
    along = np.clip((target - before) / dt, -np.asarray(speed), speed)
    gap = target - along * dt - q
    return along + np.sign(gap) * stopping_speed(np.abs(gap), acceleration, dt)


def braking_steps(speed: ArrayLike, acceleration: ArrayLike, dt: float) -> Array:
    """Speeds of the steps after one at `speed` (7,) when every joint brakes by itself; the last are 0.  # (N, 7)"""
    speed = np.asarray(speed, float)
    loss = np.asarray(acceleration) * dt
    count = int(np.ceil(np.max(np.abs(speed) / loss)))
    steps = np.arange(1, count + 1)[:, None]
    return np.sign(speed) * np.maximum(np.abs(speed) - steps * loss, 0.0)
