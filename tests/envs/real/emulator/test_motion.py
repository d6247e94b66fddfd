"""Frames, kinematics, set points and the state machine in emulated time, without sockets or waiting."""

import struct

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s2robot.envs.real.arms import geometry as kin
from s2robot.envs.real.emulator import controller as box
from s2robot.envs.real.emulator import wire
from s2robot.envs.real.emulator.controller import Controller, Gripper, Motion
from s2robot.envs.real.emulator.server import Commands
from s2robot.envs.real.emulator.wire import Fn
from tests.envs.real.home import HOME

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=25)
DT = 0.004


class Bench:
    """A controller in emulated time, driven by frames."""

    def __init__(self, mode=None):
        self.now = 0.0
        self.journal = box.Journal(lambda: self.now)
        self.box = Controller(box.KinematicPlant(HOME), self.journal)
        self.commands = Commands(self.box)
        if mode is not None:
            assert self(Fn.ENABLE, bytes([8, 1])) & 0x08 == 0
            self(Fn.SET_MODE, bytes([mode, 0]))
            assert self(Fn.SET_STATE, b"\0") == 0

    def __call__(self, function, payload=b"", data=False):
        """Return the status byte of the answer, or its data."""
        answer = self.commands.answer(wire.Request(7, 2, function, payload), 1)
        assert answer[:4] == bytes([0, 7, 0, 2]) and answer[6] == function
        return answer[8:] if data else answer[7]

    def servo(self, target):
        return self(Fn.SERVO_J, wire.pack_floats([*target, 0, 0, 0]))

    def move(self, target, speed=1.0):
        return self(Fn.MOVE_JOINT, wire.pack_floats([*target, speed, 10.0, 0]))

    def run(self, seconds):
        for _ in range(round(seconds / DT)):
            self.now += DT
            self.box.tick(DT)


def test_forward_kinematics_at_zero_matches_the_published_pose():
    np.testing.assert_allclose(kin.forward(np.zeros(7)), [0.206, 0, 0.1205, np.pi, 0, 0], atol=1e-9)


@patient
@given(st.lists(st.floats(-1, 1), min_size=7, max_size=7), st.floats(0.5, box.MAX_SPEED), st.floats(1, 20))
def test_plans_respect_speed_and_acceleration_and_arrive(offset, speed, acceleration):
    target = HOME + offset
    motion, before = Motion(HOME), np.zeros(7)
    motion.plan(target, speed, acceleration)
    for _ in range(int((np.abs(target - HOME).max() / speed + 2 * speed / acceleration + 1) / DT)):
        motion.advance(DT)
        if motion.kind == "hold":
            break
        assert np.abs(motion.velocity).max() <= speed + 1e-9
        assert np.abs(motion.velocity - before).max() <= acceleration * DT + 1e-9
        before = motion.velocity
    assert motion.kind == "hold"
    np.testing.assert_allclose(motion.joints, target)


def test_nothing_moves_before_the_arm_is_ready():
    b = Bench()
    assert b(Fn.GET_STATE, data=True) == b"\x04"
    assert b.servo(HOME + 0.05) & wire.STATUS_NOT_READY
    b(Fn.ENABLE, bytes([8, 1]))
    b(Fn.SET_STATE, b"\0")
    b(Fn.SET_MODE, b"\x01\x00")  # a change of mode ends readiness
    assert b(Fn.GET_STATE, data=True) == b"\x05"
    assert b.servo(HOME + 0.05) & wire.STATUS_NOT_READY
    b.run(0.1)
    np.testing.assert_allclose(b.box.plant.joints, HOME)
    assert [c["accepted"] for c in b.journal.commands if c["kind"] == "motion"] == [False, False]


def test_servo_in_another_mode_or_out_of_limits_moves_nothing():
    b = Bench(mode=6)
    assert b.servo(HOME + 0.05) & wire.STATUS_INVALID and b.journal.commands[-1]["flags"] == ("mode",)
    b.run(0.1)
    np.testing.assert_allclose(b.box.plant.joints, HOME)
    b = Bench(mode=1)
    b.servo([0, 0, 0, -0.5, 0, 0, 0])
    assert b(Fn.ERROR, data=True) == bytes([23, 0]) and b.servo(HOME) & wire.STATUS_ERROR
    b.run(0.2)
    np.testing.assert_allclose(b.box.plant.joints, HOME, atol=1e-6)
    assert [c["flags"] for c in b.journal.commands if c["kind"] == "motion"][0] == ("limit", "jump")


def test_jump_of_one_radian_runs_at_full_speed_until_error_24():
    b = Bench(mode=1)
    assert b.servo(HOME + [1, 0, 0, 0, 0, 0, 0]) == 0
    b.run(1.0)
    assert b.box.error == box.OVERSPEED and b.box.state == box.STOPPED
    assert 0.05 < b.box.plant.joints[0] < 1.0
    assert b.journal.commands[-1]["unsafe"]
    b.box.raise_error(box.EMERGENCY_STOP)  # which cuts the power
    assert b(Fn.ENABLE, bytes([8, 1])) & wire.STATUS_ERROR and b.box.enabled == 0
    b(Fn.CLEAN_ERROR)
    assert b.box.error == 0 and b.box.enabled == 0


def test_fence_is_enforced():
    b = Bench(mode=6)
    b(Fn.BOUNDARY, struct.pack("<6i", 600, -600, 50, -50, 600, 0))
    b(Fn.FENCE, b"\x01")
    b.move(HOME + [0.5, 0, 0, 0, 0, 0, 0])
    b.run(2.0)
    assert b.box.error == box.BOUNDARY and kin.forward(b.box.plant.joints)[1] < 0.15


def test_reduced_mode_limits_speed_and_range():
    b = Bench(mode=1)
    b(Fn.REDUCED_JOINT_SPEED, wire.pack_floats([0.2]))
    b(Fn.REDUCED_RANGES, wire.pack_floats(np.stack([HOME - 0.3, HOME + 0.3], axis=1).reshape(-1)))
    b(Fn.SET_REDUCED, b"\x01")
    b.run(0.1)
    b.servo(HOME + 0.1)
    b.run(0.25)
    assert 0.02 < b.box.plant.joints[0] < 0.06
    b.servo(HOME + 0.4)
    assert b.box.error == box.JOINT_LIMIT


def test_unknown_functions_are_invalid_and_counted():
    b = Bench()
    assert b(205) & wire.STATUS_INVALID and b(21, bytes(36)) & wire.STATUS_INVALID
    assert b.commands.unsupported == {205: 1, 21: 1}
    assert b(Fn.SET_MODE, b"\x03\0") & wire.STATUS_INVALID  # not emulated


floats = st.lists(st.floats(width=32), min_size=10, max_size=10).map(wire.pack_floats)


@patient
@given(
    st.tuples(st.integers(0, 255), st.binary(max_size=120))
    | st.tuples(st.sampled_from([Fn.SERVO_J, Fn.MOVE_JOINT]), floats)
)
def test_every_request_is_answered_and_none_moves_beyond_joint_limits(request):
    b = Bench(mode=6 if request[0] == Fn.MOVE_JOINT else 1)
    assert b(*request) & ~(0x40 | 0x20 | 0x10 | 0x08) == 0
    b.run(0.5)
    q = b.box.plant.joints
    assert (q > box.JOINT_LOW - 0.01).all() and (q < box.JOINT_HIGH + 0.01).all()
    assert len(wire.report_rich(b.box)) == 587


def test_motion_is_reported_from_the_requested_time():
    b = Bench(mode=1)
    b.run(1.0)
    assert [round(row["time"] / DT) for row in b.journal.motion_since(0.9)] == list(range(225, 251))
    assert b.journal.motion_since(2.0) == [] and len(b.journal.motion_since(0.0)) == 250


@patient
@given(st.binary(max_size=60))
def test_gripper_answers_or_is_silent(frame):
    g = Gripper()
    assert (g.answer(frame) is None) == (len(frame) < 2 or frame[0] != 8)
    assert 0 <= g.target <= 850 and 1 <= g.speed <= 5000


requests = st.builds(
    wire.Request, transaction=st.integers(0, 65535), protocol=st.sampled_from([0, 1, 2, 3]), function=st.integers(0, 255),
    payload=st.binary(max_size=200),
)  # fmt: skip


def pack(r: wire.Request) -> bytes:
    return wire.HEADER.pack(r.transaction, r.protocol, len(r.payload) + 1, r.function) + r.payload


@patient
@given(st.lists(requests, max_size=5), st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_requests_survive_any_split_of_the_stream(sent, sizes):
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
