"""A policy server: `s2robot serve checkpoint=runs/run/<date>/checkpoint`; its client is `s2robot.serving.remote`.

A client opens a websocket with the shared token and the protocol's version, is greeted with the checkpoint's
contract, and sends one kind of request:

    {"id": 7, "after": 6, "images": {camera: uint8 (H, W, 3)}, "proprio": float32 (P,)}
    {"id": 7, "actions": float32 (k, A), "seconds": 0.031}      or      {"id": 7, "error": "..."}

`id` grows from request to request. `after` is the last answer that the client used, 0 at the start of an episode: the
policy's memory goes back to that answer first, so a request whose answer was late or lost leaves no trace. Of several
requests that wait only the newest is answered. One client at a time; others are told who is connected.

A client that shows the token as `Api-Key` is openpi's own and is talked to as such (`s2robot.serving.openpi`).
"""

import asyncio
import hmac
import logging
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.common.ranges import INFINITY, check_ranges
from s2robot.common.settings import path_of, read
from s2robot.envs.frames import ImageSize, sizes_of
from s2robot.loading import image_size_of, load_policy
from s2robot.policies import Actor
from s2robot.serving.dialects import Dialect, OpenPi, Own
from s2robot.serving.gate import Gate, gates, tls_of
from s2robot.serving.token import token_for
from s2robot.serving.wire import MAX_ITEMS, PROTOCOL, PROTOCOL_HEADER, WireError

try:
    from websockets.asyncio.server import ServerConnection
    from websockets.asyncio.server import serve as listen
    from websockets.exceptions import ConnectionClosed
    from websockets.http11 import Request, Response
except ImportError as error:
    raise UserError("websockets is not installed; `pip install 's2robot[serve]'` brings it") from error

_OPENPI = "Api-Key"  # how openpi's client shows the token; ours says Bearer
_GOING, _UNSUPPORTED, _INTERNAL, _TRY_LATER = 1001, 1003, 1011, 1013  # websocket close codes
_KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}  # s, s, probes

_log = logging.getLogger("s2robot.serving.server.websockets")
_log.setLevel(logging.CRITICAL)  # a scanner's broken handshake is no news


@dataclass(frozen=True)
class ServeSettings:
    """`serve` of configs/serve.yaml, where every value is explained. Times in s."""

    host: str = "127.0.0.1"
    port: int = 8765
    max_message_mb: float = 16
    open_s: float = 5
    send_s: float = 5
    idle_s: float = 600
    call_s: float = 30
    token_file: str | None = None
    keys: dict[str, str] = field(default_factory=dict)
    certificate: str | None = None
    key: str | None = None
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        check_ranges(self, "serve", threads=(1, INFINITY))
        if not 0 <= self.port < 65536:
            raise UserError(f"serve.port: found {self.port}, expected 0 to 65535")
        for key in ("max_message_mb", "open_s", "send_s", "idle_s", "call_s"):
            if not 0 < getattr(self, key) < float("inf"):
                raise UserError(f"serve.{key}: found {getattr(self, key)}, expected a number above 0")
        if self.key and not self.certificate:
            raise UserError("serve.key: found a file without serve.certificate, expected both or neither")


class PolicyServer:
    """One policy behind a websocket.

    Args:
        actor: the policy.
        contract: its checkpoint's.
        image_size: of the frames that it wants of each camera, pixels.
        token: the shared secret.
    """

    def __init__(
        self,
        actor: Actor,
        contract: Mapping[str, Any],
        image_size: ImageSize,
        token: str,
        settings: ServeSettings,
    ):
        self.actor, self.contract, self.settings = actor, contract, settings
        self.sizes = sizes_of(image_size, actor.cameras)
        for key, camera in settings.keys.items():
            if camera not in actor.cameras:
                raise UserError(
                    f"serve.keys: found {key}: {camera}, expected one of {', '.join(actor.cameras)}"
                )
        self._given = 0  # plans, to clients that are gone
        self._dialect: Dialect | None = None  # of the client that is connected
        self.skipped = 0  # requests that a newer one overtook
        self._token = token
        self._worker = _Worker()
        self._client: tuple[str, float] | None = None  # who is connected, since when
        self._session: asyncio.Task | None = None
        self._failure: UserError | None = None
        self._gates: list[Gate] = []

    @property
    def calls(self) -> int:
        """Plans given."""
        return self._given + (self._dialect.calls if self._dialect else 0)

    def warm_up(self) -> None:
        """Plan once on black frames, so that the first client does not wait longer than later ones."""
        images = {name: np.zeros((*size, 3), np.uint8) for name, size in self.sizes.items()}
        proprio = self.actor.batch.policy.spec.proprio.zeros().numpy()
        self.actor.plan({"images": images, "proprio": proprio})

    async def run(self, ready: Callable[[int], None] = lambda port: None) -> None:
        """Serve until SIGTERM or cancelled; `ready` is called with the port.

        Raises:
            UserError: the address cannot be listened on, or the policy hangs.
        """
        s = self.settings
        self._stop = asyncio.Event()
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stop)
        await self._worker.do(self.warm_up)
        tls = tls_of(s.certificate, s.key)
        times = {"ssl_handshake_timeout": s.open_s, "ssl_shutdown_timeout": 1} if tls else {}
        async with AsyncExitStack() as listeners:
            try:
                self._gates = gates(s.host, s.port)  # in the end their servers close them
                for gate in self._gates:
                    await listeners.enter_async_context(self._listen(gate, ssl=tls, **times))
            except OSError as error:
                raise UserError(f"serve: {s.host} port {s.port}: {error.strerror or error}") from error
            ready(self._gates[0].getsockname()[1])
            try:
                await self._stop.wait()
            finally:
                session = self._session
                if session is not None:  # do not wait for a plan that nobody will get
                    session.cancel()
                    await asyncio.wait({session}, timeout=3)  # it tells its client why
        if self._failure:
            raise self._failure

    def _listen(self, gate: Gate, **tls: Any) -> Any:
        s = self.settings
        return listen(
            self._serve_client,
            sock=gate,
            process_request=self._admit,
            origins=[None],  # no web page
            compression=None,  # frames do not compress, and it costs time
            open_timeout=s.open_s,
            close_timeout=1,
            ping_interval=None,  # TCP's keepalive finds dead clients, and idle ones need no thread to answer
            max_size=int(s.max_message_mb * 1e6),
            max_queue=2,
            server_header=None,
            logger=_log,
            **tls,
        )

    def stop(self) -> None:
        """End `run`; to be called in its event loop."""
        self._stop.set()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuse who lacks the token or speaks another version, before any message is read."""
        given = request.headers.get_all("Authorization")
        offered = given[0].encode("utf-8", "surrogateescape") if len(given) == 1 else b""
        if hmac.compare_digest(offered, f"{_OPENPI} {self._token}".encode()):
            self._admitted(connection)
            return None
        if not hmac.compare_digest(offered, f"Bearer {self._token}".encode()):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "the token is missing or wrong")
        version = request.headers.get_all(PROTOCOL_HEADER)
        if version != [str(PROTOCOL)]:
            found = f"version {version[0][:20]}" if version else "no version"
            text = f"this server speaks version {PROTOCOL} of the protocol, the client {found}"
            return connection.respond(HTTPStatus.UPGRADE_REQUIRED, text)
        self._admitted(connection)
        return None

    def _admitted(self, connection: ServerConnection) -> None:
        for gate in self._gates:
            gate.admit(connection.remote_address)

    async def _serve_client(self, ws: ServerConnection) -> None:
        if self._client is not None:
            who, since = self._client
            await ws.close(_TRY_LATER, f"busy: {who} is connected for {time.monotonic() - since:.0f} s")
            return
        who = _name(ws)
        self._client, self._session = (who, time.monotonic()), asyncio.current_task()
        skipped, dialect = self.skipped, self._dialect_of(ws)
        self._dialect = dialect
        code, reason = _GOING, "the server was stopped"
        print(f"{who}: connected", flush=True)
        try:
            tcp = ws.transport.get_extra_info("socket")
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE.items():
                tcp.setsockopt(socket.IPPROTO_TCP, option, value)
            code, reason = await self._converse(ws, dialect)
        except ConnectionClosed:
            reason = "gone"
        except TimeoutError:
            code, reason = _INTERNAL, f"took nothing for {self.settings.send_s:g} s"
        finally:
            self._client = self._session = self._dialect = None
            self._given += dialect.calls
            skipped = self.skipped - skipped
            print(f"{who}: {reason}; {dialect.calls} plans, {skipped} requests overtaken", flush=True)
            await ws.close(code, reason)

    def _dialect_of(self, ws: ServerConnection) -> Dialect:
        given = ws.request.headers.get("Authorization", "") if ws.request else ""
        if given.startswith(_OPENPI):
            return OpenPi(self.actor, self.settings.keys)
        return Own(self.actor)

    async def _converse(self, ws: ServerConnection, dialect: Dialect) -> tuple[int, str]:
        """Greet and answer until there is a reason to end: its websocket code and text."""
        facts = {
            "contract": _packed(dict(self.contract)),
            "cameras": list(self.actor.cameras),
            "actions": self.actor.batch.execute,
            "action_dim": self.actor.batch.policy.spec.action_dim,
            "image_size": min(
                min(size) for size in self.sizes.values()
            ),  # all that clients of version 0.1 read
            "sizes": {name: list(size) for name, size in self.sizes.items()},
            "max_bytes": int(self.settings.max_message_mb * 1e6),
        }
        # asyncio.timeout, for Python 3.11's wait_for forgets a cancellation that comes as its task ends
        async with asyncio.timeout(self.settings.open_s):
            await ws.send(dialect.hello(facts))
        newest = _Newest(ws)
        try:
            while True:
                try:
                    async with asyncio.timeout(self.settings.idle_s):
                        data = await newest.get()
                except TimeoutError:
                    return _GOING, f"idle for {self.settings.idle_s:g} s"
                self.skipped += newest.take_skipped()
                if data is None:
                    return _GOING, "gone"
                try:
                    request = dialect.read(data)
                except WireError as error:  # this is no client of ours
                    return _UNSUPPORTED, str(error).encode("ascii", "replace")[:100].decode()
                try:
                    async with asyncio.timeout(self.settings.call_s):
                        answer = await self._worker.do(partial(dialect.answer, request))
                except TimeoutError:
                    self._failure = UserError(
                        f"the policy gave no plan in {self.settings.call_s:g} s; stopped"
                    )
                    self.stop()
                    return _INTERNAL, "the policy hangs"
                async with asyncio.timeout(self.settings.send_s):
                    await ws.send(answer)
        finally:
            newest.reader.cancel()


class _Worker:
    """A thread that computes while the server listens; as a daemon it does not outlive a Ctrl-C when it hangs."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def do(self, function: Callable[[], Any]) -> asyncio.Future:
        """The function's result, to be awaited."""
        future: Future = Future()
        self._jobs.put((function, future))
        return asyncio.wrap_future(future)

    def _run(self) -> None:
        while True:
            function, future = self._jobs.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)


class _Newest:
    """The newest message of a connection; it is read all the time, and older ones are dropped and counted."""

    def __init__(self, ws: ServerConnection) -> None:
        self._data: bytes | str | None = None
        self._skipped = 0
        self._arrived = asyncio.Event()
        self.reader = asyncio.create_task(self._read(ws))

    async def _read(self, ws: ServerConnection) -> None:
        try:
            async for data in ws:
                self._skipped += self._data is not None
                self._data = data
                self._arrived.set()
        except ConnectionClosed:
            pass
        self._data = None
        self._arrived.set()

    async def get(self) -> bytes | str | None:
        """The newest message that was not given yet; None once the connection has ended."""
        await self._arrived.wait()
        data, self._data = self._data, None
        if not self.reader.done():
            self._arrived.clear()
        return data

    def take_skipped(self) -> int:
        """How many were dropped since the last call."""
        skipped, self._skipped = self._skipped, 0
        return skipped


def _packed(node: Any) -> Any:
    """A contract whose lists of an entry an episode are arrays, where they would not fit into a message: 130,000 do.

    The hashes of episodes are left out: only a dataset is compared with them.
    """
    if isinstance(node, dict):
        return {key: _packed(value) for key, value in node.items() if key != "episode_hashes"}
    long = isinstance(node, list) and len(node) > MAX_ITEMS and all(type(n) is int for n in node)
    return np.array(node, np.int64) if long else node


def _name(ws: ServerConnection) -> str:
    address = ws.remote_address
    return f"{address[0]} port {address[1]}" if address else "a client"


def _open_logs() -> None:
    """Let the run's log file open now: when no file can be opened any more, a message to it would end the server."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.makeLogRecord({"name": __name__, "levelname": "INFO", "msg": "serving"}))


def run_serve(cfg: DictConfig) -> None:
    """`s2robot serve`: host a checkpoint's policy until Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # a script's `s2robot serve &` starts with Ctrl-C's signal ignored; who sends it means this server
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings = read(ServeSettings, cfg.serve, "serve")
    token, place = token_for(settings.host, settings.token_file)
    tls_of(
        settings.certificate, settings.key
    )  # whatever is wrong with them shows before the policy is loaded
    if settings.threads:
        torch.set_num_threads(settings.threads)
    actor, encoder, contract = load_policy(
        path_of(cfg, "checkpoint"), settings.device, cfg.encoder.checkpoint
    )
    server = PolicyServer(actor, contract, image_size_of(contract, encoder), token, settings)

    def ready(port: int) -> None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        scheme = "wss" if settings.certificate else "ws"
        print(f"{cfg.checkpoint}: {contract['robot']} policy at {scheme}://{host}:{port}", flush=True)
        print(f"token: {place}", flush=True)

    _open_logs()
    asyncio.run(server.run(ready))
    print(f"stopped after {server.calls} plans")
