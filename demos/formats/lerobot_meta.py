"""LeRobot's metadata: info.json, and the tables of episodes with their length and files."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from s2robot.core.settings import Stored, read
from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.formats.parquet import inside, read_table
from s2robot.demos.formats.source import as_ranges

MARKER = "meta/s2robot.json"  # what our writer adds: see sidecar.py


class Info(Stored):
    """meta/info.json; keys that are not read here are ignored."""

    codebase_version: Literal["v3.0", "v2.1", "v2.0"]
    fps: int | float = Field(gt=0)
    features: dict[str, dict[str, Any]]
    data_path: str
    video_path: str | None = None
    chunks_size: int = Field(default=1000, gt=0)
    robot_type: str | None = None
    splits: dict[str, Any] | None = None
    total_episodes: int | None = None
    total_frames: int | None = None

    @classmethod
    def of(cls, path: Path) -> "Info":
        """Read it from a dataset folder."""
        file = path / "meta/info.json"
        return read(cls, json_object(file), f"{file}: ")


@dataclass(frozen=True)
class Episode:
    """One episode and its files."""

    index: int
    length: int
    tasks: tuple[str, ...]
    data: Path
    videos: Mapping[str, tuple[Path, float]]  # feature -> file, and the second at which the episode begins


def read_episodes(path: Path, info: Info, video_keys: Sequence[str]) -> tuple[list[Episode], str]:
    """Return the episodes whose parquet file exists, and a note about the others."""
    v3 = info.codebase_version == "v3.0"
    if v3:
        files = sorted((path / "meta/episodes").rglob("*.parquet"))
        if not files:
            raise mismatch(path / "meta/episodes", "no parquet file", "the table of episodes")
        tables = [read_table(file, lambda name: not name.startswith("stats/")) for file in files]
        rows: list[dict[str, Any]] = [row for table in tables for row in table.to_pylist()]
        rows.sort(key=lambda row: entry(row, "episode_index", files[0]))
    else:
        files = [path / "meta/episodes.jsonl"]
        rows = json_lines(files[0])
    for expected, row in enumerate(rows):
        if (index := entry(row, "episode_index", files[0])) != expected:
            raise mismatch(f"{path}/meta: episode_index", index, f"{expected}: no gaps, no repeats")
    episodes = []
    for i, row in enumerate(rows):
        place = {"episode_index": i, "episode_chunk": i // info.chunks_size}
        if v3:
            place = {n: row.get(f"data/{n}", 0) for n in ("chunk_index", "file_index")}
        data = inside(path, _filled(info, "data_path", path, **place))
        if not data.is_file():
            continue
        videos = {}
        for key in video_keys:
            if v3:
                place = {n: entry(row, f"videos/{key}/{n}", files[0]) for n in ("chunk_index", "file_index")}
            start = float(entry(row, f"videos/{key}/from_timestamp", files[0])) if v3 else 0.0
            videos[key] = _video_file(path, _filled(info, "video_path", path, video_key=key, **place)), start
        tasks = row.get("tasks") or ()
        tasks = (tasks,) if isinstance(tasks, str) else tuple(map(str, tasks))
        episodes.append(Episode(i, int(entry(row, "length", files[0])), tasks, data, videos))
    return episodes, _note_missing(path, episodes, len(rows), info)


def split_ranges(info: Info, name: str, path: Path) -> list[range]:
    """Return the episodes of a split of info.json, whose values are such as "0:40" or "0:40,50:60"."""
    where, splits = f"{path}/meta/info.json: splits", info.splits or {}
    if name not in splits:
        raise mismatch(where, ", ".join(splits) or "none", f"'{name}' among them")
    ranges = []
    for piece in str(splits[name]).split(","):
        if not re.fullmatch(r"\s*\d+:\d+\s*", piece):
            raise mismatch(f"{where}.{name}", repr(splits[name]), "ranges of episodes such as 0:40")
        ranges.append(range(*map(int, piece.split(":"))))
    return ranges


def _note_missing(path: Path, episodes: Sequence[Episode], listed: int, info: Info) -> str:
    if not episodes:
        raise mismatch(path / "data", "no episode's parquet", f"some of the {listed} that meta lists")
    here = f"{len(episodes)} of {listed} episodes are here"
    if info.total_episodes not in (None, listed):
        return f"{here}; meta/info.json counts {info.total_episodes}"
    if len(episodes) == listed:
        return ""
    return (
        f"{here} ({as_ranges([episode.index for episode in episodes])}); the others were not downloaded. `episodes` "
        f"counts those that are here, 0 to {len(episodes) - 1}"
    )


def _video_file(path: Path, name: str) -> Path:
    """Find a video, also in a folder called `video` instead of `videos`, or the other way round."""
    inside(path, name)
    first, _, rest = name.partition("/")
    other = path / {"videos": "video", "video": "videos"}.get(first, first) / rest
    return other if not (path / name).is_file() and other.is_file() else path / name


def _filled(info: Info, name: str, path: Path, **values: Any) -> str:
    template = getattr(info, name)
    try:
        if re.search(r"\{[^{}]*(\d{3}|\{)", str(template)):  # a wide number would fill the memory
            raise ValueError
        return template.format(**values)
    except (KeyError, IndexError, ValueError, AttributeError):
        expected = f"{{...}} of {', '.join(values)}"
        raise mismatch(f"{path}/meta/info.json: {name}", repr(template), expected) from None


def entry(row: Mapping[str, Any], name: str, file: Path) -> Any:
    if row.get(name) is None:
        raise mismatch(file, f"no {name}", "one, as LeRobot writes it")
    return row[name]


def json_object(file: Path) -> dict[str, Any]:
    (content,) = _json(file, lambda text: [text])
    return content


def json_lines(file: Path) -> list[dict[str, Any]]:
    return _json(file, lambda text: [line for line in text.splitlines() if line.strip()])


def _json(file: Path, split: Any) -> list[dict[str, Any]]:
    """Read the JSON objects of a file; DatasetError names what is broken."""
    if file.exists() and not file.is_file():  # reading a device or a pipe would never end
        raise mismatch(file, "something else", "a file")
    try:
        objects = [json.loads(text) for text in split(file.read_text("utf-8"))]
    except OSError as error:
        raise mismatch(file, error.strerror, "a file") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: broken JSON ({error})") from None
    for content in objects:
        if not isinstance(content, dict):
            raise mismatch(file, type(content).__name__, "JSON objects")
    return objects
