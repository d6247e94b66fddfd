"""diffusion_policy's replay buffers in: folder and zip, time stamps, a robot's videos, and what is broken."""

import json
import shutil
import zipfile

import av
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
    with pytest.raises(DatasetError, match=r"in.zarr: data/action/1.0: found 10 bytes that cannot"):
        convert(folder, out)
    with pytest.raises(DatasetError, match=r"proprio: found 'hand', expected some of action, agent_pos"):
        convert(folder, out, Choice(proprio=("hand",)))
    zarr.open_group(str(folder), mode="r+", zarr_format=2)["meta/episode_ends"][:] = [4, 9]
    with pytest.raises(DatasetError, match=r"data/action: found 7 steps, expected 9 by episode_ends"):
        convert(folder, out)
    assert [p.name for p in tmp_path.iterdir()] == ["in.zarr"]


def test_pictures_of_0_to_1_are_not_made_black(tmp_path, folder):
    data = zarr.open_group(str(folder), mode="r+", zarr_format=2)["data"]
    data["img"][:] = DATA["img"] / 255
    words = r"in.zarr: data/img: found images of 0 to 1 in steps 0 to 3, expected 0 to 255"
    with pytest.raises(DatasetError, match=words):
        convert(folder, tmp_path / "out.zarr")


def test_odd_contents_are_one_line(tmp_path, folder):
    data = zarr.open_group(str(folder), mode="r+", zarr_format=2)["data"]
    data["timestamp"][:] = 3
    words = r"in.zarr: cannot be read \(ZeroDivisionError: "
    with pytest.raises(DatasetError, match=words):
        convert(folder, tmp_path / "out.zarr")
    data.create_array("one", shape=(), dtype="f4")
    with pytest.raises(DatasetError, match=r"in.zarr: cannot be read \(IndexError: "):
        convert(folder, tmp_path / "out.zarr")
    shutil.rmtree(folder / "data")
    zarr.create_array(str(folder / "data"), shape=(3,), dtype="f4", zarr_format=2)
    with pytest.raises(DatasetError, match=r"in.zarr: found no replay buffer \(meta/episode_ends\)"):
        convert(folder, tmp_path / "out.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["in.zarr"]


def test_a_chunk_that_is_not_there_is_told(tmp_path, folder):
    """It may be one of zeros that was left out, where a fill value stands for it."""
    (folder / "data/front_image/1.0.0.0").unlink()
    source = convert(folder, tmp_path / "out.zarr")
    assert source.notes == ["data/front_image: 3 of 4 chunks are there; the others are read as 0"]
    array = folder / "data/front_image/.zarray"
    array.write_text(json.dumps(json.loads(array.read_text()) | {"fill_value": None}))
    for form in (folder, zipped(folder)):
        with pytest.raises(
            DatasetError, match=r"in.zarr.*: data/front_image: found 3 of 4 chunks, expected all of them"
        ):
            convert(form, tmp_path / "no.zarr")


# -------------------------------------------------------------------- a real robot's folder

SHADES = 7  # of grey, from one frame to the next


def film(path, count, fps=30):
    """Frames of one shade each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.options = 32, 16, "yuv420p", {"crf": "1"}
        for i in range(count):
            grey = np.full((16, 32, 3), 20 + SHADES * i, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        file.mux(stream.encode())


@pytest.fixture
def robot(tmp_path, folder):
    """4 and 3 steps at 12.5 Hz, two cameras at 30 Hz, the clock of a computer."""
    path = tmp_path / "robot"
    path.mkdir()
    folder.rename(path / "replay_buffer.zarr")
    root = zarr.open_group(str(path / "replay_buffer.zarr"), mode="r+", zarr_format=2)
    root["data/timestamp"][:] = 1.7e9 + np.array([0, 0.08, 0.16, 0.24, 9, 9.08, 9.16])
    for key in ("front_image", "img"):
        shutil.rmtree(path / f"replay_buffer.zarr/data/{key}")
    for episode, count in enumerate((12, 9)):
        for camera in (0, 10):
            film(path / f"videos/{episode}/{camera}.mp4", count)
    return path


def test_a_robots_videos_are_its_cameras(tmp_path, robot):
    convert(robot, tmp_path / "out.zarr")
    store = EpisodeStore.open(tmp_path / "out.zarr")
    assert store.cameras == ("camera_0", "camera_10") and store.attrs["rate_hz"] == 12.5
    assert store.attrs["camera_geometry"]["camera_0"]["size"] == [16, 32]
    np.testing.assert_array_equal(store["action"], DATA["action"])
    shown = (store["images_camera_10"].mean((1, 2, 3)) - 20) / SHADES
    # the first frame from 0, 0.08, 0.16 and 0.24 s on, of those each 1/30 s
    np.testing.assert_allclose(shown, [0, 3, 5, 8, 0, 3, 5], atol=0.3)
    convert(robot, tmp_path / "one.zarr", Choice(cameras=("camera_10",)))
    assert EpisodeStore.open(tmp_path / "one.zarr").cameras == ("camera_10",)


def test_a_robots_video_that_ends_early(tmp_path, robot):
    film(robot / "videos/1/0.mp4", 3)  # its last frame stands in, as theirs does
    convert(robot, tmp_path / "out.zarr")
    shown = EpisodeStore.open(tmp_path / "out.zarr")["images_camera_0"][4:].mean((1, 2, 3))
    np.testing.assert_allclose((shown - 20) / SHADES, [0, 2, 2], atol=0.3)
    (robot / "videos/1/0.mp4").write_bytes((robot / "videos/1/0.mp4").read_bytes()[:300])
    with pytest.raises(DatasetError, match=r"videos/1/0.mp4: found a file that cannot be decoded"):
        convert(robot, tmp_path / "none.zarr")
    (robot / "videos/1/0.mp4").unlink()
    with pytest.raises(DatasetError, match=r"videos/1/0.mp4: found no such file, expected a video"):
        convert(robot, tmp_path / "none.zarr")
    assert not (tmp_path / "none.zarr").exists()
