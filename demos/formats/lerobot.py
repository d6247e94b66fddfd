"""Read LeRobot datasets v3.0, v2.1 and v2.0 from a folder, including partial downloads.

Format: huggingface/lerobot, `src/lerobot/datasets`, wheels 0.3.3 (v2.1) and 0.4.4 (v3.0). The time of a frame follows
from its row: row k of an episode is the frame at k / fps s after the episode's start in its video.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import AfterValidator, Field

from s2robot.core.files import read_text
from s2robot.core.settings import Stored, read
from s2robot.demos.bounds import json_file, json_object
from s2robot.demos.errors import mismatch
from s2robot.demos.formats.parquet import images, inside, read_columns, read_table
from s2robot.demos.formats.source import Choice, Piece, Source, as_ranges, chosen, part_of, piece_slices
from s2robot.demos.formats.video import frames_at

OBJECT_BYTES = 200  # of a Python object in a dict
NEAR = 0.4  # tolerance of a frame's time, as a fraction of a step
MARKER = "meta/s2robot.json"  # the sidecar and the values of each episode
AUTOMATIC = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # LeRobot's own columns
LABELS = {"expert", "imitate", "perturbed"}  # arrays that decide what a training imitates
ACTION, STATE, IMAGES = "action", "observation.state", "observation.images."
ACTIONS = (ACTION, "actions")
STATES = (STATE, "state", "observations.state")


def _template(text: str) -> str:
    if not re.fullmatch(r"([^{}]|\{\w+(:\d{1,2}d)?\})+", text):  # a large width would exhaust memory
        raise ValueError(f"expected fields such as {{episode_index:06d}}, got {text[:80]!r}")
    return text


Template = Annotated[str, AfterValidator(_template)]


class Feature(Stored):
    dtype: str
    shape: tuple[int, ...] = ()
    names: Any = None
    info: dict[str, Any] | None = None
    video_info: dict[str, Any] | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of a camera, with channels first or last."""
        names, shape = self.names or [], self.shape
        if "height" in names and "width" in names:
            return shape[names.index("height")], shape[names.index("width")]
        first, second, third = shape
        return (second, third) if first in (1, 3) and third not in (1, 3) else (first, second)


class Info(Stored):
    """meta/info.json; other keys are ignored."""

    codebase_version: Literal["v3.0", "v2.1", "v2.0"]
    fps: int | float = Field(gt=0)
    features: dict[str, Feature]
    data_path: Template
    video_path: Template | None = None
    chunks_size: int = Field(default=1000, gt=0)
    robot_type: str | None = None
    splits: dict[str, str] | None = None
    total_episodes: int | None = None
    total_frames: int | None = None

    @property
    def is_v3(self) -> bool:
        """Whether a file can hold several episodes."""
        return self.codebase_version == "v3.0"


class Row(Stored):
    episode_index: int
    length: int
    tasks: list[str] | str | None = None


class Episode(NamedTuple):
    number: int  # in the dataset
    length: int
    tasks: list[str]
    data: Path
    videos: Mapping[str, tuple[Path, float]]  # feature -> (file, start of the episode in s)


class LeRobot(Source):
    """A dataset folder; see :class:`Source`."""

    def __init__(self, path: Path, choice: Choice):
        super().__init__(path, choice)
        file = path / "meta/info.json"
        self._info = info = read(Info, json_file(file), f"{file}: ")
        self.check_rate(info.fps, file)
        self._cameras: dict[str, str] = {}  # feature -> camera
        self._values: dict[str, list] = {}  # per episode, from our own writer
        if not self._restore():
            self._choose_features()
        self._episodes = self._read_episodes()
        if choice.mask is not None:
            (name,) = chosen([choice.mask], list(info.splits or ()), "mask", path)
            text = (info.splits or {})[name]  # such as "0:40" or "0:40,50:60"
            ranges = [range(*map(int, r.split(":"))) for r in text.split(",") if r.strip()]
            self._episodes = [e for e in self._episodes if any(e.number in numbers for numbers in ranges)]
        if several := sum(len(e.tasks) > 1 for e in self._episodes):
            self.notes.append(f"{several} episodes have several tasks; only the first is used")
        self.lengths = [episode.length for episode in self._episodes]
        self._tasks = sorted({t for e in self._episodes for t in e.tasks})
        if not self.sidecar:
            self.attributes["tasks"] = self._tasks

    def name_of(self, number: int) -> str:
        return f"{self._episodes[number].data}: episode {self._episodes[number].number}"

    def values_of(self, number: int) -> dict[str, Any]:
        episode = self._episodes[number]
        if self.sidecar:
            stored = {key: values[episode.number] for key, values in self._values.items()}
            return dict(self.sidecar.episode_values(stored, f"{self.path}/{MARKER}: episodes"))
        task = {"task": self._tasks.index(episode.tasks[0])} if episode.tasks else {}
        return {"source_episode": episode.number} | task

    def missing_file(self, number: int) -> Path | None:
        return next((f for f, _ in self._episodes[number].videos.values() if not f.is_file()), None)

    def _restore(self) -> bool:
        """Restore from our own writer's sidecar, unless the dataset has changed since."""
        file = self.path / MARKER
        if not file.is_file():
            return False
        stored = json_file(file)
        features = {feature for places in stored["places"].values() for feature in places}
        counts, info = ("total_episodes", "total_frames"), self._info
        same = features == info.features.keys() - set(AUTOMATIC)
        if not same or any(stored.get(name) != getattr(info, name) for name in counts):
            self.notes.append(f"{MARKER} belongs to another dataset and is ignored")
            return False
        if not self.restore(stored, str(file)):
            return False
        names = {f"images_{name}": name for name in self.attributes["cameras"]}
        self._cameras = {self.keys.pop(key)[0]: name for key, name in names.items()}
        self._values = stored["episodes"]
        return True

    def _choose_features(self) -> None:
        """Choose the features for action, proprio and cameras, and name the other arrays."""
        cameras: dict[str, str] = {}
        flat, others, info = list[str](), list[str](), self._info
        for key, feature in info.features.items():
            about = feature.info or feature.video_info or {}
            if feature.dtype in ("video", "image"):
                if about.get("video.is_depth_map") or about.get("is_depth_map"):
                    self.notes.append(f"{key} is a depth map and is left out")
                else:
                    cameras[key] = _array_name(camera_name(key))
            elif not feature.dtype.startswith(("float", "int", "uint", "bool")):
                self.notes.append(f"{key} is of type {feature.dtype} and is left out")
            elif key not in AUTOMATIC:
                (flat if len(feature.shape) == 1 else others).append(key)
        action, state = _usual(flat, ACTIONS, "action."), _usual(flat, STATES, "observation.")
        self._cameras = self.choose(cameras, action=(flat, action), proprio=(flat, state))
        used = {key for keys in self.keys.values() for key in keys}
        ours = "expert" in others or (self.path / MARKER).is_file()  # else these names mean something else
        if ours and self.choice.action:  # these are labels of all columns, in their order
            used |= {"expert", "imitate"}
        parts = [self._parts(array) for array in ("action", "proprio")]
        sizes = {name: info.features[key].image_size for key, name in self._cameras.items()}
        taken = {f"images_{name}" for name in sizes} | (set() if ours else LABELS)
        for key in (key for key in info.features if key in {*flat, *others} - used):
            name = plain_name = _array_name(key)
            while name in taken | self.keys.keys():
                name = f"recorded_{name}"
            if name != plain_name:
                self.notes.append(f"{key} is stored as {name}, because {plain_name} is taken")
            self.keys[name] = [key]
        self.describe(f"LeRobot {info.codebase_version}", info.robot_type, info.fps, sizes, *parts)

    def _parts(self, array: str) -> list[dict[str, Any]]:
        keys, features = self.keys[array], self._info.features
        kind = self.choice.action_kind if array == "action" else "absolute"
        sizes = [(key, math.prod(features[key].shape)) for key in keys]
        return [
            part_of(array if len(keys) == 1 else key, size, kind, flat_names(features[key].names, size))
            for key, size in sizes
        ]

    def _read_episodes(self) -> list[Episode]:
        """Return the episodes whose parquet file exists, and note missing ones."""
        path, info = self.path, self._info
        table = path / ("meta/episodes" if info.is_v3 else "meta/episodes.jsonl")
        if info.is_v3:
            files = sorted(table.rglob("*.parquet"))
            tables = (read_table(f, lambda name: not name.startswith("stats/"), OBJECT_BYTES) for f in files)
            records: list[dict[str, Any]] = [row for each in tables for row in each.to_pylist()]
        else:
            records = [json_object(table, line) for line in read_text(table).split("\n") if line.strip()]
        rows = [(read(Row, row, f"{table}: "), row) for row in records]
        videos = [key for key in self._cameras if info.features[key].dtype == "video"]
        episodes = []
        for i, (about, row) in enumerate(sorted(rows, key=lambda pair: pair[0].episode_index)):
            if about.episode_index != i:
                raise mismatch(f"{table}: episode_index", f"{i} (no gaps or repeats)", about.episode_index)
            place = {"episode_index": i, "episode_chunk": i // info.chunks_size}
            if info.is_v3:
                place = {n: row.get(f"data/{n}", 0) for n in ("chunk_index", "file_index")}
            data = inside(path, info.data_path.format(**place))
            if data.is_file():
                video_files = {key: self._video(key, row, place) for key in videos}
                tasks = [about.tasks] if isinstance(about.tasks, str) else about.tasks or []
                episodes.append(Episode(i, about.length, tasks, data, video_files))
        here = f"{len(episodes)} of {len(rows)} episodes exist"
        if info.total_episodes not in (None, len(rows)):
            self.notes.append(f"{here}; meta/info.json counts {info.total_episodes}")
        elif len(episodes) != len(rows):
            ranges = as_ranges([episode.number for episode in episodes])
            self.notes.append(f"{here} ({ranges}); `episodes` numbers them 0 to {len(episodes) - 1}")
        return episodes

    def _video(self, key: str, row: Mapping[str, Any], place: Mapping[str, int]) -> tuple[Path, float]:
        """Return an episode's video and the start of the episode in it, in s."""
        start = 0.0
        if self._info.is_v3:
            place = {n: row[f"videos/{key}/{n}"] for n in ("chunk_index", "file_index")}
            start = float(row[f"videos/{key}/from_timestamp"])
        name = str(self._info.video_path).format(video_key=key, **place)
        file, other = inside(self.path, name), self.path / name.replace("videos/", "video/", 1)
        return other if other.is_file() and not file.is_file() else file, start

    def pieces_of(self, number: int) -> Iterator[Piece]:
        """Yield pieces, and read the next one in a thread meanwhile."""
        with ThreadPoolExecutor(1) as pool:
            pieces = self._pieces(number)
            upcoming = pool.submit(next, pieces, None)
            while (piece := upcoming.result()) is not None:
                upcoming = pool.submit(next, pieces, None)
                yield piece

    def _pieces(self, number: int) -> Iterator[Piece]:
        episode, fps = self._episodes[number], self._info.fps
        arrays = self._arrays(episode, self.name_of(number))
        sizes = {key: self._info.features[key].image_size for key in self._cameras}
        streams, whole = dict[str, Iterator[np.ndarray]](), not self._info.is_v3  # v2: a video per episode
        for key, name in self._cameras.items():
            if key in episode.videos:
                file, start = episode.videos[key]
                times = start + np.arange(episode.length) / fps
                streams[name] = frames_at(file, times, NEAR / fps, sizes[key], whole)
            else:
                streams[name] = images(self.path, episode.data, episode.number, key, sizes[key])
        for rows in piece_slices(0, episode.length, sum(h * w * 3 for h, w in sizes.values())):
            count = rows.stop - rows.start
            frames = {f"images_{name}": np.stack([*islice(s, count)]) for name, s in streams.items()}
            yield {key: array[rows] for key, array in arrays.items()} | frames
        for stream in streams.values():
            next(stream, None)  # raises if there are more frames

    def _arrays(self, episode: Episode, where: str) -> Piece:
        """Read and check the arrays of an episode, without images.  # key -> (T, ...)"""
        columns = [feature for features in self.keys.values() for feature in features]
        table = dict(read_columns(episode.data, tuple(dict.fromkeys((*columns, *AUTOMATIC)))))
        if "episode_index" in table:
            table = {k: v[table["episode_index"] == episode.number] for k, v in table.items()}
        if (count := len(next(iter(table.values())))) != episode.length:
            raise mismatch(where, f"{episode.length} rows according to the episodes table", count)
        self._check_time(table, where)
        for name in columns:
            feature = self._info.features[name]
            shape = () if feature.shape == (1,) else feature.shape
            table[name] = table[name].reshape(count, *shape).astype(np.dtype(feature.dtype), copy=False)
        return {key: self.joined(key, [table[f] for f in fs]) for key, fs in self.keys.items()}

    def _check_time(self, table: Piece, where: str) -> None:
        """Reject rows out of order, and time stamps that do not match the rate."""
        fps, tolerance = self._info.fps, self.choice.tolerance_s
        steps = np.arange(len(next(iter(table.values()))))
        first = table["index"].ravel()[:1] if "index" in table else 0
        for column, due, allowed in (
            ("frame_index", steps, 0.0),
            ("index", first + steps, 0.0),
            ("timestamp", steps / fps, tolerance + np.spacing(np.float32(len(steps) / fps))),
        ):
            found = table.get(column, due).ravel()
            bad = ~(np.abs(found.astype(np.float64) - due) <= allowed)  # NaN is bad
            if bad.any():
                row = int(bad.argmax())
                hint = f" ({fps} Hz, tolerance_s={tolerance:g})" if column == "timestamp" else ""
                if column == "timestamp" and found[0] > len(steps) / fps + 1:
                    hint = ", in s since the episode's start"
                expected = f"{due[row]:.10g}{hint}"
                raise mismatch(f"{where}: {column}: row {row}", expected, f"{found[row]:.10g}")


def _usual(flat: Sequence[str], names: tuple[str, ...], prefix: str) -> list[str]:
    """Return the features that are `action` or `proprio` by convention."""
    if key := next((key for key in names if key in flat), None):
        return [key]
    return [k for k in flat if k.startswith(prefix) and k != "observation.environment_state"] or [names[0]]


def camera_name(key: str) -> str:
    """Return a camera's name, such as `top` for observation.images.top."""
    prefixes = (IMAGES, "observation.image.", "observation.")
    return next((key.removeprefix(p) for p in prefixes if key.startswith(p)), key)


def _array_name(key: str) -> str:
    """Return a feature's name as a valid store key: letters and digits, with _ . / : - in between."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "_./: -") else "_" for c in key)
    return name if name[:1].isalnum() and name[-1:].isalnum() else f"x{name}x"


def flat_names(names: Any, size: int) -> list[str] | None:
    """Flatten names from nested lists or a dict of lists; return None unless there are `size` distinct ones."""

    def walk(node: Any) -> list[str]:
        if isinstance(node, Mapping):
            node = list(node.values()) if all(isinstance(v, list) for v in node.values()) else list(node)
        if isinstance(node, list):
            return [name for inner in node for name in walk(inner)]
        return [] if node is None else [str(node)]

    flat = walk(names)
    return flat if len(flat) == size and len(set(flat)) == size else None
