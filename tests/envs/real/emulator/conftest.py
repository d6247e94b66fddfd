"""The vendor's unmodified SDK against the emulator."""

import logging

import pytest

from s2robot.envs.real.arms.sdk import client_ports


@pytest.fixture(scope="module")
def connect(emulator):
    """Connects the SDK to the emulator: `connect()`."""
    wrapper = pytest.importorskip("xarm.wrapper")
    logging.getLogger("xarm.core.utils.log").setLevel(logging.CRITICAL)

    def connect():
        arm = wrapper.XArmAPI("127.0.0.1", is_radian=True, forbid_uds=True)
        arm.set_timeout(10)
        return arm

    with client_ports(emulator.ports):
        yield connect
