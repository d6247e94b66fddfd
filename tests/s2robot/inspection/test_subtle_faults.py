"""Misleading data: each fault planted at three strengths is found with its size, and clean data have no findings."""

import numpy as np
import pytest

from s2robot.inspection.findings import Thresholds
from s2robot.inspection.subtle_faults import subtle_faults
from s2robot.inspection.tables import Columns, FrameStats, Table

EPISODES, STEPS, JOINTS = 20, 80, 3


class Data:
    """An arm moves from home to one goal per episode and rests there; commands lead by one step; one camera."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        t = np.linspace(0, 1, STEPS - 20)
        rise = np.concatenate([t**2 * (3 - 2 * t), np.ones(20)])[:, None]
        goals = rng.uniform(-1, 1, (EPISODES, JOINTS))
        wave = 0.15 * np.sin(12 * rise * rng.uniform(0.8, 1.2, (EPISODES, 1, JOINTS)))
        self.state = rise * goals[:, None] + wave * rise + rng.normal(0, 1e-4, (EPISODES, STEPS, JOINTS))
        lead = np.concatenate([self.state[:, 1:], self.state[:, -1:]], 1)
        self.action = lead + rng.normal(0, 1e-3, lead.shape)
        speed = np.abs(np.diff(self.state, axis=1)).sum(2)
        change = 20 * speed + rng.uniform(0, 0.3, speed.shape)
        self.change = np.pad(change, ((0, 0), (1, 0)), constant_values=255.0)
        self.lengths = np.full(EPISODES, STEPS)

    def findings(self):
        names = [f"joint {i}" for i in range(JOINTS)]

        def table(key, values):
            rows = np.concatenate([v[:n] for v, n in zip(values, self.lengths, strict=True)])
            return Table(key, names, [Columns("joints", slice(0, JOINTS), "absolute")], rows)

        seen = zip(self.change, self.lengths, strict=True)
        frames = [{"hand": FrameStats(c[:n], np.full(n, 99.0), np.full(n, 40.0))} for c, n in seen]
        tables = [table("action", self.action), table("proprio", self.state)]
        return list(subtle_faults(tables, np.cumsum(self.lengths), frames, Thresholds()))


def only_findings(data, kind):
    findings = data.findings()
    assert {f.kind for f in findings} == {kind}, findings
    return findings


def test_clean_data_have_no_findings():
    assert [f for seed in range(20) for f in Data(seed).findings()] == []


@pytest.mark.parametrize("offset", [0.1, 0.3, 1.0])
def test_constant_offset_between_action_and_state(offset):
    data = Data(0)
    data.action[..., 1] += offset
    (one,) = only_findings(data, "offset")
    assert one.text.startswith("joint 1: ") and float(one.text.split()[2]) == pytest.approx(offset, rel=0.05)


@pytest.mark.parametrize("odd", [slice(3, 4), slice(0, 5), slice(None, None, 2)])
def test_offset_in_some_episodes(odd):
    data = Data(0)
    data.action[odd, :, 1] += 0.4
    findings = only_findings(data, "offset")
    assert [f.episode for f in findings] == [*range(EPISODES)][odd]
    assert float(findings[0].text.split()[2]) == pytest.approx(0.4, rel=0.05)


@pytest.mark.parametrize("lag", [2, 5, -8, 12])
def test_video_that_is_late_or_early(lag):
    data = Data(1)
    data.change[:, 1:] = np.roll(data.change[:, 1:], lag, axis=1)
    (one,) = only_findings(data, "late")
    size = f"{abs(lag)}{'+' * (lag == 12)}"
    assert one.text.startswith(f"camera hand: {size} steps {'late' if lag > 0 else 'early'}")


def test_late_video_that_follows_the_state_loosely():
    data, rng = Data(1), np.random.default_rng(0)
    data.state += rng.normal(0, 0.05, data.state.shape)
    late = np.roll(np.abs(np.diff(data.state, axis=1)).sum(2), 5, axis=1)
    data.change[:, 1:] = 20 + 3 * (late / late.std() + rng.normal(0, 3.5, late.shape))  # correlation 0.27
    (one,) = [f for f in data.findings() if f.kind == "late"]
    assert one.text.startswith("camera hand: 5 steps late")


@pytest.mark.parametrize(("noise", "lost"), [(0.0, 0), (1e-3, 0), (5e-3, 0), (0.0, 1), (0.0, 3), (0.0, 15)])
def test_copy_of_an_episode_with_noise_or_without_its_first_steps(noise, lost):
    data = Data(2)
    rng = np.random.default_rng(0)
    for values, size in ((data.state, noise), (data.action, noise), (data.change, 0)):
        values[13, : STEPS - lost] = values[4, lost:] + rng.normal(0, size, values[4, lost:].shape)
    data.lengths[13] -= lost
    (one,) = only_findings(data, "duplicate")
    whole = f"{STEPS - lost} of {STEPS - lost} steps are those of episode 4"
    assert one.episode == 13 and one.text.startswith(whole if lost > 1 else "nearly episode 4: ")


@pytest.mark.parametrize("factor, name", [(57.29578, "degrees for radians"), (1e3, "mm for m"), (1 / 12, "")])
def test_episode_in_other_units(factor, name):
    data = Data(3)
    data.state[5] *= factor
    data.action[5] *= factor
    findings = only_findings(data, "units")
    assert {f.episode for f in findings} == {5} and len(findings) == 2
    for one in findings:
        measured = float(one.text.split(": ")[1].split()[0])
        assert measured == pytest.approx(factor, rel=0.6) and name in one.text


def test_half_of_the_episodes_in_mm():
    data = Data(3)
    for values in (data.state, data.action):
        values[::2] *= 1000
    assert {f.episode for f in data.findings() if f.kind == "units"} == {*range(0, EPISODES, 2)}


def test_sensor_that_is_dead_in_one_episode():
    data = Data(4)
    data.state[7, :, 2] = data.state[7, 0, 2]
    data.lengths[5] = 1
    (one,) = [f for f in data.findings() if f.kind == "dead"]
    assert (one.episode, one.text) == (7, "proprio joint 2: one value for the whole episode")


@pytest.mark.parametrize("steps", [20, 30, 40])
def test_episode_that_ends_before_the_arm_is_at_rest(steps):
    data = Data(5)
    data.lengths[9] = steps
    (one,) = only_findings(data, "ends early")
    assert one.episode == 9 and "times its mean speed" in one.text
