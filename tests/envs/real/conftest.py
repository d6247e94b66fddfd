"""Fixtures: the emulated control box with the vendor's SDK connected to it, and an arm in virtual time."""

import time

import pytest

from s2robot.envs.real.arms.xarm import XArmDriver
from s2robot.envs.real.emulator.emulator import launch
from tests.envs.real.home import HOME
from tests.envs.real.patience import PATIENCE
from tests.envs.real.virtual import FakeArm, VirtualClock


@pytest.fixture(scope="module")
def emulator():
    with launch("kinematic") as emulator:
        yield emulator


@pytest.fixture
def driver(emulator, monkeypatch):
    monkeypatch.setattr("s2robot.envs.real.arms.xarm.WIRE_TIMEOUT", 5.0)
    monkeypatch.setattr("s2robot.envs.real.arms.xarm.GRIPPER_LOST", PATIENCE)
    emulator.side("clear")
    emulator.side("place_arm", joints=HOME.tolist())
    with XArmDriver("127.0.0.1", ports=emulator.ports) as driver:
        driver.connect(PATIENCE)
        driver._sdk.clean_error()  # left by an earlier test; the driver never clears errors
        end = time.monotonic() + PATIENCE
        while driver.read().error and time.monotonic() < end:  # an old report may still arrive
            time.sleep(0.05)
        yield driver
    emulator.side("clear")


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
def arm(clock):
    return FakeArm(clock)
