"""Read columns of parquet files as arrays, and write arrays as columns."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from s2robot.demos.bounds import check_frame, check_size, most_bytes
from s2robot.demos.errors import mismatch, readable

with suppress(ImportError):  # in the extra `data`, which readers and writers require
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")  # excludes PostScript, for which Pillow starts an interpreter
PNG_LEVEL = 1  # higher levels cost much time and save little


def read_table(path: Path, is_wanted: Callable[[str], bool], value_bytes: int = 8) -> pa.Table:
    """Read the columns that `is_wanted` selects; DatasetError: broken file, or too large in memory for its size.

    value_bytes: memory of a value, as the caller uses it."""
    with readable(path), pq.ParquetFile(path) as file:
        metadata = file.metadata
        groups = (metadata.row_group(g) for g in range(metadata.num_row_groups))
        chunks = [(group.num_rows, group.column(c)) for group in groups for c in range(group.num_columns)]
        claimed = sum(max(value_bytes * c.num_values, c.total_uncompressed_size) for _, c in chunks)
        check_size(path, max(claimed, value_bytes * metadata.num_rows), stored := path.stat().st_size)
        # a text that many values share is stored once: all rows of a batch, or all n values of a row, could hold it
        columns = [(rows, c) for rows, c in chunks if c.physical_type == "BYTE_ARRAY"]
        texts = [(c.total_uncompressed_size, c.num_values - rows + 1) for rows, c in columns]
        check_size(path, max((size * n for size, n in texts), default=0), stored)
        schema = pa.schema([field for field in file.schema_arrow if is_wanted(field.name)])
        batches, size = list[pa.RecordBatch](), 0
        rows = int(np.clip(most_bytes(stored) // (8 * max(texts, default=(1,))[0] + 1), 1, 1 << 16))
        for batch in file.iter_batches(rows, columns=schema.names):
            batches.append(batch)
            check_size(path, size := size + batch.get_total_buffer_size(), stored)
        return pa.Table.from_batches(batches, schema)


def read_columns(path: Path, columns: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read columns as arrays, cached for the next episode in the same file."""
    return _cached_columns(path, columns, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _cached_columns(path: Path, columns: tuple[str, ...], stamp: int) -> dict[str, np.ndarray]:
    table = read_table(path, columns.__contains__)
    return {name: _column(table.column(name), f"{path}: {name}") for name in table.column_names}


def _column(column: pa.ChunkedArray, where: str) -> np.ndarray:
    """Return a column of numbers, or of arbitrarily nested lists of them.  # (rows,) or (rows, numbers)"""
    array, rows = column.combine_chunks(), len(column)
    while isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    nested = uneven = False  # lists of different lengths would shift all later rows
    lists = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)
    while not array.null_count and isinstance(array.type, lists):
        uneven |= len(pc.unique(pc.list_value_length(array))) > 1
        array, nested = array.flatten(), True
    if array.null_count or uneven:
        raise mismatch(where, "the same count of numbers per row", "missing values or uneven rows")
    flat = array.to_numpy(zero_copy_only=False)
    return flat.reshape(rows, -1) if nested else flat


def images(root: Path, path: Path, episode: int, column: str, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield the images of an episode (PNG or JPEG in a struct of bytes and path).  # uint8 (H, W, 3)

    size: (H, W) from info.json; an image with more pixels is not decoded.
    """
    where = f"{path}: {column}"
    with readable(where):
        own = ds.field("episode_index") == episode  # skips row groups without the episode
        batches = ds.dataset(path).to_batches(columns=[column], filter=own, batch_size=16, batch_readahead=1)
        for row in (row for batch in batches for row in batch.column(0).to_pylist()):
            raw = inside(root, row["path"]).read_bytes() if row["bytes"] is None else row["bytes"]
            image = Image.open(io.BytesIO(raw), formats=IMAGE_FORMATS)
            check_frame(where, (image.height, image.width), size, len(raw))
            if image.mode.startswith(("I", "F")):  # RGB would clip them at 255
                raise mismatch(where, "8 bits per colour, or `cameras` without depth maps", image.mode)
            yield np.asarray(image.convert("RGB"))


def inside(root: Path, name: str) -> Path:
    """Return a file in the dataset folder; DatasetError for a path outside it, or a device or pipe."""
    path = root / name
    if Path(name).is_absolute() or ".." in Path(name).parts or (path.exists() and not path.is_file()):
        raise mismatch(root, "files inside this folder", name[:120])
    return path


class ParquetWriter:
    """A parquet file to which tables are appended, one row group each."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file, self.count = path.open("wb"), 0
        self._writer: Any = None

    @property
    def bytes(self) -> int:
        return self._file.tell()

    def write(self, numbers: Mapping[str, np.ndarray], images: Mapping[str, np.ndarray]) -> None:
        """Append rows.  # column -> (t, ...), uint8 (t, H, W, 3)"""
        columns = {name: column_of(values) for name, values in numbers.items()}
        table = pa.table(columns | {name: png_column(frames) for name, frames in images.items()})
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, table.schema, compression="snappy")
        self._writer.write_table(table, row_group_size=len(table))
        self.count += len(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._file.close()


def column_of(values: np.ndarray) -> Any:
    """Convert values to a LeRobot column: numbers (T,), lists of equal length (T, n), nested lists (T, ...)."""
    column, row = pa.array(values.reshape(-1)), values.shape[1:]
    for size in () if row == (1,) else reversed(row):  # LeRobot: the shape (1,) is a number
        if values.ndim == 2:
            column = pa.FixedSizeListArray.from_arrays(column, size)
        else:
            column = pa.ListArray.from_arrays(np.arange(0, len(column) + 1, size, dtype=np.int32), column)
    return column


def png_column(frames: np.ndarray) -> pa.Array:
    """Encode images as LeRobot's `image` features.  # uint8 (t, H, W, 3)"""

    def encode(frame: np.ndarray) -> dict[str, Any]:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "PNG", compress_level=PNG_LEVEL)
        return {"bytes": file.getvalue(), "path": None}

    return pa.array([encode(f) for f in frames], pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a table from rows with equal keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_indexed(path: Path, index: str, names: Sequence[str], column: str) -> None:
    """Write a table of numbers indexed by name, in the layout of pandas 2.2."""
    kinds = {column: ("int64", "int64"), index: ("unicode", "object")}
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
        for name, (kind, dtype) in kinds.items()
    ]
    pandas = {"index_columns": [index], "column_indexes": [], "columns": columns, "pandas_version": "2.2.0"}
    pandas["creator"] = {"library": "pyarrow", "version": pa.__version__}
    table = pa.table({column: pa.array(range(len(names)), pa.int64()), index: pa.array(names, pa.string())})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)
