"""The door of the way out: what is asked for, what is refused, and that nothing half-written is left."""

import sys
from pathlib import Path

import numpy as np
import pytest

from s2robot.demos.errors import DatasetError
from s2robot.demos.formats.convert import convert
from s2robot.demos.formats.export import ExportSettings, export, format_for, pieces
from s2robot.demos.store import EpisodeStore
from s2robot.envs.tasks import make, settings_of
from tests.demos.formats import made


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s2robot.demos.formats.write_own", sys.modules[__name__])
    return made.store(tmp_path / "in.zarr")


def write(store, target, settings, progress):
    target.mkdir()
    for i in range(len(store)):
        for piece in pieces(store, i):
            (target / f"{i}").write_text(str(piece["action"].sum()))
    progress(store.num_steps, store.num_steps)


def test_the_format_is_what_to_says_or_the_name():
    assert format_for(Path("a.zarr"), None) is None and format_for(Path("a.zarr"), "lerobot") == "lerobot"
    assert format_for(Path("a.hdf5"), None) == "robomimic"
    assert format_for(Path("a.b.zarr.zip"), None) == "diffusion_policy"
    with pytest.raises(DatasetError, match=r"^to: found 'rlds', expected one of .*lerobot.*, or null$"):
        format_for(Path("a"), "rlds")


def test_a_number_that_is_none_is_named_and_nothing_is_left(tmp_path, store):
    broken = np.array(store["action"])
    broken[made.LENGTHS[0] + 2, 1] = np.nan
    made.overwrite(store.path, "action", broken)
    with pytest.raises(
        DatasetError, match=r"in.zarr: episode 1: action: found nan at step 2, expected finite"
    ):
        export(store, tmp_path / "out", "own", ExportSettings())
    assert [p.name for p in tmp_path.iterdir()] == ["in.zarr"]


def test_a_size_of_what_is_drawn(tmp_path, store, recorded):
    export(
        EpisodeStore.open(recorded), tmp_path / "out.zarr", "diffusion_policy", ExportSettings(image_size=12)
    )
    convert(tmp_path / "out.zarr", tmp_path / "back.zarr")
    back, first = EpisodeStore.open(tmp_path / "back.zarr"), EpisodeStore.open(recorded)
    assert back.shape("images_left") == (12, 12, 3) and back.attrs["camera_geometry"]["left"]["size"] == [
        12,
        12,
    ]
    task = make(settings_of(first.attrs["env_config"], image_size=12))
    task.set_state(first["state"][5])
    np.testing.assert_array_equal(back["images_left"][5], task.render_cameras()["left"])
    with pytest.raises(DatasetError, match=r"image_size: found 12 for .*whose camera hand has 16 x 24 px"):
        export(store, tmp_path / "none.zarr", "diffusion_policy", ExportSettings(image_size=12))
