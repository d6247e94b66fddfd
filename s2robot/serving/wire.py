"""Messages of a policy server and its clients: openpi's msgpack with numpy arrays, and nothing that could run code.

    unpack(pack({"state": np.zeros(8, np.float32)}))

An array is a map with the keys `__ndarray__`, `data`, `dtype` and `shape`, all bytes, as in openpi-client 0.1.2 (Apache-2.0;
this module contains none of its code). Only plain numbers are accepted, a shape must match its bytes, and the number of
containers is limited, so a message needs little more memory than its own bytes, whoever sent it. The msgpack-numpy package
unpickles arrays of objects, and openpi's own module limits neither shapes nor containers.
"""

import math
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

PROTOCOL = 2  # of the `s2robot` keys in openpi's messages; raise it when one changes its meaning
MAX_ITEMS = 4096  # of one list or map, and of all lists and maps together
MAX_DIMENSIONS = 8
MAX_VALUES = 2**31  # of one array
_DTYPES = {
    np.dtype(name).str: np.dtype(name) for name in "? u1 u2 u4 u8 i1 i2 i4 i8 f2 f4 f8".split()
}  # little-endian


class WireError(ValueError):
    """A message that cannot be sent, or bytes that are no message; the text is one line."""


def pack(message: Mapping[str, Any]) -> bytes:
    """Return a message as bytes. Raises WireError for values that a message cannot hold."""
    try:
        return msgpack.packb(message, default=_array_to_map)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise WireError(f"cannot be sent: {_line(error)}") from error


def unpack(data: bytes | str) -> dict[str, Any]:
    """Return the message of these bytes; its arrays are copies. Raises WireError for anything else."""
    if isinstance(data, str):
        raise WireError("expected bytes, got text")
    count = 0

    def container(value: Any) -> Any:  # an empty list takes one byte in the message and 64 in memory
        nonlocal count
        count += 1
        if count > MAX_ITEMS:
            raise WireError(f"expected at most {MAX_ITEMS} lists and maps, got more")
        return value

    def table(pairs: Any) -> Any:
        found = container(dict(pairs))
        if b"__ndarray__" in found:
            return _map_to_array(found)
        if b"__npgeneric__" in found:
            return found.get(b"data")
        if not all(isinstance(key, str) for key in found):
            raise WireError("expected keys of text, got another type")
        return found

    try:
        message = msgpack.unpackb(
            data,
            list_hook=container,
            object_pairs_hook=table,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    # msgpack raises one of these for bytes that are not msgpack
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"not a message: {_line(error)}") from error
    if not isinstance(message, dict):
        raise WireError(f"expected keys and values, got {type(message).__name__}")
    return message


def _array_to_map(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise WireError(f"expected numbers, got {type(value).__name__}")
    array = value.astype(value.dtype.newbyteorder("<"), copy=False)
    if array.dtype.str not in _DTYPES or array.ndim > MAX_DIMENSIONS:
        raise WireError(f"expected an array of numbers, got {value.dtype} with {value.ndim} dimensions")
    shape = list(array.shape)
    return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": shape}


def _map_to_array(found: Mapping[Any, Any]) -> np.ndarray:
    data, name, shape = (found.get(key) for key in (b"data", b"dtype", b"shape"))
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise WireError(f"array: expected a dtype of {', '.join(_DTYPES)}, got {str(name)[:40]!r}")
    if not isinstance(data, bytes) or not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise WireError("array: expected data and a shape, got something else")
    sides = all(type(n) is int and 0 <= n < MAX_VALUES for n in shape)
    # zeros count as ones: numpy cannot take a shape such as (0, 2**30, 2**30, 2**30)
    if (
        not sides
        or math.prod(n or 1 for n in shape) > MAX_VALUES
        or math.prod(shape) * dtype.itemsize != len(data)
    ):
        raise WireError(f"array: expected the bytes of {dtype} {str(shape)[:80]}, got {len(data)}")
    return np.frombuffer(data, dtype).reshape(shape).copy()


def _line(error: Exception) -> str:
    text = str(error) if isinstance(error, WireError) else f"{type(error).__name__}: {error}"
    return text.split("\n")[0][:200]
