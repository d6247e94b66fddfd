"""Read LeRobot datasets, v3.0, v2.1 and v2.0, from a folder; partial downloads as well.

    LeRobot(Path("aloha"), Choice())        # meta/info.json, data/**.parquet, videos/**.mp4

Format: huggingface/lerobot, `src/lerobot/datasets`, wheels 0.3.3 (v2.1) and 0.4.4 (v3.0). Frames are found by counting:
row k of an episode is the frame k / fps after the episode's start in its video.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.demos.errors import mismatch
from s2robot.demos.formats import video
from s2robot.demos.formats.lerobot_meta import MARKER, Episode, Info, json_object, read_episodes, split_ranges
from s2robot.demos.formats.parquet import images, read_columns
from s2robot.demos.formats.sidecar import Sidecar
from s2robot.demos.formats.source import (
    AUTOMATIC,
    Choice,
    Piece,
    Source,
    chosen,
    chosen_cameras,
    part_of,
    piece_slices,
    read_ahead,
    require,
    store_attributes,
)

STATES = ("observation.state", "state", "observations.state")


class LeRobot(Source):
    """One dataset folder; see :class:`Source`."""

    def __init__(self, path: Path, choice: Choice):
        require("pyarrow", "av")
        super().__init__(path)
        self._choice, self._info = choice, Info.of(path)
        info = self._info
        if choice.rate_hz not in (None, info.fps):
            where = f"{path}/meta/info.json: fps"
            raise mismatch(where, f"{info.fps:g}", f"{choice.rate_hz:g} by rate_hz, which may be null here")
        self._cameras: dict[str, str] = {}  # feature -> camera
        self._keys: dict[str, list[str]] = {}  # array -> features
        self._sidecar = self._read_sidecar()
        shapes = {} if self._sidecar else self._sort_features()
        self._is_video = {key: info.features[key]["dtype"] == "video" for key in self._cameras}
        self._episodes, note = read_episodes(path, info, [k for k, yes in self._is_video.items() if yes])
        if choice.mask is not None:
            ranges = split_ranges(info, choice.mask, path)
            self._episodes = [e for e in self._episodes if any(e.index in numbers for numbers in ranges)]
            if not self._episodes:
                raise mismatch(f"{path}: mask '{choice.mask}'", "none of its episodes here", "one or more")
        if note:
            self.notes.append(note)
        if several := sum(len(e.tasks) > 1 for e in self._episodes):
            self.notes.append(
                f"{several} of {len(self._episodes)} episodes have several tasks; the first is kept"
            )
        self._tasks = sorted({t for e in self._episodes for t in e.tasks})
        if not self._sidecar:
            self._choose_arrays(shapes)

    def __len__(self) -> int:
        return len(self._episodes)

    def length(self, i: int) -> int:
        return self._episodes[i].length

    def name(self, i: int) -> str:
        return f"{self._episodes[i].data}: episode {self._episodes[i].index}"

    def values(self, i: int) -> dict[str, Any]:
        episode = self._episodes[i]
        if self._sidecar:
            stored = {key: values[episode.index] for key, values in self._values.items()}
            return dict(self._sidecar.episode_values(stored, f"{self.path}/{MARKER}: episodes"))
        task = {"task": self._tasks.index(episode.tasks[0])} if episode.tasks else {}
        return {"source_episode": episode.index} | task

    def missing_file(self, i: int) -> Path | None:
        return next((file for file, _ in self._episodes[i].videos.values() if not file.is_file()), None)

    # ---------------------------------------------------------------- the features

    def _sort_features(self) -> dict[str, list[int]]:
        """Find the cameras; returns the features of numbers with their shapes."""
        cameras: dict[str, str] = {}
        shapes: dict[str, list[int]] = {}
        for key, feature in self._info.features.items():
            kind, shape = str(feature.get("dtype")), [int(n) for n in feature.get("shape", ())]
            facts = feature.get("info") or feature.get("video_info") or {}
            if kind in ("video", "image") and (facts.get("video.is_depth_map") or facts.get("is_depth_map")):
                self.notes.append(f"{key} is a depth map and is left out")
            elif kind in ("video", "image"):
                cameras[key] = camera_name(key)
            elif not kind.startswith(("float", "int", "uint", "bool")):
                self.notes.append(f"{key} is of type {kind} and is left out")
            elif key not in AUTOMATIC:
                shapes[key] = shape
        self._cameras = chosen_cameras(cameras, self._choice, self.path)
        return shapes

    def _read_sidecar(self) -> Sidecar | None:
        """Read what our own writer stored, if nobody changed the dataset since."""
        file = self.path / MARKER
        if not file.is_file():
            return None
        stored = json_object(file)
        sidecar = Sidecar.parse(json.dumps(stored), str(file))
        features = {feature for places in sidecar.places.values() for feature in places}
        counts = ("total_episodes", "total_frames")
        if features != self._info.features.keys() - set(AUTOMATIC) or any(
            stored.get(name) != getattr(self._info, name) for name in counts
        ):
            self.notes.append(f"{MARKER} tells of another data set and is not used")
            return None
        if chosen_part := sidecar.for_choice(self._choice, self.path):
            names = {f"images_{name}": name for name in chosen_part.attributes["cameras"]}
            self._cameras = {chosen_part.places[key][0]: name for key, name in names.items()}
            self._keys = {k: list(places) for k, places in chosen_part.places.items() if k not in names}
            self.attributes, self._values = chosen_part.attributes, stored["episodes"]
        return chosen_part

    def _choose_arrays(self, shapes: Mapping[str, list[int]]) -> None:
        """Decide which features make action and proprio, and name the other arrays."""
        sizes = {name: self._frame_size(key) for key, name in self._cameras.items()}
        self._keys = {
            "action": self._features_of("action", ("action", "actions"), "action.", shapes),
            "proprio": self._features_of("proprio", STATES, "observation.", shapes),
        }
        parts = {
            array: [self._part(key, array if len(keys) == 1 else key, array) for key in keys]
            for array, keys in self._keys.items()
        }
        used = [key for keys in self._keys.values() for key in keys]
        self._name_others([key for key in shapes if key not in used], sizes)
        self.attributes = store_attributes(
            self.path,
            f"LeRobot {self._info.codebase_version}",
            self._info.robot_type,
            self._info.fps,
            sizes,
            parts["action"],
            parts["proprio"],
            tasks=self._tasks,
        )

    def _name_others(self, features: list[str], cameras: Iterable[str]) -> None:
        """Keep each other feature as an array, under another name if its own is taken."""
        taken = {*self._keys, *(f"images_{name}" for name in cameras)}
        for feature in features:
            name = own = _array_name(feature)
            while name in taken:
                name = f"recorded_{name}"
            if name != own:
                self.notes.append(f"{feature} is called {name}: there is another {own}")
            taken.add(name)
            self._keys[name] = [feature]

    def _features_of(
        self, array: str, usual: tuple[str, ...], prefix: str, shapes: Mapping[str, list[int]]
    ) -> list[str]:
        """The features that make `action` or `proprio`."""
        flat = [key for key, shape in shapes.items() if len(shape) == 1]
        if (keys := getattr(self._choice, array)) is not None:
            return chosen(keys, flat, array, self.path)
        if key := next((key for key in usual if key in flat), None):
            return [key]
        if several := [k for k in flat if k.startswith(prefix) and k != "observation.environment_state"]:
            return several
        known = ", ".join(flat) or "none"
        raise mismatch(
            f"{self.path}/meta/info.json: features", known, f"'{usual[0]}' among them, or {array}=[<keys>]"
        )

    def _part(self, key: str, name: str, array: str) -> dict[str, Any]:
        size = int(np.prod(self._info.features[key]["shape"]))
        kind = self._choice.action_kind if array == "action" else "absolute"
        return part_of(name, size, kind, flat_names(self._info.features[key].get("names"), size))

    def _frame_size(self, key: str) -> tuple[int, int]:
        """(H, W) of a camera, with channels first or last."""
        feature = self._info.features[key]
        shape, names = [int(n) for n in feature["shape"]], feature.get("names") or []
        if len(shape) != 3:
            raise mismatch(f"{self.path}/meta/info.json: {key}: shape", shape, "[height, width, 3]")
        if "height" in names and "width" in names:
            return shape[names.index("height")], shape[names.index("width")]
        return (shape[1], shape[2]) if shape[0] in (1, 3) and shape[2] not in (1, 3) else (shape[0], shape[1])

    # ---------------------------------------------------------------- an episode

    def pieces(self, i: int) -> Iterator[Piece]:
        return read_ahead(self._pieces(i))

    def _pieces(self, i: int) -> Iterator[Piece]:
        episode, where, fps = self._episodes[i], self.name(i), self._info.fps
        v3 = self._info.codebase_version == "v3.0"
        numbers = self._numbers(episode, where)
        sizes = {key: self._frame_size(key) for key in self._cameras}
        streams = {
            f"images_{name}": video.frames(*episode.videos[key], episode.length, fps, not v3, sizes[key])
            if self._is_video[key]
            else images(self.path, episode.data, episode.index, key, sizes[key])
            for key, name in self._cameras.items()
        }
        for rows in piece_slices(0, episode.length, sum(h * w * 3 for h, w in sizes.values())):
            piece = {key: array[rows] for key, array in numbers.items()}
            for key, stream in streams.items():
                piece[key] = _stacked(stream, rows.stop - rows.start, f"{where}: {key}")
            yield piece
        for key, stream in streams.items():
            if next(stream, None) is not None:
                raise mismatch(f"{where}: {key}", "more frames", f"{episode.length}")

    def _numbers(self, episode: Episode, where: str) -> Piece:
        """Read and check the arrays of an episode, without images.  # key -> (T, ...)"""
        columns = [f for features in self._keys.values() for f in features]
        table = read_columns(
            episode.data, tuple(dict.fromkeys((*columns, *AUTOMATIC))), self._info.codebase_version == "v3.0"
        )
        if "episode_index" in table:
            table = {k: v[table["episode_index"] == episode.index] for k, v in table.items()}
        for column in columns:
            if column not in table:
                raise mismatch(where, f"columns {', '.join(table)}", f"'{column}' among them")
        count = len(next(iter(table.values())))
        if count != episode.length:
            raise mismatch(where, f"{count} rows", f"{episode.length} by the table of episodes")
        self._check_time(table, where)
        arrays: Piece = {}
        for key, features in self._keys.items():
            shaped = [self._shaped(table[f], f, where) for f in features]
            if self._sidecar:
                arrays[key] = self._sidecar.array(key, shaped)
            elif key in ("action", "proprio"):
                flat = [array.reshape(count, -1) for array in shaped]
                arrays[key] = np.concatenate(flat, 1).astype(np.float32)
            else:
                arrays[key] = shaped[0]
        return arrays

    def _shaped(self, array: np.ndarray, feature: str, where: str) -> np.ndarray:
        shape = tuple(int(n) for n in self._info.features[feature]["shape"])
        if array[0].size != int(np.prod(shape)):
            raise mismatch(f"{where}: {feature}", f"{array[0].size} numbers a row", f"shape {list(shape)}")
        array = array.reshape(len(array), *(() if shape == (1,) else shape))
        return array.astype(np.dtype(str(self._info.features[feature]["dtype"])), copy=False)

    def _check_time(self, table: Piece, where: str) -> None:
        """Refuse rows out of order, and time stamps that do not match the rate."""
        steps = np.arange(len(next(iter(table.values()))))
        if (frames := table.get("frame_index")) is not None and (wrong := frames.ravel() != steps).any():
            step = int(wrong.argmax())
            raise mismatch(f"{where}: frame_index", f"{int(frames.ravel()[step])} in row {step}", step)
        if (index := table.get("index")) is not None and (wrong := np.diff(index.ravel()) != 1).any():
            before, after = index.ravel()[int(wrong.argmax()) :][:2]
            raise mismatch(f"{where}: index", f"{int(after)} after {int(before)}", "one more in each row")
        if (stamps := table.get("timestamp")) is not None:
            fps, tolerance = self._info.fps, self._choice.tolerance_s
            away = np.abs(stamps.ravel().astype(np.float64) - steps / fps)
            late = ~(away <= tolerance + np.spacing(np.float32(steps[-1] / fps)))  # NaN is late
            if late.any():
                step = int(late.argmax())
                raise mismatch(
                    f"{where}: timestamp",
                    f"{float(stamps.ravel()[step]):.5f} s in row {step}",
                    f"{step / fps:.5f} s ({fps} a second, tolerance_s={tolerance:g})",
                )


def _stacked(frames: Iterator[np.ndarray], count: int, where: str) -> np.ndarray:
    """Stack the next frames, all of one size.  # (count, H, W, 3)"""
    stacked = np.empty(0, np.uint8)
    for i in range(count):  # copied one by one: the decoder reuses a frame's memory
        frame = next(frames, None)
        if frame is None:
            raise mismatch(where, "fewer pictures than steps", "one a step")
        if i == 0:
            stacked = np.empty((count, *frame.shape), np.uint8)
        if frame.shape != stacked.shape[1:]:
            raise mismatch(where, f"a picture of {frame.shape}", f"{stacked.shape[1:]} as those before")
        stacked[i] = frame
    return stacked


def camera_name(key: str) -> str:
    """
    >>> camera_name("observation.images.top"), camera_name("observation.image"), camera_name("wrist")
    ('top', 'image', 'wrist')
    """
    for prefix in ("observation.images.", "observation.image.", "observation."):
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return key


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
