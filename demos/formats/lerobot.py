"""LeRobot data sets, v3.0 and v2.1 (v2.0 too), as they lie in a folder; partial downloads as well.

    LeRobot(Path("aloha"), Choice())        # meta/info.json, data/**.parquet, videos/**.mp4

Format: huggingface/lerobot, `src/lerobot/datasets`, wheels 0.3.3 (v2.1) and 0.4.4 (v3.0). A frame is found by counting:
row k of an episode is the frame k / fps after the episode's start in its video.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.demos.errors import mismatch
from s2robot.demos.formats import video
from s2robot.demos.formats.kept import Kept
from s2robot.demos.formats.lerobot_meta import (
    MARKER,
    Episode,
    entry,
    in_split,
    json_object,
    positive,
    v2_episodes,
    v3_episodes,
)
from s2robot.demos.formats.parquet import pictures, read_columns
from s2robot.demos.formats.source import (
    AUTOMATIC,
    Choice,
    Piece,
    Source,
    about,
    ahead,
    chosen,
    different,
    finite,
    flat_names,
    part_of,
    require,
    steps_of,
)


class LeRobot(Source):
    """One data set folder; see :class:`Source`."""

    def __init__(self, path: Path, choice: Choice):
        require("pyarrow", "av")
        super().__init__(path)
        self._choice = choice
        self.info = info = json_object(path / "meta/info.json")
        self.fps = positive(info, "fps", path)
        if choice.rate_hz not in (None, self.fps):
            where = f"{path}/meta/info.json: fps"
            raise mismatch(where, f"{self.fps:g}", f"{choice.rate_hz:g} by rate_hz, which may be null here")
        self.features: dict[str, dict] = entry(info, "features", path)
        if not isinstance(self.features, dict) or not all(
            isinstance(f, dict) for f in self.features.values()
        ):
            raise mismatch(f"{path}/meta/info.json: features", "something else", "an object of objects")
        self.version = str(info.get("codebase_version"))
        if self.version not in ("v3.0", "v2.1", "v2.0"):
            raise mismatch(f"{path}/meta/info.json: codebase_version", self.version, "v3.0, v2.1 or v2.0")
        self._videos: dict[str, str] = {}  # feature -> camera
        self._images: dict[str, str] = {}
        self._keys: dict[str, list[str]] = {}  # array -> features
        numbers: dict[str, list[int]] = {}
        self._kept = self._left_by_us()
        if self._kept:
            self._as_left(self._kept)
        else:
            numbers = self._sorted_features()
        episodes_of = v3_episodes if self.version == "v3.0" else v2_episodes
        found, missing = episodes_of(path, info, tuple(self._videos))
        if choice.mask is not None:
            kept = in_split(info, choice.mask, path)
            found = [episode for episode in found if any(episode.index in numbers for numbers in kept)]
            if not found:
                raise mismatch(f"{path}: mask '{choice.mask}'", "none of its episodes here", "one or more")
        self._episodes = found
        if missing:
            self.notes.append(missing)
        if several := sum(len(e.tasks) > 1 for e in self._episodes):
            self.notes.append(
                f"{several} of {len(self._episodes)} episodes have several tasks; the first is kept"
            )
        self._tasks = sorted({t for e in self._episodes for t in e.tasks})
        if not self._kept:
            self._name(numbers)

    def __len__(self) -> int:
        return len(self._episodes)

    def length(self, i: int) -> int:
        return self._episodes[i].length

    def values(self, i: int) -> dict[str, Any]:
        if self._kept:
            index = self._episodes[i].index
            found = {key: values[index] for key, values in self._kept_values.items()}
            return dict(self._kept.episode_values(found, f"{self.path}/{MARKER}: episodes"))
        known = {"source_episode": self._episodes[i].index}
        if self._episodes[i].tasks:
            known["task"] = self._tasks.index(self._episodes[i].tasks[0])
        return known

    def missing(self, i: int) -> Path | None:
        return next((file for file, _ in self._episodes[i].videos.values() if not file.is_file()), None)

    # ---------------------------------------------------------------- what the features are

    def _sorted_features(self) -> dict[str, list[int]]:
        """Find the video and image features with their cameras' names; returns those of numbers with their shapes."""
        videos: dict[str, str] = {}
        images: dict[str, str] = {}
        numbers: dict[str, list[int]] = {}
        for key, feature in self.features.items():
            kind, shape = str(feature.get("dtype")), [int(n) for n in feature.get("shape", ())]
            if kind in ("video", "image"):
                facts = feature.get("info") or feature.get("video_info") or {}
                if facts.get("video.is_depth_map") or facts.get("is_depth_map"):
                    self.notes.append(f"{key} is a depth map and is left out")
                else:
                    (videos if kind == "video" else images)[key] = camera_name(key)
            elif kind.startswith(("float", "int", "uint", "bool")):
                if key not in AUTOMATIC:
                    numbers[key] = shape
            else:
                self.notes.append(f"{key} is of type {kind} and is left out")
        different({**videos, **images}, self.path)
        if (wanted := self._choice.cameras) is not None:
            every = {**videos, **images}
            names = {name: key for key, name in every.items()}
            keys = [names.get(w, w) for w in chosen(wanted, [*names, *every], "cameras", self.path)]
            videos = {key: videos[key] for key in keys if key in videos}
            images = {key: images[key] for key in keys if key in images}
        self._videos, self._images = videos, images
        return numbers

    def _left_by_us(self) -> Kept | None:
        """What our own writer told, where nobody changed the data set since."""
        file = self.path / MARKER
        if not file.is_file():
            return None
        told = json_object(file)
        kept = Kept.of(json.dumps(told), str(file))
        if not kept.fits(self._choice):
            return None
        features = {feature for places in kept.places.values() for feature in places}
        counts = ("total_episodes", "total_frames")
        if features != self.features.keys() - set(AUTOMATIC) or any(
            told.get(name) != self.info.get(name) for name in counts
        ):
            self.notes.append(f"{MARKER} tells of another data set and is not used")
            return None
        self._kept_values = told["episodes"]
        return kept.as_asked(self._choice, self.path)

    def _as_left(self, kept: Kept) -> None:
        """Names and attributes as they were before our writer wrote them."""
        cameras = {kept.places[f"images_{name}"][0]: name for name in kept.attributes["cameras"]}
        for feature, name in cameras.items():
            where = self._videos if self.features[feature]["dtype"] == "video" else self._images
            where[feature] = name
        self._keys = {k: places for k, places in kept.places.items() if places[0] not in cameras}
        self.attributes = kept.attributes

    def _name(self, numbers: dict[str, list[int]]) -> None:
        """Decide which features make action and proprio, and what the arrays are called."""
        sizes = {
            name: self._frame_size(key) for key, name in {**self._videos, **self._images}.items()
        }  # in the order of the features
        action = self._made_of("action", ("action", "actions"), "action.", numbers)
        proprio = self._made_of(
            "proprio", ("observation.state", "state", "observations.state"), "observation.", numbers
        )
        self._keys = {"action": action, "proprio": proprio}
        self._name_others([k for k in numbers if k not in (*action, *proprio)], sizes)
        parts = {
            what: [self._part(key, what if len(keys) == 1 else key, what) for key in keys]
            for what, keys in (("action", action), ("proprio", proprio))
        }
        self.attributes = about(
            self.path,
            f"LeRobot {self.version}",
            self.info.get("robot_type"),
            self.fps,
            sizes,
            parts["action"],
            parts["proprio"],
            tasks=self._tasks,
        )

    def _name_others(self, features: list[str], cameras: Iterable[str]) -> None:
        """Each other feature as an array of its own: under another name where its own is taken."""
        taken = {*self._keys, *(f"images_{name}" for name in cameras)}
        for feature in features:
            name = wanted = _array_name(feature)
            while name in taken:
                name = f"recorded_{name}"
            if name != wanted:
                self.notes.append(f"{feature} is called {name}: there is another {wanted}")
            taken.add(name)
            self._keys[name] = [feature]

    def _made_of(self, what: str, habits: tuple[str, ...], prefix: str, numbers: dict) -> list[str]:
        """The features that make `action` or `proprio`."""
        flat = [key for key, shape in numbers.items() if len(shape) == 1]
        if (wanted := getattr(self._choice, what)) is not None:
            return chosen(wanted, flat, what, self.path)
        if found := next((key for key in habits if key in flat), None):
            return [found]
        if several := [k for k in flat if k.startswith(prefix) and k != "observation.environment_state"]:
            return several
        known = ", ".join(flat) or "none"
        raise mismatch(
            f"{self.path}/meta/info.json: features", known, f"'{habits[0]}' among them, or {what}=[<keys>]"
        )

    def _part(self, key: str, name: str, what: str) -> dict[str, Any]:
        size = int(np.prod(self.features[key]["shape"]))
        kind = self._choice.action_kind if what == "action" else "absolute"
        return part_of(name, size, kind, flat_names(self.features[key].get("names"), size))

    def _frame_size(self, key: str) -> tuple[int, int]:
        """(H, W) of a camera, whichever way round its shape is told."""
        feature = self.features[key]
        shape, names = [int(n) for n in feature["shape"]], feature.get("names") or []
        if len(shape) != 3:
            raise mismatch(f"{self.path}/meta/info.json: {key}: shape", shape, "[height, width, 3]")
        if "height" in names and "width" in names:
            return shape[names.index("height")], shape[names.index("width")]
        return (shape[1], shape[2]) if shape[0] in (1, 3) and shape[2] not in (1, 3) else (shape[0], shape[1])

    # ---------------------------------------------------------------- an episode

    def pieces(self, i: int) -> Iterator[Piece]:
        return ahead(self._pieces(i))

    def _pieces(self, i: int) -> Iterator[Piece]:
        episode = self._episodes[i]
        where = f"{episode.data}: episode {episode.index}"
        numbers = self._numbers(episode, where)
        sizes = {key: self._frame_size(key) for key in (*self._videos, *self._images)}
        step = steps_of(sum(h * w * 3 for h, w in sizes.values()))
        whole = self.version != "v3.0"
        streams = {
            f"images_{name}": video.frames(*episode.videos[key], episode.length, self.fps, whole, sizes[key])
            for key, name in self._videos.items()
        }
        streams |= {
            f"images_{n}": pictures(self.path, episode.data, episode.index, key, sizes[key])
            for key, n in self._images.items()
        }
        for start in range(0, episode.length, step):
            stop = min(start + step, episode.length)
            piece = {key: array[start:stop] for key, array in numbers.items()}
            for key, stream in streams.items():
                piece[key] = _stacked(stream, stop - start, f"{where}: {key}")
            yield finite(piece, where, start)
        for key, stream in streams.items():
            if next(stream, None) is not None:
                raise mismatch(f"{where}: {key}", "more frames", f"{episode.length}")

    def _numbers(self, episode: Episode, where: str) -> Piece:
        """All but pictures of an episode, checked.  # key -> (T, ...)"""
        columns = [f for features in self._keys.values() for f in features]
        table = read_columns(
            episode.data, tuple(dict.fromkeys((*columns, *AUTOMATIC))), self.version == "v3.0"
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
            if self._kept:
                arrays[key] = self._kept.array(key, shaped)
            elif key in ("action", "proprio"):
                flat = [array.reshape(count, -1) for array in shaped]
                arrays[key] = np.concatenate(flat, 1).astype(np.float32)
            else:
                arrays[key] = shaped[0]
        return arrays

    def _shaped(self, array: np.ndarray, feature: str, where: str) -> np.ndarray:
        shape = tuple(int(n) for n in self.features[feature]["shape"])
        if array[0].size != int(np.prod(shape)):
            raise mismatch(f"{where}: {feature}", f"{array[0].size} numbers a row", f"shape {list(shape)}")
        array = array.reshape(len(array), *(() if shape == (1,) else shape))
        return array.astype(np.dtype(str(self.features[feature]["dtype"])), copy=False)

    def _check_time(self, table: Piece, where: str) -> None:
        """Rows in order, and time stamps that say so."""
        steps = np.arange(len(next(iter(table.values()))))
        if (frames := table.get("frame_index")) is not None and (frames.ravel() != steps).any():
            step = int((frames.ravel() != steps).argmax())
            raise mismatch(f"{where}: frame_index", f"{int(frames.ravel()[step])} in row {step}", step)
        if (index := table.get("index")) is not None and (np.diff(index.ravel()) != 1).any():
            step = int((np.diff(index.ravel()) != 1).argmax()) + 1
            found = f"{int(index.ravel()[step])} after {int(index.ravel()[step - 1])}"
            raise mismatch(f"{where}: index", found, "one more in each row")
        if (stamps := table.get("timestamp")) is not None:
            away = np.abs(stamps.ravel().astype(np.float64) - steps / self.fps)
            room = self._choice.tolerance_s + np.spacing(np.float32(steps[-1] / self.fps))
            late = ~(away <= room)  # a time stamp that is no number among them
            if late.any():
                step = int(late.argmax())
                told, due = float(stamps.ravel()[step]), step / self.fps
                raise mismatch(
                    f"{where}: timestamp",
                    f"{told:.5f} s in row {step}",
                    f"{due:.5f} s ({self.fps} a second, tolerance_s={self._choice.tolerance_s:g})",
                )


def _stacked(frames: Iterator[np.ndarray], count: int, where: str) -> np.ndarray:
    """The next frames, all of one size.  # (count, H, W, 3)"""
    stacked = np.empty(0, np.uint8)
    for i in range(count):  # copied one by one: a frame's memory is used for the next
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
