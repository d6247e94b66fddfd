"""Our episodes as LeRobot datasets, and back by our own reader."""

import json
import math

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from s2robot.core.errors import UserError
from s2robot.demos.formats import write_lerobot
from s2robot.demos.formats.convert import convert
from s2robot.demos.store import EpisodeStore
from tests.demos.formats import made
from tests.demos.formats.made import converted, psnr, written


def test_lossless_images_make_the_same_store_again(tmp_path):
    store = made.store(tmp_path / "in.zarr")
    written(store, tmp_path / "out", pictures="png")
    assert convert(tmp_path / "out", tmp_path / "back.zarr").notes == []
    assert EpisodeStore.open(tmp_path / "back.zarr").fingerprint == store.fingerprint


def test_video_keeps_numbers_exactly_and_images_nearly(tmp_path):
    """Sides of odd length too."""
    store = made.store(tmp_path / "in.zarr", sizes={"hand": (64, 96), "left/up": (97, 63)})
    back = converted(written(store, tmp_path / "out"))
    assert back.attrs == store.attrs and back.episode_ends.tolist() == store.episode_ends.tolist()
    for key in store.keys:
        if key.startswith("images_"):
            assert min(map(psnr, back[key], store[key])) > 38
        else:
            np.testing.assert_array_equal(back[key], store[key], strict=True)


def test_full_files_are_followed_by_new_ones(tmp_path, monkeypatch):
    """At most a second of video in a file: the second episode, 0.7 s after 0.5 s, starts another."""
    for name in ("MOST_SECONDS", "CHUNK", "DATA_BYTES"):
        monkeypatch.setattr(write_lerobot, name, 1)
    store = made.store(tmp_path / "in.zarr")
    out = written(store, tmp_path / "out")
    rows = pq.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    video = "videos/observation.images.hand"
    for kind in ("data", video):
        assert [(row[f"{kind}/chunk_index"], row[f"{kind}/file_index"]) for row in rows] == [(0, 0), (1, 0)]
        assert len(list((out / kind).glob("chunk-00[01]/file-000.*"))) == 2
    assert [row[f"{video}/from_timestamp"] for row in rows] == [0, 0]
    np.testing.assert_array_equal(converted(out)["action"], store["action"])


def test_metadata(tmp_path):
    out = written(made.store(tmp_path / "in.zarr"), tmp_path / "out")
    info = json.loads((out / "meta/info.json").read_text())
    features = info.pop("features")
    assert info.pop("data_path").endswith(".parquet") and info.pop("video_path").endswith(".mp4")
    assert info == {
        "codebase_version": "v3.0", "robot_type": "xarm7", "total_episodes": 2, "total_frames": 12, "total_tasks": 2, "fps": 10,
        "chunks_size": 1000, "splits": {"train": "0:2"}, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200,
    }  # fmt: skip
    names = ["delta_elbow", "delta_wrist", "gripper"]
    assert features["action"] == {"dtype": "float32", "shape": [3], "names": names}
    assert features["observation.state"]["names"] == ["pose 1", "pose 2", "pose 3", "pose 4"]
    assert features["force_left"] == {"dtype": "float64", "shape": [1], "names": None}
    assert (features["grid"]["shape"], features["index"]["dtype"]) == ([2, 3], "int64")
    hand = features["observation.images.hand"]
    assert (hand["shape"], hand["info"]["video.codec"]) == ([made.H, made.W, 3], "h264")
    head = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert head["configs"] == [{"config_name": "default", "data_files": "data/*/*.parquet"}]
    tasks = pd.read_parquet(out / "meta/tasks.parquet")  # as LeRobot looks them up
    assert [tasks.iloc[i].name for i in range(2)] == list(made.TASKS) and tasks.task_index.tolist() == [0, 1]
    table = pq.read_table(out / "data/chunk-000/file-000.parquet")
    assert table["task_index"].to_pylist() == [1] * 5 + [0] * 7


def test_statistics_are_those_of_the_numbers_and_images(tmp_path):
    store = made.store(tmp_path / "in.zarr")
    out = written(store, tmp_path / "out")
    rows = pq.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    every = json.loads((out / "meta/stats.json").read_text())
    second, whole = store.episode(1), store["action"].astype("f8")
    own = second["action"].astype("f8")
    ninth = np.quantile(own, 0.9, axis=0)
    for name, wanted in {"min": own.min(0), "std": own.std(0), "q90": ninth, "count": [7]}.items():
        np.testing.assert_allclose(rows[1][f"stats/action/{name}"], wanted, rtol=1e-12)
    all_steps = {"max": whole.max(0), "mean": whole.mean(0), "std": whole.std(0), "count": [12]}
    for name, wanted in all_steps.items():
        np.testing.assert_allclose(every["action"][name], wanted, rtol=1e-12)
    pixels = second["images_hand"].transpose(3, 0, 1, 2).reshape(3, -1) / 255
    median = np.quantile(pixels, 0.5, axis=1, method="inverted_cdf")
    for name, wanted in (("max", pixels.max(1)), ("mean", pixels.mean(1)), ("std", pixels.std(1)), ("q50", median)):  # fmt: skip
        found = np.array(rows[1][f"stats/observation.images.hand/{name}"])
        assert found.shape == (3, 1, 1)
        np.testing.assert_allclose(found.ravel(), wanted, atol=1e-12)
    assert np.shape(every["grid"]["q10"]) == (2, 3) and every["observation.images.hand"]["count"] == [12]


def test_the_sidecar_of_an_edited_dataset_is_not_used(tmp_path):
    """LeRobot's tools drop episodes: the sidecar would then describe others."""
    out = written(made.store(tmp_path / "in.zarr"), tmp_path / "out")
    info = out / "meta/info.json"
    info.write_text(info.read_text().replace('"total_frames": 12', '"total_frames": 11'))
    assert len(convert(out, tmp_path / "back.zarr").notes) == 1
    assert EpisodeStore.open(tmp_path / "back.zarr").attrs["source"]["format"] == "LeRobot v3.0"


def test_a_dataset_that_the_format_cannot_hold_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def refused(name, words, pictures="h264", grades=(), **about):
        store = made.store(tmp_path / name, **about)
        for grade in grades:
            kept = {k: v for k, v in store.attrs.items() if k != "schema_version"}
            arrays, store = store.episode(0), EpisodeStore.create(tmp_path / "graded.zarr", kept)
            store.append(arrays, {"grade": grade})
        before = sorted(tmp_path.iterdir())
        with pytest.raises(UserError, match=rf"{words}[^\n]*\Z"):
            written(store, tmp_path / "out", pictures=pictures)
        assert sorted(tmp_path.iterdir()) == before

    refused("a.zarr", "rate_hz: expected a whole number.*12.5", rate_hz=12.5)
    refused("b.zarr", "up/left and up_left", sizes={"up/left": (16, 16), "up_left": (16, 16)})
    refused("c.zarr", "expected finite values", pictures="png", grades=[math.nan])
    monkeypatch.setattr("s2robot.demos.formats.video.ENCODER", "libnone")
    refused("d.zarr", "libnone.*pictures=png")
