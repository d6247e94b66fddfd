"""The client of a policy on another machine, with the interface of `policies.Actor`.

    with RemotePolicy("ws://gpu:8765", read_token()) as policy:
        policy.reset()
        action = policy.act(observation)                     # float32 (8,), or a RemoteError, by the deadline

The server is `s2robot serve`. The client sends a request when a plan is used up, or at every step if the policy needs
every observation. After a failed call, the policy continues from the last action received. No torch, no simulator.
"""

import logging
import math
import queue
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from typing import Annotated, Any

import numpy as np
from pydantic import Field, Json
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import connect
from websockets.uri import parse_uri

from s2robot.core.errors import UserError
from s2robot.core.parts import Contract
from s2robot.core.settings import Stored, read
from s2robot.envs.frames import as_image_size
from s2robot.serving.wire import PROTOCOL, WireError, pack, unpack

MAX_ANSWER = 1 << 22  # bytes of a server message; the metadata lists every training episode
_Side = Annotated[int, Field(gt=0, le=4096)]  # pixels of a frame
_TRY_LATER = 1013  # websocket close code of a busy server

_quiet = logging.getLogger("s2robot.serving.remote.websockets")
_quiet.setLevel(logging.CRITICAL)  # errors are raised, not logged


class RemoteError(RuntimeError):
    """A remote policy returned no action; the message is one line."""

    user_error = True


class PolicyLate(RemoteError):
    """No answer by the deadline; a later one is dropped. The next call may succeed."""


class PolicyLost(RemoteError):
    """The connection was lost or could not be opened; create a new RemotePolicy."""


class PolicyMalformed(RemoteError):
    """The answer contains no valid actions: malformed bytes, a wrong shape, or values that are not finite."""


class PolicyRefused(RemoteError):
    """The server rejected the call: wrong token, another version, busy, or an unusable observation."""


class _Metadata(Stored):
    """The part of the server's first message that the client uses."""

    sizes: dict[str, tuple[_Side, _Side]]  # (H, W) of each camera's frames, in the policy's order
    actions: int = Field(gt=0)
    action_dim: int = Field(gt=0)
    max_bytes: int = Field(gt=0)  # of a request
    contract: Json[Contract]


class RemotePolicy(AbstractContextManager["RemotePolicy"]):
    """A policy behind `s2robot serve`. Not thread-safe.

    Args:
        url: `ws://host:port`, or `wss://host:port` for a server with a certificate.
        token: the server's secret, see `s2robot.serving.token.read_token`.
        deadline_s: of a call that contacts the server, including encoding.
        connect_s: time to connect and receive the metadata.
        ca_file: PEM file of the certificate authorities to trust; None: those of the system.

    Attributes: `contract` (the checkpoint's), `cameras`, `image_size` (of the frames that the policy expects), `server_s`
    (server's computing time of the last plan, s), `seed` (of all random samples of the policy's head in this episode).

    Raises UserError for an invalid URL, token, deadline or file; RemoteError if no policy server accepts it within `connect_s`.
    """

    disagreement: float = 0.0  # between members, as in `Actor`
    mean_disagreement: float | None = None

    def __init__(
        self, url: str, token: str | None, deadline_s: float = 0.25, connect_s: float = 5.0, ca_file: Any = None
    ):  # fmt: skip
        if not token or not all("!" <= c <= "~" for c in token):  # its value is not printed
            got = "other characters" if token else "none; set $S2ROBOT_TOKEN or copy its file"
            raise UserError(f"token: expected the server's token (visible ASCII without spaces), got {got}")
        _until("deadline_s", deadline_s)
        until = _until("connect_s", connect_s)
        self._url, self.deadline_s, self.server_s = url, deadline_s, math.nan
        self._request = 0  # number of the last request
        self.reset()
        self._ws = _connected(url, token, until, ca_file)
        self._requests: queue.Queue[bytes | None] = queue.Queue(1)
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._sender.start()
        try:
            metadata = self._metadata(until)
        except BaseException:
            self.close()
            raise
        self.contract: dict[str, Any] = metadata.contract.model_dump(exclude_unset=True)
        self.cameras, self.image_size = tuple(metadata.sizes), as_image_size(metadata.sizes)
        self._limits = metadata

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; safe to call twice."""
        with suppress(OSError):
            self._ws.socket.shutdown(socket.SHUT_RDWR)  # wakes the other threads
        if self._sender.is_alive():
            self._requests.put(None)
            self._sender.join()

    def reset(self, seed: int | None = None, task: str | None = None) -> None:
        """Begin an episode, as `Actor.reset`. The next request informs the server, so this call cannot fail."""
        self.seed, self._task = secrets.randbits(32) if seed is None else seed, task
        self._used: int | None = None  # number of the last answer in this episode
        self.replan()

    def replan(self) -> None:
        """Drop the rest of the plan, so that the next call of `act` contacts the server."""
        self.remaining: list[np.ndarray] = []

    def act(self, observation: Mapping[str, Any], deadline_s: float | None = None) -> np.ndarray:
        """Return the next action, float32 (A,), for {"images": {camera: uint8 (H, W, 3)}, "proprio": (P,)}.

        "task" may be the text of the task, for a policy with several.
        Raises RemoteError (see its subclasses), or UserError if the observation lacks a camera or cannot be sent.
        """
        images, proprio = observation.get("images") or {}, observation.get("proprio")
        missing = [f"camera '{name}'" for name in self.cameras if images.get(name) is None]
        if missing or proprio is None:
            keys = ", ".join([*images, *observation]) or "nothing"
            raise UserError(f"observation: expected {[*missing, 'proprio'][0]}, got {keys}")
        if not self.remaining:
            seen = {"images": {name: np.asarray(images[name]) for name in self.cameras}}
            more = {"state": np.asarray(proprio, np.float32), "prompt": observation.get("task", self._task)}
            self.remaining = list(self._ask(seen | more, deadline_s))
        return self.remaining.pop(0)

    def plan(self, observation: Mapping[str, Any], deadline_s: float | None = None) -> np.ndarray:
        """Return the next actions that require no further observation, float32 (k, A). Raises as `act`."""
        first = self.act(observation, deadline_s)
        rest, self.remaining = self.remaining, []
        return np.stack([first, *rest])  # (k, A)

    def _ask(self, seen: dict[str, Any], deadline_s: float | None) -> np.ndarray:
        until = _until("deadline_s", self.deadline_s if deadline_s is None else deadline_s)
        self._request += 1
        numbers = {"id": self._request, "used": self._used, "seed": self.seed}
        try:
            data = pack({**seen, "reset": self._used is None, "s2robot": numbers})
        except WireError as error:
            raise UserError(f"observation: {error}") from error
        if len(data) > self._limits.max_bytes:
            most = f"at most {self._limits.max_bytes / 1e6:g} MB (serve.max_message_mb)"
            raise UserError(f"observation: expected {most}, got {len(data) / 1e6:.1f}")
        answer = self._exchange(data, until)
        actions: Any = answer.get("actions")
        limit, width = self._limits.actions, self._limits.action_dim
        array = isinstance(actions, np.ndarray) and actions.dtype == np.float32 and actions.ndim == 2
        valid = array and 1 <= len(actions) <= limit and actions.shape[1] == width
        if not valid or not np.isfinite(actions).all():
            actual = f"{actions.dtype} {actions.shape}" if isinstance(actions, np.ndarray) else "none"
            actual = "NaN or infinity" if valid else actual
            expected = f"finite actions, float32 of 1 to {limit} by {width}"
            raise PolicyMalformed(f"{self._url}: expected {expected}, got {actual}")
        timing = answer.get("server_timing")
        infer_ms = timing.get("infer_ms") if isinstance(timing, dict) else None
        self.server_s = infer_ms / 1000 if isinstance(infer_ms, float) else math.nan
        self._used = self._request
        return actions

    def _send(self) -> None:
        """Send requests: a server that does not read blocks this thread instead of the caller."""
        while (data := self._requests.get()) is not None:
            with suppress(ConnectionClosed):  # the caller notices when it receives
                self._ws.send(data)

    def _exchange(self, data: bytes, until: float) -> dict[str, Any]:
        """Send the request and return its answer. Answers to earlier requests are dropped."""
        try:
            self._requests.put(data, timeout=max(0.0, until - time.monotonic()))
        except queue.Full:
            raise PolicyLate(f"{self._url}: earlier requests could not be sent by the deadline") from None
        number: Any = 0
        while number != self._request:
            answer = self._receive(until, "no answer")
            extra = answer.get("s2robot")
            number = extra.get("id") if isinstance(extra, dict) else None
            if type(number) is not int or not 0 < number <= self._request:
                raise PolicyMalformed(f"{self._url}: expected answer {self._request}, got a different one")
        if "error" in answer:
            raise PolicyRefused(f"{self._url}: {_text(answer['error'])}")
        return answer

    def _receive(self, until: float, late: str) -> dict[str, Any]:
        try:
            if (left := until - time.monotonic()) <= 0:
                raise TimeoutError
            data = self._ws.recv(left)
            if isinstance(data, str):  # openpi's servers report errors as text
                raise PolicyRefused(f"{self._url}: {_text(data)}")
            return unpack(data)
        except TimeoutError:
            raise PolicyLate(f"{self._url}: {late} by the deadline") from None
        except ConnectionClosed as error:
            raise _failure(self._url, error) from error
        except WireError as error:
            raise PolicyMalformed(f"{self._url}: {error}") from error

    def _metadata(self, until: float) -> _Metadata:
        message = self._receive(until, "no metadata")
        extra = message.get("s2robot")
        if not isinstance(extra, dict) or extra.get("protocol") != PROTOCOL:
            raise PolicyRefused(f"{self._url}: expected protocol {PROTOCOL} of s2robot, got {extra!s:.80}")
        try:
            return read(_Metadata, message, "metadata")
        except UserError as error:
            raise PolicyMalformed(f"{self._url}: {_text(error)}") from None


def _connected(url: str, token: str, until: float, ca_file: Any) -> Any:
    try:
        uri = parse_uri(url)
        if uri.user_info:
            raise ValueError(url)
    except (InvalidURI, ValueError):
        shown = _text(url.rpartition("@")[2])  # without a password
        raise UserError(f"policy url: expected ws://<host>:<port> or wss://, got '{shown}'") from None
    tls = None
    if uri.secure:
        try:
            tls = ssl.create_default_context(cafile=ca_file)
        except (OSError, ValueError) as error:
            text = f"{ca_file} ({'not found' if isinstance(error, FileNotFoundError) else 'no certificate in it'})"
            raise UserError(f"ca_file: expected a PEM file of certificates, got {text}") from error
    try:
        # with an explicit socket, no redirect is followed
        sock = socket.create_connection((uri.host, uri.port), max(0.01, until - time.monotonic()))
        sock.settimeout(None)
        return connect(
            url, sock=sock, additional_headers={"Authorization": f"Api-Key {token}"}, compression=None, proxy=None,
            open_timeout=max(0.01, until - time.monotonic()), ping_interval=None, max_size=MAX_ANSWER, logger=_quiet,
            ssl=tls,
        ).__enter__()  # fmt: skip
    except TimeoutError:
        raise PolicyLate(f"{url}: the server did not open the connection by the deadline") from None
    except (OSError, ValueError, InvalidHandshake, ConnectionClosed) as error:
        raise _failure(url, error) from error


def _failure(url: str, error: Exception) -> RemoteError:
    """Return the error for a failed connection, with its reason."""
    kind: type[RemoteError] = PolicyLost
    reason: object = ""
    if type(error) is ValueError and isinstance(error.__cause__, InvalidStatus):
        error = error.__cause__  # a redirect
    if isinstance(error, InvalidStatus):
        body = bytes(error.response.body or b"").decode("utf-8", "replace")
        kind, reason = PolicyRefused, f"HTTP {error.response.status_code}: {body}"
    elif isinstance(error, ConnectionClosed):
        if error.sent and not error.rcvd_then_sent:  # websockets rejected the received bytes
            kind, reason = PolicyMalformed, f"not a message of a policy server: {error.sent.reason}"
        elif error.rcvd:
            kind = PolicyRefused if error.rcvd.code == _TRY_LATER else PolicyLost
            reason = error.rcvd.reason
    elif isinstance(error, OSError):
        reason = getattr(error, "verify_message", "") or error.strerror or error
    elif not isinstance(error.__cause__, EOFError | ConnectionError):
        kind, reason = PolicyMalformed, f"not the websocket of a policy server: {error}"
    return kind(f"{url}: {_text(reason) or 'the server ended the connection'}")


def _text(text: object) -> str:
    """Return a server's text as one line of at most 400 printable characters."""
    return "".join(c if c.isprintable() else " " for c in str(text)[:400]).strip()


def _until(name: str, seconds: float) -> float:
    if not 0 < seconds < math.inf:
        raise UserError(f"{name}: expected a number of seconds > 0, got {seconds}")
    return time.monotonic() + seconds
