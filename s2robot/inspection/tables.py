"""The numbers of a dataset as tables: names of the columns, their ranges, and their curves in a page."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from s2robot.demos.schema import PARTS, parts_of
from s2robot.demos.store import EpisodeStore
from s2robot.envs.parts import MAX_DELTA, number_names, size_of

WIDEST = 64  # numbers a step: what is wider is for programs, a simulator's state for example
MOST_LINES = 7  # in one plot: as many as colours that can be told apart


@dataclass(frozen=True)
class Part:
    """Columns of a table that belong together."""

    name: str
    first: int  # its first column
    size: int
    kind: str  # of envs.parts; "" where nothing is known
    limits: np.ndarray | None = None  # (2, size): the least and the largest that can be commanded


@dataclass(frozen=True)
class Table:
    """All steps of one key of a store."""

    key: str
    names: list[str]
    parts: list[Part]
    values: np.ndarray  # (steps, columns), floats

    def ranges(self) -> np.ndarray:
        """Minimum, 1 %, median, 99 % and maximum of each column, NaN for a column without finite numbers.  # (5, columns)"""
        finite = np.where(np.isfinite(self.values), self.values, np.nan).astype(np.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of a column of NaN
            return np.nanquantile(finite, [0, 0.01, 0.5, 0.99, 1], axis=0)

    def spread(self) -> np.ndarray:
        """From 1 to 99 % of each column, or its whole range if those are equal.  # (columns,)"""
        low, first, _, last, high = self.ranges()
        return np.where(last > first, last - first, high - low)


def tables(store: EpisodeStore, episodes: int) -> list[Table]:
    """Tables of the first so many episodes: action and proprio first, then what else is a number or a few a step."""
    steps = int(store.episode_ends[episodes - 1])
    first = [key for key in PARTS if key in store.keys]
    rest = [key for key in store.keys if key not in first and _shown(store, key)]
    found = []
    for key in (*first, *rest):
        values = store.read(key, 0, steps).reshape(steps, -1)
        # whole numbers keep what float32 would round away: stamps in nanoseconds would all be one
        values = values.astype(np.promote_types(values.dtype, np.float32), copy=False)
        found.append(Table(key, *_named(store, key, values), values))
    return found


def _shown(store: EpisodeStore, key: str) -> bool:
    shape = store.shape(key)
    drawn = store.attrs["kind"] == "states" and key == "state"
    return len(shape) < 2 and int(np.prod(shape)) <= WIDEST and not drawn and not key.startswith("images_")


def _named(store: EpisodeStore, key: str, values: np.ndarray) -> tuple[list[str], list[Part]]:
    """Names of the columns, and the parts that they make."""
    width = values.shape[1]
    parts = parts_of(store.attrs, key) if key in PARTS else []
    if not parts or size_of(parts) != width:
        names = [key] if width == 1 else [f"{key} {i + 1}" for i in range(width)]
        return names, [Part(key, 0, width, "")]
    made, at = [], 0
    for part in parts:
        own = values[:, at : at + part["size"]]
        made.append(Part(part["name"], at, part["size"], part["kind"], _limits(store, key, part, own)))
        at += part["size"]
    if PARTS[key] in store.attrs:
        return number_names(parts), made
    return [f"joint {i + 1}" for i in range(width - 1)] + ["gripper"], made


def _limits(store: EpisodeStore, key: str, part: dict[str, Any], own: np.ndarray) -> np.ndarray | None:
    """Where the commands of a part end.

    Of targets without declared limits nobody knows: at their least and largest an arm may well rest. Of steps without,
    the largest ones are taken for the limit, if there is none to know.
    """
    if key != "action" or part["kind"] in ("binary", "rotation"):
        return None
    if part.get("low") is not None:
        return np.array([part["low"], part["high"]], float)
    if part["kind"] != "delta":
        return None
    if PARTS["action"] not in store.attrs and not store.attrs.get("source"):
        largest = np.full(part["size"], store.attrs["env_config"].get("max_delta", MAX_DELTA))
    else:
        largest = np.nanmax(np.abs(own), axis=0)
    return np.stack([-largest, largest])


def plots(table: Table) -> list[tuple[str, list[int]]]:
    """Titles and columns of plots of at most `MOST_LINES` lines, the columns of a part beside each other."""
    found = []
    for part in table.parts:
        count = -(-part.size // MOST_LINES)
        for columns in np.array_split(np.arange(part.first, part.first + part.size), count):
            where = f" {columns[0] - part.first + 1}–{columns[-1] - part.first + 1}" if count > 1 else ""
            title = table.key if part.name == table.key else f"{table.key}: {part.name}"
            found.append((title + where, columns.tolist()))
    return found


def curves(values: np.ndarray, most: int) -> tuple[float, list[list[float | None]]]:
    """Columns of an episode (T, C) as a page draws them, to five digits, and the steps from point to point.

    An episode of more than `most` steps gives the least and the largest of each few of them, so no peak is lost.
    """
    each = 1.0
    if len(values) > most:
        bucket = -(-2 * len(values) // most)
        rest = -len(values) % bucket
        padded = np.concatenate([values, np.repeat(values[-1:], rest, 0)]).reshape(
            -1, bucket, values.shape[1]
        )
        values = np.stack([padded.min(1), padded.max(1)], 1).reshape(-1, values.shape[1])
        each = bucket / 2
    return each, [[_short(x) for x in column] for column in values.T.tolist()]


def _short(x: float) -> float | None:
    return float(f"{x:.5g}") if np.isfinite(x) else None  # JSON knows no NaN


def episodes_of(values: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """Steps of all episodes, cut at their ends."""
    starts = np.concatenate([[0], ends[:-1]])
    return [values[a:b] for a, b in zip(starts, ends, strict=True)]
