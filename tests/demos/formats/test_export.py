"""The door of the way out: what is asked for, what is refused, and that nothing half-written is left."""

from pathlib import Path

import numpy as np
import pytest

from s2robot.demos.errors import DatasetError
from s2robot.demos.formats import export as door
from s2robot.demos.formats.convert import as_store
from s2robot.demos.formats.export import ExportSettings, export, format_for, pieces
from s2robot.demos.formats.source import Choice
from tests.demos.formats import made


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setitem(door.WRITERS, "own", f"{__name__}:write")
    return made.store(tmp_path / "in.zarr")


def write(store, target, settings, progress):
    target.mkdir()
    for i in range(len(store)):
        for piece in pieces(store, i):
            (target / f"{i}").write_text(str(piece["action"].sum()))
    progress(store.num_steps, store.num_steps)


def test_the_format_is_what_to_says_or_the_name(monkeypatch):
    monkeypatch.setitem(door.WRITERS, "lerobot", "")
    assert format_for(Path("a.zarr"), None) is None and format_for(Path("a.zarr"), "lerobot") == "lerobot"
    assert format_for(Path("a.hdf5"), None) == "robomimic"
    assert format_for(Path("a.b.zarr.zip"), None) == "diffusion_policy"
    with pytest.raises(DatasetError, match=r"^to: found 'rlds', expected one of .*lerobot.*, or null$"):
        format_for(Path("a"), "rlds")


def test_what_is_there_is_kept(tmp_path, store):
    with pytest.raises(DatasetError, match=r"in.zarr: exists already, expected a new path"):
        export(store, tmp_path / "in.zarr", "own", ExportSettings())


def test_a_number_that_is_none_is_named_and_nothing_is_left(tmp_path, store):
    broken = np.array(store["action"])
    broken[made.LENGTHS[0] + 2, 1] = np.nan
    made.overwrite(store.path, "action", broken)
    with pytest.raises(
        DatasetError, match=r"in.zarr: episode 1: action: found nan at step 2, expected finite"
    ):
        export(store, tmp_path / "out", "own", ExportSettings())
    assert [p.name for p in tmp_path.iterdir()] == ["in.zarr"]


def test_a_store_is_taken_whole(store):
    assert as_store(store.path, store.path.parent) == store.path
    with pytest.raises(DatasetError, match=r"^episodes: found 1, expected nothing: an episode store"):
        as_store(store.path, store.path.parent, Choice(episodes=1))


@pytest.mark.parametrize(
    "wrong, words",
    [({"pictures": "jpeg"}, "pictures: found 'jpeg', expected one of h264, av1, png"), ({"crf": 64}, "crf: found 64"),
     ({"action_range": "all"}, "action_range: found 'all', expected one of limits, clip, data"), ({"valid": 1}, "valid: found 1")],
)  # fmt: skip
def test_settings_that_are_none(wrong, words):
    with pytest.raises(DatasetError, match=words):
        ExportSettings(**wrong)
