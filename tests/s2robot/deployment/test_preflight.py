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
    ("change", "check_name", "shown"),
    [
        ({"robot": replace(ROBOT, name="panda")}, "robot", ("xarm7", "panda")),
        ({"robot": replace(ROBOT, rate_hz=20)}, "rate", ("10 Hz", "20 Hz")),
        ({"robot": replace(ROBOT, joint_names=NAMES[:6])}, "joints", ("7", "6")),
        ({"robot": replace(ROBOT, joint_names=NAMES[::-1])}, "joints", ("joint1", "joint7")),
        ({"robot": replace(ROBOT, action_frame="joint_absolute")}, "action frame", ("joint_absolute",)),
        ({"encoder": "beef"}, "encoder", ("f00d", "beef")),
        ({"cameras": {"hand": CAMERAS["hand"]}}, "camera left", ("hand",)),
    ],
)
def test_what_does_not_fit_stops(change, check_name, shown):
    (line,) = bad(check(**change))
    assert line.startswith(f"stop    {check_name}: ") and all(text in line for text in shown)
    assert len(bad(check(cameras={}))) == 2


@pytest.mark.parametrize(
    ("change", "level"),
    [
        ({"channels": "bgr"}, STOP), ({"fps": 5}, STOP), ({"fps": float("nan")}, STOP), ({"width": 640}, STOP),
        ({"width": 0}, STOP), ({"fovy": 60.0}, STOP), ({"fovy": None}, WARNING),
        ({"width": 128, "height": 128}, WARNING),
    ],
)  # fmt: skip
def test_cameras_that_do_not_fit(change, level):
    (line,) = bad(check(cameras=CAMERAS | {"hand": replace(CAMERAS["hand"], **change)}))
    assert line.startswith(f"{level:<8}camera hand: ")


def test_a_camera_of_another_shape():
    """What counts is the shape that the policy knows: its demos', or squares where they were cut out of wide frames."""
    wide = {"hand": {"size": [480, 640], "fovy": 75.0}, "left": CONTRACT["camera_geometry"]["left"]}
    sizes = {"hand": (480, 640), "left": 256}
    given = CAMERAS | {"hand": Camera(640, 480, 30, fovy=75.0)}
    assert not bad(check(cameras=given, image_size=sizes, camera_geometry=wide))
    assert [line.split(":")[0] for line in bad(check(image_size=sizes, camera_geometry=wide))] == [
        "stop    camera hand", "warning camera hand",
    ]  # fmt: skip
    assert not bad(check(camera_geometry=wide))  # squares


def test_what_the_demos_do_not_say_is_a_warning():
    found = bad(check(camera_geometry={"hand": CONTRACT["camera_geometry"]["hand"], "left": {}}))
    assert [line.split(":")[0] for line in found] == ["warning camera left"] * 2
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


BLACK = np.zeros((8, 8, 3), np.uint8)
DOTS = np.eye(8, dtype=np.uint8)[..., None].repeat(3, 2)


@pytest.mark.parametrize(
    ("seen", "check_name"),
    [
        (frames(left=None), "frame left"), (frames(left=BLACK), "frame left"), (frames(left=BLACK + 77), "frame left"),
        (frames(left=DOTS), "frame left"), (frames(left=255 - DOTS), "frame left"),
        (frames(left=BLACK.astype(np.float32)), "frame left"), (frames(left=BLACK[:0]), "frame left"),
        (frames(left=observation()["images"]["hand"]), "frames hand and left"),
        (observation(proprio=np.zeros(7, np.float32)), "proprio"), (observation(proprio=np.zeros(8, int)), "proprio"),
        (observation(proprio=np.full(8, np.nan)), "proprio"), (observation(proprio=np.array([0.0] * 7 + [850.0])), "proprio"),
        (observation(proprio=np.array([0.0, 45.0] + [0.0] * 6)), "proprio"),
    ],
)  # fmt: skip
def test_observations_that_cannot_be(seen, check_name):
    (line,) = bad(check_observation(CONTRACT, ROBOT, seen))
    assert line.startswith(f"stop    {check_name}: ")


def test_a_good_observation():
    findings = check_observation(CONTRACT, ROBOT, observation())
    assert not bad(findings) and [f.check for f in findings] == ["frame hand", "frame left", "proprio"]
    unknown = replace(ROBOT, q_min=(), q_max=())
    assert bad(check_observation(CONTRACT, unknown, observation()))[0].startswith("warning proprio")


@pytest.mark.parametrize(
    ("seconds", "level"),
    [([0.03] * 50, OK), ([0.06] * 50, WARNING), ([0.03] * 40 + [0.2] * 10, STOP), ([0.1] * 50, STOP),
     ([0.03] * 49 + [float("nan")], STOP), ([float("inf")] * 50, STOP), ([0.03] * 3, WARNING)],
)  # fmt: skip
def test_latency_against_the_period(seconds, level):
    assert check_latency(seconds, 10).level == level


def test_actions_that_are_not_joints_and_a_gripper_stop():
    ours = [{"name": "arm", "size": 7, "kind": "delta", "low": [-0.25] * 7, "high": [0.25] * 7},
            {"name": "hand", "size": 1, "kind": "binary"}]  # fmt: skip
    assert not bad(check(action_parts=ours))
    osc = [{"name": "position", "size": 3, "kind": "delta"}, ours[1]]
    assert bad(check(action_parts=osc))[0].startswith("stop    actions: ")
    two_values = [ours[0], {**ours[1], "low": [-1.0], "high": [1.0]}]
    assert len(bad(check(action_parts=two_values))) == 1
    assert len(bad(check(proprio_parts=osc))) == 1
