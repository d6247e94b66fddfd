"""Messages of a policy server and its clients: openpi's msgpack format with numpy arrays; decoding cannot execute code.

An array is a map with the keys `__ndarray__`, `data`, `dtype` and `shape`, all bytes, as in openpi-client 0.1.2 (Apache-2.0;
none of its code is used). msgpack-numpy unpickles object arrays, and openpi's own module does not limit containers. This
module never uses much more memory than the bytes of a message, even from a malicious sender.
"""

from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

PROTOCOL = 2  # version of the `s2robot` keys in openpi's messages; increase it if a key changes its meaning
MAX_ITEMS = 4096  # in one list or map, and lists and maps in total
_NAMES = "? u1 u2 u4 u8 i1 i2 i4 i8 f2 f4 f8"
_DTYPES = {np.dtype(name).str: np.dtype(name) for name in _NAMES.split()}  # little-endian


class WireError(ValueError):
    """A message that cannot be encoded, or bytes that are not a message; the text is one line."""


def pack(message: Mapping[str, Any]) -> bytes:
    """Encode a message. Raises WireError for values that a message cannot contain."""
    try:
        return msgpack.packb(message, default=_array_to_map)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise WireError(f"cannot be sent: {_line(error)}") from error


def unpack(data: bytes | str) -> dict[str, Any]:
    """Decode a message; its arrays are copies. Raises WireError if the bytes are not a message."""
    count = 0

    def container(value: Any) -> Any:  # an empty list takes one byte in the message and 64 in memory
        nonlocal count
        count += 1
        if count > MAX_ITEMS:
            raise ValueError(f"expected at most {MAX_ITEMS} lists and maps, got more")
        return value

    def table(pairs: Any) -> Any:
        items = container(dict(pairs))
        if b"__ndarray__" in items:
            return _map_to_array(items)
        if b"__npgeneric__" in items:
            return items.get(b"data")
        if not all(isinstance(key, str) for key in items):
            raise ValueError("expected text keys, got another type")
        return items

    limits = {"max_array_len": MAX_ITEMS, "max_map_len": MAX_ITEMS, "max_ext_len": 0}
    try:
        message = msgpack.unpackb(data, list_hook=container, object_pairs_hook=table, **limits)
    # msgpack and numpy raise one of these for invalid bytes
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"not a message: {_line(error)}") from error
    if not isinstance(message, dict):
        raise WireError(f"expected a map, got {type(message).__name__}")
    return message


def _array_to_map(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"expected numbers, got {type(value).__name__}")
    array = value.astype(value.dtype.newbyteorder("<"), copy=False)
    if array.dtype.str not in _DTYPES:
        raise TypeError(f"expected an array of numbers, got {value.dtype}")
    shape = list(array.shape)
    return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": shape}


def _map_to_array(items: Mapping[Any, Any]) -> np.ndarray:
    data, name = items.get(b"data"), items.get(b"dtype")
    shape: Any = items.get(b"shape")
    sides = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if not sides or not isinstance(data, bytes) or name not in _DTYPES:
        raise ValueError(f"expected an array's data, shape, and dtype of {', '.join(_DTYPES)}")
    return np.frombuffer(data, _DTYPES[name]).reshape(shape).copy()


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]
