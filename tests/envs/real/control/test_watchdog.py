"""Both sides of every limit, latched faults, and that no sequence of inputs leads out of FAULT."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2robot.envs.real.control.watchdog import UNSURE, Inputs, State, Watchdog, WatchdogLimits
from tests.errors import fails, refuses

GOOD = Inputs({"hand": 0.02, "left": 0.03}, state_age=0.01, mode=1)


def running() -> Watchdog:
    watchdog = Watchdog()
    assert watchdog.update(0.0, GOOD) == State.READY
    watchdog.start(0.0)
    assert watchdog.update(0.01, GOOD) == State.RUNNING
    return watchdog


@pytest.mark.parametrize(
    "change, state, reason",
    [
        ({"camera_age": {"hand": 0.02, "left": 0.15}}, State.RUNNING, None),
        ({"camera_age": {"hand": 0.02, "left": 0.16}}, State.HOLD, "camera left is stale"),
        *(({"camera_age": {"hand": age, "left": 0.02}}, State.FAULT, "camera hand is gone") for age in (0.51, np.nan)),
        ({"frozen_cameras": ("left",)}, State.FAULT, "camera left is frozen"),
        ({"state_age": 0.05}, State.RUNNING, None), ({"state_age": 0.06}, State.HOLD, "joint state is stale"),
        *(({"state_age": age}, State.FAULT, "joint state is gone") for age in (0.3, np.nan)),
        ({"policy_late": 0.2}, State.RUNNING, None), ({"policy_late": 0.3}, State.HOLD, "policy is late"),
        ({"policy_late": 1.1}, State.FAULT, "policy is gone"),
        ({"policy_error": "boom"}, State.FAULT, "policy: boom"), ({"code": 2}, State.FAULT, "command code 2"),
        ({"code": 1}, State.FAULT, "command code 1"), ({"code": -1000}, State.FAULT, "command code -1000"),
        ({"error": 31}, State.FAULT, "arm error 31"), ({"mode": 0}, State.FAULT, "mode 0, expected 1"),
        ({"connected": False}, State.FAULT, "connection lost"), ({"report_age": 1.6}, State.FAULT, "arm reports nothing"),
    ],
)  # fmt: skip
def test_each_limit(change, state, reason):
    watchdog = running()
    assert watchdog.update(0.02, replace(GOOD, **change)) == state
    assert watchdog.reasons == (() if reason is None else (reason,))


def test_disagreeing_members_hold_when_the_limit_is_set():
    assert running().update(0.02, replace(GOOD, disagreement=9.0)) == State.RUNNING  # off by default
    watchdog = Watchdog(WatchdogLimits(disagreement=0.05))
    assert watchdog.update(0.0, replace(GOOD, disagreement=9.0)) == State.READY  # from an earlier episode
    watchdog.start(0.0)
    assert watchdog.update(0.01, replace(GOOD, disagreement=0.05)) == State.RUNNING
    for unsure in (0.051, np.nan):
        assert watchdog.update(0.02, replace(GOOD, disagreement=unsure)) == State.HOLD
        assert watchdog.reasons == (UNSURE,)
        assert watchdog.update(0.03, GOOD) == State.RUNNING


def test_hold_ends_by_itself_and_fault_does_not():
    watchdog = running()
    assert watchdog.update(0.02, replace(GOOD, state_age=0.1)) == State.HOLD
    assert watchdog.update(0.03, GOOD) == State.RUNNING
    watchdog.update(0.04, replace(GOOD, error=1))
    assert [watchdog.update(t, GOOD) for t in (0.05, 10.0)] == [State.FAULT] * 2
    assert watchdog.reasons == ("arm error 1",)
    watchdog.fault(11.0, "another")
    watchdog.pause(11.0)
    assert watchdog.reasons == ("arm error 1",)
    history = [(0.0, "ready"), (0.0, "running"), (0.02, "hold"), (0.03, "running"), (0.04, "fault")]
    assert [(t, state.value) for t, state, _ in watchdog.history] == history
    watchdog.clear(12.0)
    assert watchdog.state == State.IDLE  # it does not resume at once
    assert watchdog.update(12.1, GOOD) == State.READY


def test_holding_too_long_is_a_fault():
    watchdog = running()
    assert watchdog.update(1.0, replace(GOOD, state_age=0.1)) == State.HOLD
    states = [watchdog.update(t, replace(GOOD, policy_late=0.5)) for t in (5.9, 6.1)]
    assert states == [State.HOLD, State.FAULT]
    assert watchdog.reasons == ("held for more than 5 s", "policy is late")


def test_before_the_start_a_camera_may_be_missing_but_an_error_may_not():
    watchdog = Watchdog()
    assert watchdog.update(0.0, replace(GOOD, camera_age={"hand": np.inf})) == State.IDLE
    fails("got idle \\(camera hand is stale\\)", watchdog.start, 0.0)
    assert watchdog.update(0.1, replace(GOOD, mode=0)) == State.READY
    assert watchdog.update(0.2, replace(GOOD, error=1)) == State.FAULT
    fails("got fault", watchdog.start, 0.3)


inputs = st.builds(
    Inputs, camera_age=st.dictionaries(st.sampled_from(["hand", "left"]), st.floats()), state_age=st.floats(),
    policy_late=st.floats(), policy_error=st.sampled_from(["", "x"]), code=st.sampled_from([0, 1, 2, 3, 9, -1]),
    error=st.sampled_from([0, 31]), mode=st.sampled_from([0, 1]), connected=st.booleans(), report_age=st.floats(),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 10), inputs), max_size=20))
def test_only_clear_leaves_fault_and_only_start_leads_to_motion(steps):
    watchdog = Watchdog()
    for now, given_inputs in steps:
        assert watchdog.update(now, given_inputs) not in (State.RUNNING, State.HOLD)
    watchdog = running()
    faulted = False
    for now, given_inputs in steps:
        state = watchdog.update(now, given_inputs)
        assert state in ((State.FAULT,) if faulted else (State.RUNNING, State.HOLD, State.FAULT))
        faulted |= state == State.FAULT


@pytest.mark.parametrize(
    "wrong",
    [*({key: 0.0} for key in WatchdogLimits.model_fields), {"state_fault": np.nan}, {"policy_hold": 2.0}],
)
def test_invalid_limits_are_rejected_by_name(wrong):
    refuses(f"^bridge.watchdog.{next(iter(wrong))}", WatchdogLimits, **wrong)
