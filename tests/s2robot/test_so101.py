"""examples/so101: the simulated arm behind emulated servos."""

import importlib
import os
from pathlib import Path

import numpy as np

from s2robot.envs.real.emulator import servos as s

FOLDER = Path(__file__).resolve().parents[2] / "examples/so101"


def send(bus, register, values):
    """Write a register of all servos by one packet; let a control step pass."""
    each = [[i, *int(value).to_bytes(register[1], "little")] for i, value in enumerate(values, 1)]
    body = bytes([s.ALL, len(np.ravel(each)) + 4, s.SYNC_WRITE, *register, *np.ravel(each)])
    bus.take(b"\xff\xff" + body + bytes([~sum(body) & 0xFF]))
    for _ in range(20):
        bus.advance(0.005)


def test_emulated_arm_lifts_the_cube_with_the_expert_goals_and_falls_without_torque(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FOLDER)
    so101, emulate = (importlib.import_module(name) for name in ("so101", "emulate"))
    scene = so101.Scene()
    scene.reset(1)
    bus = emulate.ArmBus(scene)  # never served: time passes in `advance` alone
    os.close(bus._terminal)
    bus.calibrate(tmp_path / "emulated.json", emulate.MARGIN)
    send(bus, s.TORQUE, [1] * 6)
    np.testing.assert_allclose(scene.measured[:5], so101.HOME, atol=0.05)  # sags a little
    expert = so101.Expert(scene)
    for _ in range(60):
        seen = emulate.from_ticks(np.array(bus.values(s.POSITION)))
        np.testing.assert_allclose(seen, scene.measured, atol=2e-3)
        if not scene.success:
            send(bus, s.GOAL, np.round(emulate.to_ticks(expert.act())))
    assert scene.success and scene.height > so101.LIFTED
    for _ in range(20):
        send(bus, s.TORQUE, [0] * 6)
    assert scene.height < 0.02  # without torque the arm falls
