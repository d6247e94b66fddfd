"""LeRobot's tables of episodes: which there are, how long, and where they lie."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.formats.parquet import inside, read_table
from s2robot.demos.formats.source import as_ranges

MARKER = "meta/s2robot.json"  # what a writer of ours left: see kept.py


@dataclass(frozen=True)
class Episode:
    """Where one lies."""

    index: int
    length: int
    tasks: tuple[str, ...]
    data: Path
    videos: Mapping[str, tuple[Path, float]]  # feature -> file, and the second at which the episode begins


def v2_episodes(path: Path, info: Mapping, video_keys: Sequence[str]) -> tuple[list[Episode], str]:
    """The episodes of v2.1 whose parquet was downloaded, and what to say of the others."""
    rows = json_lines(path / "meta/episodes.jsonl")
    _check_order([entry(row, "episode_index", path / "meta/episodes.jsonl") for row in rows], path)
    size = positive({"chunks_size": 1000} | dict(info), "chunks_size", path, int)
    found = []
    for row in rows:
        i = int(row["episode_index"])
        at = {"episode_index": i, "episode_chunk": i // size}
        data = inside(path, _filled(info, "data_path", path, **at))
        if not data.is_file():
            continue
        videos = {
            key: (_existing(path, _filled(info, "video_path", path, video_key=key, **at)), 0.0)
            for key in video_keys
        }
        found.append(Episode(i, int(entry(row, "length", path)), _tasks(row), data, videos))
    return found, _missing(path, found, len(rows), info)


def v3_episodes(path: Path, info: Mapping, video_keys: Sequence[str]) -> tuple[list[Episode], str]:
    """The episodes of v3.0 whose parquet is here, and what to say of the others."""
    files = sorted((path / "meta/episodes").rglob("*.parquet"))
    if not files:
        raise mismatch(path / "meta/episodes", "no parquet file", "the table of episodes")
    rows: list[dict] = []
    for file in files:
        rows += read_table(file, lambda name: not name.startswith("stats/")).to_pylist()
    rows.sort(key=lambda row: entry(row, "episode_index", files[0]))
    _check_order([row["episode_index"] for row in rows], path)
    found = []
    for row in rows:
        at = {"chunk_index": row.get("data/chunk_index", 0), "file_index": row.get("data/file_index", 0)}
        data = inside(path, _filled(info, "data_path", path, **at))
        if not data.is_file():
            continue
        videos = {}
        for key in video_keys:
            at = {n: entry(row, f"videos/{key}/{n}", files[0]) for n in ("chunk_index", "file_index")}
            file = _existing(path, _filled(info, "video_path", path, video_key=key, **at))
            videos[key] = file, float(entry(row, f"videos/{key}/from_timestamp", files[0]))
        length = int(entry(row, "length", files[0]))
        found.append(Episode(row["episode_index"], length, _tasks(row), data, videos))
    return found, _missing(path, found, len(rows), info)


def in_split(info: Mapping[str, Any], name: str, path: Path) -> list[range]:
    """Numbers of the episodes of a split of info.json, whose values are such as "0:40" or "0:40,50:60"."""
    where, splits = f"{path}/meta/info.json: splits", info.get("splits") or {}
    if name not in splits:
        raise mismatch(where, ", ".join(splits) or "none", f"'{name}' among them")
    found = []
    for piece in str(splits[name]).split(","):
        if not re.fullmatch(r"\s*\d+:\d+\s*", piece):
            raise mismatch(f"{where}.{name}", repr(splits[name]), "ranges of episodes such as 0:40")
        found.append(range(*map(int, piece.split(":"))))
    return found


def _check_order(indices: list[int], path: Path) -> None:
    for due, index in enumerate(indices):
        if index != due:
            raise mismatch(f"{path}/meta: episode_index", index, f"{due}: no gaps, no repeats")


def _missing(path: Path, found: Sequence[Episode], listed: int, info: Mapping[str, Any]) -> str:
    """A note about episodes that are not here."""
    if not found:
        raise mismatch(path / "data", "no episode's parquet", f"some of the {listed} that meta lists")
    here = f"{len(found)} of {listed} episodes are here"
    if info.get("total_episodes", listed) != listed:
        return f"{here}; meta/info.json counts {info['total_episodes']}"
    if len(found) == listed:
        return ""
    return (
        f"{here} ({as_ranges([episode.index for episode in found])}); the others were not downloaded. `episodes` counts "
        f"those that are here, 0 to {len(found) - 1}"
    )


def _tasks(row: Mapping[str, Any]) -> tuple[str, ...]:
    given = row.get("tasks") or ()
    return (given,) if isinstance(given, str) else tuple(str(t) for t in given)


def _existing(path: Path, name: str) -> Path:
    """A video, also where the folder is called `video` instead of `videos`, or the other way round."""
    inside(path, name)
    first, _, rest = name.partition("/")
    other = path / {"videos": "video", "video": "videos"}.get(first, first) / rest
    return other if not (path / name).is_file() and other.is_file() else path / name


def _filled(info: Mapping[str, Any], name: str, path: Path, **values: Any) -> str:
    template = entry(info, name, path)
    try:
        if re.search(r"\{[^{}]*(\d{3}|\{)", str(template)):  # a number of so many digits fills the memory
            raise ValueError
        return str(template).format(**values)
    except (KeyError, IndexError, ValueError, AttributeError):
        expected = f"{{...}} of {', '.join(values)}"
        raise mismatch(f"{path}/meta/info.json: {name}", repr(template), expected) from None


def entry(row: Mapping[str, Any], name: str, path: Path) -> Any:
    if row.get(name) is None:
        raise mismatch(path, f"no {name}", "one, as LeRobot writes it")
    return row[name]


def positive(info: Mapping[str, Any], name: str, path: Path, kind: Any = (int, float)) -> Any:
    """A number of info.json that has to be above 0."""
    found = entry(info, name, path / "meta/info.json")
    if not isinstance(found, kind) or isinstance(found, bool) or not 0 < found < inf:
        raise mismatch(f"{path}/meta/info.json: {name}", repr(found), "a number above 0")
    return found


def _text(file: Path) -> str:
    try:
        if file.exists() and not file.is_file():  # a device or a pipe would be read for ever
            raise mismatch(file, "something else", "a file")
        return file.read_text("utf-8")
    except OSError as error:
        raise mismatch(file, error.strerror, "a file") from None


def json_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(file))
    except DatasetError:
        raise
    except (ValueError, RecursionError) as error:
        raise mismatch(file, f"broken JSON ({error})", "JSON") from None
    if not isinstance(found, dict):
        raise mismatch(file, type(found).__name__, "a JSON object")
    return found


def json_lines(file: Path) -> list[dict[str, Any]]:
    try:
        found = [json.loads(line) for line in _text(file).splitlines() if line.strip()]
    except DatasetError:
        raise
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: broken JSON ({error})") from None
    for row in found:
        if not isinstance(row, dict):
            raise mismatch(file, f"a line of {type(row).__name__}", "JSON objects")
    return found
