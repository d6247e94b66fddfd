"""Pre-flight: a matching setup yields only `ok`, and each mismatch yields one line that stops or warns."""

import itertools
import types

import numpy as np
import pytest

from s2robot.config import DemosSettings
from s2robot.core.errors import UserError
from s2robot.core.files import shipped_demos
from s2robot.demos.store import EpisodeStore
from s2robot.deployment import preflight
from s2robot.deployment.arm import OK, STOP, WARNING, Camera
from s2robot.deployment.preflight import check_contract, check_latency, check_observation, compare_views
from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.arms.geometry import XArm7Points
from tests.envs.real.home import described

VIEWS = ("hand", "left", "right")
NAMES = [f"robot0_{name}" for name in described("xarm7").joint_names]  # the simulator's names
CAMERAS = {"hand": Camera(256, 256, 30, fovy=75.0), "left": Camera(480, 480, 30, fovy=45.0)}
GEOMETRY = {"hand": {"size": [256, 256], "fovy": 75.0}, "left": {"size": [256, 256], "fovy": 45.0}}
CONTRACT = {
    "encoder": {"name": "mvp-tiny", "fingerprint": "f00d"}, "cameras": ["hand", "left"], "robot": "xarm7",
    "camera_geometry": GEOMETRY, "joint_names": NAMES, "action_frame": "joint_delta_commanded", "rate_hz": 10,
}  # fmt: skip


def check(cameras=CAMERAS, image_size=256, rate_hz=10, encoder="f00d", **contract):
    return check_contract(CONTRACT | contract, described("xarm7"), rate_hz, cameras, image_size, encoder)


def bad(findings) -> list[tuple[str, str]]:
    """Return the level and check of each finding that is not ok."""
    return [(finding.level, finding.check) for finding in findings if finding.level != OK]


def test_matching_setup_gives_one_ok_line_per_check():
    findings = check()
    assert not bad(findings)
    checks = ["robot", "joints", "rate", "action frame", "encoder", "camera hand", "camera left"]
    assert [finding.check for finding in findings] == checks
    assert str(findings[-1]) == "ok      camera left: 480 x 480 at 30 Hz"
    assert not bad(check(cameras=CAMERAS | {"top": Camera(1, 1, 1)}))  # not used by this policy


@pytest.mark.parametrize(
    ("change", "about"),
    [({"robot": "panda"}, "robot"), ({"rate_hz": 20}, "rate"), ({"joint_names": NAMES[:6]}, "joints"),
     ({"encoder": "beef"}, "encoder"), ({"action_frame": "joint_absolute"}, "action frame")],
)  # fmt: skip
def test_each_mismatch_stops(change, about):
    assert bad(check(**change)) == [(STOP, about)]


@pytest.mark.parametrize(
    ("change", "level"),
    [({"fps": 5}, STOP), ({"fps": float("nan")}, STOP), ({"width": 640}, STOP), ({"fovy": 60.0}, STOP),
     ({"fovy": None}, WARNING), ({"width": 128, "height": 128}, WARNING)],
)  # fmt: skip
def test_camera_mismatches_stop_or_warn(change, level):
    found = check(cameras=CAMERAS | {"hand": CAMERAS["hand"]._replace(**change)})
    assert bad(found) == [(level, "camera hand")]


def test_camera_shapes_that_differ_or_that_the_demos_omit():
    """The reference is the shape in the policy's contract: that of its demos, or squares cropped from wide frames."""
    wide = GEOMETRY | {"hand": {"size": [480, 640], "fovy": 75.0}}
    sizes = {"hand": (480, 640), "left": 256}
    cameras = CAMERAS | {"hand": Camera(640, 480, 30, fovy=75.0)}
    assert not bad(check(cameras=cameras, image_size=sizes, camera_geometry=wide))
    found = check(image_size=sizes, camera_geometry=wide)
    assert bad(found) == [(STOP, "camera hand"), (WARNING, "camera hand")]
    assert not bad(check(camera_geometry=wide))  # squares
    found = check(camera_geometry={"hand": GEOMETRY["hand"], "left": {}})
    assert bad(found) == [(WARNING, "camera left")] * 2
    assert len(bad(check(camera_geometry=None))) == 4


FRAMES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
IMAGES = dict(zip(("hand", "left"), FRAMES, strict=True))
HOME = np.array([0, 0, 0, 0.7, 0, 0.7, 0, 1.0], np.float32)
BLACK = np.zeros((8, 8, 3), np.uint8)
DOTS = np.eye(8, dtype=np.uint8)[..., None].repeat(3, 2)


def seen(proprio=HOME, **images):
    return check_observation({"images": IMAGES | images, "proprio": proprio}, XARM7_LIMITS)


@pytest.mark.parametrize(
    ("change", "about"),
    [({"left": BLACK}, "frame left"), ({"left": BLACK + 77}, "frame left"), ({"left": DOTS}, "frame left"),
     ({"left": 255 - DOTS}, "frame left"), ({"left": IMAGES["hand"]}, "frames hand and left"),
     ({"proprio": np.full(8, np.nan)}, "proprio"), ({"proprio": [*HOME[:7], 850.0]}, "proprio"),
     ({"proprio": [0.0, 45.0, *HOME[2:]]}, "proprio")],
)  # fmt: skip
def test_implausible_observations_stop(change, about):
    assert bad(seen(**change)) == [(STOP, about)]
    assert not bad(seen()) and [f.check for f in seen()] == ["frame hand", "frame left", "proprio"]


def test_start_outside_the_limits_stops():
    start, limits = described("xarm7").start, XARM7_LIMITS.replace(margin=1.0)
    found = preflight._check_arm(limits, XArm7Points(), types.SimpleNamespace(q=0 * start, error=0), start)
    assert found[0].level == STOP and "robot.home, where an episode starts" in found[0].text


@pytest.mark.parametrize(
    ("seconds", "level"),
    [([0.03] * 50, OK), ([0.06] * 50, WARNING), ([0.03] * 40 + [0.2] * 10, STOP), ([0.1] * 50, STOP),
     ([0.03] * 49 + [float("nan")], STOP)],
)  # fmt: skip
def test_latency_is_checked_against_the_period(seconds, level):
    assert check_latency(seconds, 10).level == level


@pytest.fixture(scope="module")
def demos():
    return preflight.demo_images(EpisodeStore.open(shipped_demos("xarm7_cube")), VIEWS, 64, episodes=6)


def test_views_of_the_demos_are_recognised(demos):
    assert {name: images.shape for name, images in demos.items()} == dict.fromkeys(VIEWS, (6, 64, 64, 3))
    for i in range(6):  # cubes and start poses differ from the mean
        assert not bad(compare_views({name: demos[name][i] for name in VIEWS}, demos))


@pytest.mark.parametrize(
    ("change", "word"),
    [(lambda x: x[::-1, ::-1], "add 2 to rotate"), (lambda x: x[::-1], "flipped"),
     (lambda x: np.rot90(x), "add 3 to rotate"), (lambda x: np.full_like(x, 128), "unlike")],
)  # fmt: skip
def test_wrongly_mounted_camera_is_reported(demos, change, word):
    for camera, i in itertools.product(VIEWS, range(6)):
        (found,) = compare_views({camera: np.ascontiguousarray(change(demos[camera][i]))}, demos)
        assert found.level == WARNING and found.check == f"view {camera}"
        # a symmetric view such as the hand's may be reported with another rotation, but always as a warning
        assert word in found.text or camera == "hand" and "looks" in found.text, found.text


def test_swapped_cameras_are_reported(demos):
    for a, b in (("left", "right"), ("right", "left"), ("hand", "left")):
        (found,) = compare_views({a: demos[b][0]}, demos)
        assert found.level == WARNING and f"looks like what '{b}' saw" in found.text
        assert compare_views({a: demos[b][0]}, demos, live=True)[0].level == STOP
    noise = np.random.default_rng(0).integers(0, 256, demos["left"][0].shape, np.uint8)
    turned = np.ascontiguousarray(demos["left"][0][::-1, ::-1])
    for image in (noise, turned):  # unlike any view, so the operator decides
        assert compare_views({"left": image}, demos, live=True)[0].level == WARNING


def test_demos_that_need_rendering_only_warn_without_the_simulator(demos, tmp_path, monkeypatch):
    def missing(settings, draw=True):
        raise UserError("mujoco is not installed: pip install 's2robot[sim]'")

    frames = {name: demos[name][0] for name in VIEWS}
    preflight.draw_views(frames, demos, tmp_path / "both.png")
    monkeypatch.setattr("s2robot.demos.replay.make_cached", missing)
    policy = types.SimpleNamespace(contract={}, image_size=64)
    alone = tmp_path / "alone.png"
    found = preflight.check_views(DemosSettings(name="xarm7_cube"), policy, frames, alone, True)
    assert [f.level for f in found] == [WARNING] * 2 and "pip install 's2robot[sim]'" in found[-1].text
    assert (tmp_path / "both.png").stat().st_size > alone.stat().st_size > 5000
