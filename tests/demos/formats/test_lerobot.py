"""LeRobot data sets in: both versions, partial ones, and what is broken in one line."""

import errno
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2robot.core.errors import UserError
from s2robot.demos.errors import DatasetError
from s2robot.demos.formats import lerobot
from s2robot.demos.formats.convert import as_store, convert
from s2robot.demos.formats.export import ExportSettings, export
from s2robot.demos.formats.source import Choice
from s2robot.demos.store import EpisodeStore
from tests.demos.formats import made


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    error = np.square(found.astype(float) - wanted.astype(float)).mean()
    return 10 * np.log10(255**2 / max(error, 1e-9))


@pytest.fixture(scope="module")
def v21(tmp_path_factory):
    return made.lerobot_v21(tmp_path_factory.mktemp("lerobot") / "v21")


@pytest.mark.parametrize("make", [made.lerobot_v21, made.lerobot_v30])
def test_numbers_pictures_and_tasks_arrive(tmp_path, make):
    convert(make(tmp_path / "in"), tmp_path / "out.zarr")
    store = EpisodeStore.open(tmp_path / "out.zarr")
    assert store.lengths.tolist() == list(made.LENGTHS)
    assert (store.robot, store.attrs["rate_hz"], store.cameras) == ("koch", made.FPS, ("top",))
    assert store.attrs["action_parts"] == [
        {"name": "action", "size": 3, "kind": "absolute", "names": ["x", "y", "z"]}
    ]
    assert [store.attrs["tasks"][i] for i in store.meta("task")] == list(made.TASKS)
    for i in range(2):
        episode = store.episode(i)
        np.testing.assert_array_equal(episode["action"], made.numbers(i)["action"])
        np.testing.assert_array_equal(episode["proprio"], made.numbers(i)["state"])
        np.testing.assert_array_equal(episode["next.reward"], np.arange(made.LENGTHS[i]))
        for picture, wanted in zip(episode["images_top"], made.frames(i), strict=True):
            assert (
                psnr(picture, wanted) > 38
            )  # the next picture is below 33: no frame is taken for its neighbour
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_a_partial_download_with_another_video_folder_arrives(tmp_path, v21):
    copy = shutil.copytree(v21, tmp_path / "in")
    (copy / "data/chunk-000/episode_000000.parquet").unlink()
    (copy / "videos").rename(copy / "video")
    source = convert(copy, tmp_path / "out.zarr")
    store = EpisodeStore.open(tmp_path / "out.zarr")
    assert store.meta("source_episode").tolist() == [1] and source.notes[0].startswith("1 of 2 episodes")


def test_it_is_converted_once_and_again_when_it_changes(tmp_path, v21):
    copy, said = shutil.copytree(v21, tmp_path / "in"), []
    first = as_store(copy, tmp_path / "cache", show=said.append)
    assert as_store(copy, tmp_path / "cache", show=said.append) == first and len(said) == 1
    assert as_store(first, tmp_path / "cache") == first
    (copy / "README.md").write_text("changed")
    assert as_store(copy, tmp_path / "cache", show=said.append) != first


def truncated(path):
    file = path / "data/chunk-000/episode_000001.parquet"
    file.write_bytes(file.read_bytes()[:-20])


def no_video(path):
    (path / "videos/chunk-000/observation.images.top/episode_000001.mp4").unlink()


def short_video(path):
    made.video(path / "videos/chunk-000/observation.images.top/episode_000001.mp4", made.frames(0))


def long_table(path):
    file = path / "meta/episodes.jsonl"
    file.write_text(file.read_text().replace('"length": 7', '"length": 8'))


def gap(path):
    file = path / "meta/episodes.jsonl"
    file.write_text(file.read_text().replace('"episode_index": 1', '"episode_index": 2'))


def two_cameras(path):
    info = json.loads((path / "meta/info.json").read_text())
    info["features"]["observation.image.top"] = info["features"]["observation.images.top"]
    (path / "meta/info.json").write_text(json.dumps(info))


def no_rows(path):
    file = path / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    episodes = path / "meta/episodes.jsonl"
    episodes.write_text(episodes.read_text().replace('"length": 7', '"length": 0'))


def episodes_of(text):
    """Another table of episodes."""
    return lambda path: (path / "meta/episodes.jsonl").write_text(text)


def feature(**changes):
    """Another feature of reward."""

    def broken(path):
        info = json.loads((path / "meta/info.json").read_text())
        info["features"]["next.reward"] |= changes
        (path / "meta/info.json").write_text(json.dumps(info))

    return broken


def no_picture(path):
    """PNGs beside the parquet, as paths in it tell: they are not there."""
    feature(dtype="image", shape=[made.H, made.W, 3])(path)
    for file in path.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        rows = pa.array([{"bytes": None, "path": "images/0.png"}] * len(table),
                        pa.struct({"bytes": pa.binary(), "path": pa.string()}))  # fmt: skip
        at = table.column_names.index("next.reward")
        pq.write_table(table.set_column(at, "next.reward", rows), file)


def told(**changes):
    """Other entries of info.json."""

    def broken(path):
        info = json.loads((path / "meta/info.json").read_text())
        (path / "meta/info.json").write_text(json.dumps(info | changes))

    return broken


@pytest.mark.parametrize(
    "broken, words",
    [
        (truncated, "episode_000001.parquet: found a parquet file that cannot be read"),
        (no_video, 'episode_000001.mp4: found no such file, expected one; "episodes=[0]"'),
        (short_video, "found 5 frames, until 0.400 s, expected 7"),
        (long_table, "episode 1: found 7 rows, expected 8 by the table of episodes"),
        (gap, "episode_index: found 2, expected 1: no gaps, no repeats"),
        (two_cameras, "two cameras called 'top'"),
        (no_rows, "episode_000001.parquet: episode 1: found no steps"),
        (no_picture, "episode_000000.parquet: next.reward: found a broken image ([Errno 2] No such file"),
        (episodes_of("[1]\n"), "in/meta/episodes.jsonl: found list"),
        (
            episodes_of('{"episode_index": 0, "length": "abc"}'),
            "in: cannot be read (ValueError: invalid literal",
        ),
        (feature(shape=None), "in: cannot be read (TypeError: "),
        (feature(dtype="float31"), "in: cannot be read (TypeError: data type 'float31'"),
        (told(fps="ten"), "in/meta/info.json: fps: "),
        (
            told(features=[]),
            "in/meta/info.json: features: ",
        ),
    ],
)
def test_a_broken_file_is_one_line_and_leaves_nothing(tmp_path, v21, broken, words):
    copy = shutil.copytree(v21, tmp_path / "in")
    broken(copy)
    with pytest.raises(UserError) as caught:
        convert(copy, tmp_path / "out.zarr")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"timestamp": [0, 0.1, 0.2, 0.3, 0.4, 0.56, 0.6]}, "in row 5, expected 0.5"),
        ({"timestamp": [0, 0.1, 0.2, float("nan"), 0.4, 0.5, 0.6]}, "timestamp: found nan in row 3, expected 0.3"),
        ({"frame_index": [0, 1, 2, 4, 5, 6, 7]}, "frame_index: found 4 in row 3, expected 3"),
        ({"index": [5, 6, 7, 9, 10, 11, 12]}, "index: found 9 in row 3, expected 8"),
        ({"action": [[0, 0, 0]] * 3 + [[0, float("nan"), 0]] * 4}, "action: found nan at step 3, expected finite"),
    ],
)  # fmt: skip
def test_a_broken_column_is_named(tmp_path, changes, words):
    with pytest.raises(DatasetError) as caught:
        convert(made.lerobot_v21(tmp_path / "in", **changes), tmp_path / "out.zarr")
    assert words in str(caught.value) and "episode 1" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 2, 3, 4], [5, 6]] + [[7, 8, 9]] * 5,  # as many numbers as there should be
        [[1, 2, 3]] * 6 + [None],
        [[1, 2, 3]] * 6 + [[1, 2, None]],
        [[[1], [2], [3]]] * 5 + [[[1], [2, 3], []], [[1], [2], [3]]],
    ],
)
def test_rows_without_numbers_or_of_other_lengths_shift_nothing(tmp_path, rows):
    file = made.lerobot_v21(tmp_path / "in") / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(file)
    pq.write_table(table.set_column(table.column_names.index("action"), "action", pa.array(rows)), file)
    words = "episode_000001.parquet: action: found rows without a value, or of different lengths, expected numbers"
    with pytest.raises(DatasetError, match=words):
        convert(tmp_path / "in", tmp_path / "out.zarr")


@pytest.mark.parametrize("column", ["episode_index", "length"])
def test_a_table_of_episodes_without_a_column_is_one_line(tmp_path, column):
    file = made.lerobot_v30(tmp_path / "in") / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(file).drop_columns([column]), file)
    with pytest.raises(DatasetError, match=f"meta/episodes: found no {column}, expected one"):
        convert(tmp_path / "in", tmp_path / "out.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_pictures_of_two_sizes_are_one_line(tmp_path, monkeypatch):
    """Of an image feature: a video has one size."""
    store = made.store(tmp_path / "own.zarr", sizes={"hand": (16, 16)})
    export(store, tmp_path / "in", "lerobot", ExportSettings(pictures="png"))
    sizes = iter([(16, 16), (16, 18)] * 6)
    monkeypatch.setattr(lerobot, "images", lambda *_: (np.zeros((*next(sizes), 3), "u1") for _ in range(5)))
    with pytest.raises(DatasetError, match=r"hand: found an image of \(16, 18, 3\), expected \(16, 16, 3\)"):
        convert(tmp_path / "in", tmp_path / "out.zarr")


def test_what_is_chosen(tmp_path, v21):
    choice = Choice(action=("observation.state",), proprio=("action",), action_kind="delta", episodes=1)
    convert(v21, tmp_path / "out.zarr", choice=choice)
    store = EpisodeStore.open(tmp_path / "out.zarr")
    assert len(store) == 1 and store.attrs["action_parts"][0]["kind"] == "delta"
    np.testing.assert_array_equal(store["action"], made.numbers(0)["state"])
    with pytest.raises(DatasetError, match=r"fps: found 10, expected 5 by rate_hz, which may be null here"):
        convert(v21, tmp_path / "no.zarr", choice=Choice(rate_hz=5))
    with pytest.raises(DatasetError, match=r"cameras: found 'hand', expected some of top"):
        convert(v21, tmp_path / "no.zarr", choice=Choice(cameras=("hand",)))


def added(path, **columns):
    """Further features of numbers, a float32 a step each."""
    info = json.loads((path / "meta/info.json").read_text())
    for file in sorted(path.glob("data/*/*.parquet")):
        table = pq.read_table(file)
        for name, value in columns.items():
            info["features"][name] = {"dtype": "float32", "shape": [1], "names": None}
            table = table.append_column(name, pa.array(np.full(len(table), value, "f4")))
        pq.write_table(table, file)
    (path / "meta/info.json").write_text(json.dumps(info))
    return path


def test_no_feature_takes_the_place_of_another(tmp_path, v21):
    """Another action is asked for than the one called so; names that meet, or that are ours or a camera's."""
    columns = {"proprio": 1, "images_top": 2, "x?": 3, "x*": 4}
    choice = Choice(action=("observation.state",), proprio=("observation.state",))
    source = convert(added(shutil.copytree(v21, tmp_path / "in"), **columns), tmp_path / "out.zarr", choice)
    store = EpisodeStore.open(tmp_path / "out.zarr")
    for i in range(2):
        found, wanted = store.episode(i), made.numbers(i)
        np.testing.assert_array_equal(found["action"], wanted["state"])
        np.testing.assert_array_equal(found["proprio"], wanted["state"])
        np.testing.assert_array_equal(found["recorded_action"], wanted["action"])
        assert found["images_top"].shape == (made.LENGTHS[i], made.H, made.W, 3)
    names = ("recorded_proprio", "recorded_images_top", "xx_x", "recorded_xx_x")
    assert [store[name][0] for name in names] == [1, 2, 3, 4]
    assert source.notes == [
        "action is called recorded_action: there is another action",
        "proprio is called recorded_proprio: there is another proprio",
        "images_top is called recorded_images_top: there is another images_top",
        "x* is called recorded_xx_x: there is another xx_x",
    ]


def test_a_full_disk_is_blamed_on_the_way_out(tmp_path, v21, monkeypatch):
    """What the store finds wrong is of the source; what the disk refuses is not."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(EpisodeStore, "_define", full)
    with pytest.raises(DatasetError) as caught:
        convert(v21, tmp_path / "out.zarr")
    assert str(caught.value).startswith(
        f"{tmp_path / 'out.zarr'}: the disk is full (No space left on device)"
    )
    assert not list(tmp_path.iterdir())
