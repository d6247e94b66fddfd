"""`s2robot serve`: host a checkpoint's policy for `s2robot.serving.remote` and openpi's client.

A client opens a websocket with the header `Authorization: Api-Key <token>`, receives metadata, then sends observations:

    {"images": {camera: uint8 (H, W, 3)}, "state": float32 (P,), ...}
    {"actions": float32 (k, A), "server_timing": {"infer_ms": 31.0}, ...}        or the reason why there is no answer

If several requests wait, only the newest is answered. The server accepts one client at a time and tells others who is connected.
"""

import asyncio
import hmac
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from pydantic import model_validator
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as listen
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from s2robot import __version__
from s2robot.config import path_of
from s2robot.core.errors import UserError
from s2robot.core.settings import Settings, from_yaml, invalid, read
from s2robot.envs.frames import ImageSize, sizes_of
from s2robot.loading import image_size_of, load_policy
from s2robot.policies import Actor
from s2robot.serving.gate import Gate, gates, tls_of
from s2robot.serving.session import Session
from s2robot.serving.token import token_for
from s2robot.serving.wire import PROTOCOL, WireError, pack

_GOING, _UNSUPPORTED, _INTERNAL, _TRY_LATER = 1001, 1003, 1011, 1013  # websocket close codes
_log = logging.getLogger("s2robot.serving.server.websockets")
_log.setLevel(logging.CRITICAL)  # scanners and their broken handshakes would fill the log


class ServeSettings(Settings, at="serve", file="serve"):
    """`serve` of configs/serve.yaml, which documents every value. Times in s."""

    host: str = from_yaml()
    port: int = from_yaml(ge=0, lt=65536)
    token_file: str | None = from_yaml()
    certificate: str | None = from_yaml()
    key: str | None = from_yaml()
    keys: dict[str, str] = from_yaml()
    max_message_mb: float = from_yaml(gt=0)
    open_s: float = from_yaml(gt=0)
    send_s: float = from_yaml(gt=0)
    idle_s: float = from_yaml(gt=0)
    call_s: float = from_yaml(gt=0)
    device: str = from_yaml()
    threads: int | None = from_yaml(ge=1)

    @model_validator(mode="after")
    def _key_needs_certificate(self) -> "ServeSettings":
        if self.key and not self.certificate:
            raise invalid("certificate", "the file that belongs to serve.key", None)
        return self


class PolicyServer:
    """One policy behind a websocket.

    Args:
        actor: the policy.
        contract: its checkpoint's.
        image_size: of each camera's frames, pixels.
        token: the shared secret.
    """

    def __init__(
        self, actor: Actor, contract: Mapping, image_size: ImageSize, token: str, settings: ServeSettings
    ):
        self.actor, self.settings, self._token = actor, settings, token
        self._sizes = sizes_of(image_size, actor.cameras)
        for key, camera in settings.keys.items():
            if camera not in actor.cameras:
                raise UserError(f"serve.keys.{key}: expected one of {', '.join(actor.cameras)}, got {camera}")
        self._metadata = pack(
            {
                "s2robot": {"protocol": PROTOCOL, "version": __version__},
                **{key: contract[key] for key in ("robot", "rate_hz")},
                "sizes": {name: list(size) for name, size in self._sizes.items()},
                "actions": actor.batch.execute,  # the most in an answer
                "action_dim": actor.batch.policy.spec.action_dim,
                "max_bytes": int(settings.max_message_mb * 1e6),
                "contract": contract_text(contract),
            }
        )
        self.skipped = 0  # requests that a newer one replaced
        self.session = Session(actor, settings.keys)
        self._worker = (
            asyncio.new_event_loop()
        )  # computes in a daemon thread, which Ctrl-C ends even if it hangs
        threading.Thread(target=self._worker.run_forever, daemon=True).start()
        self._client: tuple[str, float] | None = None  # address and time of connection
        self._task: asyncio.Task | None = None  # of the client
        self._failure: UserError | None = None
        self._gates: list[Gate] = []

    def warm_up(self) -> None:
        """Plan once on black frames, so that the first client waits no longer than later ones."""
        images = {name: np.zeros((*size, 3), np.uint8) for name, size in self._sizes.items()}
        proprio = self.actor.batch.policy.spec.proprio.zeros().numpy()
        self.actor.plan({"images": images, "proprio": proprio})

    async def run(self, ready: Callable[[int], None] = lambda port: None) -> None:
        """Serve until SIGTERM or cancelled; `ready` is called with the port.

        Raises:
            UserError: the address is not available, or the policy hangs.
        """
        s = self.settings
        self._stop = asyncio.Event()
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stop)
        await self._compute(self.warm_up)
        tls = tls_of(s.certificate, s.key)
        times = {"ssl_handshake_timeout": s.open_s, "ssl_shutdown_timeout": 1} if tls else {}
        async with AsyncExitStack() as listeners:
            try:
                self._gates = gates(s.host, s.port)  # their servers close them
                for gate in self._gates:
                    await listeners.enter_async_context(self._listen(gate, ssl=tls, **times))
            except OSError as error:
                raise UserError(f"serve: {s.host} port {s.port}: {error.strerror or error}") from error
            ready(self._gates[0].getsockname()[1])
            try:
                await self._stop.wait()
            finally:
                if (task := self._task) is not None:  # do not wait for its plan
                    task.cancel()
                    await asyncio.wait({task}, timeout=3)  # it sends its client the reason
        if self._failure:
            raise self._failure

    def _compute(self, function: Callable[..., Any], *args: Any) -> asyncio.Future:
        """Return the function's result, to be awaited while the worker computes it."""

        async def call() -> Any:
            return function(*args)

        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(), self._worker))

    def stop(self) -> None:
        """End `run`; call it in the event loop of `run`."""
        self._stop.set()

    def _listen(self, gate: Gate, **tls: Any) -> Any:
        s = self.settings
        return listen(
            self._serve_client,
            sock=gate,
            process_request=self._admit,
            origins=[None],  # no web page
            compression=None,  # images do not compress, and it costs time
            open_timeout=s.open_s,
            close_timeout=1,
            ping_interval=10,  # finds a client whose machine died
            ping_timeout=15,
            max_size=int(s.max_message_mb * 1e6),
            max_queue=2,
            server_header=None,
            logger=_log,
            **tls,
        )

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Reject a client without the token before any message is read."""
        given = request.headers.get_all("Authorization")
        offered = given[0].encode("utf-8", "surrogateescape") if len(given) == 1 else b""
        if not hmac.compare_digest(offered, f"Api-Key {self._token}".encode()):
            text = "expected the header 'Authorization: Api-Key <token>', the token is missing or wrong"
            return connection.respond(HTTPStatus.UNAUTHORIZED, text)
        for gate in self._gates:
            gate.admit(connection.remote_address)
        return None

    async def _serve_client(self, ws: ServerConnection) -> None:
        if self._client is not None:
            who, since = self._client
            await ws.close(_TRY_LATER, f"busy: {who} is connected for {time.monotonic() - since:.0f} s")
            return
        who = "{} port {}".format(*ws.remote_address) if ws.remote_address else "a client"
        self._client, self._task = (who, time.monotonic()), asyncio.current_task()
        calls, skipped = self.session.calls, self.skipped
        code, reason = _GOING, "the server was stopped"
        print(f"{who}: connected", flush=True)
        try:
            self.session.begin()
            code, reason = await self._converse(ws)
        except ConnectionClosed:
            reason = "gone"
        except TimeoutError:
            code, reason = _INTERNAL, f"read nothing for {self.settings.send_s:g} s"
        finally:
            self._client = self._task = None
            counts = f"{self.session.calls - calls} plans, {self.skipped - skipped} requests skipped"
            print(f"{who}: {reason}; {counts}", flush=True)
            await ws.close(code, reason)

    async def _converse(self, ws: ServerConnection) -> tuple[int, str]:
        """Answer until there is a reason to end: its websocket code and text."""
        s = self.settings
        # asyncio.timeout, as Python 3.11's wait_for loses a cancellation that arrives when its task ends
        async with asyncio.timeout(s.open_s):
            await ws.send(self._metadata)
        newest: asyncio.Queue[bytes | str | None] = asyncio.Queue(1)
        reader = asyncio.create_task(self._read(ws, newest))
        try:
            while True:
                try:
                    async with asyncio.timeout(s.idle_s):
                        data = await newest.get()
                except TimeoutError:
                    return _GOING, f"idle for {s.idle_s:g} s"
                if data is None:
                    return _GOING, "gone"
                try:
                    async with asyncio.timeout(s.call_s):
                        answer = await self._compute(self.session.answer, data)
                except WireError as error:
                    return _UNSUPPORTED, str(error).encode("ascii", "replace")[:100].decode()
                except TimeoutError:
                    self._failure = UserError(f"the policy gave no plan in {s.call_s:g} s; stopped")
                    self.stop()
                    return _INTERNAL, "the policy hangs"
                async with asyncio.timeout(s.send_s):
                    await ws.send(answer)
        finally:
            reader.cancel()

    async def _read(self, ws: ServerConnection, newest: asyncio.Queue) -> None:
        """Keep the newest message in the queue; None at the end."""
        data: bytes | str | None = b""
        while data is not None:
            try:
                data = await ws.recv()
            except ConnectionClosed:
                data = None
            if newest.full():
                newest.get_nowait()
                self.skipped += 1
            newest.put_nowait(data)


def contract_text(node: Mapping[str, Any]) -> str:
    """Return a contract as JSON. The hashes of episodes are left out: only a dataset is compared with them."""
    lineage = {key: value for key, value in node.get("lineage", {}).items() if key != "episode_hashes"}
    return json.dumps({**node, **({"lineage": lineage} if lineage else {})}, separators=(",", ":"))


def _open_logs() -> None:
    """Open the log file of the run now: at a flood, when no file can be opened, a message to it would end the server."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.makeLogRecord({"name": __name__, "levelname": "INFO", "msg": "serving"}))


def run_serve(cfg: DictConfig) -> None:
    """`s2robot serve`: host a checkpoint's policy until Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # `s2robot serve &` in a script starts with Ctrl-C's signal ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings = read(ServeSettings, cfg.serve)
    token, place = token_for(settings.host, settings.token_file)
    tls_of(settings.certificate, settings.key)  # report their errors before the policy is loaded
    if settings.threads:
        torch.set_num_threads(settings.threads)
    path = path_of(cfg, "checkpoint")
    actor, encoder, contract = load_policy(path, settings.device, cfg.encoder.checkpoint)
    server = PolicyServer(actor, contract, image_size_of(contract, encoder), token, settings)

    def ready(port: int) -> None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        scheme = "wss" if settings.certificate else "ws"
        print(f"{cfg.checkpoint}: {contract['robot']} policy at {scheme}://{host}:{port}", flush=True)
        print(f"token: {place}", flush=True)

    _open_logs()
    asyncio.run(server.run(ready))
    print(f"stopped after {server.session.calls} plans")
