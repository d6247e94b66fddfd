"""Generous time limits, so that tests in real time pass on a busy machine."""

import time

from s2robot.envs.real.control.watchdog import WatchdogLimits

PATIENCE = 120.0  # s
CALM = WatchdogLimits(
    camera_hold=3.0, camera_fault=9.0, state_hold=3.0, state_fault=9.0, policy_hold=3.0, policy_fault=9.0,
    hold_fault=30.0, report_fault=30.0,
)  # fmt: skip


def wait_for(condition, what="it"):
    """Wait until `condition()` is true; fail after PATIENCE seconds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} did not come true"
        time.sleep(0.01)


def arrived(emulator, since=0.0, kind="motion"):
    """Return the commands that have reached the box since a time, including those of earlier tests."""
    return [c for c in emulator.side("commands", since=since)["commands"] if c["kind"] == kind]
