"""The sockets that a policy server listens on. Few connections without the token may be open at a time."""

import errno
import socket
import ssl
import time

from s2robot.core.errors import UserError

PER_ADDRESS, ALL = 16, 64  # connections without the token
_NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Gate(socket.socket):
    """A listening socket for asyncio, which calls `accept`.

    A connection is pending from then until `admit`. If too many are pending, the oldest one ends: a client needs
    milliseconds, and a flood never finishes. This includes TLS handshakes, which asyncio's protocols do not see.
    """

    def __init__(self, family: int, address: tuple) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self.pending: dict[tuple, socket.socket] = {}  # by the other side's address, oldest first
        try:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                self.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self.bind(address)
        except BaseException:
            self.close()
            raise

    def accept(self) -> tuple[socket.socket, tuple]:
        """Return the next connection. If the process can open no more files, the pending connections end first."""
        try:
            made, address = super().accept()
        except OSError as error:
            if error.errno not in _NO_RESOURCES:
                raise
            if not self.pending:
                time.sleep(0.01)  # nothing to end, and asyncio tries again at once
            while self.pending:
                self._end(next(iter(self.pending)))
            raise BlockingIOError from None  # asyncio tries again
        self.pending = {at: one for at, one in self.pending.items() if one.fileno() >= 0}
        same = [at for at in self.pending if at[0] == address[0]]
        if len(same) >= PER_ADDRESS:
            self._end(same[0])
        if len(self.pending) >= ALL:
            self._end(next(iter(self.pending)))
        self.pending[address] = made
        return made, address

    def admit(self, address: tuple) -> None:
        """Stop counting a connection that has sent the token."""
        self.pending.pop(address, None)

    def _end(self, address: tuple) -> None:
        try:
            self.pending.pop(address).shutdown(socket.SHUT_RDWR)  # asyncio, its owner, closes it then
        except OSError:  # it is gone
            pass


def gates(host: str, port: int) -> list[Gate]:
    """Return one for each address of a name. Raises OSError if an address is not available."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    made: list[Gate] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            made.append(Gate(family, address))
    except BaseException:
        for gate in made:
            gate.close()
        raise
    return made


def tls_of(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """Return what encrypts connections; None without a certificate. Raises UserError for files that are no PEM pair."""
    if not certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # without the empty password, a key with a passphrase would ask for it on the terminal
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        expected = "PEM files of a certificate and its key, without a passphrase"
        got = f"{certificate} and {key}" if key else certificate
        raise UserError(f"serve.certificate: expected {expected}, got {got} ({why})") from error
    return context
