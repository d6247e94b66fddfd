"""Frames: own code against itself, and against the vendor SDK's own decoder."""

import struct

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
    return wire.request(r.transaction, r.function, r.payload, r.protocol)


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


@pytest.mark.parametrize("header", ["000100090001 01", "000100020000 01", "00010002ffff 01"])
def test_impossible_headers_are_refused(header):
    with pytest.raises(wire.WireError, match="found .* expected"):
        wire.split_frames(bytearray.fromhex(header))


def test_reply_to_golden_bytes():
    (request,) = wire.split_frames(bytearray.fromhex("0007 0002 0002 0f 08"))
    assert wire.reply(request, 0x50, b"\x1f\x00").hex(" ") == "00 07 00 02 00 04 0f 50 1f 00"
    assert wire.modbus_exception(request).hex(" ") == "00 07 00 00 00 03 0f 88 01"


def test_servo_j_as_the_sdk_sends_it():
    sdk_bytes = bytes.fromhex("0003 0003 0029 1d") + struct.pack("<10f", *range(10))
    (request,) = wire.split_frames(bytearray(sdk_bytes))
    assert request.function == wire.Fn.SERVO_J
    assert wire.floats(request.payload, 7).tolist() == list(range(7))
    with pytest.raises(wire.WireError, match="found 40 bytes, expected at least 44"):
        wire.floats(request.payload, 11)


def an_example() -> wire.Report:
    rng = np.random.default_rng(0)
    return wire.Report(
        mode=6, state=2, commands=3, error=31, warning=11, enabled=0x7F, brakes=0x7F,
        joints=rng.normal(size=7), pose=np.array([0.4, -0.1, 0.25, 3.1, 0.0, -0.2]), torques=rng.normal(size=7),
        velocities=rng.normal(size=7), tcp_speed=0.25, tcp_offset=np.array([0, 0, 172.0, 0, 0, 0.5]),
        load=np.array([0.8, 0, 0, 50]), collision_sensitivity=4, teach_sensitivity=2, reduced=True, fence=True,
        boundary=(500, -500, 400, -400, 600, -10), reduced_joint_speed=0.5, reduced_ranges=rng.normal(size=14),
    )  # fmt: skip


@pytest.mark.parametrize(
    "port, pack_report, size",
    [(30001, wire.report_normal, 145), (30002, wire.report_rich, 587), (30003, wire.report_real, 135)],
)
def test_the_sdk_decodes_our_reports(port, pack_report, size):
    report = pytest.importorskip("xarm.x3.report").ReportDataStructure.create(port, is_radian=True)
    r = an_example()
    frame = pack_report(r)
    assert len(frame) == size == len(report)
    report.update(frame)
    assert (report.data_size, report.mode, report.state, report.cmd_num) == (size, 6, 2, 3)
    np.testing.assert_allclose(report.actual_joint_angle, r.joints, rtol=1e-6)
    np.testing.assert_allclose(report.actual_tcp_pose, [400, -100, 250, 3.1, 0, -0.2], rtol=1e-6)
    np.testing.assert_allclose(report.estimated_joint_torque, r.torques, rtol=1e-6)
    if port == 30003:
        return
    assert (report.error_code, report.warn_code, report.motor_enable_status) == (31, 11, 0x7F)
    assert (report.collision_sens, report.teaching_sens) == (4, 2)
    np.testing.assert_allclose(report.tcp_payload, r.load, rtol=1e-6)
    if port == 30001:
        return
    np.testing.assert_allclose(report.target_joint_speed, r.velocities, rtol=1e-6)
    assert report.target_tcp_speed == pytest.approx(250)
    assert report.version == "v2.5.5" and report.robot_axis == 7
    assert report.is_reduced_mode and report.is_fence_mode and not report.is_simulation_robot
    assert report.reduced_tcp_boundary == [[-500, 500], [-400, 400], [-10, 600]]
    assert report.reduced_joint_max_speed == pytest.approx(0.5)
    np.testing.assert_allclose(np.ravel(report.reduced_joint_limits), r.reduced_ranges, rtol=1e-6)
