"""The two ways to ask a policy over a websocket: our own protocol, and that of openpi's client.

A dialect greets, reads a request (in the server's loop) and answers it (in its worker's thread). It lives as long as its
client's connection.
"""

import time
import traceback
from collections.abc import Mapping
from typing import Any, Protocol

from s2robot import __version__
from s2robot.policies import Actor, PolicyError
from s2robot.serving.openpi import observation_of, pack, unpack
from s2robot.serving.request import Question, read_request
from s2robot.serving.wire import PROTOCOL, WireError, encode


class Dialect(Protocol):
    """How one client is talked to."""

    calls: int  # plans given

    def hello(self, facts: Mapping[str, Any]) -> bytes:
        """The first message; facts: contract, cameras, actions, action_dim, sizes, max_bytes."""

    def read(self, data: bytes | str) -> Any:
        """A request. Raises WireError where this is no client of that kind."""

    def answer(self, request: Any) -> bytes | str:
        """The request's plan, or why there is none."""


class Own:
    """Our own protocol: `id` and `after` take the policy's memory back to the last answer that was used."""

    def __init__(self, actor: Actor):
        self.actor, self.calls = actor, 0
        self._memories: dict[int, Any] = {}  # answer's number -> what the policy knew after it

    def hello(self, facts: Mapping[str, Any]) -> bytes:
        return encode({"protocol": PROTOCOL, "s2robot": __version__, **facts})

    def read(self, data: bytes | str) -> Question:
        return read_request(data, self.actor.cameras, self.actor.batch.policy.spec.proprio_dim)

    def answer(self, request: Question) -> bytes:
        return encode(self._answer(request))

    def _answer(self, request: Question) -> dict[str, Any]:
        number, after = request.id, request.after
        if request.error:
            return {"id": number, "error": request.error}
        memory = self._memories.get(after) if after else None
        if (after and memory is None) or number in self._memories:
            known = ", ".join(map(str, sorted(self._memories))) or "none"
            return {"id": number, "error": f"request {number} after {after}: answers in memory are {known}"}
        start = time.perf_counter()
        if memory is None:
            self.actor.reset(request.seed)
            memory = self.actor.remember()
        else:
            self.actor.restore(memory)
        actions, error = _planned(self.actor, request.observation)
        if error:
            return {"id": number, "error": error}
        self._memories = {after: memory, number: self.actor.remember()}
        self.calls += 1
        return {"id": number, "actions": actions, "seconds": time.perf_counter() - start}


class OpenPi:
    """openpi's: an observation in, a chunk of actions out. Its client says nothing of episodes: one begins with the
    connection, and where an observation says `reset: true`."""

    def __init__(self, actor: Actor, keys: Mapping[str, str]):
        self.actor, self._keys = actor, keys
        self.calls, self._new = 0, True

    def hello(self, facts: Mapping[str, Any]) -> bytes:
        contract = facts["contract"]
        told = {name: facts[name] for name in ("cameras", "sizes", "actions", "action_dim")}
        return pack(
            {"s2robot": __version__, "robot": contract["robot"], "rate_hz": contract["rate_hz"], **told}
        )

    def read(self, data: bytes | str) -> dict[str, Any]:
        if isinstance(data, str):
            raise WireError("found text, expected bytes")
        return unpack(data)

    def answer(self, request: Mapping[str, Any]) -> bytes | str:
        start = time.perf_counter()
        if self._new or request.get("reset") is True:
            self.actor.reset()
            self._new = False
        try:
            observation = observation_of(request, self.actor.cameras, self._keys)
        except WireError as wrong:
            return str(wrong)
        actions, error = _planned(self.actor, observation)
        if error:
            return error
        self.calls += 1
        took = 1000 * (time.perf_counter() - start)
        return pack({"actions": actions, "server_timing": {"infer_ms": took}})


def _planned(actor: Actor, observation: Mapping[str, Any]) -> tuple[Any, str]:
    """The actor's plan, or why there is none."""
    try:
        return actor.plan(observation), ""
    except PolicyError as error:
        return None, str(error)
    except Exception as error:
        traceback.print_exc()
        return None, f"the policy failed: {type(error).__name__}: {error}"[:400]
