"""A client's session with the policy: it answers messages; a failed call leaves the episode unchanged.

openpi's client sends only an observation. Our own client adds `s2robot`, a map of numbers:

    id     number of the request; the answer repeats it, so that a late answer is never mistaken for a newer one
    used   number of the last answer whose actions the client has used; the policy restores its memory from then
    seed   of all random samples of the policy's head in an episode that begins here

An episode begins with the connection and with each message that contains `reset: true`.
"""

import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from s2robot.core.errors import UserError
from s2robot.core.settings import Stored, read
from s2robot.policies import Actor
from s2robot.serving.wire import WireError, pack, unpack

STATES = ("proprio", "state", "observation/state", "observation.state", "observation/proprio")
MAX_PIXELS = 4096  # of one side of a frame
_PREFIXES = ("", "observation/images/", "observation.images.", "observation/", "observation.", "images/")


class _Numbers(Stored):
    """`s2robot` of a message."""

    id: int = Field(ge=1, strict=True)
    used: int | None = Field(None, ge=1, strict=True)
    seed: int | None = Field(None, ge=0, lt=1 << 63, strict=True)


class Session:
    """Plans for one client after another; `keys` as in `observation_of`."""

    def __init__(self, actor: Actor, keys: Mapping[str, str]):
        self.actor, self._keys, self.calls = actor, keys, 0  # plans so far
        self.begin()

    def begin(self) -> None:
        """Prepare for another client."""
        self._memories: dict[int | None, Any] | None = None  # number of an answer -> the memory after it

    def answer(self, data: bytes | str) -> bytes | str:
        """Return the answer to a message or, on failure, the reason: text, or `error` for our own client.

        Raises WireError if the bytes are not a message, or its `s2robot` numbers are invalid.
        """
        message, number = unpack(data), dict[str, Any]()
        numbers: _Numbers | None = None
        if "s2robot" in message:
            try:
                numbers = read(_Numbers, message["s2robot"], "s2robot")
            except UserError as error:
                raise WireError(str(error)[:200]) from None
            number = {"s2robot": {"id": numbers.id}}
        begin, before, used = time.perf_counter(), None, numbers.used if numbers else None
        try:
            if self._memories is None or message.get("reset") is True:
                self.actor.reset(numbers.seed if numbers else None)
                self._memories, used = {}, None
            elif used is not None:
                if used not in self._memories:
                    raise WireError(f"s2robot.used: expected one of the last two answers, got {used}")
                self.actor.restore(self._memories[used])
            before = self.actor.remember()
            actions = self.actor.plan(observation_of(message, self.actor.cameras, self._keys))
        except (WireError, UserError) as error:
            text = str(error)
        except Exception as error:
            traceback.print_exc()
            text = f"the policy failed: {type(error).__name__}: {error}"[:400]
        else:
            self.calls += 1
            self._memories = {used: before, numbers.id if numbers else None: self.actor.remember()}
            timing = {"infer_ms": 1000 * (time.perf_counter() - begin)}
            return pack({"actions": actions, "server_timing": timing} | number)
        if before is not None:
            self.actor.restore(before)
        return pack({"error": text} | number) if number else text


def observation_of(
    message: Mapping[str, Any], cameras: Sequence[str], keys: Mapping[str, str]
) -> dict[str, Any]:
    """Return {"images": {camera: uint8 (H, W, 3)}, "proprio": float32 (P,)}, and `task` if the message names one.

    Args:
        message: images by key, uint8 (H, W, 3) or (3, H, W), at the top level or in a map `images`; the state under one
            of STATES; and `prompt` for a policy with several tasks. Other keys are ignored.
        cameras: the policy's; docs/deploy.md lists the keys that each camera's image may have.
        keys: a client's key -> camera, if its names differ.

    Raises WireError if a camera or the state is missing or has another type.
    """
    nested = sent if isinstance(sent := message.get("images"), dict) else {}
    flat = {**message, **nested}
    images = {}
    for camera in cameras:
        own = [key for key, named in keys.items() if named == camera]
        names = [f"{prefix}{camera}{suffix}" for prefix in _PREFIXES for suffix in ("", "_image")]
        names += ["observation/image", "observation.image", "image"] * (len(cameras) == 1)
        values = {name: flat.get(name) for name in names}
        if own:
            values = {key: flat.get(key) for key in own} | {camera: nested.get(camera)}
        arrays = [(name, value) for name, value in values.items() if isinstance(value, np.ndarray)]
        if not arrays:
            expected = f"an image '{next(iter(values))}', or its name in serve.keys"
            raise WireError(f"camera '{camera}': expected {expected}, got {_keys(flat)}")
        images[camera] = _image(*arrays[0])
    for key in STATES:
        if key in message:
            task = {} if (prompt := message.get("prompt")) is None else {"task": prompt}
            return {"images": images, "proprio": _state(key, message[key]), **task}
    raise WireError(f"state: expected one of the keys {', '.join(STATES)}, got {_keys(message)}")


def _image(key: str, image: np.ndarray) -> np.ndarray:
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        image = np.ascontiguousarray(image.transpose(1, 2, 0))
    valid = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size
    if not valid or max(image.shape) > MAX_PIXELS:
        sides = f"uint8 (H, W, 3) with sides of 1 to {MAX_PIXELS}"
        raise WireError(f"{key}: expected {sides}, got {image.dtype} {image.shape}")
    return image


def _state(key: str, value: Any) -> np.ndarray:
    try:
        state = np.asarray(value)
    except ValueError:  # lists of different lengths, or nested too deep
        state = np.array("lists in lists")
    if state.ndim != 1 or state.dtype.kind not in "fiu":
        raise WireError(f"{key}: expected numbers (P,), got {state.dtype} {state.shape}")
    with np.errstate(over="ignore"):  # the policy rejects numbers that overflow to infinity
        return state.astype(np.float32)


def _keys(message: Mapping[str, Any]) -> str:
    return ", ".join(list(message)[:12])[:300] or "no keys"
