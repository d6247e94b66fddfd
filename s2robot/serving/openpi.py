"""What openpi's own client (`openpi-client`) says and hears, so that programs written for it find a policy of ours.

    WebsocketClientPolicy("ws://gpu", 8765, api_key=token).infer(
        {"observation/image": frame, "observation/wrist_image": frame, "observation/state": proprio}
    )["actions"]                                                       # float32 (k, A)

It sends msgpack whose arrays are maps (`__ndarray__`, `data`, `dtype`, `shape`, all keys bytes), and reads an error from
an answer of text. What comes is read as carefully as our own messages: numbers only, a shape that fits its bytes, and a
bounded count of containers. The form was read off openpi-client 0.1.2 (Apache-2.0); no code of it is here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from s2robot.serving.wire import MAX_DIMENSIONS, WireError, msgpack, unpacked  # one line where it is missing

STATES = ("proprio", "state", "observation/state", "observation.state", "observation/proprio")
_PREFIXES = ("observation/images/", "observation.images.", "observation/", "observation.", "images/", "")
_DTYPES = {np.dtype(name).str: np.dtype(name) for name in ("u1", "i4", "i8", "f2", "f4", "f8", "?")}


def pack(message: Mapping[str, Any]) -> bytes:
    """A message to such a client."""
    return msgpack.packb(message, default=_array_as_map)


def unpack(data: bytes) -> dict[str, Any]:
    """The observation in a message; its arrays are copies. Raises WireError for anything else."""

    def table(found: dict[Any, Any]) -> Any:
        if b"__ndarray__" in found:
            return _array(found)
        if b"__npgeneric__" in found:
            return found.get(b"data")
        if not all(isinstance(key, str) for key in found):
            raise WireError("found a key that is no text")
        return found

    message = unpacked(data, table, "maps")
    if not isinstance(message, dict):
        raise WireError(f"found a {type(message).__name__}, expected keys and values")
    return message


def observation_of(
    message: Mapping[str, Any], cameras: Sequence[str], keys: Mapping[str, str]
) -> dict[str, Any]:
    """The observation that our policies take, from a client's.

    Args:
        message: pictures by key, uint8 (H, W, 3) or (3, H, W), and the state under one of STATES; or nested as our own,
            `images` and `proprio`. What else it holds, such as `prompt`, is left alone.
        cameras: of the policy. Camera `left` is the picture `left`, `left_image`, `observation/left`,
            `observation/left_image` or `observation.images.left`; the only camera is also `observation/image`.
        keys: a client's key -> camera, where its names are others.

    Raises:
        WireError: names the camera, or the state, that is missing, and the keys that came.
    """
    nested = message.get("images")
    flat = {**message, **(nested if isinstance(nested, dict) else {})}
    given = {camera: key for key, camera in keys.items()}
    images = {}
    for camera in cameras:
        known = [given[camera]] if camera in given else _names(camera, len(cameras) == 1)
        key = next((key for key in known if isinstance(flat.get(key), np.ndarray)), None)
        if key is None:
            raise WireError(
                f"camera '{camera}': found {_keys(flat)}, expected a picture '{known[0]}', or serve.keys to say which it is"
            )
        images[camera] = _picture(key, flat[key])
    for key in STATES:
        if key in message:
            try:
                state = np.asarray(message[key])
            except ValueError:  # rows of different lengths, or too deep
                raise WireError(f"{key}: found lists in lists, expected numbers (P,)") from None
            if state.ndim != 1 or state.dtype.kind not in "fiu":
                raise WireError(f"{key}: found {state.dtype} {state.shape}, expected numbers (P,)")
            with np.errstate(over="ignore"):  # what is infinite then is refused as such
                return {"images": images, "proprio": state.astype(np.float32)}
    raise WireError(f"the state: found {_keys(message)}, expected one of {', '.join(STATES)}")


def _names(camera: str, only: bool) -> list[str]:
    """What a client may call a camera's picture."""
    names = [camera, *(f"{p}{camera}{s}" for p in _PREFIXES for s in ("", "_image"))]
    return names + ["observation/image", "observation.image", "image"] * only


def _picture(key: str, image: np.ndarray) -> np.ndarray:
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        image = np.ascontiguousarray(image.transpose(1, 2, 0))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise WireError(f"{key}: found {image.dtype} {image.shape}, expected uint8 (H, W, 3)")
    return image


def _keys(message: Mapping[str, Any]) -> str:
    return ", ".join(list(message)[:12])[:300] or "no keys"


def _array_as_map(value: Any) -> dict[bytes, Any]:
    array = np.ascontiguousarray(value)
    return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}


def _array(found: Mapping[Any, Any]) -> np.ndarray:
    data, name, shape = (found.get(key) for key in (b"data", b"dtype", b"shape"))
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise WireError(f"array: found dtype {str(name)[:40]!r}, expected one of {', '.join(_DTYPES)}")
    if not isinstance(data, bytes) or not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise WireError("array: found no bytes or no shape")
    if not all(type(n) is int and 0 <= n < 2**31 for n in shape) or math.prod(shape) * dtype.itemsize != len(
        data
    ):
        raise WireError(
            f"array: found {len(data)} bytes of values, which is not the size of {dtype} {shape[:8]}"
        )
    return np.frombuffer(data, dtype).reshape(shape).copy()
