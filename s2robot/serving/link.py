"""A websocket to a policy server whose every wait ends at a deadline.

The websocket protocol is the websockets package's, without its input and output: reading and writing happen here, on
a socket that never blocks. So no call waits in a full send buffer, a lock or a thread, whatever the other side does.

Why not the package's own client: its `send` and `close` know no deadline (websockets 17), and the arm waits meanwhile.
"""

import logging
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from s2robot.common.errors import UserError

try:
    from websockets.client import ClientProtocol
    from websockets.exceptions import InvalidStatus, InvalidURI
    from websockets.frames import Frame, Opcode
    from websockets.protocol import State
    from websockets.uri import parse_uri
except ImportError as error:
    raise UserError("websockets is not installed; `pip install 's2robot[serve]'` brings it") from error

TRY_LATER = 1013  # websocket close code: the server is busy with another client
_READ = 1 << 16  # bytes at a time
_MAX_UNSENT = 64  # pieces; a call adds one, and more only come from a server that floods us with pings

_quiet = logging.getLogger("s2robot.serving.link")
_quiet.setLevel(logging.CRITICAL)  # what goes wrong is raised


class RemoteError(RuntimeError):
    """A remote policy gave no action; its text is one clear line."""

    user_error = True


class PolicyLate(RemoteError):
    """No answer by the deadline. The next call may succeed."""


class PolicyLost(RemoteError):
    """The connection is gone, or was never made."""


class PolicyMalformed(RemoteError):
    """The answer was none: wrong bytes, a wrong shape, or numbers that are not finite."""


class PolicyRefused(RemoteError):
    """The server answered, and said no: wrong token, another version, busy, an observation it cannot use."""


class Link:
    """A connection to `url`, made by `until` (as of `time.monotonic`).

    Args:
        url: `ws://host:port`, or `wss://host:port` with TLS.
        headers: of the HTTP request that opens the connection.
        max_bytes: of a message that comes in.
        ca_file: certificates (PEM) that the server's is checked with; None: those that the system trusts.

    Raises:
        UserError: another kind of URL, or no such certificates.
        PolicyLate, PolicyLost, PolicyMalformed, PolicyRefused: no connection.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str], max_bytes: int, until: float, ca_file: Any = None
    ):
        try:
            uri = parse_uri(url)
        except (InvalidURI, ValueError) as error:
            raise UserError(f"policy url: found '{url}', expected ws://<host>:<port> or wss://") from error
        if uri.user_info:
            raise UserError(f"policy url: found '{url}', expected ws://<host>:<port> without a password")
        context = _trust(ca_file) if uri.secure else None
        self.url = url
        self._protocol = ClientProtocol(uri, max_size=max_bytes, logger=_quiet)
        self._unsent: deque[memoryview] = deque()
        self._messages: deque[bytes] = deque()
        self._parts: list[bytes] = []  # of a message in several frames
        self._why = ""  # what ended the connection
        self._socket = _connect(uri.host, uri.port, url, until)
        if context:
            self._socket = _secured(self._socket, context, uri.host, url, until)
        request = self._protocol.connect()
        request.headers.update(headers)
        self._protocol.send_request(request)
        try:
            while self._protocol.state is State.CONNECTING:
                self._step(until, "the server did not open the connection")
        except BaseException:
            self.close()
            raise

    def send(self, data: bytes, until: float) -> None:
        """Send one message. What is not sent by the deadline follows in the next call. Raises as `receive`."""
        self._check_open()
        while self._unsent:  # of an earlier call: only one message ever waits
            self._step(until, "the server does not read")
        self._protocol.send_binary(data)
        self._collect()
        while self._unsent:
            self._step(until, "the server does not read")

    def receive(self, until: float) -> bytes:
        """The next message.

        Raises:
            PolicyLate: none by the deadline.
            PolicyLost: the connection ended.
            PolicyMalformed: what came is no websocket message of ours; the connection is closed.
            PolicyRefused: the server ended it because it is busy.
        """
        self._check_open()
        while not self._messages:
            self._step(until, "no answer")
        if time.monotonic() > until:  # a flood of old answers must not hold a call beyond its deadline
            raise PolicyLate(f"{self.url}: no answer by the deadline")
        return self._messages.popleft()

    def close(self, why: str = "closed by this side") -> None:
        """End the connection without waiting; safe to call twice."""
        if not self._why:
            self._why = why
        if self._socket.fileno() < 0:
            return
        try:
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(1000)
                for piece in [*self._unsent, *(memoryview(p) for p in self._protocol.data_to_send())]:
                    if self._socket.send(piece) < len(piece):
                        break
        except OSError:  # full, or gone
            pass
        self._socket.close()

    def _check_open(self) -> None:
        if self._socket.fileno() < 0:
            raise PolicyLost(f"{self.url}: not connected any more ({self._why})")

    def _step(self, until: float, late: str) -> None:
        """Read and write what is possible, waiting for it until the deadline at most."""
        self._collect()
        left = until - time.monotonic()
        if left <= 0:
            raise PolicyLate(f"{self.url}: {late} by the deadline")
        wanted = select.POLLIN | (select.POLLOUT if self._unsent else 0)
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():  # decrypted already
            happened = select.POLLIN
        else:
            happened = _poll(self._socket, wanted, left)
        try:
            if happened & ~select.POLLOUT:  # first: it may hold the reason why nothing can be written
                data = self._socket.recv(_READ)
                if data:
                    self._protocol.receive_data(data)
                else:
                    self._protocol.receive_eof()
                self._sort()
            if happened & select.POLLOUT:
                piece = self._unsent.popleft()
                sent = self._socket.send(piece)
                if sent < len(piece):
                    self._unsent.appendleft(piece[sent:])
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self._end(PolicyLost(f"{self.url}: {error.strerror or error}"))

    def _collect(self) -> None:
        self._unsent.extend(memoryview(piece) for piece in self._protocol.data_to_send() if piece)
        if len(self._unsent) > _MAX_UNSENT:
            self._end(PolicyMalformed(f"{self.url}: the server floods this side with pings"))

    def _sort(self) -> None:
        """Keep the messages of what has come; raise for what is none."""
        for event in self._protocol.events_received():
            if not isinstance(event, Frame) or event.opcode in (Opcode.PING, Opcode.PONG, Opcode.CLOSE):
                continue
            if event.opcode is Opcode.TEXT:
                self._end(PolicyMalformed(f"{self.url}: the server sent text, expected bytes"))
            self._parts.append(bytes(event.data))
            if event.fin:
                self._messages.append(b"".join(self._parts))
                self._parts = []
        refusal = self._protocol.handshake_exc
        if isinstance(refusal, InvalidStatus):
            response = refusal.response
            self._end(
                PolicyRefused(
                    f"{self.url}: HTTP {response.status_code}: {_text(bytes(response.body or b''))}"
                )
            )
        wrong: BaseException | None = refusal or self._protocol.parser_exc
        if wrong is not None and isinstance(wrong.__cause__, EOFError):  # it ended within the HTTP response
            wrong = wrong.__cause__
        if wrong is not None and not isinstance(wrong, EOFError):
            self._end(PolicyMalformed(f"{self.url}: not a policy server's websocket: {_text(str(wrong))}"))
        if wrong is not None or self._protocol.state in (State.CLOSING, State.CLOSED):
            close = self._protocol.close_rcvd
            why = _text(close.reason) if close and close.reason else "the server ended the connection"
            busy = close is not None and close.code == TRY_LATER
            self._end((PolicyRefused if busy else PolicyLost)(f"{self.url}: {why}"))

    def _end(self, error: RemoteError) -> None:
        self.close(str(error).removeprefix(f"{self.url}: "))
        raise error


def _poll(made: socket.socket, wanted: int, seconds: float) -> int:
    """What happened of it, or 0 when the time is over."""
    poll = select.poll()
    poll.register(made, wanted)
    found = poll.poll(int(seconds * 1000))  # rounded down: early by up to 1 ms, then asked again
    return found[0][1] if found else 0


def _trust(ca_file: Any) -> ssl.SSLContext:
    """Checks a server's certificate and name."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:
        text = error.strerror if isinstance(error, FileNotFoundError) else "no certificate in it"
        raise UserError(f"ca_file: found {ca_file} ({text}), expected a PEM file of certificates") from error


def _secured(
    made: socket.socket, context: ssl.SSLContext, host: str, url: str, until: float
) -> socket.socket:
    """The connection with TLS, made by the deadline."""
    secured = context.wrap_socket(made, server_hostname=host, do_handshake_on_connect=False)
    wanted = 0
    try:
        while True:
            try:
                secured.do_handshake()
                return secured
            except ssl.SSLWantReadError:
                wanted = select.POLLIN
            except ssl.SSLWantWriteError:
                wanted = select.POLLOUT
            if (left := until - time.monotonic()) <= 0:
                raise PolicyLate(f"{url}: no TLS by the deadline")
            _poll(secured, wanted, left)
    except OSError as error:
        secured.close()
        why = getattr(error, "verify_message", "") or error.strerror or error
        raise PolicyLost(f"{url}: no TLS with this server ({why})") from error
    except BaseException:
        secured.close()
        raise


def _connect(host: str, port: int, url: str, until: float) -> socket.socket:
    """A TCP connection, made by the deadline; the look-up of the name included."""
    addresses: list[Any] = []

    def look_up() -> None:  # the system's resolver knows no deadline
        try:
            addresses.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            addresses.append(error)

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(max(0.0, until - time.monotonic()))
    if not addresses:
        raise PolicyLate(f"{url}: the name {host} was not found by the deadline")
    if isinstance(addresses[0], OSError):
        raise PolicyLost(f"{url}: {addresses[0].strerror}")
    why = "no address"
    for family, kind, protocol, _, address in addresses[0]:
        left = until - time.monotonic()
        if left <= 0:
            break
        made = socket.socket(family, kind, protocol)
        made.settimeout(left)
        try:
            made.connect(address)
        except TimeoutError:
            made.close()
            break
        except OSError as error:
            made.close()
            why = error.strerror or str(error)
            continue
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made
    else:
        raise PolicyLost(f"{url}: {why}")
    raise PolicyLate(f"{url}: no connection by the deadline")


def _text(raw: bytes | str | None) -> str:
    """A server's words as one line of at most 200 visible characters."""
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw or ""
    return "".join(c if c.isprintable() else " " for c in text[:200]).strip()
