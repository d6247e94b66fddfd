"""Import of LeRobot datasets of both versions, partial and broken ones; export, read back by our importer."""

import errno
import json
import math
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from s2robot.demos.formats import write_lerobot
from s2robot.demos.formats.convert import as_store, convert
from s2robot.demos.formats.source import Choice
from s2robot.demos.store import EpisodeStore
from tests.demos.formats import made
from tests.demos.formats.made import converted, edited, psnr, refused, written
from tests.errors import refuses

EPISODE = "data/chunk-000/episode_000001.parquet"
VIDEO = "videos/chunk-000/observation.images.top/episode_000001.mp4"


@pytest.fixture
def copy(tmp_path):
    return made.lerobot_v21(tmp_path / "in")


@pytest.mark.parametrize("make", [made.lerobot_v21, made.lerobot_v30])
def test_numbers_images_and_tasks_are_imported(tmp_path, make):
    store = converted(make(tmp_path / "in"))
    assert store.lengths.tolist() == list(made.LENGTHS)
    assert (store.robot, store.attrs["rate_hz"], store.cameras) == ("koch", made.FPS, ("top",))
    (part,) = store.attrs["action_parts"]
    assert part == {"name": "action", "size": 3, "kind": "absolute", "names": ["x", "y", "z"]}
    assert [store.attrs["tasks"][i] for i in store.meta("task")] == list(made.TASKS)
    for i in range(2):
        episode = store.episode(i)
        np.testing.assert_array_equal(episode["action"], made.numbers(i)["action"])
        np.testing.assert_array_equal(episode["proprio"], made.numbers(i)["state"])
        np.testing.assert_array_equal(episode["next.reward"], np.arange(made.LENGTHS[i]))
        # a neighbouring frame is below 33: no frame is mistaken for another
        assert min(map(psnr, episode["images_top"], made.frames(i))) > 38


def test_partial_download_with_another_video_folder_is_imported(tmp_path, copy):
    (copy / "data/chunk-000/episode_000000.parquet").unlink()
    (copy / "videos").rename(copy / "video")
    source = convert(copy, tmp_path / "out.zarr")
    store = EpisodeStore.open(tmp_path / "out.zarr")
    assert store.meta("source_episode").tolist() == [1] and source.notes[0].startswith("1 of 2 episodes")


def test_dataset_is_converted_again_only_after_a_change(tmp_path, copy):
    messages: list[str] = []
    first = as_store(copy, tmp_path / "cache", show=messages.append)
    assert as_store(copy, tmp_path / "cache", show=messages.append) == first and len(messages) == 1
    assert as_store(first, tmp_path / "cache") == first
    other = shutil.copytree(copy, tmp_path / "other" / copy.name)  # with the same names, sizes and times
    assert as_store(other, tmp_path / "cache") != first
    (copy / "README.md").write_text("changed")
    assert as_store(copy, tmp_path / "cache", show=messages.append) != first


def replaced(file, old, new):
    return lambda path: (path / file).write_text((path / file).read_text().replace(old, new))


def info(**changes):
    return lambda path: edited(path / "meta/info.json", **changes)


def columns(**changes):
    return lambda path: pq.write_table(made.table(1, made.LENGTHS[0], **changes), path / EPISODE)


def ragged(rows):
    """Replace the actions with rows of unequal length."""
    table = made.table(1, made.LENGTHS[0])
    other = table.set_column(table.column_names.index("action"), "action", pa.array(rows))
    return lambda path: pq.write_table(other, path / EPISODE)


TOP, ODD = made.features()["observation.images.top"], {"dtype": "float31", "shape": [1], "names": None}


def no_rows(path):
    pq.write_table(pq.read_table(path / EPISODE).slice(0, 0), path / EPISODE)
    replaced("meta/episodes.jsonl", '"length": 7', '"length": 0')(path)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda p: (p / EPISODE).write_bytes((p / EPISODE).read_bytes()[:-20]), "episode_000001.parquet: "),
        (lambda p: (p / VIDEO).unlink(), 'episode_000001.mp4: expected a file, got none; "episodes=[0]"'),
        (lambda p: made.video(p / VIDEO, made.frames(0)), "episode_000001.mp4: expected 7 frames"),
        (replaced("meta/episodes.jsonl", '"length": 7', '"length": 8'), "episode 1: expected 8 rows"),
        (replaced("meta/episodes.jsonl", '"episode_index": 1', '"episode_index": 2'), "episode_index: expected 1"),
        (info(features=made.features() | {"observation.image.top": TOP}), "expected cameras with different names"),
        (no_rows, '"episodes=[0]"'),
        (lambda p: (p / "meta/episodes.jsonl").write_text("[1]\n"), "in/meta/episodes.jsonl: expected keys and values"),
        (replaced("meta/episodes.jsonl", '"length": 7', '"length": "abc"'), "in/meta/episodes.jsonl: length: expected an integer"),
        (info(features=made.features() | {"next.reward": ODD}), "in: cannot be read: data type 'float31'"),
        (info(fps="ten"), "in/meta/info.json: fps: "),
        (columns(timestamp=[0, 0.1, 0.2, 0.3, 0.4, 0.56, 0.6]), "episode 1: timestamp: row 5: expected 0.5"),
        (columns(timestamp=[0, 0.1, 0.2, float("nan"), 0.4, 0.5, 0.6]), "episode 1: timestamp: row 3: expected 0.3"),
        (columns(frame_index=[0, 1, 2, 4, 5, 6, 7]), "episode 1: frame_index: row 3: expected 3, got 4"),
        (columns(index=[5, 6, 7, 9, 10, 11, 12]), "episode 1: index: row 3: expected 8, got 9"),
        (columns(action=[[0, 0, 0]] * 3 + [[0, float("nan"), 0]] * 4), "action: expected finite numbers, got nan at step 3"),
        (ragged([[1, 2, 3, 4], [5, 6]] + [[7, 8, 9]] * 5), "episode_000001.parquet: action: expected the same count"),
        (ragged([[1, 2, 3]] * 6 + [None]), "episode_000001.parquet: action: expected the same count"),
        (ragged([[[1], [2], [3]]] * 5 + [[[1], [2, 3], []], [[1], [2], [3]]]), "action: expected the same count"),
    ],
)  # fmt: skip
def test_broken_file_is_one_error_line_and_leaves_nothing(copy, broken, words):
    broken(copy)
    refused(copy, words)


def test_missing_column_of_the_episode_table_is_one_error_line(tmp_path):
    file = made.lerobot_v30(tmp_path / "in") / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    for column in ("episode_index", "length"):
        pq.write_table(table.drop_columns([column]), file)
        refused(tmp_path / "in", f"meta/episodes: {column}: expected a value")


def test_a_choice_of_keys_and_episodes(copy):
    choice = Choice(action=("observation.state",), proprio=("action",), action_kind="delta", episodes=1)
    store = converted(copy, choice)
    assert len(store) == 1 and store.attrs["action_parts"][0]["kind"] == "delta"
    np.testing.assert_array_equal(store["action"], made.numbers(0)["state"])
    refused(copy, "rate_hz: expected 10", choice=Choice(rate_hz=5))
    refused(copy, "cameras: expected some of top", "'hand'", choice=Choice(cameras=("hand",)))


def test_colliding_feature_names_never_replace_each_other(tmp_path, copy):
    """The chosen action is not the feature of that name; other names collide with each other or with the store's."""
    columns = {"proprio": 1, "images_top": 2, "x?": 3, "x*": 4, "perturbed": 5, "expert": 6}
    plain = {"dtype": "float32", "shape": [1], "names": None}
    info(features=made.features() | dict.fromkeys(columns, plain))(copy)
    for file in copy.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        for name, value in columns.items():
            table = table.append_column(name, pa.array(np.full(len(table), value, "f4")))
        pq.write_table(table, file)
    choice = Choice(action=("observation.state",), proprio=("observation.state",))
    source = convert(copy, tmp_path / "out.zarr", choice)
    store = EpisodeStore.open(tmp_path / "out.zarr")
    for i in range(2):
        episode, expected = store.episode(i), made.numbers(i)
        np.testing.assert_array_equal(episode["action"], expected["state"])
        np.testing.assert_array_equal(episode["proprio"], expected["state"])
        np.testing.assert_array_equal(episode["recorded_action"], expected["action"])
        assert episode["images_top"].shape == (made.LENGTHS[i], made.H, made.W, 3)
    names = *(f"recorded_{name}" for name in ("proprio", "images_top", "xx_x", "perturbed", "expert")), "xx_x"
    assert [store[name][0] for name in names] == [1, 2, 4, 5, 6, 3] and len(source.notes) == 6


def test_full_disk_error_names_the_output(tmp_path, copy, monkeypatch):
    """Invalid data is an error of the source; a disk error concerns the output."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("s2robot.demos.arrays.define_arrays", full)
    refuses("^[^:]*out.zarr: the disk is full", convert, copy, tmp_path / "out.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_lossless_images_round_trip_to_the_same_store(tmp_path):
    store = made.store(tmp_path / "in.zarr")
    written(store, tmp_path / "out", image_codec="png")
    assert convert(tmp_path / "out", tmp_path / "back.zarr").notes == []
    assert EpisodeStore.open(tmp_path / "back.zarr").fingerprint == store.fingerprint


def test_video_preserves_numbers_exactly_and_images_closely(tmp_path):
    """Includes images with odd side lengths."""
    store = made.store(tmp_path / "in.zarr", sizes={"hand": (64, 96), "left/up": (97, 63)})
    back = converted(written(store, tmp_path / "out"))
    assert back.attrs == store.attrs and back.episode_ends.tolist() == store.episode_ends.tolist()
    for key in store.keys:
        if key.startswith("images_"):
            assert min(map(psnr, back[key], store[key])) > 38
        else:
            np.testing.assert_array_equal(back[key], store[key], strict=True)


def test_output_is_split_into_files_of_limited_size(tmp_path, monkeypatch):
    """A file holds at most one second of video: the second episode, 0.7 s after 0.5 s, starts a new one."""
    for name in ("MAX_SECONDS", "CHUNK", "DATA_BYTES"):
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


def test_metadata_and_statistics_describe_the_data(tmp_path):
    store = made.store(tmp_path / "in.zarr")
    out = written(store, tmp_path / "out")
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
    tasks = pd.read_parquet(out / "meta/tasks.parquet")  # as LeRobot reads them
    assert [tasks.iloc[i].name for i in range(2)] == list(made.TASKS) and tasks.task_index.tolist() == [0, 1]
    for name, env, text in (("a_b.zarr", {}, "a b"), ("c", {"task": "gym", "id": "X-v0"}, "X-v0")):
        assert write_lerobot._tasks(made.store(tmp_path / name, tasks=[], env_config=env), None)[0] == [text]
    table = pq.read_table(out / "data/chunk-000/file-000.parquet")
    assert table["task_index"].to_pylist() == [1] * 5 + [0] * 7 and table["width"].type == pa.float32()
    rows = pq.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    totals = json.loads((out / "meta/stats.json").read_text())
    second, steps = store.episode(1), store["action"].astype("f8")
    actions = second["action"].astype("f8")
    ninth = np.quantile(actions, 0.9, axis=0)
    for name, expected in {"min": actions.min(0), "std": actions.std(0), "q90": ninth, "count": [7]}.items():
        np.testing.assert_allclose(rows[1][f"stats/action/{name}"], expected, rtol=1e-12)
    all_steps = {"max": steps.max(0), "mean": steps.mean(0), "std": steps.std(0), "count": [12]}
    for name, expected in all_steps.items():
        np.testing.assert_allclose(totals["action"][name], expected, rtol=1e-12)
    pixels = second["images_hand"].transpose(3, 0, 1, 2).reshape(3, -1) / 255
    median = np.quantile(pixels, 0.5, axis=1, method="inverted_cdf")
    for name, expected in (("max", pixels.max(1)), ("mean", pixels.mean(1)), ("std", pixels.std(1)), ("q50", median)):  # fmt: skip
        actual = np.array(rows[1][f"stats/observation.images.hand/{name}"])
        assert actual.shape == (3, 1, 1)
        np.testing.assert_allclose(actual.ravel(), expected, atol=1e-12)
    assert np.shape(totals["grid"]["q10"]) == (2, 3) and totals["observation.images.hand"]["count"] == [12]


def test_the_sidecar_of_an_edited_dataset_is_not_used(tmp_path):
    """LeRobot's tools can remove episodes, which makes the sidecar outdated."""
    out = written(made.store(tmp_path / "in.zarr"), tmp_path / "out")
    made.edited(out / "meta/info.json", total_frames=11)
    assert len(convert(out, tmp_path / "back.zarr").notes) == 1
    assert EpisodeStore.open(tmp_path / "back.zarr").attrs["source"]["format"] == "LeRobot v3.0"


def test_unsupported_dataset_is_one_error_line_and_leaves_nothing(tmp_path, monkeypatch):
    def assert_rejected(name, words, image_codec="h264", **about):
        store = made.store(tmp_path / name, **about)
        before = sorted(tmp_path.iterdir())
        refuses(rf"{words}[^\n]*\Z", written, store, tmp_path / "out", image_codec=image_codec)
        assert sorted(tmp_path.iterdir()) == before

    assert_rejected("a.zarr", "rate_hz: expected a whole number.*12.5", rate_hz=12.5)
    assert_rejected("b.zarr", "up/left and up_left", sizes={"up/left": (16, 16), "up_left": (16, 16)})
    assert_rejected("c.zarr", "expected finite values", image_codec="png", values=[{"grade": math.nan}] * 2)
    monkeypatch.setattr("s2robot.demos.formats.video.ENCODER", "libnone")
    assert_rejected("d.zarr", "libnone.*image_codec=png")
