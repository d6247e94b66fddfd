"""Messages between a policy server and its client: msgpack with numpy arrays, and nothing that could run.

    decode(encode({"id": 7, "proprio": np.zeros(8, np.float32)}))

A message is made of dicts with text keys, lists, text, bytes, numbers, true, false, null, and arrays. An array is
the msgpack extension 1: its dtype's number and its count of dimensions (a byte each), the dimensions (int64), then
the values, row by row, all little-endian. Other extensions and other dtypes are refused, and so is a shape whose
size is not that of the values. What is decoded takes little more memory than its bytes, however they were chosen.

Why not msgpack-numpy: it unpickles arrays of objects (0.4.8), so a message could run code; openpi's copy of it refuses
those, and bounds neither shapes nor the count of containers.
"""

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from s2robot.common.errors import UserError

try:
    import msgpack
except ImportError as error:
    raise UserError("msgpack is not installed; `pip install 's2robot[serve]'` brings it") from error

PROTOCOL = 1  # raised when a message changes its form or meaning; both sides must agree
PROTOCOL_HEADER = "S2robot-Protocol"  # of the HTTP request that opens the connection
ARRAY = 1  # msgpack's number of our extension
DTYPES = {1: "|u1", 2: "<i8", 3: "<f4", 4: "<f8"}  # never change a number; add new ones at the end
MAX_DIMENSIONS = 8
MAX_VALUES = 2**31  # of one array
MAX_ITEMS = 4096  # of one list or dict, and of all lists and dicts together

_NUMBERS = {np.dtype(name): number for number, name in DTYPES.items()}


class WireError(ValueError):
    """A message that cannot be sent, or bytes that are no message; its text is one clear line."""


def encode(message: Any) -> bytes:
    """A message as bytes. Raises WireError for what has no place in one."""
    try:
        return msgpack.packb(message, default=_pack, strict_types=True)
    except WireError:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise WireError(f"cannot be sent: {_line(error)}") from error


def decode(data: bytes) -> Any:
    """The message of these bytes; its arrays are read-only views of them. Raises WireError for anything else."""

    def table(found: dict[Any, Any]) -> dict[Any, Any]:
        for key in found:
            if not isinstance(key, str):
                raise WireError(f"found a key of type {type(key).__name__}, expected text")
        return found

    return unpacked(data, table, "dicts", ext_hook=_unpack)


def unpacked(data: bytes, table: Callable[[dict[Any, Any]], Any], tables: str, **hooks: Any) -> Any:
    """What msgpack reads of bytes that anybody may have chosen.

    Args:
        table: what becomes of a map.
        tables: what they are called, for messages.
        hooks: more of `msgpack.unpackb`.

    Raises:
        WireError: no message, more than MAX_ITEMS containers, or what `table` refuses.
    """
    count = 0

    def container(value: Any) -> Any:  # an empty list costs a byte on the wire and 64 in memory
        nonlocal count
        count += 1
        if count > MAX_ITEMS:
            raise WireError(f"found more than {MAX_ITEMS} lists and {tables}")
        return value

    try:
        return msgpack.unpackb(
            data,
            list_hook=container,
            object_pairs_hook=lambda pairs: table(container(dict(pairs))),
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            timestamp=1,  # as a plain number
            **hooks,
        )
    except WireError:
        raise
    # What msgpack raises for bytes of its own kind that are wrong: all are ValueErrors but for these.
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"not a message: {_line(error)}") from error


def _pack(value: Any) -> msgpack.ExtType:
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        raise WireError(f"cannot be sent: found a {type(value).__name__}")
    dtype = value.dtype.newbyteorder("<")
    if dtype not in _NUMBERS:
        raise WireError(f"cannot be sent: found dtype {value.dtype}, expected one of {_known()}")
    if value.ndim > MAX_DIMENSIONS:
        raise WireError(f"cannot be sent: found {value.ndim} dimensions, expected at most {MAX_DIMENSIONS}")
    head = struct.pack(f"<BB{value.ndim}q", _NUMBERS[dtype], value.ndim, *value.shape)
    return msgpack.ExtType(ARRAY, head + value.astype(dtype, copy=False).tobytes())


def _unpack(kind: int, data: bytes) -> np.ndarray:
    if kind != ARRAY:
        raise WireError(f"found extension {kind}, expected {ARRAY} (an array)")
    if len(data) < 2:
        raise WireError(f"array: found {len(data)} bytes, expected at least 2")
    number, ndim = data[0], data[1]
    if number not in DTYPES:
        raise WireError(f"array: found dtype number {number}, expected one of {list(DTYPES)} ({_known()})")
    start = 2 + 8 * ndim
    if ndim > MAX_DIMENSIONS or len(data) < start:
        raise WireError(f"array: found {ndim} dimensions in {len(data)} bytes")
    shape = struct.unpack_from(f"<{ndim}q", data, 2)
    dtype = np.dtype(DTYPES[number])
    if min(shape, default=0) < 0:
        raise WireError(f"array: found a negative dimension in shape {shape}")
    if (
        math.prod(max(1, n) for n in shape) > MAX_VALUES
    ):  # (0, 2**60) holds no value, yet numpy cannot take it
        raise WireError(f"array: found shape {shape}, expected at most {MAX_VALUES} values")
    room = len(data) - start
    if math.prod(shape) * dtype.itemsize != room:
        raise WireError(f"array: found {room} bytes of values, which is not the size of {dtype} {shape}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def _known() -> str:
    return ", ".join(np.dtype(name).name for name in DTYPES.values())


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]
