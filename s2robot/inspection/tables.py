"""Tables of a dataset's numbers, with column names, ranges and curves for the page; and findings."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from s2robot.core.parts import MAX_DELTA, Part, number_names, parts_of, size_of, slices
from s2robot.core.settings import Settings, from_yaml
from s2robot.demos.errors import mismatch
from s2robot.demos.schema import PARTS
from s2robot.demos.store import EpisodeStore

MAX_WIDTH = 64  # numbers per step; wider arrays, such as a simulator's state, are not for humans
MAX_LINES = 7  # per plot, limited by distinguishable colours


class Thresholds(Settings, at="anomalies", file="inspect"):
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


class Finding(NamedTuple):
    """An anomaly, of the whole dataset if `episode` is None."""

    kind: str
    text: str
    episode: int | None = None
    step: int = 0
    steps: int = 1


class FrameStats(NamedTuple):
    """Measurements of one camera's frames in one episode: see films.py."""

    change: np.ndarray  # (T,) mean difference to the previous frame, 0 to 255; 0 only if all bytes are equal
    mean: np.ndarray  # (T,) brightness, 0 to 255
    deviation: np.ndarray  # (T,) standard deviation of brightness over the image


Frames = Sequence[Mapping[str, FrameStats]]  # per episode: camera -> measurements; empty without videos


class Columns(NamedTuple):
    """Columns of a table that belong together."""

    name: str
    at: slice
    kind: str  # of the part; "" if unknown
    limits: np.ndarray | None = None  # (2, columns): lower and upper limit of commands


class Table(NamedTuple):
    """All steps of one key in a store."""

    key: str
    names: list[str]
    parts: list[Columns]
    values: np.ndarray  # (steps, columns), floats

    def ranges(self) -> np.ndarray:
        """Return min, 1 %, median, 99 % and max of each column.  # (5, columns)"""
        return np.quantile(self.values.astype(np.float64), [0, 0.01, 0.5, 0.99, 1], axis=0)

    def spread(self) -> np.ndarray:
        """Return the span from 1 % to 99 % of each column, or its full range if that is 0.  # (columns,)"""
        low, first, _, last, high = self.ranges()
        return np.where(last > first, last - first, high - low)


def tables(store: EpisodeStore, episodes: int) -> list[Table]:
    """Return tables of the first `episodes`: action and proprio, then other arrays with few numbers per step."""
    steps, result = int(store.episode_ends[episodes - 1]), []
    for key in sorted(store.keys, key=[*PARTS, *store.keys].index):
        shape = store.shape(key)
        hidden = key.startswith("images_") or (key == "state" and store.attrs["kind"] == "states")
        if key not in PARTS and (hidden or len(shape) > 1 or int(np.prod(shape)) > MAX_WIDTH):
            continue
        values = store.read(key, 0, steps).reshape(steps, -1)
        if not np.isfinite(values).all():  # another program wrote it
            raise mismatch(f"{store.path}: {key}", "finite numbers", "NaN or infinity")
        # float32 would round large integers: time stamps in ns would all be equal
        values = values.astype(np.promote_types(values.dtype, np.float32), copy=False)
        result.append(Table(key, *_named(store, key, values), values))
    return result


def _named(store: EpisodeStore, key: str, values: np.ndarray) -> tuple[list[str], list[Columns]]:
    """Return the names of the columns, and the parts they form."""
    width, attrs = values.shape[1], store.attrs
    parts = parts_of(attrs, key) if key in PARTS else ()
    if not parts or size_of(parts) != width:
        names = [key] if width == 1 else [f"{key} {i + 1}" for i in range(width)]
        return names, [Columns(key, slice(0, width), "")]
    columns = [
        Columns(p.name, at, p.kind, _limits(attrs, p, values[:, at]) if key == "action" else None)
        for p, at in zip(parts, slices(parts), strict=True)
    ]
    if PARTS[key] in attrs:
        return number_names(parts), columns
    return [f"joint {i + 1}" for i in range(width - 1)] + ["gripper"], columns


def _limits(attrs: dict, part: Part, values: np.ndarray) -> np.ndarray | None:
    """Return the limits of a part's commands: the declared ones or, for deltas, the largest delta.

    Absolute targets without declared limits have none, because an arm may rest at their minimum and maximum.
    """
    if part.kind in ("delta", "absolute") and part.low is not None:
        return np.array(part.limits)
    if part.kind != "delta":
        return None
    largest = np.abs(values).max(0)
    if PARTS["action"] not in attrs and not attrs.get("source"):
        largest = np.full(part.size, attrs["env_config"].get("max_delta", MAX_DELTA))
    return np.stack([-largest, largest])


def plots(table: Table) -> list[tuple[str, list[int]]]:
    """Return (title, columns) of plots with at most `MAX_LINES` lines; the columns of a part stay together."""
    result = []
    for part in table.parts:
        size = part.at.stop - part.at.start
        count = -(-size // MAX_LINES)
        title = table.key if part.name == table.key else f"{table.key}: {part.name}"
        for columns in np.array_split(np.arange(size), count):
            span = f" {columns[0] + 1}–{columns[-1] + 1}" if count > 1 else ""
            result.append((title + span, (part.at.start + columns).tolist()))
    return result


def curves(values: np.ndarray, max_points: int) -> tuple[float, list[list[float]]]:
    """Return the steps between points, and the columns of an episode (T, C) as points with five digits.

    An episode of more than `max_points` steps is reduced to the minimum and maximum of each bucket, to keep peaks.
    """
    spacing = 1.0
    if len(values) > max_points:
        bucket = -(-2 * len(values) // max_points)
        padded = np.concatenate([values, np.repeat(values[-1:], -len(values) % bucket, 0)])
        padded = padded.reshape(-1, bucket, values.shape[1])
        values = np.stack([padded.min(1), padded.max(1)], 1).reshape(-1, values.shape[1])
        spacing = bucket / 2
    return spacing, [[float(f"{x:.5g}") for x in column] for column in values.T.tolist()]


def episodes_of(values: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """Split steps at the ends of episodes."""
    return np.split(values, ends[:-1])
