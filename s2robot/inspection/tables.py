"""The numbers of a dataset as tables: names of the columns, their ranges, and their curves in a page."""

import warnings
from dataclasses import dataclass

import numpy as np

from s2robot.core.parts import MAX_DELTA, Part, number_names, size_of, slices
from s2robot.demos.schema import PARTS, parts_of
from s2robot.demos.store import EpisodeStore

WIDEST = 64  # numbers a step: what is wider is for programs, a simulator's state for example
MOST_LINES = 7  # in one plot: as many as colours that can be told apart


@dataclass(frozen=True)
class Columns:
    """Columns of a table that belong together."""

    name: str
    at: slice
    kind: str  # of a part; "" where nothing is known
    limits: np.ndarray | None = None  # (2, columns): the least and the largest that can be commanded


@dataclass(frozen=True)
class Table:
    """All steps of one key of a store."""

    key: str
    names: list[str]
    parts: list[Columns]
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
    found = []
    for key in (*first, *(key for key in store.keys if key not in first and _is_shown(store, key))):
        values = store.read(key, 0, steps).reshape(steps, -1)
        # whole numbers keep what float32 would round away: stamps in nanoseconds would all be one
        values = values.astype(np.promote_types(values.dtype, np.float32), copy=False)
        found.append(Table(key, *_named(store, key, values), values))
    return found


def _is_shown(store: EpisodeStore, key: str) -> bool:
    shape = store.shape(key)
    drawn = store.attrs["kind"] == "states" and key == "state"
    return len(shape) < 2 and int(np.prod(shape)) <= WIDEST and not drawn and not key.startswith("images_")


def _named(store: EpisodeStore, key: str, values: np.ndarray) -> tuple[list[str], list[Columns]]:
    """Names of the columns, and the parts that they make."""
    width, attrs = values.shape[1], store.attrs
    parts = parts_of(attrs, key) if key in PARTS else ()
    if not parts or size_of(parts) != width:
        names = [key] if width == 1 else [f"{key} {i + 1}" for i in range(width)]
        return names, [Columns(key, slice(0, width), "")]
    made = [
        Columns(p.name, at, p.kind, _limits(attrs, p, values[:, at]) if key == "action" else None)
        for p, at in zip(parts, slices(parts), strict=True)
    ]
    if PARTS[key] in attrs:
        return number_names(parts), made
    return [f"joint {i + 1}" for i in range(width - 1)] + ["gripper"], made


def _limits(attrs: dict, part: Part, own: np.ndarray) -> np.ndarray | None:
    """Where the commands of a part of the action end.

    Targets without declared limits have none: an arm may well rest at their least and largest. Of steps without declared
    limits the largest ones are taken for the limit.
    """
    if part.kind in ("binary", "rotation"):
        return None
    if part.low is not None:
        return np.array(part.limits)
    if part.kind != "delta":
        return None
    largest = np.nanmax(np.abs(own), axis=0)
    if PARTS["action"] not in attrs and not attrs.get("source"):
        largest = np.full(part.size, attrs["env_config"].get("max_delta", MAX_DELTA))
    return np.stack([-largest, largest])


def plots(table: Table) -> list[tuple[str, list[int]]]:
    """Titles and columns of plots of at most `MOST_LINES` lines, the columns of a part beside each other."""
    found = []
    for part in table.parts:
        size = part.at.stop - part.at.start
        count = -(-size // MOST_LINES)
        for columns in np.array_split(np.arange(size), count):
            where = f" {columns[0] + 1}–{columns[-1] + 1}" if count > 1 else ""
            title = table.key if part.name == table.key else f"{table.key}: {part.name}"
            found.append((title + where, (part.at.start + columns).tolist()))
    return found


def curves(values: np.ndarray, most: int) -> tuple[float, list[list[float | None]]]:
    """Columns of an episode (T, C) as a page draws them, to five digits, and the steps from point to point.

    An episode of more than `most` steps gives the least and the largest of each few of them, so no peak is lost.
    """
    each = 1.0
    if len(values) > most:
        bucket = -(-2 * len(values) // most)
        padded = np.concatenate([values, np.repeat(values[-1:], -len(values) % bucket, 0)])
        padded = padded.reshape(-1, bucket, values.shape[1])
        values = np.stack([padded.min(1), padded.max(1)], 1).reshape(-1, values.shape[1])
        each = bucket / 2
    return each, [[_short(x) for x in column] for column in values.T.tolist()]


def _short(x: float) -> float | None:
    return float(f"{x:.5g}") if np.isfinite(x) else None  # JSON knows no NaN


def episodes_of(values: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """Steps of all episodes, cut at their ends."""
    return np.split(values, ends[:-1])
