"""Our episodes as diffusion_policy's replay buffer: format 2 of zarr, a picture a chunk, and the same store when it is back."""

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from s2robot.demos.errors import DatasetError
from s2robot.demos.formats.convert import convert
from s2robot.demos.formats.export import ExportSettings, export
from s2robot.demos.formats.source import Choice
from s2robot.demos.store import EpisodeStore
from tests.demos.formats import made


@pytest.fixture
def store(tmp_path):
    return made.store(tmp_path / "in.zarr")


def written(store: EpisodeStore, path: Path) -> Path:
    export(store, path, "diffusion_policy", ExportSettings())
    return path


def test_what_a_buffer_holds(tmp_path, store):
    path = written(store, tmp_path / "out.zarr")
    assert (
        not list(path.rglob("zarr.json")) and json.loads((path / ".zgroup").read_text())["zarr_format"] == 2
    )
    hand = json.loads((path / "data/hand_image/.zarray").read_text())
    assert hand["chunks"] == [1, made.H, made.W, 3] and hand["compressor"]["id"] == "blosc"
    root = zarr.open_group(str(path), mode="r", zarr_format=2)
    assert root["meta/episode_ends"].dtype == np.int64
    assert root["meta/episode_ends"][:].tolist() == [5, 12]
    for key, name in {"action": "action", "proprio": "agent_pos", "images_left.up": "left.up_image",
                      "grid": "grid", "force/left": "force%2Fleft"}.items():  # fmt: skip
        np.testing.assert_array_equal(root[f"data/{name}"], store[key])
    np.testing.assert_array_equal(root["data/timestamp"][5:], np.arange(7) / made.FPS)
    assert {array.shape[0] for _, array in root["data"].arrays()} == {12}


@pytest.mark.parametrize("name", ["out.zarr", "out.zarr.zip"])
def test_a_store_comes_back_as_it_was(tmp_path, store, name):
    convert(written(store, tmp_path / name), tmp_path / "back.zarr")
    assert EpisodeStore.open(tmp_path / "back.zarr").fingerprint == store.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.zarr", "in.zarr", name]


def test_another_reads_it_by_its_habits(tmp_path, store):
    path = written(store, tmp_path / "out.zarr")
    (path / ".zattrs").unlink()
    convert(path, tmp_path / "back.zarr", Choice(cameras=("left.up",)))
    back = EpisodeStore.open(tmp_path / "back.zarr")
    assert back.attrs["rate_hz"] == made.FPS and back.keys == ("action", "proprio", "images_left.up")
    for key in back.keys:
        np.testing.assert_array_equal(back[key], store[key])


@pytest.mark.parametrize("name", ["out.zarr", "out.zarr.zip"])
def test_nothing_half_written_is_left(tmp_path, store, name):
    numbers = np.array(store["proprio"])
    numbers[8, 1] = np.inf
    made.overwrite(store.path, "proprio", numbers)
    with pytest.raises(
        DatasetError, match=r"in.zarr: episode 1: proprio: found inf at step 3, expected finite"
    ):
        written(store, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["in.zarr"]


def test_what_others_made_of_our_buffer_is_one_line(tmp_path, store):
    path = written(store, tmp_path / "out.zarr")
    (path / "meta/seed/.zarray").unlink()
    with pytest.raises(DatasetError, match=r"out.zarr: meta: .*'seed'"):
        convert(path, tmp_path / "back.zarr")
    (path / "data/grid/.zarray").unlink()
    with pytest.raises(
        DatasetError, match=r"out.zarr: data: found 'grid', expected some of action, agent_pos"
    ):
        convert(path, tmp_path / "back.zarr")
    assert not (tmp_path / "back.zarr").exists()


@pytest.mark.parametrize("key", ["action", "hand_image"])
def test_a_lost_chunk_of_ours_is_no_picture_of_zeros(tmp_path, store, key):
    path = written(store, tmp_path / "out.zarr")
    chunks = sorted(f for f in (path / "data" / key).iterdir() if not f.name.startswith("."))
    chunks[0].unlink()
    words = f"out.zarr: data/{key}: found {len(chunks) - 1} of {len(chunks)} chunks, expected all of them"
    with pytest.raises(DatasetError, match=words):
        convert(path, tmp_path / "back.zarr")
    assert not (tmp_path / "back.zarr").exists()


def test_time_stamps_are_each_episode_s_own(tmp_path):
    source = made.store(tmp_path / "source.zarr")
    about = {k: v for k, v in source.attrs.items() if k != "schema_version"}
    with EpisodeStore.create(tmp_path / "in.zarr", about) as store:
        for i, speed in enumerate((1.0, 0.7)):
            store.append(source.episode(i), {"speed": speed})
    root = zarr.open_group(str(written(store, tmp_path / "out.zarr")), mode="r")
    stamps = np.split(np.asarray(root["data/timestamp"]), made.LENGTHS[:1])
    for found, count, rate in zip(stamps, made.LENGTHS, (10, 7), strict=True):
        np.testing.assert_allclose(found, np.arange(count) / rate)
    assert "joints (2 delta)" in root.attrs["actions"]
