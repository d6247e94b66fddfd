"""The numbers of a dataset as tables: names of the columns, their ranges, and their curves in a page; and what is found in them."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from s2robot.core.parts import MAX_DELTA, Part, number_names, parts_of, size_of, slices
from s2robot.core.settings import Settings, from_yaml
from s2robot.demos.schema import PARTS
from s2robot.demos.store import EpisodeStore

WIDEST = 64  # numbers a step: wider arrays are for programs, such as a simulator's state
MOST_LINES = 7  # in one plot: as many as colours that can be told apart


class Thresholds(Settings, at="odd", file="inspect"):
    frozen_steps: int = from_yaml(ge=1)
    frozen_change: float = from_yaml(ge=0)
    frozen_motion: float = from_yaml(ge=0)
    dark: float = from_yaml(ge=0)
    bright: float = from_yaml(ge=0)
    contrast: float = from_yaml(ge=0)
    flat: float = from_yaml(ge=0)
    clock: float = from_yaml(ge=0)
    jump_times: float = from_yaml(ge=0)
    jump_share: float = from_yaml(ge=0)
    saturated_steps: int = from_yaml(ge=1)
    gripper: float = from_yaml(ge=0)
    short: float = from_yaml(ge=0)
    long: float = from_yaml(ge=0)
    offset: float = from_yaml(ge=0)
    late_steps: int = from_yaml(ge=1)
    duplicate: float = from_yaml(ge=0)
    units: float = from_yaml(gt=1)
    early: float = from_yaml(gt=0)


@dataclass(frozen=True)
class Finding:
    """One anomaly; without episode of the whole dataset."""

    kind: str
    text: str
    episode: int | None = None
    step: int = 0
    steps: int = 1


@dataclass(frozen=True)
class FrameStats:
    """Measurements of the frames of one camera in one episode: see films.py."""

    change: np.ndarray  # (T,) mean difference to the frame before, 0 to 255; 0 where each byte is the same
    mean: np.ndarray  # (T,) brightness, 0 to 255
    deviation: np.ndarray  # (T,) of brightness over the image


Frames = Sequence[Mapping[str, FrameStats]]  # camera -> measurements, of each episode; empty: none were read


@dataclass(frozen=True)
class Columns:
    """Columns of a table that belong together."""

    name: str
    at: slice
    kind: str  # of a part; "" if unknown
    limits: np.ndarray | None = None  # (2, columns): the least and the largest command


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
    """Return tables of the first so many episodes: action and proprio, then other arrays of a few numbers a step."""
    steps, found = int(store.episode_ends[episodes - 1]), []
    for key in sorted(store.keys, key=[*PARTS, *store.keys].index):
        shape = store.shape(key)
        hidden = key.startswith("images_") or (key == "state" and store.attrs["kind"] == "states")
        if key not in PARTS and (hidden or len(shape) > 1 or int(np.prod(shape)) > WIDEST):
            continue
        values = store.read(key, 0, steps).reshape(steps, -1)
        # float32 would round large whole numbers: stamps in nanoseconds would all be equal
        values = values.astype(np.promote_types(values.dtype, np.float32), copy=False)
        found.append(Table(key, *_named(store, key, values), values))
    return found


def _named(store: EpisodeStore, key: str, values: np.ndarray) -> tuple[list[str], list[Columns]]:
    """Return names of the columns, and the parts that they make."""
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
    """Return the limits of a part's commands: declared ones, or of deltas the largest.

    Targets without declared limits have none: an arm may rest at their least and largest.
    """
    if part.kind in ("delta", "absolute") and part.low is not None:
        return np.array(part.limits)
    if part.kind != "delta":
        return None
    largest = np.nanmax(np.abs(own), axis=0)
    if PARTS["action"] not in attrs and not attrs.get("source"):
        largest = np.full(part.size, attrs["env_config"].get("max_delta", MAX_DELTA))
    return np.stack([-largest, largest])


def plots(table: Table) -> list[tuple[str, list[int]]]:
    """Return titles and columns of plots of at most `MOST_LINES` lines, the columns of a part beside each other."""
    found = []
    for part in table.parts:
        size = part.at.stop - part.at.start
        count = -(-size // MOST_LINES)
        title = table.key if part.name == table.key else f"{table.key}: {part.name}"
        for columns in np.array_split(np.arange(size), count):
            where = f" {columns[0] + 1}–{columns[-1] + 1}" if count > 1 else ""
            found.append((title + where, (part.at.start + columns).tolist()))
    return found


def curves(values: np.ndarray, most: int) -> tuple[float, list[list[float | None]]]:
    """Return the steps between points, and the columns of an episode (T, C) as points, to five digits.

    An episode of more than `most` steps gives the least and the largest of each few of them, so no peak is lost.
    """
    each = 1.0
    if len(values) > most:
        bucket = -(-2 * len(values) // most)
        padded = np.concatenate([values, np.repeat(values[-1:], -len(values) % bucket, 0)])
        padded = padded.reshape(-1, bucket, values.shape[1])
        values = np.stack([padded.min(1), padded.max(1)], 1).reshape(-1, values.shape[1])
        each = bucket / 2
    short = [[float(f"{x:.5g}") if np.isfinite(x) else None for x in column] for column in values.T.tolist()]
    return each, short  # JSON has no NaN


def episodes_of(values: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """Split steps at the ends of episodes."""
    return np.split(values, ends[:-1])
