"""examples/so101: the simulated arm behind emulated servos."""

import importlib
import os
from pathlib import Path

import numpy as np
import pytest

from s2robot.envs.real.emulator import servos as s

FOLDER = Path(__file__).resolve().parents[2] / "examples/so101"


@pytest.fixture
def arm(monkeypatch, tmp_path):
    """The example's modules, and a bus whose time passes in `advance` alone."""
    monkeypatch.syspath_prepend(FOLDER)
    so101, emulate = (importlib.import_module(name) for name in ("so101", "emulate"))
    scene = so101.Scene()
    scene.reset(1)
    bus = emulate.ArmBus(scene)
    bus.calibrate(tmp_path / "emulated.json", emulate.MARGIN)
    yield so101, emulate, scene, bus
    os.close(bus._terminal)  # never served


def send(bus, register, values):
    """Write a register of all servos by one packet; let a control step pass."""
    each = [[i, *int(value).to_bytes(register[1], "little")] for i, value in enumerate(values, 1)]
    data = [*register, *np.ravel(each)]
    body = bytes([s.ALL, len(data) + 2, s.SYNC_WRITE, *data])
    bus.take(b"\xff\xff" + body + bytes([~sum(body) & 0xFF]))
    for _ in range(20):
        bus.advance(0.005)


def test_the_emulated_arm_lifts_the_cube_where_the_experts_goals_are_written_to_the_bus(arm):
    so101, emulate, scene, bus = arm
    send(bus, s.TORQUE, [1] * 6)
    np.testing.assert_allclose(scene.measured[:5], so101.HOME, atol=0.05)  # sags a little
    expert = so101.Expert(scene)
    for _ in range(60):
        seen = emulate.from_ticks(np.array(bus.values(s.POSITION)))
        np.testing.assert_allclose(seen, scene.measured, atol=2e-3)
        send(bus, s.GOAL, np.round(emulate.to_ticks(expert.act())))
        if scene.success:
            break
    assert scene.success and scene.height > so101.LIFTED
    send(bus, s.TORQUE, [0] * 6)
    for _ in range(20):
        send(bus, s.TORQUE, [0] * 6)
    assert scene.height < 0.02  # without torque the arm falls
