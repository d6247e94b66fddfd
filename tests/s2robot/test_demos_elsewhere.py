"""Demos of another format at `demos.path`: converted into the cache, and the config's robot does not count."""

import json

import h5py
import numpy as np
import pytest

from s2robot.config import DemosSettings
from s2robot.core.errors import UserError
from s2robot.demos.errors import DatasetError
from s2robot.demos.formats.export import ExportSettings, export
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


def test_demos_of_a_filter_key(tmp_path, monkeypatch):
    monkeypatch.setenv("S2ROBOT_CACHE", str(tmp_path / "cache"))
    store = made.store(tmp_path / "in.zarr")
    path = tmp_path / "in.hdf5"
    export(store, path, "robomimic", ExportSettings(action_range="data", valid=0.5))
    with h5py.File(path) as file:
        kept = [int(name[5:]) for name in file["mask/valid"]]
    found = EpisodeStore.open(DemosSettings(path=str(path), mask="valid").folder())
    assert found.meta("seed").tolist() == store.meta("seed")[kept].tolist() and len(kept) == 1
    assert len(EpisodeStore.open(DemosSettings(path=str(path)).folder())) == 2
    with pytest.raises(DatasetError, match="in.hdf5: mask: expected some of train, valid, got 'test'"):
        DemosSettings(path=str(path), mask="test").folder()
    with h5py.File(path, "a") as file:
        file["mask/more"] = np.array([b"demo_1", b"demo_9"])
    with pytest.raises(
        DatasetError, match="in.hdf5: mask/more: expected some of demo_0, demo_1, got 'demo_9'"
    ):
        DemosSettings(path=str(path), mask="more").folder()


def test_a_filter_key_of_what_has_none(tmp_path):
    store = made.store(tmp_path / "in.zarr")
    for demos in ({"path": str(store.path)}, {"name": "xarm7_cube"}):
        with pytest.raises(UserError, match="demos.mask: "):
            DemosSettings(**demos, mask="train").folder()


def test_a_split_of_lerobots_info(tmp_path, monkeypatch):
    monkeypatch.setenv("S2ROBOT_CACHE", str(tmp_path / "cache"))
    path = made.lerobot_v21(tmp_path / "in")
    file = path / "meta/info.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps(info | {"splits": {"train": "0:1", "test": "1:2", "odd": "80%:"}}))
    for name, episode in (("train", 0), ("test", 1)):
        found = EpisodeStore.open(DemosSettings(path=str(path), mask=name).folder())
        assert found.meta("source_episode").tolist() == [episode]
    with pytest.raises(DatasetError, match="in: mask: expected some of train, test, odd, got 'val'"):
        DemosSettings(path=str(path), mask="val").folder()
    with pytest.raises(DatasetError, match="in: cannot be read .*80%"):
        DemosSettings(path=str(path), mask="odd").folder()
