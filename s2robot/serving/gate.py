"""The sockets that a policy server listens on. Connections that did not show the token yet are few, whatever is sent."""

import errno
import socket
import ssl
import time

from s2robot.common.errors import UserError

PER_ADDRESS, ALL = 16, 64  # connections that may be unfinished at a time


class Gate(socket.socket):
    """A listening socket for asyncio, which calls `accept`.

    A connection is pending from then until `admit`. Where too many are pending, the oldest one ends: a client that means it
    needs milliseconds, one that floods never finishes. TLS handshakes count, which asyncio's protocols do not see.
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
        """The next connection; where the process has no file left for it, the pending ones end first."""
        try:
            made, address = super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            if not self.pending:
                time.sleep(0.01)  # nothing of ours to end: asyncio asks again at once
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
        """This connection has shown the token."""
        self.pending.pop(address, None)

    def _end(self, address: tuple) -> None:
        try:
            self.pending.pop(address).shutdown(socket.SHUT_RDWR)  # its owner, asyncio, closes it then
        except OSError:  # it is gone
            pass


def gates(host: str, port: int) -> list[Gate]:
    """One for each address of a name. Raises OSError where one cannot be listened on."""
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
    """What encrypts connections; None without a certificate.

    Raises:
        UserError: the files hold no certificate and its key.
    """
    if not certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # without an empty one, a key with a passphrase would ask for it on the terminal
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:
        files = f"{certificate} and {key}" if key else certificate
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        expected = "PEM files of a certificate and its key, without a passphrase"
        raise UserError(f"serve.certificate: found {files} ({why}), expected {expected}") from error
    return context
