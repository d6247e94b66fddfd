"""Read LeRobot datasets, v3.0, v2.1 and v2.0, from a folder; partial downloads as well.

    LeRobot(Path("aloha"), Choice())        # meta/info.json, data/**.parquet, videos/**.mp4

Format: huggingface/lerobot, `src/lerobot/datasets`, wheels 0.3.3 (v2.1) and 0.4.4 (v3.0). Frames are found by counting:
row k of an episode is the frame k / fps after the episode's start in its video.
"""

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.demos.bounds import json_object, text_of
from s2robot.demos.errors import mismatch
from s2robot.demos.formats import video
from s2robot.demos.formats.lerobot_meta import (
    ACTION,
    AUTOMATIC,
    IMAGES,
    MARKER,
    STATE,
    Episode,
    Info,
    read_episodes,
    split_ranges,
)  # fmt: skip
from s2robot.demos.formats.parquet import images, read_columns
from s2robot.demos.formats.source import Choice, Piece, Source, part_of, piece_slices

ACTIONS = (ACTION, "actions")
STATES = (STATE, "state", "observations.state")


class LeRobot(Source):
    """One dataset folder; see :class:`Source`."""

    def __init__(self, path: Path, choice: Choice):
        super().__init__(path, choice)
        self._info = info = Info.of(path)
        if choice.rate_hz not in (None, info.fps):
            found = f"{choice.rate_hz:g} by rate_hz, which may be null here"
            raise mismatch(f"{path}/meta/info.json: fps", f"{info.fps:g}", found)
        self._cameras: dict[str, str] = {}  # feature -> camera
        self._values: dict[str, list] = {}  # of episodes, by our own writer
        restored = self._restore()
        if not restored:
            self._choose_features()
        videos = [key for key in self._cameras if info.features[key]["dtype"] == "video"]
        self._episodes, note = read_episodes(path, info, videos)
        self.notes += [note] if note else []
        if choice.mask is not None:
            ranges = split_ranges(info, choice.mask, path)
            self._episodes = [e for e in self._episodes if any(e.index in numbers for numbers in ranges)]
            if not self._episodes:
                raise mismatch(f"{path}: mask '{choice.mask}'", "none of its episodes here", "one or more")
        if several := sum(len(e.tasks) > 1 for e in self._episodes):
            found = f"{several} of {len(self._episodes)} episodes have several tasks"
            self.notes.append(f"{found}; the first is kept")
        self._tasks = sorted({t for e in self._episodes for t in e.tasks})
        if not restored:
            self.attributes["tasks"] = self._tasks

    def count(self) -> int:
        return len(self._episodes)

    def length_of(self, number: int) -> int:
        return self._episodes[number].length

    def name_of(self, number: int) -> str:
        return f"{self._episodes[number].data}: episode {self._episodes[number].index}"

    def values_of(self, number: int) -> dict[str, Any]:
        episode = self._episodes[number]
        if self._sidecar:
            stored = {key: values[episode.index] for key, values in self._values.items()}
            return dict(self._sidecar.episode_values(stored, f"{self.path}/{MARKER}: episodes"))
        task = {"task": self._tasks.index(episode.tasks[0])} if episode.tasks else {}
        return {"source_episode": episode.index} | task

    def missing_file(self, number: int) -> Path | None:
        return next((f for f, _ in self._episodes[number].videos.values() if not f.is_file()), None)

    # ---------------------------------------------------------------- the features

    def _restore(self) -> bool:
        """Take what our own writer stored, if nobody changed the dataset since."""
        file = self.path / MARKER
        if not file.is_file():
            return False
        stored = json_object(file, text_of(file))
        features = {feature for places in stored["places"].values() for feature in places}
        counts = ("total_episodes", "total_frames")
        if features != self._info.features.keys() - set(AUTOMATIC) or any(
            stored.get(name) != getattr(self._info, name) for name in counts
        ):
            self.notes.append(f"{MARKER} is of another dataset and is not used")
            return False
        if not self.restore(stored, str(file)):
            return False
        names = {f"images_{name}": name for name in self.attributes["cameras"]}
        self._cameras = {self.keys[key][0]: name for key, name in names.items()}
        self.keys = {key: features for key, features in self.keys.items() if key not in names}
        self._values = stored["episodes"]
        return True

    def _choose_features(self) -> None:
        """Decide which features make action, proprio and cameras, and name the other arrays."""
        cameras: dict[str, str] = {}
        flat, others, info = list[str](), list[str](), self._info
        for key, feature in info.features.items():
            kind, about = str(feature.get("dtype")), feature.get("info") or feature.get("video_info") or {}
            if kind in ("video", "image") and (about.get("video.is_depth_map") or about.get("is_depth_map")):
                self.notes.append(f"{key} is a depth map and is left out")
            elif kind in ("video", "image"):
                cameras[key] = camera_name(key)
            elif not kind.startswith(("float", "int", "uint", "bool")):
                self.notes.append(f"{key} is of type {kind} and is left out")
            elif key not in AUTOMATIC:
                (flat if len(feature.get("shape", ())) == 1 else others).append(key)
        usual = {
            "action": _usual(flat, ACTIONS, "action."),
            "proprio": _usual(flat, STATES, "observation."),
        }
        self._cameras = self.choose(cameras, **{array: (flat, keys) for array, keys in usual.items()})
        used = {key for keys in self.keys.values() for key in keys}
        parts = {array: self._parts(array) for array in usual}
        sizes = {name: self._frame_size(key) for key, name in self._cameras.items()}
        taken = {*self.keys, *(f"images_{name}" for name in sizes)}
        for key in (key for key in info.features if key in {*flat, *others} - used):
            name = own = _array_name(key)
            while name in taken:
                name = f"recorded_{name}"
            if name != own:
                self.notes.append(f"{key} is called {name}: there is another {own}")
            taken.add(name)
            self.keys[name] = [key]
        version = f"LeRobot {info.codebase_version}"
        self.describe(version, info.robot_type, info.fps, sizes, parts["action"], parts["proprio"])

    def _parts(self, array: str) -> list[dict[str, Any]]:
        keys, parts = self.keys[array], []
        for key in keys:
            size = math.prod(self._shape(key))
            names = flat_names(self._info.features[key].get("names"), size)
            kind = self.choice.action_kind if array == "action" else "absolute"
            parts.append(part_of(array if len(keys) == 1 else key, size, kind, names))
        return parts

    def _shape(self, key: str) -> tuple[int, ...]:
        return tuple(int(n) for n in self._info.features[key]["shape"])

    def _frame_size(self, key: str) -> tuple[int, int]:
        """(H, W) of a camera, with channels first or last."""
        shape, names = self._shape(key), self._info.features[key].get("names") or []
        if len(shape) != 3:
            raise mismatch(f"{self.path}/meta/info.json: {key}: shape", list(shape), "[height, width, 3]")
        if "height" in names and "width" in names:
            return shape[names.index("height")], shape[names.index("width")]
        return (shape[1], shape[2]) if shape[0] in (1, 3) and shape[2] not in (1, 3) else (shape[0], shape[1])

    # ---------------------------------------------------------------- an episode

    def pieces_of(self, number: int) -> Iterator[Piece]:
        """Read each piece in a thread while the one before it is used."""
        with ThreadPoolExecutor(1) as pool:
            pieces = self._pieces(number)
            waiting = pool.submit(next, pieces, None)
            while (piece := waiting.result()) is not None:
                waiting = pool.submit(next, pieces, None)
                yield piece

    def _pieces(self, number: int) -> Iterator[Piece]:
        episode, where, fps = self._episodes[number], self.name_of(number), self._info.fps
        numbers = self._numbers(episode, where)
        sizes = {key: self._frame_size(key) for key in self._cameras}
        # the file of an episode of v2 must hold no more frames
        streams = {
            name: video.frames(*episode.videos[key], episode.length, fps, not self._info.is_v3, sizes[key])
            if key in episode.videos
            else images(self.path, episode.data, episode.index, key, sizes[key])
            for key, name in self._cameras.items()
        }
        for rows in piece_slices(0, episode.length, sum(h * w * 3 for h, w in sizes.values())):
            frames = {
                f"images_{name}": _stacked(stream, rows.stop - rows.start, f"{where}: {name}")
                for name, stream in streams.items()
            }
            yield {key: array[rows] for key, array in numbers.items()} | frames
        for name, stream in streams.items():
            if next(stream, None) is not None:
                raise mismatch(f"{where}: {name}", "more images than steps", f"{episode.length}")

    def _numbers(self, episode: Episode, where: str) -> Piece:
        """Read and check the arrays of an episode, without images.  # key -> (T, ...)"""
        columns = [f for features in self.keys.values() for f in features]
        wanted = tuple(dict.fromkeys((*columns, *AUTOMATIC)))
        table = read_columns(episode.data, wanted, self._info.is_v3)
        if "episode_index" in table:
            table = {k: v[table["episode_index"] == episode.index] for k, v in table.items()}
        for column in columns:
            if column not in table:
                raise mismatch(where, f"columns {', '.join(table)}", f"'{column}' among them")
        if (count := len(next(iter(table.values())))) != episode.length:
            raise mismatch(where, f"{count} rows", f"{episode.length} by the table of episodes")
        self._check_time(table, where)
        return {
            key: self.joined(key, [self._shaped(table[f], f, where) for f in features])
            for key, features in self.keys.items()
        }

    def _shaped(self, array: np.ndarray, feature: str, where: str) -> np.ndarray:
        shape = self._shape(feature)
        if array[0].size != math.prod(shape):
            raise mismatch(f"{where}: {feature}", f"{array[0].size} numbers a row", f"shape {list(shape)}")
        array = array.reshape(len(array), *(() if shape == (1,) else shape))
        return array.astype(np.dtype(str(self._info.features[feature]["dtype"])), copy=False)

    def _check_time(self, table: Piece, where: str) -> None:
        """Refuse rows out of order, and time stamps that do not match the rate."""
        fps, tolerance = self._info.fps, self.choice.tolerance_s
        steps = np.arange(len(next(iter(table.values()))))
        first = table["index"].ravel()[0] if "index" in table else 0
        room = tolerance + np.spacing(np.float32(steps[-1] / fps))
        for column, due, most in (
            ("frame_index", steps, 0.0),
            ("index", first + steps, 0.0),
            ("timestamp", steps / fps, room),
        ):
            if column not in table:
                continue
            found = table[column].ravel()
            bad = ~(np.abs(found.astype(np.float64) - due) <= most)  # NaN is bad
            if bad.any():
                step = int(bad.argmax())
                hint = f" ({fps} a second, tolerance_s={tolerance:g})" if column == "timestamp" else ""
                value = f"{found[step]:.10g} in row {step}"
                raise mismatch(f"{where}: {column}", value, f"{due[step]:.10g}{hint}")


def _usual(flat: list[str], names: tuple[str, ...], prefix: str) -> list[str]:
    """The features that make `action` or `proprio`, by their names."""
    if key := next((key for key in names if key in flat), None):
        return [key]
    several = [k for k in flat if k.startswith(prefix) and k != "observation.environment_state"]
    return several or [names[0]]


def _stacked(frames: Iterator[np.ndarray], count: int, where: str) -> np.ndarray:
    """Stack the next frames, all of one size.  # (count, H, W, 3)"""
    stacked = np.empty(0, np.uint8)
    for i in range(count):  # copied one by one: the decoder reuses a frame's memory
        frame = next(frames, None)
        if frame is None:
            raise mismatch(where, "fewer images than steps", "one a step")
        if i == 0:
            stacked = np.empty((count, *frame.shape), np.uint8)
        if frame.shape != stacked.shape[1:]:
            raise mismatch(where, f"an image of {frame.shape}", f"{stacked.shape[1:]} as those before")
        stacked[i] = frame
    return stacked


def camera_name(key: str) -> str:
    """
    >>> camera_name("observation.images.top"), camera_name("observation.image"), camera_name("wrist")
    ('top', 'image', 'wrist')
    """
    prefixes = (IMAGES, "observation.image.", "observation.")
    return next((key.removeprefix(p) for p in prefixes if key.startswith(p)), key)


def _array_name(key: str) -> str:
    """A feature's name as a key of our store, which takes letters, digits and _ . / : - inside."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "_./: -") else "_" for c in key)
    return name if name[:1].isalnum() and name[-1:].isalnum() else f"x{name}x"


def flat_names(names: Any, size: int) -> list[str] | None:
    """Flatten names as they occur in datasets (nested lists, a dict of lists); None if they do not fit the size.

    >>> flat_names([["a", "b"]], 2), flat_names({"motors": ["a"]}, 1), flat_names(["state"], 26)
    (['a', 'b'], ['a'], None)
    """

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, Mapping):
            node = list(node.values()) if all(isinstance(v, list) for v in node.values()) else list(node)
        if isinstance(node, list):
            for inner in node:
                yield from walk(inner)
        elif node is not None:
            yield str(node)

    flat = list(walk(names))
    return flat if len(flat) == size and len(set(flat)) == size else None
