"""Write LeRobot v3.0 datasets.

    write(EpisodeStore.open("demos.zarr"), Path("demos"), ExportSettings(), progress)

`action` and `proprio` become `action` and `observation.state`, with our parts as names; cameras `observation.images.<name>`;
all other arrays keep their names. What
the format has no place for (what the numbers mean, values of an episode) stands in `meta/s2robot.json`, from which
`lerobot.LeRobot` makes the same store again.

Format: huggingface/lerobot, `src/lerobot/datasets`, wheel 0.4.4.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.demos.errors import mismatch
from s2robot.demos.formats import statistics
from s2robot.demos.formats.convert import Progress
from s2robot.demos.formats.export import ExportSettings, pieces, rate_of
from s2robot.demos.formats.kept import of_store
from s2robot.demos.formats.lerobot_features import features_of
from s2robot.demos.formats.lerobot_meta import MARKER
from s2robot.demos.formats.parquet import ParquetWriter, write_indexed, write_rows
from s2robot.demos.formats.source import require
from s2robot.demos.formats.video import VideoWriter, about_video, check_codec, pix_fmt
from s2robot.demos.replay import camera_sizes
from s2robot.demos.schema import parts_of
from s2robot.demos.store import EpisodeStore
from s2robot.envs.parts import words
from s2robot.envs.tasks import DEFAULT

VERSION = "v3.0"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
DATA_BYTES, VIDEO_BYTES = (
    100 << 20,
    200 << 20,
)  # a new file is begun when the next episode would probably pass them
CHUNK = 1000  # files in a folder
MOST_SECONDS = 1000  # of a video: later the format's float32 time stamps are coarser than its own tolerance

CRF = {"h264": 18, "av1": 23}  # docs/datasets.md: what PSNR they give
CARD = """---
task_categories:
- robotics
tags:
- LeRobot
- s2robot
configs:
- config_name: default
  data_files: data/*/*.parquet
---

{episodes} episodes of {robot}, {steps} steps, {fps} a second, in the form of
[LeRobot](https://github.com/huggingface/lerobot) {version}, written by s2robot.

Actions: {actions}. A delta is added to what was commanded before.

What to do:

{tasks}
"""


def write(store: EpisodeStore, target: Path, settings: ExportSettings, progress: Progress) -> list[str]:
    """Write a store as LeRobot v3.0; return notes for the user.

    Raises:
        DatasetError: a rate that is no whole number, two features of one name, an encoder that this PyAV lacks.
    """
    require("pyarrow", "av")
    if settings.pictures != "png" and store.cameras:
        check_codec(settings.pictures)
    writer = _Writer(store, target, settings)
    try:
        for i in range(len(store)):
            writer.episode(i)
            progress(int(store.episode_ends[i]), store.num_steps)
    finally:
        writer.close()
    writer.meta()
    return writer.notes


def _at(template: str, number: int, key: str = "") -> str:
    """Return the path of file `number`."""
    chunk, file = divmod(number, CHUNK)
    return template.format(chunk_index=chunk, file_index=file, video_key=key)


class _Writer:
    """One data set in the making."""

    def __init__(self, store: EpisodeStore, target: Path, settings: ExportSettings):
        self._store, self._target, self._settings = store, target, settings
        self._attributes = store.attrs
        rate = rate_of(store)
        if rate != int(rate):
            raise mismatch(f"{store.path}: rate_hz", rate, "a whole number: LeRobot knows no other")
        self._fps = int(rate)
        self._png = settings.pictures == "png"
        self._features = features_of(store, "image" if self._png else "video")
        self._tasks, self._task_of = _tasks(store, settings.instruction)
        self._rows: list[dict[str, Any]] = []
        self._told: list[dict[str, statistics.Told]] = []
        self._data = _Files(self._open_data, DATA_BYTES)
        sizes = camera_sizes(store, store.cameras)
        self._videos = {
            name: _Files(partial(self._open_video, name, sizes[name]), VIDEO_BYTES, MOST_SECONDS * self._fps)
            for name in ([] if self._png else store.cameras)
        }  # fmt: skip
        self.notes = [
            f"{name}: {sizes[name][0]} x {sizes[name][1]} pixels are kept as yuv444p, which browsers do not show"
            for name in self._videos
            if pix_fmt(settings.pictures, sizes[name]) == "yuv444p"
        ]

    def _open_data(self, number: int) -> ParquetWriter:
        return ParquetWriter(self._target / _at(DATA, number))

    def _open_video(self, camera: str, size: tuple[int, int], number: int) -> VideoWriter:
        path = _at(VIDEO, number, self._features.cameras[camera])
        crf = CRF[self._settings.pictures] if self._settings.crf is None else self._settings.crf
        return VideoWriter(self._target / path, self._settings.pictures, self._fps, size, crf)

    def close(self) -> None:
        for files in (self._data, *self._videos.values()):
            files.close()

    # ---------------------------------------------------------------- an episode

    def episode(self, i: int) -> None:
        """Write episode i, in pieces."""
        rows = self._store.episode_slice(i)
        length = rows.stop - rows.start
        self._data.begin(length)
        row = {"episode_index": i, "tasks": [self._tasks[self._task_of[i]]], "length": length}
        row |= self._place("data", self._data.number)
        row |= {"dataset_from_index": rows.start, "dataset_to_index": rows.stop}
        for name, files in self._videos.items():
            files.begin(length)
            key = f"videos/{self._features.cameras[name]}"
            row |= self._place(key, files.number)
            row[f"{key}/from_timestamp"] = files.count / self._fps
            row[f"{key}/to_timestamp"] = (files.count + length) / self._fps
        self._rows.append(row)
        self._told.append(self._arrays(i, length, rows.start))

    def _place(self, what: str, number: int) -> dict[str, int]:
        chunk, file = divmod(number, CHUNK)
        return {f"{what}/chunk_index": chunk, f"{what}/file_index": file}

    def _arrays(self, i: int, length: int, first: int) -> dict[str, statistics.Told]:
        """Write an episode's arrays; returns their statistics."""
        cameras, data = self._features.cameras, self._data.file
        seen = {feature: statistics.Pictures(length) for feature in cameras.values()}
        kept: dict[str, list[np.ndarray]] = {feature: [] for feature in self._features.numbers.values()}
        own, at = self._automatic(i, length, first), 0
        for piece in pieces(self._store, i):
            numbers = {feature: piece[key] for key, feature in self._features.numbers.items()}
            pictures = {feature: piece[f"images_{name}"] for name, feature in cameras.items()}
            for feature, frames in pictures.items():
                seen[feature].add(frames)
            for feature, values in numbers.items():
                kept[feature].append(values)
            stop = at + len(next(iter(piece.values())))
            if self._png:  # an episode's pictures need not fit into memory
                data.write(numbers | {name: values[at:stop] for name, values in own.items()}, pictures)
            for name, files in self._videos.items():
                files.file.write(piece[f"images_{name}"])
            at = stop
        whole = {feature: np.concatenate(values) for feature, values in kept.items()} | own
        if not self._png:
            data.write(whole, {})
        told = {feature: statistics.of_numbers(values) for feature, values in whole.items()}
        return told | {feature: pictures.told() for feature, pictures in seen.items()}

    def _automatic(self, i: int, length: int, first: int) -> dict[str, np.ndarray]:
        """LeRobot's own columns of episode i."""
        steps = np.arange(length)
        return {
            "timestamp": (steps / self._fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, i),
            "index": first + steps,
            "task_index": np.full(length, self._task_of[i]),
        }

    # ---------------------------------------------------------------- what is told of them

    def meta(self) -> None:
        """The tables, when all episodes are written."""
        folder = self._target / "meta"
        folder.mkdir()
        rows = [
            row
            | {f"stats/{f}/{n}": x for f, stats in statistics.plain(each).items() for n, x in stats.items()}
            | self._place("meta/episodes", 0)
            for row, each in zip(self._rows, self._told, strict=True)
        ]
        write_rows(folder / "episodes/chunk-000/file-000.parquet", rows)
        _json(folder / "stats.json", statistics.plain(statistics.together(self._told)))
        write_indexed(folder / "tasks.parquet", "task", self._tasks, "task_index")
        _json(folder / "info.json", self._info())
        _json(self._target / MARKER, self._left())
        (self._target / "README.md").write_text(self._card(), "utf-8")

    def _info(self) -> dict[str, Any]:
        features = dict(self._features.told)
        for name, size in camera_sizes(self._store, self._videos).items():
            about = about_video(self._settings.pictures, self._fps, size)
            features[self._features.cameras[name]] |= {"info": about}
        return {
            "codebase_version": VERSION,
            "robot_type": self._attributes["robot"],
            "total_episodes": len(self._rows),
            "total_frames": self._store.num_steps,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK,
            "fps": self._fps,
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": DATA,
            "video_path": VIDEO if self._videos else None,
            "features": features,
            "data_files_size_in_mb": DATA_BYTES >> 20,
            "video_files_size_in_mb": VIDEO_BYTES >> 20,
        }

    def _left(self) -> dict[str, Any]:
        """What the format has no place for, for our own reader."""
        store, features = self._store, self._features
        places = {key: [feature] for key, feature in features.numbers.items()}
        places |= {f"images_{name}": [feature] for name, feature in features.cameras.items()}
        return asdict(of_store(store, places)) | {
            "episodes": {key: store.meta(key).tolist() for key in store.meta_keys},
            "total_episodes": len(store),
            "total_frames": store.num_steps,
        }

    def _card(self) -> str:
        return CARD.format(
            robot=self._attributes["robot"],
            episodes=len(self._rows),
            steps=self._store.num_steps,
            fps=self._fps,
            version=VERSION,
            actions=words(parts_of(self._attributes, "action")),
            tasks="\n".join(f"- {text}" for text in self._tasks),
        )


class _Files:
    """Files of one kind, numbered, of which the last is being written: each holds as many episodes as fit.

    An episode goes into the next one where the last is likely to grow beyond `limit` bytes, or would beyond `most` steps.
    """

    def __init__(self, make: Callable[[int], Any], limit: int, most: int | None = None):
        self._make, self._limit, self._most = make, limit, most
        self.number, self._before = -1, 0
        self.file: Any = None

    @property
    def count(self) -> int:
        """Steps in the last file."""
        return self.file.count

    def begin(self, length: int) -> None:
        """Get ready for an episode of so many steps."""
        if self.file is not None:
            likely = 2 * self.file.bytes - self._before  # one more like the last
            if likely < self._limit and (self._most is None or self.file.count + length <= self._most):
                self._before = self.file.bytes
                return
            self.close()
        self.number, self._before = self.number + 1, 0
        self.file = self._make(self.number)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


def _tasks(store: EpisodeStore, instruction: str | None) -> tuple[list[str], list[int]]:
    """What is to be done, each text once, and which of them each episode is of."""
    known = store.attrs.get("tasks") or []
    if known and "task" in store.meta_keys:
        texts = [str(known[i]) for i in store.meta("task")]
    else:
        name = store.attrs["env_config"].get("task", DEFAULT)
        texts = [instruction or str(name).replace("_", " ")] * len(store)
    tasks = list(dict.fromkeys(known if known and "task" in store.meta_keys else texts))
    return tasks, [tasks.index(text) for text in texts]


def _json(path: Path, content: Any) -> None:
    path.write_text(_text(path, content, 4) + "\n", "utf-8")


def _text(path: Path, content: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:  # of an episode's values: those of steps have been looked at
        raise mismatch(path.name, "nan or inf among the values of episodes", "numbers") from None
