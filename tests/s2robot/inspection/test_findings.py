"""What is odd in a data set: each kind planted in one that is clean."""

import numpy as np
import pytest

from s2robot.inspection.findings import FrameStats, Thresholds, find, unchecked_kinds
from s2robot.inspection.tables import Columns, Table

EPISODES, STEPS = 5, 40


class Data:
    """A clean recording: a state that swings, a gripper that closes half way, pictures that change."""

    def __init__(self) -> None:
        t = np.arange(EPISODES * STEPS)
        self.ends = np.arange(1, EPISODES + 1) * STEPS
        self.state = np.stack([np.sin(t / 6), 0.1 * np.cos(t / 9)], 1)
        self.action = np.stack([np.cos(t / 6) / 6, (t % STEPS > STEPS // 2).astype(float)], 1)
        self.times = t % STEPS / 10
        levels = (3.0, 120.0, 40.0)
        self.pictures = [{"hand": FrameStats(*(np.full(STEPS, x) for x in levels))} for _ in range(EPISODES)]

    def found(self, **changes):
        limits = np.array([[-0.2], [0.2]])
        parts = [Columns("turn", slice(0, 1), "delta", limits), Columns("grip", slice(1, 2), "binary")]
        tables = [
            Table("action", ["turn", "grip"], parts, self.action),
            Table("proprio", ["angle", "height"], [Columns("proprio", slice(0, 2), "absolute")], self.state),
            Table("timestamp", ["timestamp"], [Columns("timestamp", slice(0, 1), "")], self.times[:, None]),
        ]
        return find(tables, self.ends, 10.0, self.pictures, Thresholds(**changes))


def planted(kind, data):
    """The one finding that is there, of this kind."""
    found = data.found()
    assert [f.kind for f in found] == [kind], found
    return found[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_number(bad):
    data = Data()
    data.action[2 * STEPS + 7 : 2 * STEPS + 9, 0] = bad
    found = planted("no number", data)
    assert (found.episode, found.step, found.steps, found.text) == (2, 7, 2, "action: turn")


def test_frozen_pictures_count_only_while_the_state_moves():
    data = Data()
    data.pictures[3]["hand"].change[11:15] = 0  # steps 11 to 14 show the picture of step 10
    found = planted("frozen", data)
    assert (found.episode, found.step, found.steps) == (3, 10, 5)
    assert "camera hand: one image for 5" in found.text
    data.state[3 * STEPS + 10 : 3 * STEPS + 15] = data.state[3 * STEPS + 10]
    assert not [f for f in data.found(jump_times=100) if f.kind == "frozen"]


def test_a_number_that_is_none_neither_hides_nor_makes_a_finding():
    data = Data()
    data.pictures[3]["hand"].change[11:15] = 0
    data.state[3 * STEPS + 12, 1] = np.nan
    data.action[0, 1], data.action[2 * STEPS + 3, 1] = np.nan, np.inf  # this gripper closes all the same
    data.action[4 * STEPS :, 1] = 1
    data.action[4 * STEPS, 1] = np.nan
    found = [(f.kind, f.episode, f.step) for f in data.found() if f.kind != "jump"]
    assert found == [
        ("no number", 0, 0), ("no number", 2, 3), ("no number", 3, 12), ("no number", 4, 0), ("frozen", 3, 10),
        ("gripper", 4, 0),
    ]  # fmt: skip
    data.action[STEPS : 2 * STEPS, 1] = np.nan  # what it did is not known
    assert [(f.episode, f.steps) for f in data.found() if f.kind == "gripper"] == [(4, STEPS)]
    data.action[:, 1] = np.nan
    assert not [f for f in data.found() if f.kind == "gripper"]


def test_many_alike_in_an_episode_are_one():
    data = Data()
    for t in range(1, 36, 5):
        data.pictures[3]["hand"].change[t : t + 4] = 0
    (found,) = data.found(frozen_motion=0.0)
    assert (found.episode, found.step) == (3, 0) and found.text.endswith("; 6 times more until step 34")


@pytest.mark.parametrize(
    ("mean", "deviation", "what"), [(1, 1, "black"), (254, 2, "overexposed"), (90, 0.2, "of one colour")]
)
def test_blank_pictures(mean, deviation, what):
    data = Data()
    data.pictures[1]["hand"].mean[5:8], data.pictures[1]["hand"].deviation[5:8] = mean, deviation
    for place, ground in ((0, 252), (2, 3)):  # a drawing on white or black is not blank
        data.pictures[place]["hand"].mean[:], data.pictures[place]["hand"].deviation[:] = ground, 17
    found = planted("blank", data)
    assert (found.episode, found.step, found.steps, found.text) == (1, 5, 3, f"camera hand: {what}")


@pytest.mark.parametrize("turn", [2 * np.pi, 360.0])
def test_an_angle_that_wraps_is_not_a_jump(turn):
    data = Data()
    t = np.arange(EPISODES * STEPS)
    data.state[:, 0] = (0.2 + np.sin(t / 6)) * turn / 20 % turn  # a little to both sides of 0
    assert np.ptp(data.state[:, 0]) > 0.9 * turn and data.found() == []
    data.state[3 * STEPS + 10 :, 0] = (data.state[3 * STEPS + 10 :, 0] + turn / 3) % turn
    assert planted("jump", data).episode == 3


def test_a_jump_is_large_beside_what_the_number_does_in_other_episodes():
    data = Data()
    data.state[4 * STEPS + 20 :, 1] += 0.15
    found = planted("jump", data)
    assert (found.episode, found.step) == (4, 20) and found.text.startswith("height: by 0.1")
    swung = Data()  # three fast steps in a row: an arm that is swung, or pushed
    swung.state[4 * STEPS + 20 :, 1] += np.minimum(np.arange(20) + 1, 3) * 0.08
    assert swung.found() == []
    closing = Data()  # what every episode does is no jump, however fast
    closing.state[:, 1] = closing.action[:, 1]
    assert closing.found() == []
    alone = Data()  # one episode has nothing to jump beside
    alone.state, alone.action, alone.times = alone.state[:STEPS], alone.action[:STEPS], alone.times[:STEPS]
    alone.ends, alone.pictures = alone.ends[:1], alone.pictures[:1]
    alone.state[20:, 1] += 5
    assert alone.found() == []
    constant = Data()
    constant.state[:, 1] = 0.5
    assert (planted("constant", constant).episode, planted("constant", constant).text) == (
        None,
        "proprio: height (0.5)",
    )


def test_saturated_actions():
    data = Data()
    data.action[STEPS + 3 : STEPS + 13, 0] = np.float32(0.2)
    found = planted("saturated", data)
    assert (found.episode, found.step, found.steps) == (1, 3, 10) and found.text.startswith("turn: ")
    assert data.found(saturated_steps=11) == []


@pytest.mark.parametrize(
    ("shift", "what"), [(0.2, "2 dropped"), (-0.06, "irregular"), (-0.15, "runs backwards")]
)
def test_time_stamps(shift, what):
    data = Data()
    data.times[STEPS + 9 : 2 * STEPS] += shift
    found = planted("clock", data)
    assert (found.episode, found.step) == (1, 9) and f"timestamp: {what}" in found.text


def test_a_gripper_that_never_closes_or_opens():
    data = Data()
    for value, text in enumerate(("grip never closes", "grip never opens")):
        data.action[3 * STEPS : 4 * STEPS, 1] = value
        assert (planted("gripper", data).episode, planted("gripper", data).text) == (3, text)


@pytest.mark.parametrize("steps", [10, 120])
def test_far_shorter_or_longer_episodes(steps):
    data = Data()
    data.ends = np.array([STEPS, 2 * STEPS, 2 * STEPS + steps])
    for name in ("state", "action", "times"):
        values = getattr(data, name)
        own = np.resize(values[:STEPS], (steps, *values.shape[1:]))  # repeated where it is longer
        setattr(data, name, np.concatenate([values[: 2 * STEPS], own]))
    data.times[2 * STEPS :] = np.arange(steps) / 10
    data.action[-1, 1], data.pictures = 1, []
    found = data.found(jump_times=100)
    assert [(f.kind, f.episode, f.text) for f in found] == [("length", 2, f"{steps} steps, the median is 40")]


def test_what_cannot_be_looked_for_is_told():
    targets = Table("action", ["turn"], [Columns("turn", slice(0, 1), "absolute")], np.zeros((8, 1)))
    assert unchecked_kinds([targets], np.array([8]), []) == {
        "frozen, blank": "no videos were made",
        "clock": "no key timestamp or timestamps or time",
        "jump": "no key proprio",
        "saturated": "no limits of the action are known",
        "gripper": "no part is binary or called so",
    }
