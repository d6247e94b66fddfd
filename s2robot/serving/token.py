"""The token that a policy server and its client share: in a file that only its owner reads, or in the environment.

It is never an argument of a command and never part of a config, so neither `ps` nor a run folder shows it.
"""

import ipaddress
import os
import secrets
import socket
import stat
from pathlib import Path

from s2robot.common.errors import UserError

VARIABLE = "S2ROBOT_TOKEN"
MIN_LENGTH = 16  # characters


def default_token_file() -> Path:
    """`$XDG_CONFIG_HOME/s2robot/token`, else `~/.config/s2robot/token`."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base, "s2robot", "token")


def read_token(file: str | Path | None = None) -> str | None:
    """The token of a named file; without a name, of `$S2ROBOT_TOKEN`, else of :func:`default_token_file`.

    None if there is none.

    Raises:
        UserError: a token that is too short or holds anything but visible ASCII, or a file that others may read.
    """
    if not file and VARIABLE in os.environ:
        return _checked(os.environ[VARIABLE], f"${VARIABLE}")
    path = Path(file) if file else default_token_file()
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise UserError(
                f"{path}: found mode {mode:04o}, expected 0600 (`chmod 600` it): it holds a secret"
            )
        text = path.read_bytes().decode("ascii", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected a file that holds a token") from error
    return _checked(text.strip(), str(path))


def make_token(file: str | Path | None = None) -> Path:
    """Write a new random token, readable by its owner only; an existing file is never replaced."""
    path = Path(file) if file else default_token_file()
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as stream:
            stream.write(secrets.token_urlsafe(32) + "\n")
        try:
            os.link(part, path)  # unlike a rename, this fails where another process was quicker
        finally:
            os.unlink(part)
    except FileExistsError:
        pass
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name another place for the token") from error
    return path


def is_loopback(host: str) -> bool:
    """Whether an address, or all addresses of a name, belong to this machine alone."""
    if not host:  # all addresses
        return False
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError) as error:
        raise UserError(f"serve.host: found '{host}', expected an address of this machine") from error
    return all(ipaddress.ip_address(str(a).split("%")[0]).is_loopback for a in found)


def token_for(host: str, file: str | None) -> tuple[str, str]:
    """The token of a server on this address, and where it is from; it is made only for this machine itself.

    Raises:
        UserError: other machines can reach the address and there is no token, or what `read_token` raises.
    """
    loopback = is_loopback(host)
    token = read_token(file)
    if token is None:
        if not loopback:
            raise UserError(
                f"serve.host={host} can be reached from other machines, and there is no token in ${VARIABLE} or "
                f"{file or default_token_file()}; start once on 127.0.0.1, which makes one"
            )
        make_token(file)
        token = read_token(file)
        if token is None:
            raise UserError(f"{file or default_token_file()}: the new token vanished")
    return token, file or (f"${VARIABLE}" if VARIABLE in os.environ else str(default_token_file()))


def _checked(token: str, where: str) -> str:
    if len(token) < MIN_LENGTH:
        raise UserError(f"{where}: found a token of {len(token)} characters, expected at least {MIN_LENGTH}")
    if not all("!" <= c <= "~" for c in token):
        raise UserError(f"{where}: found a token with spaces or special characters, expected visible ASCII")
    return token
