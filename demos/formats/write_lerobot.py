"""Write LeRobot v3.0 datasets: huggingface/lerobot, `src/lerobot/datasets`, wheel 0.4.4.

`action` and `proprio` become `action` and `observation.state`, with names from our parts; cameras become
`observation.images.<name>`; other arrays keep their names. `meta/s2robot.json` holds the rest: see `source.Sidecar`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.core.parts import Part, number_names, words
from s2robot.demos.binding import names_no_world
from s2robot.demos.errors import mismatch
from s2robot.demos.formats.export import ExportSettings, all_pieces, check_names, rate_of
from s2robot.demos.formats.lerobot import ACTION, AUTOMATIC, IMAGES, MARKER, STATE
from s2robot.demos.formats.parquet import ParquetWriter, write_indexed, write_rows
from s2robot.demos.formats.source import Piece, Progress, Sidecar
from s2robot.demos.formats.video import VideoWriter, pix_fmt
from s2robot.demos.replay import camera_sizes
from s2robot.demos.schema import parts_of
from s2robot.demos.store import EpisodeStore
from s2robot.envs.tasks import DEFAULT

DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
DATA_BYTES, VIDEO_BYTES = 100 << 20, 200 << 20  # approximate size of a file
CHUNK = 1000  # files per folder
MAX_SECONDS = 1000  # per video; beyond it, float32 time stamps are coarser than LeRobot's tolerance
NAMES = {"action": ACTION, "proprio": STATE}
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
SIDE = 150  # images with a side of at least twice as many px are subsampled to about this side
Stats = dict[str, np.ndarray]
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

{episodes} episodes of {robot}, {steps} steps at {fps} Hz, as a [LeRobot](https://github.com/huggingface/lerobot) v3.0
dataset written by s2robot.

Actions: {actions}. A delta is added to the last commanded value.

Tasks:

{tasks}
"""


def write(store: EpisodeStore, target: Path, settings: ExportSettings, progress: Progress) -> None:
    """Write a dataset folder (UserError: fractional rate, duplicate feature names, or unencodable images)."""
    writer = _Writer(store, target, settings)
    try:
        for i, group in groupby(all_pieces(store, progress), lambda piece: piece[0]):
            writer.write_episode(i, (piece for _, _, piece in group))
    finally:
        writer.close()
    writer.write_meta()


class _Writer:
    def __init__(self, store: EpisodeStore, target: Path, settings: ExportSettings):
        self._store, self._target, self._settings = store, target, settings
        rate = rate_of(store)
        if rate != int(rate):
            raise mismatch(f"{store.path}: rate_hz", "a whole number, which LeRobot requires", rate)
        self._fps = int(rate)
        self._png = settings.image_codec == "png"
        self.sizes = camera_sizes(store, store.cameras)
        # LeRobot reserves its own columns, and forbids / in the name of a feature
        self._numbers = {
            key: NAMES.get(key, f"recorded.{key}" if key in (*AUTOMATIC, STATE) else key.replace("/", "_"))
            for key in store.keys
            if key not in {f"images_{name}" for name in store.cameras}
        }
        self._cameras = {name: f"{IMAGES}{name.replace('/', '_')}" for name in store.cameras}
        check_names([*self._numbers.items(), *self._cameras.items()], store.path)
        self._tasks, self._task_of = _tasks(store, settings.instruction)
        self._rows: list[dict[str, Any]] = []
        self._stats: list[dict[str, Stats]] = []
        self._data = _Files(lambda number: ParquetWriter(target / _path(DATA, number)), DATA_BYTES)
        self._videos = {
            name: _Files(partial(self._open_video, name), VIDEO_BYTES, MAX_SECONDS * self._fps)
            for name in (() if self._png else self._cameras)
        }

    def _open_video(self, camera: str, number: int) -> VideoWriter:
        path = self._target / _path(VIDEO, number, self._cameras[camera])
        return VideoWriter(path, self._fps, self.sizes[camera], self._settings.crf)

    def close(self) -> None:
        for files in (self._data, *self._videos.values()):
            files.close()

    def write_episode(self, i: int, arrays: Iterator[Piece]) -> None:
        rows = self._store.episode_slice(i)
        length = rows.stop - rows.start
        self._data.start_episode(length)
        row = {"episode_index": i, "tasks": [self._tasks[self._task_of[i]]], "length": length}
        row |= _place("data", self._data.number)
        row |= {"dataset_from_index": rows.start, "dataset_to_index": rows.stop}
        for name, files in self._videos.items():
            files.start_episode(length)
            key = f"videos/{self._cameras[name]}"
            row |= _place(key, files.number)
            row[f"{key}/from_timestamp"] = files.file.count / self._fps
            row[f"{key}/to_timestamp"] = (files.file.count + length) / self._fps
        self._stats.append(self._write_arrays(i, length, rows.start, arrays))
        stats = {f"stats/{f}/{n}": v for f, s in _lists(self._stats[-1]).items() for n, v in s.items()}
        self._rows.append(row | stats | _place("meta/episodes", 0))

    def _write_arrays(self, i: int, length: int, first: int, arrays: Iterator[Piece]) -> dict[str, Stats]:
        """Write an episode's arrays, and return their statistics."""
        data, steps, start = self._data.file, np.arange(length), 0
        samples = max(min(length, 100), min(int(length**0.75), 10_000))
        sampled = np.linspace(0, length - 1, samples).round().astype(int)
        numbers: dict[str, list[np.ndarray]] = {feature: [] for feature in self._numbers.values()}
        images: dict[str, list[np.ndarray]] = {feature: [] for feature in self._cameras.values()}
        automatic = {
            "timestamp": (steps / self._fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, i),
            "index": first + steps,
            "task_index": np.full(length, self._task_of[i]),
        }
        for piece in arrays:
            stop = start + len(next(iter(piece.values())))
            rows = {feature: piece[key] for key, feature in self._numbers.items()}
            frames = {feature: piece[f"images_{name}"] for name, feature in self._cameras.items()}
            for feature, values in rows.items():
                numbers[feature].append(values)
            in_piece = sampled[(sampled >= start) & (sampled < stop)] - start
            for feature, values in frames.items():
                every = max(1, max(values.shape[1:3]) // SIDE)
                images[feature].append(values[in_piece, ::every, ::every])
            for name, files in self._videos.items():
                files.file.write(piece[f"images_{name}"])
            if self._png:  # an episode's images may not fit into memory
                data.write(rows | {name: values[start:stop] for name, values in automatic.items()}, frames)
            start = stop
        columns = {feature: np.concatenate(values) for feature, values in numbers.items()} | automatic
        if not self._png:
            data.write(columns, {})
        stats = {feature: number_stats(values) for feature, values in columns.items()}
        return stats | {feature: image_stats(frames) for feature, frames in images.items()}

    def write_meta(self) -> None:
        """Write the metadata tables, after all episodes."""
        store, folder = self._store, self._target / "meta"
        write_rows(folder / "episodes/chunk-000/file-000.parquet", self._rows)
        _write_json(folder / "stats.json", _lists(combined(self._stats)))
        write_indexed(folder / "tasks.parquet", "task", self._tasks, "task_index")
        _write_json(folder / "info.json", self._info())
        places = {key: [feature] for key, feature in self._numbers.items()}
        places |= {f"images_{name}": [feature] for name, feature in self._cameras.items()}
        episodes = {key: store.meta(key).tolist() for key in store.meta_keys}
        counts = {"episodes": episodes, "total_episodes": len(store), "total_frames": store.num_steps}
        _write_json(self._target / MARKER, Sidecar.of_store(store, places).model_dump() | counts)
        actions = words(parts_of(store.attrs, "action"))
        about = {"robot": store.robot, "episodes": len(store), "steps": store.num_steps, "fps": self._fps}
        tasks = "\n".join(f"- {text}" for text in self._tasks)
        (self._target / "README.md").write_text(CARD.format(**about, actions=actions, tasks=tasks), "utf-8")

    def _info(self) -> dict[str, Any]:
        return {
            "codebase_version": "v3.0",
            "robot_type": self._store.robot,
            "total_episodes": len(self._rows),
            "total_frames": self._store.num_steps,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK,
            "data_files_size_in_mb": DATA_BYTES >> 20,
            "video_files_size_in_mb": VIDEO_BYTES >> 20,
            "fps": self._fps,
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": DATA,
            "video_path": VIDEO if self._videos else None,
            "features": self._features(),
        }

    def _features(self) -> dict[str, dict[str, Any]]:
        store, features = self._store, dict[str, dict[str, Any]]()
        for key, feature in self._numbers.items():
            names = _number_names(parts_of(store.attrs, key)) if key in NAMES else None
            dtype, shape = str(store.read(key, 0, 1).dtype), list(store.shape(key)) or [1]
            features[feature] = {"dtype": dtype, "shape": shape, "names": names}
        for name, size in self.sizes.items():
            about: dict[str, Any] = {"dtype": "image"}
            if not self._png:
                info = {"codec": "h264", "pix_fmt": pix_fmt(size), "fps": self._fps, "channels": 3}
                info |= {"is_depth_map": False, "height": size[0], "width": size[1]}
                video = {f"video.{key}": value for key, value in info.items()}
                about = {"dtype": "video", "info": video | {"has_audio": False}}
            axes = ["height", "width", "channels"]
            features[self._cameras[name]] = about | {"shape": [*size, 3], "names": axes}
        for name in AUTOMATIC:
            dtype = "float32" if name == "timestamp" else "int64"
            features[name] = {"dtype": dtype, "shape": [1], "names": None}
        return features


class _Files:
    """A series of numbered files; the last one is open for writing.

    An episode starts a new file if the last one is likely to exceed `limit` bytes, or would exceed `max_steps`.
    """

    def __init__(self, make: Callable[[int], Any], limit: int, max_steps: int | None = None):
        self._make, self._limit, self._max_steps = make, limit, max_steps
        self.number, self._before = -1, 0
        self.file: Any = None

    def start_episode(self, length: int) -> None:
        if self.file is not None:
            likely = 2 * self.file.bytes - self._before  # if the next episode is as large as the last
            fits = self._max_steps is None or self.file.count + length <= self._max_steps
            if likely < self._limit and fits:
                self._before = self.file.bytes
                return
            self.close()
        self.number, self._before = self.number + 1, 0
        self.file = self._make(self.number)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


def _number_names(parts: tuple[Part, ...]) -> list[str]:
    """Return the name of each number, with the prefix `delta_` for deltas."""
    named = ((part.kind == "delta" or part.relative, name) for part in parts for name in number_names([part]))
    return [f"delta_{name}" if is_step else name for is_step, name in named]


def _place(what: str, number: int) -> dict[str, int]:
    return {f"{what}/chunk_index": number // CHUNK, f"{what}/file_index": number % CHUNK}


def _path(template: str, number: int, key: str = "") -> str:
    return template.format(chunk_index=number // CHUNK, file_index=number % CHUNK, video_key=key)


def _tasks(store: EpisodeStore, instruction: str | None) -> tuple[list[str], list[int]]:
    """Return the distinct task texts, and the index of each episode's text."""
    known = store.attrs.get("tasks") or []
    if known and "task" in store.meta_keys:
        tasks = list(dict.fromkeys(known))
        return tasks, [tasks.index(known[i]) for i in store.meta("task")]
    world, unnamed = store.attrs["env_config"], store.path.stem if names_no_world(store.attrs) else DEFAULT
    name = str(world.get("id", world.get("task", unnamed)))  # only gymnasium's worlds have an id
    return [instruction or name.replace("_", " ")], [0] * len(store)


def _lists(stats: dict[str, Stats]) -> dict[str, dict[str, Any]]:
    return {feature: {name: v.tolist() for name, v in own.items()} for feature, own in stats.items()}


def _write_json(path: Path, content: Any) -> None:
    try:
        text = json.dumps(content, indent=4, ensure_ascii=False, allow_nan=False)
    except ValueError:  # in values per episode; those per step are validated while they are written
        raise mismatch(path.name, "finite values per episode", "nan or inf") from None
    path.write_text(text + "\n", "utf-8")


# statistics as in lerobot 0.4.4, `datasets/compute_stats.py`, but with exact quantiles per episode


def number_stats(values: np.ndarray) -> Stats:
    """Return the statistics of one episode.  # (T, ...) -> each (...), or (1,) for one number per step"""
    x = values.reshape(len(values), -1).astype(np.float64)
    stats = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
    stats |= dict(zip(QUANTILES, np.quantile(x, list(QUANTILES.values()), axis=0), strict=True))
    shaped = {name: value.reshape(values.shape[1:] or (1,)) for name, value in stats.items()}
    return shaped | {"count": np.array([len(values)])}


def image_stats(images: Sequence[np.ndarray]) -> Stats:
    """Return the statistics of sampled images of one episode, 0 to 1.  # each uint8 (t, H, W, 3) -> each (3, 1, 1)"""
    count, pixels = sum(map(len, images)), np.concatenate([x.reshape(-1, 3) for x in images])
    bins = np.stack([np.bincount(colour, minlength=256) for colour in pixels.T])
    values, total, below = np.arange(256) / 255, len(pixels), bins.cumsum(1)
    mean = bins @ values / total
    stats = {
        "min": values[(bins > 0).argmax(1)],
        "max": values[255 - (bins[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(bins @ values**2 / total - mean**2, 0)),
    } | {name: values[(below >= q * total).argmax(1)] for name, q in QUANTILES.items()}
    return {n: v.reshape(3, 1, 1) for n, v in stats.items()} | {"count": np.array([count])}


def combined(episodes: Sequence[Mapping[str, Stats]]) -> dict[str, Stats]:
    """Combine the statistics of the episodes into those of the dataset."""
    result = {}
    for feature in episodes[0]:
        each = {name: np.stack([stats[feature][name] for stats in episodes]) for name in episodes[0][feature]}
        count = each.pop("count")
        weight = (count / count.sum()).reshape(-1, *[1] * (each["mean"].ndim - 1))
        mean = (weight * each["mean"]).sum(0)
        variance = (weight * (each["std"] ** 2 + (each["mean"] - mean) ** 2)).sum(0)
        basic = {"min": each["min"].min(0), "max": each["max"].max(0), "mean": mean, "std": np.sqrt(variance)}
        quantiles = {name: (weight * each[name]).sum(0) for name in QUANTILES}
        result[feature] = basic | quantiles | {"count": count.sum(0)}
    return result
