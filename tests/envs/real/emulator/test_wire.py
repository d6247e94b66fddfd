"""Frames: own code against itself, and against the vendor SDK's own decoder."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s2robot.envs.real.emulator import wire

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)
requests = st.builds(
    wire.Request,
    transaction=st.integers(0, 65535),
    protocol=st.sampled_from([0, 1, 2, 3]),
    function=st.integers(0, 255),
    payload=st.binary(max_size=200),
)


def pack(r: wire.Request) -> bytes:
    return wire.HEADER.pack(r.transaction, r.protocol, len(r.payload) + 1, r.function) + r.payload


@patient
@given(st.lists(requests, max_size=5), st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_requests_survive_any_cut_of_the_stream(sent, sizes):
    stream, buffer, received, i = b"".join(map(pack, sent)), bytearray(), [], 0
    while stream:
        size = sizes[i % len(sizes)]
        buffer += stream[:size]
        stream, i = stream[size:], i + 1
        received += wire.split_frames(buffer)
    assert received == sent and not buffer


@patient
@given(st.binary(max_size=300))
def test_garbage_is_a_wire_error_or_frames(data):
    buffer = bytearray(data)
    try:
        frames = wire.split_frames(buffer)
    except wire.WireError:
        return
    assert b"".join(map(pack, frames)) + bytes(buffer) == data


def test_reply_to_golden_bytes():
    (request,) = wire.split_frames(bytearray.fromhex("0007 0002 0002 0f 08"))
    assert wire.reply(request, 0x50, b"\x1f\x00").hex(" ") == "00 07 00 02 00 04 0f 50 1f 00"
    assert wire.modbus_exception(request).hex(" ") == "00 07 00 00 00 03 0f 88 01"


def test_the_sdk_decodes_our_report():
    report = pytest.importorskip("xarm.x3.report").ReportDataStructure.create(30002, is_radian=True)
    rng = np.random.default_rng(0)
    motion = {
        "joints": rng.normal(size=7), "torques": rng.normal(size=7),
        "velocities": rng.normal(size=7), "tcp_speed": 0.25,
    }  # fmt: skip
    r = SimpleNamespace(
        mode=6, state=2, queued=3, error=31, warning=11, enabled=0x7F, collision_sensitivity=4, reduced=True, fence=True,
        boundary=(500, -500, 400, -400, 600, -10), reduced_tcp_speed=250.0, reduced_joint_speed=0.5,
        reduced_ranges=rng.normal(size=14), self_collision=True, reported=lambda: motion,
    )  # fmt: skip
    frame = wire.report_rich(r)
    assert len(frame) == 587 == len(report)
    report.update(frame)
    exact = {
        "data_size": 587, "mode": 6, "state": 2, "cmd_num": 3, "error_code": 31, "warn_code": 11,
        "motor_enable_status": 0x7F, "collision_sens": 4, "version": "v2.5.5", "robot_axis": 7, "is_reduced_mode": True,
        "is_fence_mode": True, "is_simulation_robot": False, "reduced_tcp_boundary": [[-500, 500], [-400, 400], [-10, 600]],
    }  # fmt: skip
    assert {name: getattr(report, name) for name in exact} == exact
    close = {
        "actual_joint_angle": motion["joints"], "actual_tcp_pose": wire.pose_of(motion["joints"]), "tcp_payload": [0.82, 0, 0, 48],
        "estimated_joint_torque": motion["torques"], "target_joint_speed": motion["velocities"], "target_tcp_speed": 250,
        "reduced_joint_max_speed": 0.5, "reduced_joint_limits": r.reduced_ranges.reshape(7, 2),
    }  # fmt: skip
    for name, value in close.items():
        np.testing.assert_allclose(getattr(report, name), value, rtol=1e-6, err_msg=name)
