"""Columns of parquet files as arrays."""

import io
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.demos.errors import mismatch


@lru_cache(maxsize=1)
def _cached_table(path: Path, columns: tuple[str, ...], stamp: int) -> dict[str, np.ndarray]:
    return _read_table(path, columns)


def read_columns(path: Path, columns: tuple[str, ...], shared: bool) -> dict[str, np.ndarray]:
    """Columns of a parquet file as arrays; a file that many episodes share is kept for the next one."""
    return _cached_table(path, columns, path.stat().st_mtime_ns) if shared else _read_table(path, columns)


def _read_table(path: Path, columns: tuple[str, ...]) -> dict[str, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        there = pq.read_schema(path).names
        table = pq.read_table(path, columns=[c for c in columns if c in there])
    except (pa.ArrowException, OSError) as error:
        raise mismatch(path, f"a parquet file that cannot be read ({short(error)})", "a whole one") from None
    return {name: _column(table.column(name), path, name) for name in table.column_names}


def _column(column: Any, path: Path, name: str) -> np.ndarray:
    """A column of numbers, or of lists of them however deep.  # (rows, ...) or (rows, numbers)"""
    import pyarrow as pa

    array, rows = column.combine_chunks(), len(column)
    while isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    nested = False
    while (
        pa.types.is_list(array.type)
        or pa.types.is_large_list(array.type)
        or pa.types.is_fixed_size_list(array.type)
    ):
        array, nested = array.flatten(), True
    if array.null_count or (nested and rows and len(array) % rows):
        raise mismatch(
            f"{path}: {name}", "rows without a value, or of different lengths", "numbers in each row"
        )
    flat = array.to_numpy(zero_copy_only=False)
    return flat.reshape(rows, -1) if nested else flat


def pictures(root: Path, path: Path, episode: int, column: str) -> Iterator[np.ndarray]:
    """The pictures of an episode in a parquet file (PNG or JPEG in a struct of bytes and path).  # uint8 (H, W, 3)"""
    import pyarrow.parquet as pq
    from PIL import Image, UnidentifiedImageError

    with pq.ParquetFile(path) as file:
        groups = [g for g in range(file.num_row_groups) if _may_hold(file, g, episode)]
        for batch in file.iter_batches(16, row_groups=groups, columns=[column, "episode_index"]):
            rows = zip(
                batch.column(column).to_pylist(), batch.column("episode_index").to_pylist(), strict=True
            )
            for row, index in rows:
                if index != episode:
                    continue
                raw = row["bytes"] if row["bytes"] is not None else (root / row["path"]).read_bytes()
                try:
                    yield np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
                except (UnidentifiedImageError, OSError) as error:
                    raise mismatch(f"{path}: {column}", f"a broken picture ({error})", "PNG") from None


def _may_hold(file: Any, group: int, episode: int) -> bool:
    """Whether a row group can hold rows of an episode, by its statistics."""
    about = file.metadata.row_group(group)
    for c in range(about.num_columns):
        column = about.column(c)
        if column.path_in_schema == "episode_index" and column.is_stats_set and column.statistics.has_min_max:
            return column.statistics.min <= episode <= column.statistics.max
    return True


def short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
