"""Limits for untrusted datasets: plain numbers, a few codecs, and memory in proportion to the stored bytes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np

from s2robot.core.files import parse_json, read_text
from s2robot.core.settings import read
from s2robot.demos.errors import mismatch, readable

FREE = 256 << 20  # bytes that any read may allocate: constant images compress without limit
RATIO = 2000  # bytes in memory per stored byte beyond that; deflate reaches 1032
CODECS = ("blosc", "zstd", "lz4", "zlib", "gzip")
IMAGE_CODECS = ("imagecodecs_jpeg2k", "imagecodecs_jpegxl")  # in diffusion_policy's image caches


def most_bytes(stored: int) -> int:
    """Return the bytes that a read of `stored` bytes may allocate."""
    return max(FREE, RATIO * stored)


def check_size(where: object, size: int, stored: int) -> None:
    """Reject a read that allocates more than `stored` bytes on disk can justify (DatasetError)."""
    if size > most_bytes(stored):
        raise mismatch(where, f"at most {RATIO} times the {stored} stored bytes", f"{size} bytes")


def check_frame(where: object, found: tuple[int, int], declared: tuple[int, int], stored: int) -> None:
    """Reject an image whose header claims another size (H, W) than the dataset declares, or more than its bytes can hold."""
    if tuple(found) != tuple(declared):
        raise mismatch(where, f"{declared[0]} x {declared[1]} px", f"{found[0]} x {found[1]} px")
    check_size(where, 3 * found[0] * found[1], stored)


def number_type(where: object, name: object) -> np.dtype:
    """Return the dtype in untrusted metadata; DatasetError if it is not a plain number of at most 8 bytes."""
    try:
        dtype = np.dtype(name)  # type: ignore[call-overload]
    except (TypeError, ValueError, SyntaxError):
        dtype = np.dtype(object)
    if not isinstance(name, str | np.dtype) or dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise mismatch(where, "numbers", f"dtype {name!r}"[:80])
    return dtype


def unpack(
    where: object, codec: Mapping[str, Any], data: bytes, shape: tuple[int, ...], dtype: np.dtype, order: Any
) -> np.ndarray:
    """Decode a chunk into a buffer of the expected size, so that it cannot allocate more (DatasetError: broken).

    ``codec``: its zarr 2 configuration, with an `id` from CODECS or IMAGE_CODECS; {}: uncompressed bytes.
    """
    kind = codec.get("id", "")
    with readable(where):
        if not kind:
            return np.frombuffer(data, dtype).reshape(shape, order=order)
        chunk = np.empty(shape, dtype, order)
        declared = _declared_size(kind, data)
        if declared not in (None, chunk.nbytes):
            raise mismatch(where, f"a chunk of {chunk.nbytes} bytes", declared)
        numcodecs.get_codec(dict(codec)).decode(data, out=chunk)
    return chunk


def _declared_size(codec: str, head: bytes) -> int | None:
    """Return the unpacked size in a chunk's header, -1 if it is missing; None for codecs without such a field."""
    if codec == "blosc":
        return int.from_bytes(head[4:8], "little")
    if codec == "lz4":
        return int.from_bytes(head[:4], "little")
    if codec != "zstd":
        return None
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        return -1
    single, width = head[4] >> 5 & 1, (0, 2, 4, 8)[head[4] >> 6]
    start = 5 + (1 - single) + (0, 1, 2, 4)[head[4] & 3]
    if not width and not single:
        return -1
    size = int.from_bytes(head[start : start + max(width, 1)], "little")
    return size + 256 if width == 2 else size


def json_object(where: object, text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object (UserError)."""
    return read(dict[str, Any], parse_json(where, text), f"{where}: ")


def json_file(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file (UserError)."""
    return json_object(file, read_text(file))
