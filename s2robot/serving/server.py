"""`s2robot serve`: host a checkpoint's policy for `s2robot.serving.remote` and openpi's client.

A client opens a websocket with the header `Authorization: Api-Key <token>`, receives metadata, then sends observations:

    {"images": {camera: uint8 (H, W, 3)}, "state": float32 (P,), ...}
    {"actions": float32 (k, A), "server_timing": {"infer_ms": 31.0}, ...}        or an error

If several requests are waiting, only the newest is answered. The server accepts one client at a time; it rejects others and
names the connected client.
"""

import errno
import hmac
import json
import logging
import math
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from http import HTTPStatus

import numpy as np
import torch
from omegaconf import DictConfig
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as listen

from s2robot import __version__
from s2robot.config import path_of
from s2robot.core.errors import UserError, one_of, reported
from s2robot.core.settings import Settings, from_yaml, read
from s2robot.envs.frames import ImageSize, sizes_of
from s2robot.loading import image_size_of, load_policy
from s2robot.policies import Actor
from s2robot.serving.session import Session
from s2robot.serving.token import token_for
from s2robot.serving.wire import PROTOCOL, WireError, pack

PER_ADDRESS, ALL = 16, 64  # most connections without a token
_LAST_ANSWER_S = 0.5  # s allowed for an unsent answer when the server is stopped
_GOING, _UNSUPPORTED, _INTERNAL, _TRY_LATER = 1001, 1003, 1011, 1013  # websocket close codes
_NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_log = logging.getLogger("s2robot.serving.server.websockets")
_log.setLevel(logging.CRITICAL)  # scanners and their broken handshakes would fill the log


class ServeSettings(Settings, at="serve", file="serve"):
    host: str = from_yaml()
    port: int = from_yaml(ge=0, lt=65536)
    token_file: str | None = from_yaml()
    certificate: str | None = from_yaml()
    key: str | None = from_yaml()
    keys: dict[str, str] = from_yaml()
    max_message_mb: float = from_yaml(gt=0)
    open_s: float = from_yaml(gt=0)
    idle_s: float = from_yaml(gt=0)
    call_s: float = from_yaml(gt=0)
    device: str = from_yaml()
    task_vectors: str | None = from_yaml()
    threads: int | None = from_yaml(ge=1)


class Gate(socket.socket):
    """A listening socket for websockets' server, which calls `accept`.

    A connection is pending from `accept` until `admit`. If there are too many, the oldest one of the address that has most
    is closed: a flood never finishes. The TLS handshake takes place in the connection's thread, at its first read.
    """

    def __init__(self, family: int, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._tls, self._lock = tls, threading.Lock()
        self.pending: dict[tuple, tuple[socket.socket, float]] = {}  # address -> socket, start; oldest first
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            self.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)

    def accept(self) -> tuple[socket.socket, tuple]:
        """Return the next connection. If the process cannot open more files, close half of the pending connections first."""
        while True:
            try:
                connection, address = super().accept()
                if self._tls:
                    connection = self._tls.wrap_socket(
                        connection, server_side=True, do_handshake_on_connect=False
                    )
                break
            except OSError as error:
                if self.fileno() < 0:
                    raise
                if error.errno in _NO_RESOURCES:
                    with self._lock:
                        for _ in range((len(self.pending) + 1) // 2):
                            self._end_oldest()
                    time.sleep(0.01)  # their threads close them
        with self._lock:
            self.pending = {at: one for at, one in self.pending.items() if one[0].fileno() >= 0}
            if sum(at[0] == address[0] for at in self.pending) >= PER_ADDRESS:
                self._end_oldest(address[0])
            if len(self.pending) >= ALL:
                self._end_oldest()
            self.pending[address] = connection, time.monotonic()
        return connection, address

    def admit(self, address: tuple) -> None:
        """Remove a connection that has sent the token from the pending ones."""
        with self._lock:
            self.pending.pop(address, None)

    def expire(self, seconds: float) -> None:
        """Close connections that have been pending for at least this time."""
        with self._lock:
            for at in [at for at, (_, since) in self.pending.items() if time.monotonic() >= since + seconds]:
                _cut_off(self.pending.pop(at)[0])

    def _end_oldest(self, host: str | None = None) -> None:
        """Close the oldest pending connection of a host; None: of the host that has most."""
        hosts = [at[0] for at in self.pending]
        host = host or max(hosts, key=hosts.count)
        oldest = next(at for at in self.pending if at[0] == host)
        _cut_off(self.pending.pop(oldest)[0])  # its thread closes it


def listening(s: ServeSettings) -> list[Gate]:
    """Return sockets that listen at the settings' address. Raises UserError if it is not available, or for a wrong certificate."""
    tls = tls_of(s.certificate, s.key)
    try:
        host = "127.0.0.1" if s.host == "localhost" else s.host or None  # ::1 requires IPv6
        addresses = socket.getaddrinfo(host, s.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        gates = {address: Gate(family, tls) for family, _, _, _, address in addresses}
        for address, gate in gates.items():
            gate.bind(address)
            gate.listen(128)
    except OSError as error:
        raise UserError(f"serve: {s.host} port {s.port}: {error.strerror or error}") from error
    return [*gates.values()]


def _cut_off(connection: socket.socket) -> None:
    """Wake all threads that wait for a connection."""
    with suppress(OSError):  # already closed
        connection.shutdown(socket.SHUT_RDWR)


class PolicyServer:
    """Serves a checkpoint's policy, with its contract, over a websocket to clients that have the token.

    image_size: of each camera's frames, pixels. gates: of :func:`listening`.
    """

    def __init__(
        self, actor: Actor, contract: Mapping, image_size: ImageSize, token: str, settings: ServeSettings, gates: list[Gate],
    ):  # fmt: skip
        self.actor, self.settings, self._token, self._gates = actor, settings, token, gates
        self._sizes = sizes_of(image_size, actor.cameras)
        for key, camera in settings.keys.items():
            one_of(f"serve.keys.{key}", camera, actor.cameras)
        self._max_bytes = int(settings.max_message_mb * 1e6)
        self._metadata = pack({
            "s2robot": {"protocol": PROTOCOL, "version": __version__}, "max_bytes": self._max_bytes,
            "robot": contract["robot"], "rate_hz": contract["rate_hz"], "contract": contract_text(contract),
            "sizes": {name: list(size) for name, size in self._sizes.items()},
            "actions": actor.batch.execute,  # at most, in an answer
            "action_dim": actor.batch.policy.spec.action_dim,
        })  # fmt: skip
        self.skipped = 0  # requests that a newer one replaced
        self.session = Session(actor, settings.keys)
        self.client: tuple[ServerConnection, str, float] | None = None  # name and time of connection
        self._lock, self.stop = threading.Lock(), threading.Event()  # `stop` ends `run`
        self._plan_until = self._send_until = math.inf  # s, monotonic, current deadlines

    def run(self, ready: Callable[[int], None] = lambda port: None) -> None:
        """Serve until SIGTERM, Ctrl-C or `stop`; call `ready` with the port. Raises UserError if the policy hangs."""
        s = self.settings
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self.stop.set())
        images = {name: np.zeros((*size, 3), np.uint8) for name, size in self._sizes.items()}
        policy = self.actor.batch.policy
        mean = policy.spec.proprio.outer(policy.normaliser.proprio.offset.cpu())
        seen = {"images": images, "proprio": mean.numpy(), "task": next(iter(policy.spec.tasks), None)}
        # warm up for the first client, at the mean: zeros could use up the warning of wrong units
        self.actor.plan(seen)
        code, reason = _GOING, "the server was stopped"
        with ExitStack() as stack:
            for gate in self._gates:
                self._listen(stack.enter_context(gate), stack)
            ready(self._gates[0].getsockname()[1])
            try:
                while not self.stop.wait(0.05):
                    if time.monotonic() > self._plan_until:
                        code, reason = _INTERNAL, "the policy hangs"
                        raise UserError(f"policy: expected a plan within {s.call_s:g} s, got none; stopped")
                    if (client := self.client) and time.monotonic() > self._send_until:
                        _cut_off(client[0].socket)
                    for gate in self._gates:
                        gate.expire(s.open_s)
            finally:
                if client := self.client:  # do not wait for its plan
                    end = time.monotonic() + _LAST_ANSWER_S
                    while self._send_until < math.inf and time.monotonic() < end:
                        time.sleep(0.01)  # let a last answer leave, so that the client reads the reason
                    if self._send_until < math.inf:
                        _cut_off(client[0].socket)
                    client[0].close(code, reason)

    def _listen(self, gate: Gate, stack: ExitStack) -> None:
        server = listen(
            self._serve_client, sock=gate, process_request=self._admit, server_header=None, logger=_log,
            origins=[None],  # reject web pages
            compression=None,  # slow, and does not shrink images
            open_timeout=None,  # enforced by the gate
            close_timeout=1, max_size=self._max_bytes,
            ping_interval=10, ping_timeout=15,  # detects a client whose machine died
        )  # fmt: skip
        # its threads are daemons too: the process ends even if a plan hangs
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(threading.Thread(target=server.shutdown, daemon=True).start)

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Reject a client without the token before any message is read."""
        headers = request.headers.get_all("Authorization")
        credentials = headers[0].encode("utf-8", "surrogateescape") if len(headers) == 1 else b""
        if not hmac.compare_digest(credentials, f"Api-Key {self._token}".encode()):
            text = "expected the header 'Authorization: Api-Key <token>', got no token or a wrong one"
            return connection.respond(HTTPStatus.UNAUTHORIZED, text)
        for gate in self._gates:
            gate.admit(connection.remote_address)
        return None

    def _serve_client(self, ws: ServerConnection) -> None:
        name = "{} port {}".format(*ws.remote_address)
        with self._lock:
            before, self.client = self.client, self.client or (ws, name, time.monotonic())
        if before:
            text = f"busy: {before[1]} has been connected for {time.monotonic() - before[2]:.0f} s"
            return ws.close(_TRY_LATER, text)
        calls, skipped, code, reason = self.session.calls, self.skipped, _GOING, "disconnected"
        try:
            with suppress(OSError):  # the terminal may be closed
                print(f"{name}: connected", flush=True)
            self.session.begin()
            code, reason = self._converse(ws)
        except ConnectionClosed:
            if time.monotonic() > self._send_until:
                reason = f"read nothing for {self.settings.open_s:g} s"
        finally:
            self._plan_until = self._send_until = math.inf
            self.client = None
            counts = f"{self.session.calls - calls} plans, {self.skipped - skipped} requests skipped"
            with suppress(OSError):
                print(f"{name}: {reason}; {counts}", flush=True)
            ws.close(code, reason)

    def _converse(self, ws: ServerConnection) -> tuple[int, str]:
        """Answer requests until the connection must end; return the websocket code and the reason."""
        s = self.settings
        answer: bytes | str = self._metadata
        while True:
            self._send_until = time.monotonic() + s.open_s
            ws.send(answer)
            self._send_until = math.inf
            try:
                data = ws.recv(s.idle_s)
            except TimeoutError:
                return _GOING, f"idle for {s.idle_s:g} s"
            with suppress(TimeoutError):
                while True:
                    data = ws.recv(0)
                    self.skipped += 1
            self._plan_until = time.monotonic() + s.call_s
            try:
                answer = self.session.answer(data)
            except WireError as error:
                return _UNSUPPORTED, str(error).encode("ascii", "replace")[:100].decode()
            self._plan_until = math.inf


def contract_text(node: Mapping) -> str:
    """Return a contract as JSON, without the episodes' hashes, which only comparisons with a dataset need."""
    lineage = {key: value for key, value in node.get("lineage", {}).items() if key != "episode_hashes"}
    return json.dumps({**node} | ({"lineage": lineage} if lineage else {}), separators=(",", ":"))


def tls_of(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """Return the TLS context of a certificate; None without files. Raises UserError if they are not a PEM pair."""
    if not certificate and not key:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # clients would read them while they write, which OpenSSL does not allow
    got = f"{certificate} and {key}" if key else certificate
    expected = "PEM files of a certificate and its key, without a passphrase"
    with reported(f"serve.certificate: expected {expected}, got {got}"):
        # without the empty password, OpenSSL would prompt on the terminal for a key's passphrase
        context.load_cert_chain(certificate, key, password=lambda: "")  # type: ignore[arg-type]
    return context


def run_serve(cfg: DictConfig) -> None:
    """Run `s2robot serve`: host a checkpoint's policy until Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # a script's `s2robot serve &` starts with SIGINT ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings = read(ServeSettings, cfg.serve)
    token, place = token_for(settings.host, settings.token_file)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    path, weights = path_of(cfg, "checkpoint"), cfg.encoder.checkpoint
    gates = listening(settings)  # reports its errors before the policy is loaded; clients wait meanwhile
    actor, encoder, contract = load_policy(path, settings.device, weights, settings.task_vectors)
    server = PolicyServer(actor, contract, image_size_of(contract, encoder), token, settings, gates)

    def ready(port: int) -> None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        where = f"{'wss' if settings.certificate else 'ws'}://{host}:{port}"
        print(f"{cfg.checkpoint}: {contract['robot']} policy at {where}\ntoken: {place}", flush=True)

    server.run(ready)
    print(f"stopped after {server.session.calls} plans")
