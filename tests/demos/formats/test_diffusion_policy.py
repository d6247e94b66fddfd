"""diffusion_policy's replay buffers in: folder and zip, time stamps, and what is broken."""

import zipfile

import numcodecs
import numpy as np
import pytest
import zarr

from s2robot.demos.errors import DatasetError
from s2robot.demos.formats.convert import convert
from s2robot.demos.formats.source import Choice
from s2robot.demos.store import EpisodeStore

RNG = np.random.default_rng(0)
DATA = {
    "action": RNG.normal(size=(7, 2)).astype("f4"),
    "agent_pos": RNG.normal(size=(7, 3)).astype("f4"),
    "front_image": RNG.integers(0, 256, (7, 6, 8, 3), np.uint8),
    "img": RNG.integers(0, 256, (7, 5, 5, 3)).astype("f4"),  # as pusht has them
    "timestamp": np.arange(7) / 12.5,
}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "in.zarr"
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    for key, array in DATA.items():
        chunks, lz4 = (2, *array.shape[1:]), numcodecs.Blosc("lz4", 5)
        root.create_array(
            f"data/{key}", shape=array.shape, dtype=array.dtype, chunks=chunks, compressors=lz4
        )[:] = array
    root.create_array("meta/episode_ends", shape=(2,), dtype="i8")[:] = [4, 7]
    return path  # fmt: skip


def zipped(folder):
    path = folder.with_name("in.zarr.zip")
    with zipfile.ZipFile(path, "w") as file:
        for f in sorted(p for p in folder.rglob("*") if p.is_file()):
            file.write(f, f.relative_to(folder).as_posix())
    return path


@pytest.mark.parametrize("form", [lambda folder: folder, zipped])
def test_a_buffer_arrives(tmp_path, folder, form):
    convert(form(folder), tmp_path / "out.zarr")
    store = EpisodeStore.open(tmp_path / "out.zarr")
    assert store.lengths.tolist() == [4, 3] and store.attrs["rate_hz"] == 12.5
    assert store.cameras == ("front", "img")
    for key, name in {"action": "action", "proprio": "agent_pos", "images_front": "front_image"}.items():
        np.testing.assert_array_equal(store[key], DATA[name])
    np.testing.assert_array_equal(store["images_img"], DATA["img"].astype("u1"))


def test_what_is_broken_is_one_line(tmp_path, folder):
    out = tmp_path / "out.zarr"
    chunk = folder / "data/action/1.0"
    chunk.write_bytes(chunk.read_bytes()[:10])
    with pytest.raises(DatasetError, match=r"in.zarr: data/action: found steps that cannot be read"):
        convert(folder, out)
    with pytest.raises(DatasetError, match=r"proprio: found 'hand', expected some of action, agent_pos"):
        convert(folder, out, Choice(proprio=("hand",)))
    zarr.open_group(str(folder), mode="r+", zarr_format=2)["meta/episode_ends"][:] = [4, 9]
    with pytest.raises(DatasetError, match=r"data/action: found 7 steps, expected 9 by episode_ends"):
        convert(folder, out)
    assert [p.name for p in tmp_path.iterdir()] == ["in.zarr"]
