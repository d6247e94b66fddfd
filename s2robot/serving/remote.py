"""A policy that computes on another machine, with the face of `policies.Actor`.

    with RemotePolicy("ws://gpu:8765", read_token()) as policy:
        policy.reset()
        action = policy.act(observation)                     # float32 (8,), or an error, by the deadline

The server is `s2robot serve`. The policy's plan is executed here, action by action; the server is asked when it is
used up (for a policy that must see every step, at every step). A call that failed leaves no trace: the next one goes
on from the last action that was received, on the server too. This side needs no torch and no simulator.
"""

import math
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.common.errors import UserError
from s2robot.envs.errors import EnvError
from s2robot.envs.frames import ImageSize, as_image_size, sizes_of
from s2robot.serving.link import Link, PolicyLate, PolicyLost, PolicyMalformed, PolicyRefused, RemoteError
from s2robot.serving.wire import PROTOCOL, PROTOCOL_HEADER, WireError, decode, encode

__all__ = ["PolicyLate", "PolicyLost", "PolicyMalformed", "PolicyRefused", "RemoteError", "RemotePolicy"]

MAX_ANSWER = 1 << 20  # bytes of a message from the server
_CONTRACT = (
    "encoder",
    "cameras",
    "robot",
    "joint_names",
    "action_frame",
    "rate_hz",
)  # what deployment checks


class RemotePolicy:
    """A policy behind `s2robot serve`. Not for several threads at once.

    Args:
        url: `ws://host:port`, or `wss://host:port` of a server with a certificate.
        token: the secret that the server was given, see `s2robot.serving.token.read_token`.
        deadline_s: of a call that asks the server, its encoding included.
        connect_s: of the connection, its greeting included.
        ca_file: certificates (PEM) that a `wss://` server's is checked with; None: those that the system trusts.

    Attributes: `contract` (the checkpoint's), `cameras`, `image_size` (of the frames that the policy wants: one
    side, or (H, W) of each camera), `actions` (the most that a plan holds), `server_s` (seconds that the last plan took there),
    `seed` (of all that the policy's head draws in this episode).

    Raises:
        UserError: a wrong URL, no token, a deadline that is none.
        PolicyRefused: wrong token, another version, or a server that has a client already.
        PolicyLate, PolicyLost, PolicyMalformed: no server there by `connect_s`, or something else.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        deadline_s: float = 0.25,
        connect_s: float = 5.0,
        ca_file: str | Path | None = None,
    ):
        if not token:
            raise UserError("no token: give the server's in $S2ROBOT_TOKEN or in the token file")
        self.deadline_s = _seconds("deadline_s", deadline_s)
        until = time.monotonic() + _seconds("connect_s", connect_s)
        headers = {"Authorization": f"Bearer {token}", PROTOCOL_HEADER: str(PROTOCOL)}
        self._link = Link(url, headers, MAX_ANSWER, until, ca_file)
        try:
            self._greet(self._message(until))
        except BaseException:
            self._link.close()
            raise
        self.server_s = math.nan
        self.seed = secrets.randbits(32)  # of all that the policy's head draws in this episode
        self._asked = 0  # number of the last request
        self._answered = 0  # of the last one that was answered in this episode; 0 = none
        self._queue: list[np.ndarray] = []

    def _greet(self, hello: Mapping[str, Any]) -> None:
        if hello.get("protocol") != PROTOCOL:
            raise PolicyRefused(
                f"{self._link.url}: the server speaks version {hello.get('protocol')!r}, this side {PROTOCOL}"
            )
        contract, cameras = hello.get("contract"), hello.get("cameras")
        sizes = [hello.get(key) for key in ("actions", "action_dim", "image_size", "max_bytes")]
        if (
            not isinstance(contract, dict)
            or any(key not in contract for key in _CONTRACT)
            or not isinstance(cameras, list)
            or not all(isinstance(name, str) for name in cameras)
            or not all(isinstance(size, int) and size > 0 for size in sizes)
        ):
            raise PolicyMalformed(f"{self._link.url}: the greeting lacks the policy's contract or sizes")
        self.contract: dict[str, Any] = _lists(contract)
        self.cameras = tuple(cameras)
        self.actions, self._action_dim, side, self._max_bytes = (int(size or 0) for size in sizes)
        try:  # a server of version 0.1 knows squares only
            given = hello.get("sizes", side)
            self.image_size: ImageSize = as_image_size(sizes_of(given, self.cameras)) if cameras else side
        except EnvError as error:
            raise PolicyMalformed(f"{self._link.url}: the greeting's sizes: {error}") from None

    def __enter__(self) -> "RemotePolicy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; safe to call twice."""
        self._link.close()

    def reset(self) -> None:
        """Begin an episode. The server hears of it with the next call, so this one cannot fail."""
        self._answered, self.seed = 0, secrets.randbits(32)
        self._queue = []

    def act(self, observation: Mapping[str, Any], deadline_s: float | None = None) -> np.ndarray:
        """Next action, float32 (A,), from {"images": {camera: uint8 (H, W, 3)}, "proprio": (P,)}.

        Args:
            deadline_s: instead of the one given at first.

        Raises:
            PolicyLate: no answer by the deadline. It is dropped when it does come.
            PolicyLost: the connection is gone; a new RemotePolicy is needed.
            PolicyMalformed: the answer holds no action of the promised shape, or one that is not finite.
            PolicyRefused: the server says why it has no action for this observation.
            UserError: an observation without one of the cameras or that cannot be sent.
        """
        for key in ("images", "proprio"):
            if observation.get(key) is None:
                raise UserError(
                    f"observation: '{key}' is missing, found {', '.join(observation) or 'nothing'}"
                )
        missing = [name for name in self.cameras if observation["images"].get(name) is None]
        if missing:
            raise UserError(
                f"observation: camera '{missing[0]}' is missing, found {', '.join(observation['images'])}, "
                f"the policy needs {', '.join(self.cameras)}"
            )
        if not self._queue:
            self._queue = list(self._ask(observation, deadline_s))
        return self._queue.pop(0)

    def plan(self, observation: Mapping[str, Any], deadline_s: float | None = None) -> np.ndarray:
        """The next actions that need no further observation, float32 (k, A); raises as `act`."""
        first = self.act(observation, deadline_s)
        rest, self._queue = self._queue, []
        return np.stack([first, *rest])  # (k, A)

    def _ask(self, observation: Mapping[str, Any], deadline_s: float | None) -> np.ndarray:
        until = time.monotonic() + _seconds(
            "deadline_s", self.deadline_s if deadline_s is None else deadline_s
        )
        images = observation["images"]
        self._asked += 1
        request = {
            "id": self._asked,
            "after": self._answered,
            "seed": self.seed,
            "images": {name: np.asarray(images[name]) for name in self.cameras},
            "proprio": np.asarray(observation["proprio"], np.float32),
        }
        try:
            data = encode(request)
        except WireError as error:
            raise UserError(f"observation: {error}") from error
        if len(data) > self._max_bytes:
            raise UserError(f"observation: {len(data)} bytes, the server takes {self._max_bytes} at most")
        self._link.send(data, until)
        while True:
            answer = self._message(until)
            number = answer.get("id")
            if not isinstance(number, int) or isinstance(number, bool) or not 0 < number <= self._asked:
                raise PolicyMalformed(f"{self._link.url}: the answer is to no request of this side")
            if number == self._asked:
                break  # others are answers to requests that were given up
        if "error" in answer:
            raise PolicyRefused(f"{self._link.url}: {str(answer['error'])[:500]}")
        actions = self._checked(answer.get("actions"))
        seconds = answer.get("seconds")
        self.server_s = seconds if isinstance(seconds, float) else math.nan
        self._answered = number
        return actions

    def _message(self, until: float) -> dict[str, Any]:
        data = self._link.receive(until)
        try:
            message = decode(data)
        except WireError as error:
            raise PolicyMalformed(f"{self._link.url}: {error}") from error
        if not isinstance(message, dict):
            raise PolicyMalformed(
                f"{self._link.url}: found a {type(message).__name__}, expected keys and values"
            )
        return message

    def _checked(self, actions: Any) -> np.ndarray:
        shape = getattr(actions, "shape", None)
        if (
            not isinstance(actions, np.ndarray)
            or actions.dtype != np.float32
            or actions.ndim != 2
            or not 1 <= len(actions) <= self.actions
            or actions.shape[1] != self._action_dim
        ):
            raise PolicyMalformed(
                f"{self._link.url}: found actions of shape {shape}, expected float32 of 1 to {self.actions} by "
                f"{self._action_dim}"
            )
        if not np.isfinite(actions).all():
            raise PolicyMalformed(f"{self._link.url}: found an action with NaN or infinity")
        return actions.copy()  # a view of the message's bytes is read-only


def _lists(node: Any) -> Any:
    """A contract as its checkpoint has it: a server sends long lists of whole numbers as arrays."""
    if isinstance(node, dict):
        return {key: _lists(value) for key, value in node.items()}
    return node.tolist() if isinstance(node, np.ndarray) else node


def _seconds(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise UserError(f"{name}: found {value}, expected a number of seconds above 0")
    return float(value)
