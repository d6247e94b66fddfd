"""Our episodes as LeRobot datasets, and back by our own reader."""

import json
import math
import shutil
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from s2robot.demos.errors import DatasetError
from s2robot.demos.formats import write_lerobot
from s2robot.demos.formats.convert import convert
from s2robot.demos.formats.export import ExportSettings, export
from s2robot.demos.replay import episode_frames
from s2robot.demos.store import EpisodeStore
from tests.demos.formats import made
from tests.demos.formats.test_lerobot import psnr


def test_lossless_pictures_make_the_same_store_again(tmp_path):
    store = made.store(tmp_path / "in.zarr")
    export(store, tmp_path / "out", "lerobot", ExportSettings(pictures="png"))
    assert convert(tmp_path / "out", tmp_path / "back.zarr").notes == []
    assert EpisodeStore.open(tmp_path / "back.zarr").fingerprint == store.fingerprint


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_video_keeps_numbers_exactly_and_pictures_nearly(tmp_path, codec):
    """Sides of odd length too."""
    store = made.store(tmp_path / "in.zarr", sizes={"hand": (64, 96), "left/up": (97, 63)})
    notes = export(store, tmp_path / "out", "lerobot", ExportSettings(pictures=codec))
    odd = ["left/up: 97 x 63 pixels are kept as yuv444p, which browsers do not show"]
    assert notes == (odd if codec == "h264" else [])
    convert(tmp_path / "out", tmp_path / "back.zarr")
    back = EpisodeStore.open(tmp_path / "back.zarr")
    assert back.attrs == store.attrs and back.episode_ends.tolist() == store.episode_ends.tolist()
    for key in store.keys:
        if key.startswith("images_"):
            assert min(map(psnr, back[key], store[key])) > 38
        else:
            np.testing.assert_array_equal(back[key], store[key], strict=True)


def test_files_are_begun_anew_when_they_are_full(tmp_path, monkeypatch):
    """Each second of video is a file's most: the second episode, 0.7 s after 0.5 s, begins one of its own."""
    monkeypatch.setattr(write_lerobot, "MOST_SECONDS", 1)
    monkeypatch.setattr(write_lerobot, "CHUNK", 1)
    monkeypatch.setattr(write_lerobot, "DATA_BYTES", 1)
    store = made.store(tmp_path / "in.zarr")
    export(store, tmp_path / "out", "lerobot", ExportSettings())
    rows = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    video = "videos/observation.images.hand"
    for kind in ("data", video):
        assert [(row[f"{kind}/chunk_index"], row[f"{kind}/file_index"]) for row in rows] == [(0, 0), (1, 0)]
        assert len(list((tmp_path / "out" / kind).glob("chunk-00[01]/file-000.*"))) == 2
    assert [row[f"{video}/from_timestamp"] for row in rows] == [0, 0]
    convert(tmp_path / "out", tmp_path / "back.zarr")
    np.testing.assert_array_equal(EpisodeStore.open(tmp_path / "back.zarr")["action"], store["action"])


def test_what_info_says(tmp_path):
    export(made.store(tmp_path / "in.zarr"), tmp_path / "out", "lerobot", ExportSettings(pictures="av1"))
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    features = info.pop("features")
    assert info.pop("data_path").endswith(".parquet") and info.pop("video_path").endswith(".mp4")
    assert info == {
        "codebase_version": "v3.0", "robot_type": "xarm7", "total_episodes": 2, "total_frames": 12,
        "total_tasks": 2, "chunks_size": 1000, "fps": 10, "splits": {"train": "0:2"},
        "data_files_size_in_mb": 100, "video_files_size_in_mb": 200,
    }  # fmt: skip
    assert features["action"] == {
        "dtype": "float32",
        "shape": [3],
        "names": ["delta_elbow", "delta_wrist", "gripper"],
    }
    assert features["observation.state"]["names"] == ["pose 1", "pose 2", "pose 3", "pose 4"]
    assert features["force_left"] == {"dtype": "float64", "shape": [1], "names": None}
    assert (features["grid"]["shape"], features["index"]["dtype"]) == ([2, 3], "int64")
    assert features["observation.images.hand"]["shape"] == [made.H, made.W, 3]
    assert features["observation.images.hand"]["info"] == {
        "video.height": made.H, "video.width": made.W, "video.codec": "av1", "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False, "video.fps": 10, "video.channels": 3, "has_audio": False,
    }  # fmt: skip
    head = yaml.safe_load((tmp_path / "out/README.md").read_text().split("---")[1])
    assert head["tags"][0] == "LeRobot" and head["task_categories"] == ["robotics"]
    assert head["configs"] == [{"config_name": "default", "data_files": "data/*/*.parquet"}]


def test_statistics_are_those_of_the_numbers_and_pictures(tmp_path):
    store = made.store(tmp_path / "in.zarr")
    export(store, tmp_path / "out", "lerobot", ExportSettings())
    rows = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    every = json.loads((tmp_path / "out/meta/stats.json").read_text())
    second, action = store.episode(1), "stats/action"
    for name, wanted in (
        ("min", second["action"].min(0)), ("std", second["action"].astype("f8").std(0)),
        ("q90", np.quantile(second["action"].astype("f8"), 0.9, axis=0)), ("count", [7]),
    ):  # fmt: skip
        np.testing.assert_allclose(rows[1][f"{action}/{name}"], wanted, rtol=1e-12)
    pixels = second["images_hand"].transpose(3, 0, 1, 2).reshape(3, -1) / 255
    for name, wanted in (
        ("max", pixels.max(1)), ("mean", pixels.mean(1)), ("std", pixels.std(1)),
        ("q50", np.quantile(pixels, 0.5, axis=1, method="inverted_cdf")),
    ):  # fmt: skip
        found = np.array(rows[1][f"stats/observation.images.hand/{name}"])
        assert found.shape == (3, 1, 1)
        np.testing.assert_allclose(found.ravel(), wanted, atol=1e-12)
    whole = store["action"].astype("f8")
    for name, wanted in (
        ("max", whole.max(0)),
        ("mean", whole.mean(0)),
        ("std", whole.std(0)),
        ("count", [12]),
    ):
        np.testing.assert_allclose(every["action"][name], wanted, rtol=1e-12)
    assert np.shape(every["grid"]["q10"]) == (2, 3) and every["observation.images.hand"]["count"] == [12]


def test_tasks_are_what_pandas_calls_the_index(tmp_path):
    store = made.store(tmp_path / "in.zarr")
    export(store, tmp_path / "out", "lerobot", ExportSettings())
    tasks = pd.read_parquet(tmp_path / "out/meta/tasks.parquet")
    assert [tasks.iloc[i].name for i in range(2)] == list(made.TASKS) and tasks.task_index.tolist() == [0, 1]
    table = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    assert table["task_index"].to_pylist() == [1] * 5 + [0] * 7 and b"huggingface" not in (
        table.schema.metadata or {}
    )


def test_an_edited_data_set_is_read_as_anybodys(tmp_path):
    """Their tools drop episodes: what we left about them would then be of others."""
    export(made.store(tmp_path / "in.zarr"), tmp_path / "out", "lerobot", ExportSettings())
    info = tmp_path / "out/meta/info.json"
    info.write_text(info.read_text().replace('"total_frames": 12', '"total_frames": 11'))
    source = convert(tmp_path / "out", tmp_path / "back.zarr")
    assert len(source.notes) == 1
    assert EpisodeStore.open(tmp_path / "back.zarr").attrs["source"]["format"] == "LeRobot v3.0"


def test_what_cannot_go_out_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def refused(codec="h264", **about):
        store = made.store(tmp_path / "in.zarr", **about)
        with pytest.raises(DatasetError) as caught:
            export(store, tmp_path / "out", "lerobot", ExportSettings(pictures=codec))
        assert [p.name for p in tmp_path.iterdir()] == ["in.zarr"] and "\n" not in str(caught.value)
        shutil.rmtree(store.path)
        return str(caught.value)

    assert "rate_hz: found 12.5, expected a whole number" in refused(rate_hz=12.5)
    twice = refused(sizes={"up/left": (16, 16), "up_left": (16, 16)})
    assert "found camera up/left and camera up_left" in twice
    assert "1 x 1 pixels that libsvtav1 cannot write" in refused("av1", sizes={"hand": (1, 1)})
    source = made.store(tmp_path / "source.zarr")
    with EpisodeStore.create(
        tmp_path / "in.zarr", {k: v for k, v in source.attrs.items() if k != "schema_version"}
    ) as graded:
        graded.append(source.episode(0), {"grade": math.nan})
    shutil.rmtree(source.path)
    with pytest.raises(DatasetError, match="found nan or inf among the values of episodes, expected numbers"):
        export(EpisodeStore.open(graded.path), tmp_path / "out", "lerobot", ExportSettings(pictures="png"))
    assert [p.name for p in tmp_path.iterdir()] == ["in.zarr"]
    shutil.rmtree(graded.path)
    monkeypatch.setattr(av, "codecs_available", {"libx264"})
    assert "pictures: found av1, which PyAV" in refused("av1")


@pytest.mark.slow
def test_the_shipped_demos_go_out_and_come_back(tmp_path):
    """The first ones, by real pictures. They hold states: pictures are drawn on the way."""
    shipped = EpisodeStore.open(Path(__file__).parents[3] / "demos/data/xarm7_cube.zarr")
    with EpisodeStore.create(tmp_path / "in.zarr", shipped.attrs) as store:
        store.append_all(shipped, 12)
    export(store, tmp_path / "out", "lerobot", ExportSettings())
    convert(tmp_path / "out", tmp_path / "back.zarr")
    back = EpisodeStore.open(tmp_path / "back.zarr")
    assert back.attrs == store.attrs | {"kind": "images"}
    for key in store.keys:
        np.testing.assert_array_equal(back[key], store[key], strict=True)
    for key in store.meta_keys:
        np.testing.assert_array_equal(back.meta(key), store.meta(key), strict=True)
    for i in range(0, len(store), 4):
        drawn = episode_frames(store.path, i, store.cameras, 256)
        for camera, frames in zip(store.cameras, drawn, strict=True):
            assert min(map(psnr, back.episode(i)[f"images_{camera}"], frames)) > 38
