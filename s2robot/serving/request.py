"""What a policy server lets in: a request is checked whole before the policy sees any of it."""

from typing import Any

import numpy as np

from s2robot.serving.wire import WireError, decode

MAX_SIDE = 4096  # pixels


def checked_request(data: bytes | str, cameras: tuple[str, ...], proprio_dim: int) -> dict[str, Any]:
    """A request with copies of its arrays: images uint8 (H, W, 3) by camera, proprio float32 (proprio_dim,).

    One with a number and a wrong observation has the key `error` in their place.

    Raises:
        WireError: this is no request.
    """
    if isinstance(data, str):
        raise WireError("found text, expected bytes")
    request = decode(data)
    if not isinstance(request, dict):
        raise WireError(f"found a {type(request).__name__}, expected keys and values")
    for key, least in (("id", 1), ("after", 0)):
        value = request.get(key)
        if type(value) is not int or value < least:  # True is an int too
            raise WireError(f"{key}: expected a whole number from {least} on")
    checked = {"id": request["id"], "after": request["after"]}
    images, proprio = request.get("images"), request.get("proprio")
    if not isinstance(images, dict):
        return checked | {"error": f"images: found a {type(images).__name__}, expected frames by camera"}
    frames = {}
    for name in cameras:
        frame = images.get(name)
        if not isinstance(frame, np.ndarray):
            found = ", ".join(list(images)[:8]) or "none"
            return checked | {"error": f"images: camera '{name}' is missing, found {found}"[:400]}
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            return checked | {
                "error": f"images: {name} is {frame.dtype} {frame.shape}, expected uint8 (H, W, 3)"
            }
        if not 1 <= min(frame.shape) or max(frame.shape) > MAX_SIDE:
            return checked | {"error": f"images: {name} is {frame.shape}, expected sides of 1 to {MAX_SIDE}"}
        frames[name] = frame.copy()  # a view of the message is read-only, which torch does not like
    if not isinstance(proprio, np.ndarray) or proprio.dtype != np.float32 or proprio.shape != (proprio_dim,):
        found = (
            f"{proprio.dtype} {proprio.shape}" if isinstance(proprio, np.ndarray) else type(proprio).__name__
        )
        return checked | {"error": f"proprio: found {found}, expected float32 ({proprio_dim},)"}
    return checked | {"images": frames, "proprio": proprio.copy()}
