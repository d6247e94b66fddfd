"""Fuzz the safety filter with random and hostile inputs; count outputs outside limits; time a call.

    python benchmarks/safety.py
    python benchmarks/safety.py --arm examples/own_arm/configs/robot/ur5e.yaml

Every output is judged without tolerance: joint range less the margin, speed and acceleration against the two outputs
before, watched points against box, table and speed, also while it brakes after a stop. Exit code 1 if one is outside.
"""

import argparse
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from s2robot.core.settings import plain
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.description import ArmDescription
from s2robot.envs.real.arms.driver import XARM7_LIMITS, ArmLimits
from s2robot.envs.real.arms.geometry import ArmPoints, XArm7Points
from s2robot.envs.real.arms.model import ModelPoints
from s2robot.envs.real.control.safety import SafetyFilter, Verdict

HOME = np.array((0.0, 0.0115, 0.0, 0.7031, 0.0, 0.6916, 0.0))
LIMITS = XARM7_LIMITS.replace(arm_box=((-0.2, 0.55), (-0.35, 0.35), (-0.2, 0.72)))  # walls near the elbow
MOODS = ("wander", "far", "corner", "bang", "plunge", "sideways", "edge")  # one holds for many inputs
NASTY = ("nan", "inf", "huge", "jump", "shape", "type", "stale", "gripper", "measured", "lag")  # one input
WRONG: dict[str, tuple] = {
    "shape": (np.zeros(5), np.zeros((7, 1)), np.zeros((1, 7)), np.float64(0), np.zeros(0), [[0.0] * 7, [0.0] * 6]),
    "type": (None, "0000000", b"7 bytes", {}, object(), [None] * 7, np.zeros(7, complex), np.full(7, "1"), len),
    "gripper": (np.nan, 2.0, -1.0, "open", None, np.inf, []),
}  # fmt: skip


class Judge:
    """Watches a stream of outputs and says what is outside limits."""

    def __init__(self, limits: ArmLimits, points: ArmPoints, start: np.ndarray):
        self.limits, self.points = limits, points
        self.q, self.dq = start, np.zeros(limits.joints)
        self.places = points.at(start)

    def faults(self, q: np.ndarray, gripper: float | None) -> list[str]:
        limits = self.limits
        if q.shape != (limits.joints,) or not np.isfinite(q).all():
            return ["not N finite numbers"]
        dq = (q - self.q) * limits.rate_hz
        ddq = (dq - self.dq) * limits.rate_hz
        places = self.points.at(q)
        outside = False
        for box, bound in ((limits.box, self.points.in_box), (limits.arm_box, ~self.points.in_box)):
            if box is not None:
                (low, high), radius = np.array(box).T, self.points.radius[bound, None]
                outside |= bool(((places[bound] - radius < low) | (places[bound] + radius > high)).any())
        lowest, moved = places[:, 2] - self.points.radius, np.linalg.norm(places - self.places, axis=1)
        beyond = {
            "below joint range": q < np.add(limits.q_min, limits.margin),
            "above joint range": q > np.subtract(limits.q_max, limits.margin),
            "speed": np.abs(dq) > limits.dq_max,
            "acceleration": np.abs(ddq) > limits.ddq_max,
            "box": outside,
            "table": lowest < limits.table_z + limits.table_clearance,
            "point speed": moved * limits.rate_hz > limits.point_speed,
            "gripper": gripper is not None and not 0 <= gripper <= 1,
        }
        self.q, self.dq, self.places = q, dq, places
        return [name for name, bad in beyond.items() if np.any(bad)]


class Attacker:
    """Makes inputs for a filter, knowing its state."""

    def __init__(self, safety: SafetyFilter, rng: np.random.Generator):
        self.safety, self.rng, self.n = safety, rng, safety.limits.joints
        self.low, self.high = np.array(safety.limits.q_min), np.array(safety.limits.q_max)
        self.new_mood()

    def new_mood(self) -> None:
        rng, self.count = self.rng, 0
        self.mood = MOODS[rng.integers(len(MOODS))]
        self.corner = np.where(rng.random(self.n) < 0.5, self.low, self.high)
        self.period = int(rng.integers(1, 30))
        self.sign = rng.choice([-1.0, 1.0], self.n)
        self.axis = int(rng.integers(2))

    def target(self) -> np.ndarray:
        """(N,) finite joints that the mood asks for, as far as no joint jumps: a jump only stops."""
        q, reach = self.safety.q_last, 0.999 * self.safety.limits.step_max
        return q + np.clip(self._wanted() - q, -reach, reach)

    def _wanted(self) -> np.ndarray:
        rng, q = self.rng, self.safety.q_last
        self.count += 1
        match self.mood:
            case "wander":
                return q + self.safety.dq_last * self.safety.dt + rng.uniform(-1, 1, self.n) * 1e-3
            case "far":
                return rng.uniform(-7, 7, self.n)
            case "corner":
                return self.corner
            case "bang":
                return q + self.sign * (1 if self.count // self.period % 2 else -1)
            case "edge":
                return np.nextafter(self.corner, rng.choice([-np.inf, np.inf])) * rng.choice([1.0, 0.999999])
        if not self.safety.points.names:
            return rng.uniform(-7, 7, self.n)
        # the steepest way of the left finger down (plunge), or out of the box
        axis = 2 if self.mood == "plunge" else self.axis
        around = self.safety.points.along(np.concatenate([q[None], q + np.eye(self.n) * 1e-4]))[:, 1, axis]
        slope = around[1:] - around[0]
        direction = slope / (np.linalg.norm(slope) + 1e-12)
        return q - direction * (1.0 if axis == 2 else self.sign[0]) * rng.uniform(0, 0.2)

    def inputs(self, nasty: str | None = None) -> tuple:
        """Arguments of a call: target, gripper, measured, age."""
        rng, target = self.rng, self.target()
        gripper, measured, age = rng.random(), self.safety.q_last + rng.normal(0, 2e-3, self.n), 0.01
        step, one = 1.001 * self.safety.limits.step_max, np.eye(self.n)[rng.integers(self.n)]
        match nasty:
            case "nan" | "inf":
                target = np.where(one, np.nan if nasty == "nan" else rng.choice([-np.inf, np.inf]), target)
            case "huge":
                target = target * rng.choice([1e300, -1e300, 5e-324, 1e15])
            case "jump":
                target = self.safety.q_last + rng.choice([-3.0, -step, step, 3.0]) * one
            case "shape" | "type":
                target = WRONG[nasty][rng.integers(len(WRONG[nasty]))]
            case "stale":
                age = rng.choice([1.0, np.nan, np.inf, -1.0, 0.0501])
            case "gripper":
                gripper = WRONG[nasty][rng.integers(len(WRONG[nasty]))]
            case "measured":
                measured = (np.full(self.n, np.nan), np.zeros(5), None, "here")[rng.integers(4)]
            case "lag":
                measured = measured + rng.choice([-1.0, 1.0, 0.31])
        return target, gripper, measured, age


def start(safety: SafetyFilter, rng: np.random.Generator, home: np.ndarray) -> np.ndarray:
    """Reset the filter to random joints that it takes."""
    while True:
        with suppress(EnvError):
            safety.reset(q := home + rng.uniform(-0.6, 0.6, len(home)))
            return q


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--arm", type=Path, help="the YAML file of another arm")
    args = parser.parse_args()
    rng, home, limits = np.random.default_rng(0), HOME, LIMITS
    points: ArmPoints = XArm7Points()
    if args.arm:
        about: Any = ArmDescription(**plain(OmegaConf.load(args.arm)))
        home, limits, points = np.array(about.start), about.limits(), ModelPoints(about)
    safety = SafetyFilter(limits, points)
    attacker = Attacker(safety, rng)
    judge = Judge(safety.limits, safety.points, start(safety, rng, home))
    faults = Counter[str]()
    seconds, left = np.empty(args.inputs), 0
    for i in range(args.inputs):
        if left == 0:  # another mood
            attacker.new_mood()
            left = int(rng.integers(10, 200))
        left -= 1
        nasty = NASTY[rng.integers(len(NASTY))] if rng.random() < 0.01 else None
        inputs = attacker.inputs(nasty)
        begin = time.perf_counter()
        safe = safety(*inputs)
        seconds[i] = time.perf_counter() - begin
        faults.update(judge.faults(safe.q, safe.gripper))
        if safe.verdict == Verdict.STOP and not safety.dq_last.any():  # after the stop, at rest
            judge = Judge(safety.limits, safety.points, start(safety, rng, home))
            left = 0
    print(f"{args.inputs} inputs: {faults.total()} outputs outside limits {dict(faults)}")
    cost = np.percentile(seconds, [50, 99, 99.9]) * 1e6
    print(f"cost of a call: p50 {cost[0]:.0f} us, p99 {cost[1]:.0f} us, p99.9 {cost[2]:.0f} us")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
