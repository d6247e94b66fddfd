"""The policy as its clients use it: a message in, an answer out, and an episode that a failed call leaves as it was.

openpi's client sends an observation alone. Our own client adds `s2robot`, a map of numbers:

    id     of the request; the answer repeats it, so that a late answer is never taken for a newer one
    used   of the last answer whose actions the client has used; the policy returns to its memory after that answer
    seed   of everything that the policy's head samples in an episode that begins here

An episode begins with the connection and with each message that holds `reset: true`.
"""

import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from s2robot.core.errors import UserError
from s2robot.core.settings import Stored, read
from s2robot.policies import Actor, PolicyError
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
    """Plans for one client after the other; `keys` as of `observation_of`."""

    def __init__(self, actor: Actor, keys: Mapping[str, str]):
        self.actor, self._keys, self.calls = actor, keys, 0  # plans so far
        self.begin()

    def begin(self) -> None:
        """Expect another client."""
        self._memories: dict[int | None, Any] | None = None  # number of an answer -> the memory after it

    def answer(self, data: bytes | str) -> bytes | str:
        """Return the answer to a message, or the reason why there is none: text, or `error` for our own client.

        WireError: the bytes are no message, or its numbers are wrong: not a client of ours.
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
        except (WireError, PolicyError) as error:
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
    """Return {"images": {camera: uint8 (H, W, 3)}, "proprio": float32 (P,)}, and `task` where one is named.

    Args:
        message: images by key, uint8 (H, W, 3) or (3, H, W), at the top level or in a map `images`, and the state under one
            of STATES; `prompt`, which a policy of several tasks reads. Other keys are ignored.
        cameras: of the policy. Camera `left` is the image `left`, `left_image`, `observation/left`,
            `observation/left_image` or `observation.images.left`; the only camera is also `observation/image`.
        keys: a client's key -> camera, if its names differ.

    WireError: a camera or the state is missing or has another type.
    """
    nested = message.get("images")
    nested = nested if isinstance(nested, dict) else {}
    flat = {**message, **nested}
    renamed, images = {camera: key for key, camera in keys.items()}, {}
    for camera in cameras:
        names = [f"{prefix}{camera}{suffix}" for prefix in _PREFIXES for suffix in ("", "_image")]
        names += ["observation/image", "observation.image", "image"] * (len(cameras) == 1)
        found = {name: flat.get(name) for name in names}
        if camera in renamed:
            found = {renamed[camera]: flat.get(renamed[camera]), camera: nested.get(camera)}
        arrays = [(name, value) for name, value in found.items() if isinstance(value, np.ndarray)]
        if not arrays:
            expected = f"an image '{next(iter(found))}', or serve.keys to name it"
            raise WireError(f"camera '{camera}': expected {expected}, got {_keys(flat)}")
        images[camera] = _image(*arrays[0])
    for key in STATES:
        if key in message:
            told = message.get("prompt")
            task = {"task": told} if isinstance(told, str) else {}
            return {"images": images, "proprio": _state(key, message[key]), **task}
    raise WireError(f"state: expected one of the keys {', '.join(STATES)}, got {_keys(message)}")


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
        state = np.array("lists in lists")
    if state.ndim != 1 or state.dtype.kind not in "fiu":
        raise WireError(f"{key}: expected numbers (P,), got {state.dtype} {state.shape}")
    with np.errstate(over="ignore"):  # the policy rejects a number that becomes infinite
        return state.astype(np.float32)


def _keys(message: Mapping[str, Any]) -> str:
    return ", ".join(list(message)[:12])[:300] or "no keys"
