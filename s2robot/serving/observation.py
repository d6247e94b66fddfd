"""The observation that a policy takes, from a message of any client that speaks openpi's protocol.

observation_of({"observation/hand_image": frame, "observation/state": state}, ("hand",), {})
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from s2robot.serving.wire import WireError

STATES = ("proprio", "state", "observation/state", "observation.state", "observation/proprio")
MAX_PIXELS = 4096  # of one side of a frame
_PREFIXES = ("observation/images/", "observation.images.", "observation/", "observation.", "images/", "")


def observation_of(
    message: Mapping[str, Any], cameras: Sequence[str], keys: Mapping[str, str]
) -> dict[str, Any]:
    """Return {"images": {camera: uint8 (H, W, 3)}, "proprio": float32 (P,)}.

    Args:
        message: images by key, uint8 (H, W, 3) or (3, H, W), at the top level or in a map `images`, and the state under one
            of STATES. Other keys, such as `prompt`, are ignored.
        cameras: of the policy. Camera `left` is the image `left`, `left_image`, `observation/left`,
            `observation/left_image` or `observation.images.left`; the only camera is also `observation/image`.
        keys: a client's key -> camera, if its names differ.

    Raises:
        WireError: a camera or the state is missing or has another type.
    """
    nested = message.get("images")
    nested = nested if isinstance(nested, dict) else {}
    flat = {**message, **nested}
    renamed = {camera: key for key, camera in keys.items()}
    images = {}
    for camera in cameras:
        names = [renamed[camera]] if camera in renamed else _names(camera, len(cameras) == 1)
        key = next((key for key in names if isinstance(flat.get(key), np.ndarray)), camera)
        image = flat.get(key) if key in names else nested.get(camera)
        if not isinstance(image, np.ndarray):
            expected = f"an image '{names[0]}', or serve.keys to name it"
            raise WireError(f"camera '{camera}': expected {expected}, got {_keys(flat)}")
        images[camera] = _image(key, image)
    for key in STATES:
        if key in message:
            return {"images": images, "proprio": _state(key, message[key])}
    raise WireError(f"state: expected one of the keys {', '.join(STATES)}, got {_keys(message)}")


def _names(camera: str, only: bool) -> list[str]:
    """What a client may call a camera's image."""
    names = [camera, *(f"{p}{camera}{s}" for p in _PREFIXES for s in ("", "_image"))]
    return names + ["observation/image", "observation.image", "image"] * only


def _image(key: str, image: np.ndarray) -> np.ndarray:
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        image = np.ascontiguousarray(image.transpose(1, 2, 0))
    right = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size
    if not right or max(image.shape) > MAX_PIXELS:
        sides = f"uint8 (H, W, 3) with sides of 1 to {MAX_PIXELS}"
        raise WireError(f"{key}: expected {sides}, got {image.dtype} {image.shape}")
    return image


def _state(key: str, value: Any) -> np.ndarray:
    try:
        state = np.asarray(value)
    except ValueError:  # lists of different lengths, or nested too deep
        raise WireError(f"{key}: expected numbers (P,), got lists in lists") from None
    if state.ndim != 1 or state.dtype.kind not in "fiu":
        raise WireError(f"{key}: expected numbers (P,), got {state.dtype} {state.shape}")
    with np.errstate(over="ignore"):  # the policy rejects a number that becomes infinite
        return state.astype(np.float32)


def _keys(message: Mapping[str, Any]) -> str:
    return ", ".join(list(message)[:12])[:300] or "no keys"
