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


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("S2ROBOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/demos"


def opened(path, mask: str | None = None) -> EpisodeStore:
    return EpisodeStore.open(DemosSettings(path=str(path), mask=mask).folder())


def test_a_lerobot_folder_brings_its_own_world_and_splits(tmp_path, cache):
    path = made.lerobot_v21(tmp_path / "in")
    demos = DemosSettings(path=str(path))
    own = {"robot": "koch", "rate_hz": made.FPS, "action_frame": "parts", "cameras": ("top",)}
    assert demos.own_world() == own and DemosSettings(name="xarm7_cube").own_world() == {}
    assert demos.folder().parent == cache and len(opened(path)) == 2
    file = path / "meta/info.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps(info | {"splits": {"train": "0:1", "test": "1:2", "odd": "80%:"}}))
    for name, episode in (("train", 0), ("test", 1)):
        assert opened(path, name).meta("source_episode").tolist() == [episode]
    for name, words in (
        ("val", "mask: expected some of train, test, odd, got"),
        ("odd", "cannot be read .*80%"),
    ):
        with pytest.raises(DatasetError, match=words):
            opened(path, name)


def test_demos_of_a_filter_key(tmp_path):
    store, path = made.store(tmp_path / "in.zarr"), tmp_path / "in.hdf5"
    export(store, path, "robomimic", ExportSettings(action_range="data", valid=0.5))
    with h5py.File(path) as file:
        (kept,) = [int(name[5:]) for name in file["mask/valid"]]
    assert opened(path, "valid").meta("seed").tolist() == [store.meta("seed")[kept]]
    assert len(opened(path)) == 2
    with h5py.File(path, "a") as file:
        file["mask/more"] = np.array([b"demo_1", b"demo_9"])
    for mask, words in (("test", "more, train, valid, got 'test'"), ("more", "demo_0, demo_1, got 'demo_9'")):
        with pytest.raises(DatasetError, match=f"in.hdf5: mask.*: expected some of {words}"):
            opened(path, mask)
    for demos in ({"path": str(store.path)}, {"name": "xarm7_cube"}):  # which have no filter keys
        with pytest.raises(UserError, match="demos.mask: "):
            DemosSettings(**demos, mask="train").folder()
