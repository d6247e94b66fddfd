"""The check of the cameras' views."""

import types

import numpy as np
import pytest

from s2robot.config import DemosSettings
from s2robot.core.errors import UserError
from s2robot.core.files import shipped_demos
from s2robot.demos.store import EpisodeStore
from s2robot.deployment import check
from s2robot.deployment.preflight import OK, STOP, WARNING

CAMERAS = ("hand", "left", "right")


@pytest.fixture(scope="module")
def demos():
    return check.demo_images(EpisodeStore.open(shipped_demos("xarm7_cube")), CAMERAS, 64, episodes=6)


def test_what_the_demos_saw_is_recognised(demos):
    assert {name: pictures.shape for name, pictures in demos.items()} == dict.fromkeys(
        CAMERAS, (6, 64, 64, 3)
    )
    for i in range(6):  # other cubes and start poses than the mean's
        found = check.compare_views({name: demos[name][i] for name in CAMERAS}, demos)
        assert [f.level for f in found] == [OK] * 3, [str(f) for f in found]


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda x: x[::-1, ::-1], "rotate: 2 mends it"),
        (lambda x: x[::-1], "flipped"),
        (lambda x: np.rot90(x), "rotate: 3 mends it"),
        (lambda x: np.full_like(x, 128), "unlike"),
    ],
)
def test_a_camera_that_is_mounted_wrongly_is_told(demos, camera, change, word):
    for i in range(6):
        (found,) = check.compare_views({camera: np.ascontiguousarray(change(demos[camera][i]))}, demos)
        assert found.level == WARNING and found.check == f"view {camera}"
        # a symmetric view, as the hand's, may be told as another turn: a warning it is
        assert word in found.text or camera == "hand" and "looks" in found.text, found.text


def test_exchanged_cameras_are_told(demos):
    for a, b in (("left", "right"), ("right", "left"), ("hand", "left")):
        (found,) = check.compare_views({a: demos[b][0]}, demos)
        assert found.level == WARNING and f"looks like what '{b}' saw" in found.text
        assert check.compare_views({a: demos[b][0]}, demos, live=True)[0].level == STOP
    noise = np.random.default_rng(0).integers(0, 256, demos["left"][0].shape, np.uint8)
    assert check.compare_views({"left": noise}, demos, live=True)[0].level == WARNING  # like nothing
    turned = np.ascontiguousarray(demos["left"][0][::-1, ::-1])
    assert (
        check.compare_views({"left": turned}, demos, live=True)[0].level == WARNING
    )  # for the operator's eye


def test_the_picture_is_drawn_with_and_without_demos(demos, tmp_path):
    frames = {name: demos[name][0] for name in CAMERAS}
    check.draw_views(frames, demos, tmp_path / "both.png")
    check.draw_views(frames, {}, tmp_path / "alone.png")
    assert (tmp_path / "both.png").stat().st_size > (tmp_path / "alone.png").stat().st_size > 5000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone.png", "both.png"]


def test_demos_that_have_to_be_drawn_are_a_warning_without_the_simulator(demos, tmp_path, monkeypatch):
    def missing():
        raise UserError("mujoco is not installed: pip install 's2robot[sim]'")

    monkeypatch.setattr("s2robot.deployment.check.require_simulator", missing)
    policy = types.SimpleNamespace(contract={}, image_size=64)
    frames = {name: demos[name][0] for name in CAMERAS}
    found = check.check_views(DemosSettings(name="xarm7_cube"), policy, frames, tmp_path / "views.png", True)
    assert [f.level for f in found] == [WARNING] * 2 and "pip install 's2robot[sim]'" in found[-1].text
    assert (tmp_path / "views.png").stat().st_size > 5000
