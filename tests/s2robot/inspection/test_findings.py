"""What is odd in a data set: each kind planted in one that is clean."""

import numpy as np
import pytest

from s2robot.inspection.findings import FrameStats, Thresholds, find, unchecked_kinds
from s2robot.inspection.tables import Columns, Table

EPISODES, STEPS = 5, 40
ALL = slice(None)


def rows(episode: int, first: int, steps: int = STEPS) -> slice:
    """So many steps of an episode, to its end by default."""
    return slice(episode * STEPS + first, min(episode * STEPS + first + steps, (episode + 1) * STEPS))


class Data:
    """A clean recording: a state that swings, a gripper that closes half way, pictures that change."""

    def __init__(self) -> None:
        t = np.arange(EPISODES * STEPS)
        self.ends = np.arange(1, EPISODES + 1) * STEPS
        self.state = np.stack([np.sin(t / 6), 0.1 * np.cos(t / 9)], 1)
        self.action = np.stack([np.cos(t / 6) / 6, (t % STEPS > STEPS // 2).astype(float)], 1)
        self.times = t[:, None] % STEPS / 10
        levels = (3.0, 120.0, 40.0)
        self.pictures = [{"hand": FrameStats(*(np.full(STEPS, x) for x in levels))} for _ in range(EPISODES)]

    def set(self, name: str, at: slice, column: int, value) -> None:
        getattr(self, name)[at, column] = value

    def add(self, name: str, at: slice, column: int, value) -> None:
        getattr(self, name)[at, column] += value

    def show(self, episode: int, steps: slice, **stats: float) -> None:
        for name, value in stats.items():
            getattr(self.pictures[episode]["hand"], name)[steps] = value

    def keep(self, steps: slice) -> None:
        """One episode alone, of these steps."""
        self.state, self.action, self.times = self.state[steps], self.action[steps], self.times[steps]
        self.ends, self.pictures = np.array([len(self.times)]), self.pictures[:1]

    def found(self, **changes):
        limits = np.array([[-0.2], [0.2]])
        parts = [Columns("turn", slice(0, 1), "delta", limits), Columns("grip", slice(1, 2), "binary")]
        tables = [
            Table("action", ["turn", "grip"], parts, self.action),
            Table("proprio", ["angle", "height"], [Columns("proprio", slice(0, 2), "absolute")], self.state),
            Table("timestamp", ["timestamp"], [Columns("timestamp", slice(0, 1), "")], self.times),
        ]
        return find(tables, self.ends, 10.0, self.pictures, Thresholds(**changes))


@pytest.mark.parametrize(
    ("plant", "kind", "where", "text"),
    [
        (lambda d: d.set("action", rows(2, 7, 2), 0, np.nan), "no number", (2, 7, 2), "action: turn"),
        (lambda d: d.set("action", rows(2, 7, 2), 0, np.inf), "no number", (2, 7, 2), "action: turn"),
        (lambda d: d.show(3, slice(11, 15), change=0), "frozen", (3, 10, 5), "camera hand: one image for 5"),
        (lambda d: d.show(1, slice(5, 8), mean=1, deviation=1), "blank", (1, 5, 3), "camera hand: black"),
        (lambda d: d.show(1, slice(5, 8), mean=254, deviation=2), "blank", (1, 5, 3), "camera hand: overexposed"),
        (lambda d: d.show(1, slice(5, 8), mean=90, deviation=0.2), "blank", (1, 5, 3), "camera hand: of one colour"),
        (lambda d: d.add("state", rows(4, 20), 1, 0.15), "jump", (4, 20), "height: by 0.1"),
        (lambda d: d.set("state", ALL, 1, 0.5), "constant", (None,), "proprio: height (0.5)"),
        (lambda d: d.set("action", rows(1, 3, 10), 0, np.float32(0.2)), "saturated", (1, 3, 10), "turn: "),
        (lambda d: d.add("times", rows(1, 9), 0, 0.2), "clock", (1, 9), "timestamp: 2 dropped"),
        (lambda d: d.add("times", rows(1, 9), 0, -0.06), "clock", (1, 9), "timestamp: irregular"),
        (lambda d: d.add("times", rows(1, 9), 0, -0.15), "clock", (1, 9), "timestamp: runs backwards"),
        (lambda d: d.set("action", rows(3, 0), 1, 0), "gripper", (3,), "grip never closes"),
        (lambda d: d.set("action", rows(3, 0), 1, 1), "gripper", (3,), "grip never opens"),
    ],
)  # fmt: skip
def test_what_is_planted_is_found_alone(plant, kind, where, text):
    data = Data()
    plant(data)
    (found,) = data.found()
    assert (found.kind, (found.episode, found.step, found.steps)[: len(where)]) == (kind, where)
    assert text in found.text


@pytest.mark.parametrize(
    ("plant", "limits"),
    [
        (lambda d: d.show(0, ALL, mean=252, deviation=17), {}),  # a drawing on white or black is not blank
        (lambda d: d.show(2, ALL, mean=3, deviation=17), {}),
        # three fast steps in a row: an arm that is swung, or pushed
        (lambda d: d.add("state", rows(4, 20), 1, np.minimum(np.arange(20) + 1, 3) * 0.08), {}),
        (lambda d: d.set("state", ALL, 1, d.action[:, 1]), {}),  # what every episode does is no jump, however fast
        (lambda d: (d.keep(rows(0, 0)), d.add("state", slice(20, 40), 1, 5)), {}),  # there is nothing to jump beside
        (lambda d: d.set("action", rows(1, 3, 10), 0, np.float32(0.2)), {"saturated_steps": 11}),
    ],
)  # fmt: skip
def test_what_is_usual_is_not_odd(plant, limits):
    data = Data()
    plant(data)
    assert data.found(**limits) == []


def test_frozen_pictures_count_only_while_the_state_moves_and_many_in_an_episode_are_one():
    data = Data()
    for t in range(1, 36, 5):
        data.show(3, slice(t, t + 4), change=0)
    (found,) = data.found(frozen_motion=0.0)
    assert (found.episode, found.step) == (3, 0) and found.text.endswith("; 6 times more until step 34")
    data.state[rows(3, 0)] = data.state[3 * STEPS]
    assert not [f for f in data.found(jump_times=100) if f.kind == "frozen"]


def test_a_number_that_is_none_neither_hides_nor_makes_a_finding():
    data = Data()
    data.show(3, slice(11, 15), change=0)
    data.state[3 * STEPS + 12, 1] = np.nan
    data.action[0, 1], data.action[2 * STEPS + 3, 1] = np.nan, np.inf  # this gripper closes all the same
    data.action[4 * STEPS :, 1] = 1
    data.action[4 * STEPS, 1] = np.nan
    found = [(f.kind, f.episode, f.step) for f in data.found() if f.kind != "jump"]
    assert found == [
        ("no number", 0, 0), ("no number", 2, 3), ("no number", 3, 12), ("no number", 4, 0), ("frozen", 3, 10),
        ("gripper", 4, 0),
    ]  # fmt: skip
    data.set("action", rows(1, 0), 1, np.nan)  # what it did is not known
    assert [(f.episode, f.steps) for f in data.found() if f.kind == "gripper"] == [(4, STEPS)]
    data.set("action", ALL, 1, np.nan)
    assert not [f for f in data.found() if f.kind == "gripper"]


@pytest.mark.parametrize("turn", [2 * np.pi, 360.0])
def test_an_angle_that_wraps_is_not_a_jump(turn):
    data = Data()
    t = np.arange(EPISODES * STEPS)
    data.state[:, 0] = (0.2 + np.sin(t / 6)) * turn / 20 % turn  # a little to both sides of 0
    assert np.ptp(data.state[:, 0]) > 0.9 * turn and data.found() == []
    data.state[3 * STEPS + 10 :, 0] = (data.state[3 * STEPS + 10 :, 0] + turn / 3) % turn
    assert [(f.kind, f.episode) for f in data.found()] == [("jump", 3)]


@pytest.mark.parametrize("steps", [10, 120])
def test_far_shorter_or_longer_episodes(steps):
    data = Data()
    data.keep(
        np.append(np.arange(2 * STEPS), np.resize(np.arange(STEPS), steps))
    )  # repeated where it is longer
    data.ends, data.pictures = np.array([STEPS, 2 * STEPS, 2 * STEPS + steps]), []
    data.times[2 * STEPS :, 0], data.action[-1, 1] = np.arange(steps) / 10, 1
    found = data.found(jump_times=100)
    assert [(f.kind, f.episode, f.text) for f in found] == [("length", 2, f"{steps} steps, the median is 40")]


def test_what_cannot_be_looked_for_is_told():
    targets = Table("action", ["turn"], [Columns("turn", slice(0, 1), "absolute")], np.zeros((8, 1)))
    kinds = {"frozen, blank", "clock", "jump", "saturated", "gripper"}
    assert unchecked_kinds([targets], np.array([8]), []).keys() == kinds
