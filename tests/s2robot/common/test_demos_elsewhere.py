"""Demos of another format at `demos.path`: converted into the cache, and the config's robot does not count."""

from s2robot.common.settings import DemosSettings
from s2robot.demos.store import EpisodeStore
from tests.demos.formats import made


def test_a_lerobot_folder_brings_its_own_world(tmp_path, monkeypatch):
    monkeypatch.setenv("S2ROBOT_CACHE", str(tmp_path / "cache"))
    demos = DemosSettings(path=str(made.lerobot_v21(tmp_path / "in")))
    assert demos.own_world() == {
        "robot": "koch", "rate_hz": made.FPS, "action_frame": "parts", "cameras": ("top",)
    }  # fmt: skip
    assert demos.folder().parent == tmp_path / "cache/demos"
    assert len(EpisodeStore.open(demos.folder())) == 2


def test_shipped_demos_are_of_our_worlds():
    assert DemosSettings(name="xarm7_cube").own_world() == {}
