"""What a policy server lets in: a request is checked whole before the policy sees any of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from s2robot.serving.wire import WireError, decode

MAX_SIDE = 4096  # pixels


@dataclass(frozen=True)
class Question:
    """One question of a client."""

    id: int  # grows from request to request, from 1
    after: int  # the last answer that the client used, 0 at the start of an episode
    observation: Mapping[str, Any] = field(
        default_factory=dict
    )  # as `Actor.plan` takes it; copies of what came
    error: str = ""  # what is wrong with the observation, in its place
    seed: int | None = (
        None  # of all that a head draws in an episode that begins here; None: the server's choice
    )


def read_request(data: bytes | str, cameras: tuple[str, ...], proprio_dim: int) -> Question:
    """A request with images uint8 (H, W, 3) by camera and proprio float32 (proprio_dim,), or with an `error`.

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
    number, after, seed = request["id"], request["after"], request.get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 1 << 63):
        raise WireError("seed: expected a whole number from 0 on")
    images: Any = request.get("images")
    proprio: Any = request.get("proprio")
    if error := _wrong_images(images, cameras) or _wrong_proprio(proprio, proprio_dim):
        return Question(number, after, error=error)
    # views of the message are read-only, which torch does not like
    frames = {name: images[name].copy() for name in cameras}
    return Question(number, after, {"images": frames, "proprio": proprio.copy()}, seed=seed)


def _wrong_images(images: Any, cameras: tuple[str, ...]) -> str:
    """What is wrong with a request's images; empty if nothing is."""
    if not isinstance(images, dict):
        return f"images: found a {type(images).__name__}, expected frames by camera"
    for name in cameras:
        frame = images.get(name)
        if not isinstance(frame, np.ndarray):
            found = ", ".join(list(images)[:8]) or "none"
            return f"images: camera '{name}' is missing, found {found}"[:400]
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            return f"images: {name} is {frame.dtype} {frame.shape}, expected uint8 (H, W, 3)"
        if not 1 <= min(frame.shape) or max(frame.shape) > MAX_SIDE:
            return f"images: {name} is {frame.shape}, expected sides of 1 to {MAX_SIDE}"
    return ""


def _wrong_proprio(proprio: Any, size: int) -> str:
    """What is wrong with a request's proprio; empty if nothing is."""
    if isinstance(proprio, np.ndarray) and proprio.dtype == np.float32 and proprio.shape == (size,):
        return ""
    found = f"{proprio.dtype} {proprio.shape}" if isinstance(proprio, np.ndarray) else type(proprio).__name__
    return f"proprio: found {found}, expected float32 ({size},)"
