"""Import and export of diffusion_policy replay buffers: folders, zips, timestamps, robot videos, broken files."""

import json
import shutil

import numcodecs
import numpy as np
import pytest
import zarr

from s2robot.core.errors import UserError
from s2robot.demos.formats.convert import convert
from s2robot.demos.formats.source import Choice
from s2robot.demos.store import EpisodeStore
from tests.demos.formats import made
from tests.demos.formats.made import converted, edited, refused, written, zipped

RNG = np.random.default_rng(0)
DATA = {
    "action": RNG.integers(-9, 9, (7, 2), np.int16),
    "agent_pos": RNG.normal(size=(7, 3)).astype("f4"),
    "front_image": RNG.integers(0, 256, (7, 6, 8, 3), np.uint8),
    "img": RNG.integers(0, 256, (7, 5, 5, 3)).astype("f4"),  # as in PushT
    "timestamp": np.arange(7) / 12.5,
}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "in.zarr"
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    for key, array in DATA.items():
        how = {"chunks": (2, *array.shape[1:]), "compressors": numcodecs.Blosc("lz4", 5)}
        root.create_array(f"data/{key}", shape=array.shape, dtype=array.dtype, **how)[:] = array
    root.create_array("meta/episode_ends", shape=(2,), dtype="i8")[:] = [4, 7]
    return path


def data_of(folder):
    return zarr.open_group(str(folder), mode="r+", zarr_format=2)["data"]


@pytest.mark.parametrize("form", [lambda folder: folder, zipped])
def test_buffer_is_imported(folder, form):
    store = converted(form(folder))
    assert store.lengths.tolist() == [4, 3] and store.attrs["rate_hz"] == 12.5
    assert store.cameras == ("front", "img")
    for key, name in {"action": "action", "proprio": "agent_pos", "images_front": "front_image"}.items():
        np.testing.assert_array_equal(store[key], DATA[name])
    np.testing.assert_array_equal(store["images_img"], DATA["img"].astype("u1"))
    data_of(folder)["timestamp"][:] *= 1000  # ms
    for name in ("robot0_eef_pos", "robot0_demo_end_pose"):  # UMI: the end is in the future
        data_of(folder).create_array(name, shape=(7, 3), dtype="f4")
    about = converted(form(folder), Choice(rate_hz=10), "ms.zarr").attrs
    assert about["rate_hz"] == 10 and [part["name"] for part in about["proprio_parts"]] == ["robot0_eef_pos"]


def test_uneven_time_stamps_are_noted(folder, tmp_path):
    assert not convert(folder, tmp_path / "even.zarr").notes
    data_of(folder)["timestamp"][2:] += 0.1
    (note,) = convert(folder, tmp_path / "out.zarr").notes
    assert note == "data/timestamp: 1 of 5 steps are not 0.08 s long, but between 0.08 and 0.18 s"


def test_broken_buffer_is_one_error_line(folder):
    content = (chunk := folder / "data/action/1.0").read_bytes()
    chunk.write_bytes(content[:10])
    refused(folder, "in.zarr: data/action/1.0: ")
    chunk.write_bytes(content)
    hand = Choice(proprio=("hand",))
    refused(folder, "proprio, numbers (T, n): expected some of action, agent_pos", choice=hand)
    data = data_of(folder)
    data["img"][:] = DATA["img"] / 255  # would become black
    refused(folder, "in.zarr: data/img: expected images of 0 to 255")
    data.create_array("img", data=DATA["img"].astype("u2") * 257, overwrite=True)  # 16 bits
    refused(folder, "in.zarr: data/img: expected images of 0 to 255", "to 65")
    data["timestamp"][:] = 3
    refused(folder, "in.zarr: data/timestamp: expected increasing time stamps in s", "got a step of 0 s")
    data.create_array("one", shape=(), dtype="f4")
    refused(folder, "in.zarr: cannot be read: ")
    shutil.rmtree(folder / "data/one")
    ends = zarr.open_group(str(folder), mode="r+", zarr_format=2)["meta/episode_ends"]
    for bad, words in (([4, 9], "data/action: expected 9 steps"), ([4, 4], "meta/episode_ends: expected")):
        ends[:] = bad
        refused(folder, words)
    shutil.rmtree(folder / "meta/episode_ends")
    refused(folder, "in.zarr: cannot be read: KeyError: 'episode_ends'")


def test_a_missing_chunk_is_noted(tmp_path, folder):
    """A chunk of zeros may have been omitted if the array has a fill value."""
    (folder / "data/front_image/1.0.0.0").unlink()
    source = convert(folder, tmp_path / "out.zarr")
    assert source.notes == ["data/front_image: 3 of 4 chunks exist; the others are read as 0"]
    edited(folder / "data/front_image/.zarray", fill_value=None)
    for form in (folder, zipped(folder)):
        refused(form, "data/front_image: expected all chunks, got 3 of 4")


SHADES = 7  # grey levels from one frame to the next


def film(path, count, fps=30):
    """Write a video whose frames each have one shade."""
    greys = 20 + SHADES * np.arange(count, dtype=np.uint8)
    made.video(path, np.tile(greys[:, None, None, None], (1, 16, 32, 3)), fps, gop=250)


def test_videos_of_a_robot_become_cameras(tmp_path, folder):
    """Episodes of 4 and 3 steps at 12.5 Hz, two cameras at 30 Hz, timestamps of a system clock."""
    (robot := tmp_path / "robot").mkdir()
    folder.rename(buffer := robot / "replay_buffer.zarr")
    data_of(buffer)["timestamp"][:] = 1.7e9 + np.array([0, 0.08, 0.16, 0.24, 9, 9.08, 9.16])
    for key in ("front_image", "img"):
        shutil.rmtree(buffer / f"data/{key}")
    (data := buffer / "data").rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")  # on another disk
    for episode, count in enumerate((12, 9)):
        for camera in (0, 10):
            film(robot / f"videos/{episode}/{camera}.mp4", count)
    store = converted(robot)
    assert store.cameras == ("camera_0", "camera_10") and store.attrs["rate_hz"] == 12.5
    assert store.attrs["camera_geometry"]["camera_0"]["size"] == [16, 32]
    np.testing.assert_array_equal(store["action"], DATA["action"])
    shades = (store["images_camera_10"].mean((1, 2, 3)) - 20) / SHADES
    # the first 30 Hz frames at or after 0, 0.08, 0.16 and 0.24 s
    np.testing.assert_allclose(shades, [0, 3, 5, 8, 0, 3, 5], atol=0.3)
    assert converted(robot, Choice(cameras=("camera_10",)), "one.zarr").cameras == ("camera_10",)
    refused(robot, "rate_hz: expected 12.5", choice=Choice(rate_hz=10))  # it would select other frames
    video = robot / "videos/1/0.mp4"
    film(video, 3)  # its last frame is repeated, as in diffusion_policy
    shades = converted(robot, name="early.zarr")["images_camera_0"][4:].mean((1, 2, 3))
    np.testing.assert_allclose((shades - 20) / SHADES, [0, 2, 2], atol=0.3)
    video.write_bytes(video.read_bytes()[:300])
    refused(robot, "videos/1/0.mp4: cannot be read")
    video.unlink()
    refused(robot, "videos/1/0.mp4: expected a video")
    (robot / "videos/0/10.mp4").unlink()  # the camera is still known by the other episode
    refused(robot, "videos/0/10.mp4: expected a video", choice=Choice(cameras=("camera_10",)))


def test_store_exported_as_a_buffer(tmp_path):
    store = made.store(tmp_path / "own.zarr")
    path = written(store, tmp_path / "out.zarr")
    assert not list(path.rglob("zarr.json"))
    hand = json.loads((path / "data/hand_image/.zarray").read_text())
    assert hand["chunks"] == [1, made.H, made.W, 3] and hand["compressor"]["id"] == "blosc"
    root = zarr.open_group(str(path), mode="r", zarr_format=2)
    assert root["meta/episode_ends"].dtype == np.int64 and root["meta/episode_ends"][:].tolist() == [5, 12]
    assert "joints (2 delta)" in root.attrs["actions"]
    for key, name in {"action": "action", "proprio": "agent_pos", "images_left.up": "left.up_image",
                      "grid": "grid", "force/left": "force%2Fleft"}.items():  # fmt: skip
        np.testing.assert_array_equal(root[f"data/{name}"], store[key])
    np.testing.assert_array_equal(root["data/timestamp"][5:], np.arange(7) / made.FPS)
    assert {array.shape[0] for _, array in root["data"].arrays()} == {12}
    for missing, words in (
        ("data/grid/.zarray", "out.zarr: cannot be read: KeyError: 'grid'"),
        ("data/hand_image/0.0.0.0", "out.zarr: data/hand_image: expected all chunks, got 11 of 12"),
    ):
        content = (path / missing).read_bytes()
        (path / missing).unlink()
        refused(path, words)
        (path / missing).write_bytes(content)
    (path / ".zattrs").unlink()  # the sidecar
    back = converted(path, Choice(cameras=("left.up",)))
    assert back.attrs["rate_hz"] == made.FPS and back.keys == ("action", "proprio", "images_left.up")
    for key in back.keys:
        np.testing.assert_array_equal(back[key], store[key])


@pytest.mark.parametrize("name", ["out.zarr", "out.zarr.zip"])
def test_round_trip_is_exact_and_leaves_no_partial_output(tmp_path, name):
    store = made.store(tmp_path / "own.zarr")
    assert converted(written(store, tmp_path / name)).fingerprint == store.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.zarr", name, "own.zarr"]
    numbers = np.array(store["proprio"])
    numbers[8, 1] = np.inf
    made.overwrite(store.path, "proprio", numbers)
    with pytest.raises(UserError, match="own.zarr: episode 1: proprio: expected finite .* inf at step 3"):
        written(store, tmp_path / f"bad_{name}")
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("dtype", ["f4", "u2"])
def test_depth_of_another_type_is_restored(tmp_path, dtype):
    plain, depth = made.store(tmp_path / "plain.zarr"), (np.arange(240).reshape(5, 6, 8) * 9.5).astype(dtype)
    with EpisodeStore.create(tmp_path / "own.zarr", {**plain.attrs, "arrays": None}) as store:
        store.append({**plain.episode(0), "images_depth": depth})
    back = converted(written(EpisodeStore.open(store.path), tmp_path / "out.zarr"))
    np.testing.assert_array_equal(back["images_depth"], depth)


def test_timestamps_follow_each_episodes_rate(tmp_path):
    slowed = made.store(tmp_path / "in.zarr", values=[{"speed": 1.0}, {"speed": 0.7}])
    stamps = data_of(written(slowed, tmp_path / "out.zarr"))["timestamp"][:]
    for actual, count, rate in zip(np.split(stamps, made.LENGTHS[:1]), made.LENGTHS, (10, 7), strict=True):
        np.testing.assert_allclose(actual, np.arange(count) / rate)
