"""The policy as its clients use it: a message in, an answer out, and an episode that a failed call leaves as it was.

openpi's client sends an observation alone. Our own client adds `s2robot`, a map of numbers:

    id     of the request; the answer repeats it, so that a late answer is never taken for a newer one
    used   of the last answer whose actions the client has used; the policy returns to its memory after that answer
    seed   of everything that the policy's head samples in an episode that begins here

An episode begins with the connection and with each message that holds `reset: true`.
"""

import time
import traceback
from collections.abc import Mapping
from typing import Any

from s2robot.policies import Actor, PolicyError
from s2robot.serving.observation import observation_of
from s2robot.serving.wire import WireError, pack, unpack

_LEAST = {"id": 1, "used": 1, "seed": 0}


class Session:
    """Plans for one client after the other.

    Args:
        actor: the policy.
        keys: see `observation_of`.
    """

    def __init__(self, actor: Actor, keys: Mapping[str, str]):
        self.actor, self._keys = actor, keys
        self.calls = 0  # plans so far
        self.begin()

    def begin(self) -> None:
        """Expect another client."""
        self._memories: dict[int | None, Any] | None = None  # number of an answer -> the memory after it

    def answer(self, data: bytes | str) -> bytes | str:
        """Return the answer to a message, or the reason why there is none: text, or `error` for our own client.

        Raises:
            WireError: the bytes are no message, or its numbers are wrong: not a client of ours.
        """
        message = unpack(data)
        numbers = _numbers(message)
        begin = time.perf_counter()
        try:
            actions = self._plan(message, numbers)
        except (WireError, PolicyError) as error:
            text = str(error)
        except Exception as error:
            traceback.print_exc()
            text = f"the policy failed: {type(error).__name__}: {error}"[:400]
        else:
            self.calls += 1
            timing = {"infer_ms": 1000 * (time.perf_counter() - begin)}
            return pack({"actions": actions, "server_timing": timing} | _number(numbers))
        return pack({"error": text} | _number(numbers)) if "id" in numbers else text

    def _plan(self, message: Mapping[str, Any], numbers: Mapping[str, int]) -> Any:
        used = numbers.get("used")
        if self._memories is None or message.get("reset") is True:
            self.actor.reset(numbers.get("seed"))
            self._memories, used = {}, None
        elif used is not None:
            if used not in self._memories:
                stored = ", ".join(str(number) for number in self._memories if number) or "none"
                raise WireError(f"s2robot.used: expected a recent answer ({stored}), got {used}")
            self.actor.restore(self._memories[used])
        observation = observation_of(message, self.actor.cameras, self._keys)
        before = self.actor.remember()
        try:
            actions = self.actor.plan(observation)
        except BaseException:
            self.actor.restore(before)
            raise
        self._memories = {used: before, numbers.get("id"): self.actor.remember()}
        return actions


def _number(numbers: Mapping[str, int]) -> dict[str, Any]:
    return {"s2robot": {"id": numbers["id"]}} if "id" in numbers else {}


def _numbers(message: Mapping[str, Any]) -> dict[str, int]:
    found = message.get("s2robot", {})
    if not isinstance(found, dict):
        raise WireError(f"s2robot: expected keys and values, got {type(found).__name__}")
    numbers = {key: value for key, value in found.items() if key in _LEAST}
    for key, value in numbers.items():
        if type(value) is not int or not _LEAST[key] <= value < 1 << 63:  # a boolean is an int too
            raise WireError(f"s2robot.{key}: expected an integer >= {_LEAST[key]}, got {str(value)[:20]}")
    if numbers and "id" not in numbers:
        raise WireError("s2robot.id: expected an integer >= 1, got nothing")
    return numbers
