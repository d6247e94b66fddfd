"""LeRobot's names and metadata: info.json, and the tables of episodes with their length and files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from s2robot.core.settings import Stored, read
from s2robot.demos.bounds import json_object, text_of
from s2robot.demos.errors import mismatch
from s2robot.demos.formats.parquet import inside, read_table
from s2robot.demos.formats.source import as_ranges

MARKER = "meta/s2robot.json"  # what our writer adds: see sidecar.py
AUTOMATIC = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # columns of LeRobot's own
ACTION, STATE, IMAGES = "action", "observation.state", "observation.images."


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
        return read(cls, json_object(file, text_of(file)), f"{file}: ")

    @property
    def is_v3(self) -> bool:
        """Whether files hold several episodes."""
        return self.codebase_version == "v3.0"


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
    table = path / ("meta/episodes" if info.is_v3 else "meta/episodes.jsonl")
    if info.is_v3:
        tables = [
            read_table(f, lambda n: not n.startswith("stats/")) for f in sorted(table.rglob("*.parquet"))
        ]
        rows: list[dict[str, Any]] = [row for each in tables for row in each.to_pylist()]
        rows.sort(key=lambda row: _entry(row, "episode_index", table))
    else:
        rows = [json_object(table, line) for line in text_of(table).splitlines() if line.strip()]
    if not rows:
        raise mismatch(table, "no episodes", "the table of episodes")
    episodes = []
    for i, row in enumerate(rows):
        if (index := _entry(row, "episode_index", table)) != i:
            raise mismatch(f"{path}/meta: episode_index", index, f"{i}: no gaps, no repeats")
        place = {"episode_index": i, "episode_chunk": i // info.chunks_size}
        if info.is_v3:
            place = {n: row.get(f"data/{n}", 0) for n in ("chunk_index", "file_index")}
        data = inside(path, _filled(info, "data_path", path, **place))
        if not data.is_file():
            continue
        videos = {}
        for key in video_keys:
            start = 0.0
            if info.is_v3:
                names = ("chunk_index", "file_index", "from_timestamp")
                place = {n: _entry(row, f"videos/{key}/{n}", table) for n in names}
                start = float(place.pop("from_timestamp"))
            videos[key] = _video_file(path, _filled(info, "video_path", path, video_key=key, **place)), start
        tasks = row.get("tasks") or ()
        tasks = (tasks,) if isinstance(tasks, str) else tuple(map(str, tasks))
        episodes.append(Episode(i, int(_entry(row, "length", table)), tasks, data, videos))
    if not episodes:
        raise mismatch(path / "data", "no episode's parquet", f"some of the {len(rows)} that meta lists")
    here = f"{len(episodes)} of {len(rows)} episodes are here"
    if info.total_episodes not in (None, len(rows)):
        return episodes, f"{here}; meta/info.json counts {info.total_episodes}"
    ranges = as_ranges([episode.index for episode in episodes])
    note = f"{here} ({ranges}); `episodes` counts those, 0 to {len(episodes) - 1}"
    return episodes, "" if len(episodes) == len(rows) else note


def split_ranges(info: Info, name: str, path: Path) -> list[range]:
    """Return the episodes of a split of info.json, whose values are such as "0:40" or "0:40,50:60"."""
    where, splits = f"{path}/meta/info.json: splits", info.splits or {}
    if name not in splits:
        raise mismatch(where, ", ".join(splits) or "none", f"'{name}' among them")
    text = str(splits[name])
    if not re.fullmatch(r"(\s*\d+:\d+\s*(,|$))+", text):
        raise mismatch(f"{where}.{name}", repr(text), "ranges of episodes such as 0:40")
    return [range(*map(int, piece)) for piece in re.findall(r"(\d+):(\d+)", text)]


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


def _entry(row: Mapping[str, Any], name: str, table: Path) -> Any:
    if row.get(name) is None:
        raise mismatch(table, f"no {name}", "one, as LeRobot writes it")
    return row[name]
