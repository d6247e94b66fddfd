"""Pre-flight: what fits gives only `ok`, and each thing that does not gives one line that stops."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2robot.deployment.preflight import (
    OK,
    STOP,
    WARNING,
    Camera,
    Robot,
    check_contract,
    check_latency,
    check_observation,
)

NAMES = tuple(f"joint{i}" for i in range(1, 8))
ROBOT = Robot("xarm7", NAMES, 10, "joint_delta_commanded", (-3.0,) * 7, (3.0,) * 7)
CAMERAS = {"hand": Camera(256, 256, 30, fovy=75.0), "left": Camera(480, 480, 30, fovy=45.0)}
CONTRACT = {
    "encoder": {"name": "mvp-tiny", "fingerprint": "f00d"},
    "cameras": ["hand", "left"],
    "camera_geometry": {
        "hand": {"size": [256, 256], "fovy": 75.0},
        "left": {"size": [256, 256], "fovy": 45.0},
    },
    "robot": "xarm7",
    "joint_names": [f"robot0_{name}" for name in NAMES],  # as the simulator calls them
    "action_frame": "joint_delta_commanded",
    "rate_hz": 10,
}


def check(robot=ROBOT, cameras=CAMERAS, image_size=256, encoder="f00d", **contract):
    return check_contract(CONTRACT | contract, robot, cameras, image_size, encoder)


def bad(findings) -> list[str]:
    return [str(finding) for finding in findings if finding.level != OK]


def test_what_fits_gives_a_line_for_each_check_and_stops_nothing():
    findings = check()
    assert not bad(findings)
    checks = ["robot", "joints", "rate", "action frame", "encoder", "camera hand", "camera left"]
    assert [finding.check for finding in findings] == checks
    assert str(findings[0]) == "ok      robot: xarm7"
    assert str(findings[-1]) == "ok      camera left: 480 x 480 at 30 Hz"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"robot": replace(ROBOT, name="panda")},
            "robot: the policy was trained for 'xarm7', given is 'panda'",
        ),
        ({"robot": replace(ROBOT, rate_hz=20)}, "rate: the policy acts at 10 Hz, the bridge steps at 20 Hz"),
        (
            {"robot": replace(ROBOT, joint_names=NAMES[:6])},
            "joints: the policy moves 7 joints, the robot has 6",
        ),
        (
            {"robot": replace(ROBOT, joint_names=NAMES[::-1])},
            "joints: joint 1 is 'joint1' to the policy and 'joint7' to the robot",
        ),
        (
            {"robot": replace(ROBOT, action_frame="joint_absolute")},
            "action frame: the policy was trained for 'joint_delta_commanded', given is 'joint_absolute'",
        ),
        (
            {"encoder": "beef"},
            "encoder: the policy was trained for 'mvp-tiny f00d', given is 'beef': other weights or settings",
        ),
        (
            {"cameras": {"hand": CAMERAS["hand"]}},
            "camera left: the policy needs it, given are hand",
        ),
        ({"cameras": {}, "cameras_wanted": 2}, "camera hand: the policy needs it, given are none"),
    ],
)
def test_what_does_not_fit_stops(change, line):
    change.pop("cameras_wanted", None)
    found = bad(check(**change))
    assert f"stop    {line}" in found and len(found) == (2 if change.get("cameras") == {} else 1)


@pytest.mark.parametrize(
    ("change", "level", "line"),
    [
        ({"channels": "bgr"}, STOP, "its colours come as 'bgr', expected 'rgb'"),
        ({"fps": 5}, STOP, "5 frames a second are less than 10 steps"),
        ({"fps": float("nan")}, STOP, "nan frames a second are less than 10 steps"),
        ({"width": 640}, STOP, "frames of 640 x 256 have another shape than the demos' 256 x 256; crop them"),
        ({"width": 0}, STOP, "its frames are 0 x 256"),
        ({"fovy": 60.0}, STOP, "a vertical field of view of 60 degrees, the demos' is 75"),
        ({"fovy": None}, WARNING, "the camera's field of view is not known; compare the pictures"),
        (
            {"width": 128, "height": 128},
            WARNING,
            "frames of 128 x 128 are smaller than the encoder's 256 pixels and would be enlarged",
        ),
    ],
)
def test_cameras_that_do_not_fit(change, level, line):
    cameras = CAMERAS | {"hand": replace(CAMERAS["hand"], **change)}
    assert bad(check(cameras=cameras)) == [f"{level:<8}camera hand: {line}"]


def test_a_camera_of_another_shape():
    """What counts is the shape that the policy knows: its demos', or squares where they were cut out of wide frames."""
    wide = {"hand": {"size": [480, 640], "fovy": 75.0}, "left": CONTRACT["camera_geometry"]["left"]}
    sizes = {"hand": (480, 640), "left": 256}
    given = CAMERAS | {"hand": Camera(640, 480, 30, fovy=75.0)}
    assert not bad(check(cameras=given, image_size=sizes, camera_geometry=wide))
    assert bad(check(image_size=sizes, camera_geometry=wide)) == [
        "stop    camera hand: frames of 256 x 256 have another shape than the demos' 640 x 480; crop them",
        "warning camera hand: frames of 256 x 256 are smaller than the encoder's 640 x 480 pixels and would be enlarged",
    ]
    assert not bad(check(camera_geometry=wide))  # of version 0.1


def test_what_the_demos_do_not_say_is_a_warning():
    found = bad(check(camera_geometry={"hand": CONTRACT["camera_geometry"]["hand"], "left": {}}))
    assert found == [
        "warning camera left: the demos do not say the size of its frames; compare the pictures",
        "warning camera left: the demos' field of view is not known; compare the pictures",
    ]
    assert len(bad(check(camera_geometry=None))) == 4
    assert not bad(check(cameras=CAMERAS | {"top": Camera(1, 1, 1)}))  # of no concern to this policy


@given(st.permutations(NAMES))
def test_only_the_right_order_of_joints_passes(names):
    stops = [f for f in check(robot=replace(ROBOT, joint_names=tuple(names))) if f.stops]
    assert bool(stops) == (tuple(names) != NAMES)


# ---------------------------------------------------------------- an observation


def observation(**changes):
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (8, 8, 3), np.uint8) for name in ("hand", "left")}
    return {"images": images, "proprio": np.array([0.1] * 7 + [1.0], np.float32)} | changes


def frames(**changes):
    return observation(images=observation()["images"] | changes)


@pytest.mark.parametrize(
    ("seen", "line"),
    [
        (frames(left=None), "frame left: there is none"),
        (frames(left=np.zeros((8, 8, 3), np.uint8)), "frame left: every pixel is 0: no picture"),
        (frames(left=np.full((8, 8, 3), 77, np.uint8)), "frame left: every pixel is 77: no picture"),
        (frames(left=np.eye(8, dtype=np.uint8)[..., None].repeat(3, 2)), "frame left: too dark to see anything (mean 0 of 255)"),
        (frames(left=255 - np.eye(8, dtype=np.uint8)[..., None].repeat(3, 2)), "frame left: too bright to see anything (mean 255 of 255)"),
        (frames(left=np.zeros((8, 8, 3), np.float32)), "frame left: found float32 (8, 8, 3), expected uint8 (H, W, 3)"),
        (frames(left=np.zeros((0, 8, 3), np.uint8)), "frame left: found uint8 (0, 8, 3), expected uint8 (H, W, 3)"),
        (frames(left=observation()["images"]["hand"]), "frames hand and left: are the same picture: one device under two names"),
        (observation(proprio=np.zeros(7, np.float32)), "proprio: found float32 (7,), expected floats (8,)"),
        (observation(proprio=np.zeros(8, int)), "proprio: found int64 (8,), expected floats (8,)"),
        (observation(proprio=np.full(8, np.nan)), "proprio: holds NaN or infinity"),
        (observation(proprio=np.array([0.0] * 7 + [850.0])), "proprio: the gripper's opening is 850.00, expected 0 to 1"),
        (
            observation(proprio=np.array([0.0, 45.0] + [0.0] * 6)),
            "proprio: joint 2 is at 45.000 rad, outside its limits -3.000 to 3.000; degrees?",
        ),
    ],
)  # fmt: skip
def test_observations_that_cannot_be(seen, line):
    assert bad(check_observation(CONTRACT, ROBOT, seen)) == [f"stop    {line}"]


def test_a_good_observation():
    findings = check_observation(CONTRACT, ROBOT, observation())
    assert not bad(findings) and [f.check for f in findings] == ["frame hand", "frame left", "proprio"]
    unknown = replace(ROBOT, q_min=(), q_max=())
    found = bad(check_observation(CONTRACT, unknown, observation()))
    assert found == ["warning proprio: the joints' limits are not known"]


@pytest.mark.parametrize(
    ("seconds", "level"),
    [([0.03] * 50, OK), ([0.06] * 50, WARNING), ([0.03] * 40 + [0.2] * 10, STOP), ([0.1] * 50, STOP),
     ([0.03] * 49 + [float("nan")], STOP), ([float("inf")] * 50, STOP), ([0.03] * 3, WARNING)],
)  # fmt: skip
def test_latency_against_the_period(seconds, level):
    assert check_latency(seconds, 10).level == level


def test_latency_says_both():
    text = str(check_latency([0.03] * 50, 10))
    assert text == "ok      latency: a plan takes 30.0 ms (p99 30.0 ms) of the period of 100 ms"


def test_actions_that_are_not_joints_and_a_gripper_stop():
    ours = [{"name": "arm", "size": 7, "kind": "delta", "low": [-0.25] * 7, "high": [0.25] * 7},
            {"name": "hand", "size": 1, "kind": "binary"}]  # fmt: skip
    assert not bad(check(action_parts=ours))
    osc = [{"name": "position", "size": 3, "kind": "delta"}, ours[1]]
    assert bad(check(action_parts=osc)) == [
        "stop    actions: the policy's are position (3 delta), hand (1 binary), the arm's joints (7 delta), gripper "
        "(1 binary)"
    ]
    two_values = [ours[0], {**ours[1], "low": [-1.0], "high": [1.0]}]
    assert len(bad(check(action_parts=two_values))) == 1
    assert len(bad(check(proprio_parts=osc))) == 1
