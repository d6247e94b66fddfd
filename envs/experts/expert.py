"""A scripted expert for pick-and-place by end-effector deltas, queried for one action at a time.

Its action depends only on the world's state (a funnel over the object, a funnel over the goal) and on whether it last
closed the gripper. So it can be queried in any state, and a policy imitates a function instead of a schedule.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mujoco
import numpy as np

from s2robot.envs.mujoco_task import geoms_of, touching
from s2robot.envs.robosuite_config import ExpertSettings
from s2robot.envs.task import PredictingExpert

SHUT = 0.006  # m between the fingers; below it they hold nothing
_NUDGE = 0.005  # m
_OVER = 0.035  # m above the grasp, where the fingertips are above the object
_ASKEW = 0.3, np.pi / 4  # rad, range of the yaw error of a misaligned grasp
_ASKEW_NEAR = 0.015  # m, horizontal error below which it starts
_ASKEW_STEPS = 16  # after which it closes regardless
_SLIP = 1, 5  # steps, upper end excluded: the fingers lose the object after about five
# m and rad of an action of 1, as in robosuite
REACH = np.array([0.05, 0.05, 0.05, 0.5, 0.5, 0.5])


def angle_of(vector: np.ndarray) -> float:
    """Return the direction of a vector projected onto the table, rad."""
    return float(np.arctan2(vector[1], vector[0]))


def nearest(angle: float, to: float, period: float) -> float:
    """Return the ``angle + n * period`` that is closest to ``to``."""
    return to + (angle - to + period / 2) % period - period / 2


class Hand:
    """The parallel gripper of a one-armed robosuite environment. Lengths in m, angles in rad, world frame."""

    def __init__(self, env: Any):
        robot = env.robots[0]
        self.env = env
        self.model: mujoco.MjModel = env.sim.model._model
        self.data: mujoco.MjData = env.sim.data._data
        self.site = robot.eef_site_id["right"]
        gripper = robot.gripper["right"]
        self._joints = [self.model.joint(name).qposadr[0] for name in gripper.joints]
        geoms, sides = gripper.important_geoms, ("left_finger", "right_finger")
        self._fingers = [{self.model.geom(name).id for name in geoms[side]} for side in sides]
        pads = [self.model.geom(geoms[f"{side}pad"][0]).id for side in sides]
        # computed in the gripper's frame, where it is constant: the arm may stand anywhere
        apart = self.rotation.T @ (self.data.geom_xpos[pads[0]] - self.data.geom_xpos[pads[1]])
        self._axis = np.eye(3)[np.argmax(np.abs(apart))]
        ranges = [self.model.jnt_range[self.model.joint(name).id] for name in gripper.joints]
        self.widest = float(sum(np.abs(r).max() for r in ranges))

    @property
    def position(self) -> np.ndarray:
        """The centre between the fingertips.  # (3,)"""
        return self.data.site_xpos[self.site].copy()

    @property
    def rotation(self) -> np.ndarray:
        return self.data.site_xmat[self.site].reshape(3, 3).copy()

    @property
    def yaw(self) -> float:
        """The direction in which the fingers close, in the table's plane."""
        return angle_of(self.rotation @ self._axis)

    def level(self, yaw: float) -> np.ndarray:
        """Return the gripper's rotation when it points straight down and closes along ``yaw``.  # (3, 3)"""
        down, along = np.array([0.0, 0.0, -1.0]), np.array([np.cos(yaw), np.sin(yaw), 0.0])
        if self._axis[0]:  # the column of the rotation that the fingers close along
            return np.stack([along, np.cross(down, along), down], axis=1)
        return np.stack([np.cross(along, down), along, down], axis=1)

    @property
    def gap(self) -> float:
        return float(np.abs(self.data.qpos[self._joints]).sum())

    def pose(self, body: int) -> tuple[np.ndarray, np.ndarray]:
        return self.data.xpos[body].copy(), self.data.xmat[body].reshape(3, 3).copy()

    def touches(self, geoms: set[int]) -> list[bool]:
        """Whether the left and the right finger touch one of these geoms."""
        return touching(self.data, self._fingers, geoms)


class Target(NamedTuple):
    """A pose to move the gripper to: position (3,) and the direction in which its fingers close."""

    position: np.ndarray
    yaw: float


class Expert(PredictingExpert):
    """Base of the experts for lift, stack, can and square; each defines where to grasp and where to place.

    ``task`` is a `RobosuiteTask` after a reset; ``rng`` draws the perturbations and the tolerances of grasps, None: no
    perturbations.
    """

    memory = (
        "closed", "push", "_step", "_rng", "_kick", "_kick_left", "_slip_left", "_will_miss", "_miss_left", "_wrong", "_askew",
    )  # fmt: skip
    world: Any  # a RobosuiteTask
    failed = False  # it never fails
    push: str  # of the last action: a kick, a miss, a slip, askew, or none
    close_z = 0.008  # height error below which the fingers close
    easy = 1.0  # tolerance of its grasp, relative to a cube's
    clear = 0.08  # height above its goal at which the object is carried
    place_slope = 6.0  # height above the goal gained per metre of horizontal error
    place_mouth = 0.006  # horizontal error below which the object is lowered
    leave = 0.06  # upward move per step after releasing the object
    home = np.pi / 2  # the fingers' direction at a reset: across the table
    busy = 30  # control steps in which kicks may start
    rough = 1  # multiplies the number of kicks and their turns
    extra = 0  # additional kicks, if kicks are enabled
    low = False  # kicks may also go down, to just above the object
    slips = False  # half of the kicks while it holds something start to open the gripper instead
    askew = 0.0  # fraction of episodes in which it grasps at a wrong yaw, and continues with that grasp
    gain = 1.0  # commanded fraction of the remaining distance: the arm lags
    speed = 0.6  # largest command, as a fraction of REACH; policies trained on fast demos overshoot

    def __init__(self, task: Any, rng: np.random.Generator | None, settings: ExpertSettings | None = None):
        c = self.settings = settings or ExpertSettings()
        self.world, self.env, self.hand = task, task.raw, Hand(task.raw)
        self.object = geoms_of(self.hand.model, self.body)
        self.gain, self.speed = c.gain or self.gain, c.speed or self.speed
        self.closed, self.push = False, ""
        self._step, self._kick_left, self._miss_left = -1, 0, 0
        self._close_xy, self._close_yaw = float(np.mean(c.close_xy)), float(np.mean(c.close_yaw))
        self._kick_at: frozenset[int] = frozenset()
        self._kick, self._slip_left = (np.zeros(3), 0.0), 0
        self._will_miss, self._miss_at = False, 0.0
        self._wrong: float | None = None  # yaw error of an upcoming misaligned grasp, rad
        # while a grasp is misaligned: the fingers' yaw, rad, and the remaining steps
        self._askew: tuple[float, int] | None = None
        self._rng = rng
        if rng is not None:
            self._close_xy, self._close_yaw = rng.uniform(*c.close_xy), rng.uniform(*c.close_yaw)
            minimum, maximum = (self.rough * kicks + (self.extra if c.kicks[1] else 0) for kicks in c.kicks)
            count = rng.integers(minimum, maximum + 1)
            self._kick_at = frozenset(rng.choice(np.arange(1, self.busy), size=count, replace=False).tolist())
            self._will_miss, self._miss_at = bool(rng.random() < c.misses), 0.03 + rng.uniform(*c.miss_by)
            if self.askew and c.kicks[1] and rng.random() < self.askew:
                self._wrong = float(rng.choice([-1, 1]) * rng.uniform(*_ASKEW))

    body: Any  # the object's body id
    grasp: Callable[[], Target]  # the pose at which the open gripper closes
    to_go: Callable[[], float]  # the object's remaining distance, m

    def place(self) -> tuple[Target, bool] | None:
        """Return the pose to bring the object to, and whether it is close enough to release; None: only lift."""
        return None

    def placed(self) -> bool:
        """Whether the object is at its goal, held or not."""
        return False

    def remaining(self) -> float:
        """Return the remaining distance of the object, and of the gripper to it, m: decreases with any progress."""
        if all(self.hand.touches(self.object)) or self.placed():
            return self.to_go()
        return self.to_go() + float(np.linalg.norm(self.grasp().position - self.hand.position))

    def grasp_missed(self) -> bool:
        return self.hand.gap < SHUT and not any(self.hand.touches(self.object))

    def calm(self) -> None:
        self._rng, self._kick_left, self._miss_left, self._slip_left = None, 0, 0, 0
        self._wrong = self._askew = None

    def act(self) -> np.ndarray:
        """Return the next action in the task's units.  # float32 (7,)"""
        return self.world.from_raw(self._next())

    def take_over(self, actions: Sequence[np.ndarray]) -> None:
        """Continue without perturbations after the actions of a policy (T, 7)."""
        self.calm()
        self.closed = len(actions) > 0 and bool(actions[-1][-1] >= 0.5)

    def _next(self) -> np.ndarray:
        self._step += 1
        self.push = ""
        hand = self.hand
        holds = all(hand.touches(self.object))
        grasp = self.grasp()
        if self.closed and self.grasp_missed():
            self.closed = False  # closed on nothing: open and retry
        if self._rng is not None and (push := self._pushed(holds, grasp)) is not None:
            return push
        if self.closed:
            return self._carry() if holds else self._action(hand.position, hand.yaw, True)
        if self.placed():  # release, then move up
            rise = 0.0 if any(hand.touches(self.object)) else self.leave
            return self._action(hand.position + [0, 0, rise], hand.yaw, False)
        return self._approach(grasp)

    def _approach(self, grasp: Target) -> np.ndarray:
        """Move down a funnel to the object and close when near enough."""
        hand, c = self.hand, self.settings
        off = float(np.linalg.norm((grasp.position - hand.position)[:2]))
        turn = abs(nearest(hand.yaw, grasp.yaw, np.pi) - grasp.yaw)
        is_open = hand.gap > 0.85 * hand.widest
        low = abs(hand.position[2] - grasp.position[2]) < self.close_z
        if is_open and low and off < self.easy * self._close_xy and turn < self._close_yaw:
            self.closed = True
            return self._action(hand.position, hand.yaw, True)
        misaligned = off + c.turn * turn if is_open else np.inf  # stay above it until the gripper is open
        height = min(c.hover, c.slope * max(0.0, misaligned - self.easy * c.mouth))
        return self._go(grasp.position + [0, 0, height], grasp.yaw, False, c.hover)

    def _carry(self) -> np.ndarray:
        hand = self.hand
        if (goal := self.place()) is None:
            return self._action(hand.position + [0, 0, 0.06], hand.yaw, True)
        target, there = goal
        if there:
            self.closed = False
            return self._action(hand.position, hand.yaw, False)
        off = float(np.linalg.norm((target.position - hand.position)[:2]))
        turn = abs(nearest(hand.yaw, target.yaw, 2 * np.pi) - target.yaw)
        height = self.height(off + self.settings.turn * turn)
        return self._go(target.position + [0, 0, height], target.yaw, True, self.clear)

    def height(self, off: float) -> float:
        """Return the object's height above its goal at a horizontal error of ``off`` (m, turns included)."""
        return min(self.clear, self.place_slope * max(0.0, off - self.place_mouth))

    def _go(self, position: np.ndarray, yaw: float, closed: bool, clear: float) -> np.ndarray:
        """Move towards a point; sideways only as far as the gripper has reached its height."""
        hand = self.hand
        step = position - hand.position
        if step[2] > 0:
            step[:2] *= np.clip(1.2 - step[2] / (0.5 * clear), 0.0, 1.0)
        return self._action(hand.position + step, yaw, closed)

    def _action(self, position: np.ndarray, yaw: float, closed: bool) -> np.ndarray:
        """Return robosuite's action, each -1 to 1, for a step towards a pose, pointing down.  # float32 (7,)"""
        hand = self.hand
        yaw = nearest(yaw, hand.yaw, 2 * np.pi)
        turn, quaternion = np.zeros(3), np.zeros(4)
        mujoco.mju_mat2Quat(quaternion, (hand.level(yaw) @ hand.rotation.T).ravel())
        mujoco.mju_quat2Vel(turn, quaternion, 1.0)
        away = position - hand.position
        # friction stops an outstretched arm at commands of a few millimetres: command slightly more
        away = self.gain * away + _NUDGE * np.tanh(away / _NUDGE)
        step = np.concatenate([away, self.gain * turn]) / REACH
        for part, limit in ((step[:3], self.speed), (step[3:], 1.0)):
            part /= max(1.0, float(np.abs(part).max()) / limit)
        return np.append(step, 1.0 if closed else -1.0).astype(np.float32)

    def _pushed(self, holds: bool, grasp: Target) -> np.ndarray | None:
        hand, c, rng = self.hand, self.settings, self._rng
        assert rng is not None
        above = hand.position[2] - grasp.position[2]
        if self._will_miss and not self.closed and abs(above - self._miss_at) < 0.02:
            self._will_miss = False
            self._miss_left = int(rng.integers(c.miss_steps[0], c.miss_steps[1] + 1))
        if not self.closed and (push := self._grasped_askew(grasp, above)) is not None:
            return push
        if self._miss_left:  # closes on nothing, over the object
            self._miss_left -= 1
            self.push, self.closed = "miss", True
            return self._action(hand.position, hand.yaw, True)
        due = self._kick_left == self._slip_left == 0 and self._step in self._kick_at
        if due and (holds or not self.closed) and not self.placed():
            self._kick_left = int(rng.integers(c.kick_steps[0], c.kick_steps[1] + 1))
            push = rng.uniform(-1, 1, 3) * c.kick_size
            if not self.low:
                up = abs(push[2]) if above < 0.1 or holds else push[2]  # without collisions
                push = np.array([*(0.5 if above < 0.1 else 1.0) * push[:2], up])
            self._kick = push, 0.0 if holds else self.rough * float(rng.uniform(-c.kick_yaw, c.kick_yaw))
            if self.slips and holds and rng.random() < 0.5:
                self._kick_left, self._slip_left = 0, int(rng.integers(*_SLIP))
        if self._slip_left:  # a policy starts to release too early: demos must show how to continue
            self._slip_left -= 1
            self.push = "slip"
            return self._action(hand.position, hand.yaw, False)
        if self._kick_left:
            self._kick_left -= 1
            self.push, (push, turn) = "kick", self._kick
            if self.low:
                push = self._limited(push, above, holds)
            return self._action(hand.position + push, hand.yaw + turn, self.closed)
        return None

    def _grasped_askew(self, grasp: Target, above: float) -> np.ndarray | None:
        """Turn, descend and close at a wrong yaw, as a policy does that cannot see the object's yaw; then continue."""
        hand = self.hand
        off = float(np.linalg.norm((grasp.position - hand.position)[:2]))
        if self._askew is None:
            if self._wrong is None or off > _ASKEW_NEAR or above > 0.06 or hand.gap < 0.85 * hand.widest:
                return None
            self._askew, self._wrong = (grasp.yaw + self._wrong, _ASKEW_STEPS), None
        left = self._askew[1] - 1
        self._askew, self.push = (self._askew[0], left), "askew"
        yaw = nearest(self._askew[0], hand.yaw, np.pi)
        if left and abs(hand.yaw - yaw) > 0.1:
            return self._action(grasp.position + [0, 0, max(above, _OVER)], yaw, False)
        if left and (above > self.close_z or off > self._close_xy):
            return self._action(grasp.position, yaw, False)
        self._askew, self.closed = None, True
        return self._action(hand.position, hand.yaw, True)

    def _limited(self, push: np.ndarray, above: float, holds: bool) -> np.ndarray:
        """Limit a kick (3,): upwards with a held object, else down to just above the object, where policies misalign."""
        sideways = 0.5 if above < 0.1 and (holds or above < _OVER) else 1.0
        return np.array([*sideways * push[:2], abs(push[2]) if holds else max(push[2], _OVER - above)])
