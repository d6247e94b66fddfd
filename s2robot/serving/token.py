"""The token that a policy server and its client share, in a file that only its owner can read or in the environment.

It is no argument and no setting, so neither `ps` nor a run directory shows it.
"""

import ipaddress
import os
import secrets
import socket
import stat
from pathlib import Path

from s2robot.core.errors import UserError

VARIABLE = "S2ROBOT_TOKEN"
MIN_LENGTH = 16  # characters


def default_token_file() -> Path:
    """Return `$XDG_CONFIG_HOME/s2robot/token`, else `~/.config/s2robot/token`."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base, "s2robot", "token")


def read_token(file: str | Path | None = None) -> str | None:
    """Return the token of a file; without a file, that of `$S2ROBOT_TOKEN`, else of :func:`default_token_file`.

    None if there is none.

    Raises:
        UserError: a token that is too short or not visible ASCII, or a file that others can read.
    """
    path = Path(file) if file else default_token_file()
    where, text = str(path), ""
    if not file and VARIABLE in os.environ:
        where, text = f"${VARIABLE}", os.environ[VARIABLE]
    else:
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                raise UserError(
                    f"{path}: expected mode 0600 (`chmod 600`), got {mode:04o}: it holds a secret"
                )
            text = path.read_bytes().decode("ascii", "replace").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{path}: expected a file that holds a token: {error.strerror}") from error
    if len(text) < MIN_LENGTH or not all("!" <= c <= "~" for c in text):
        expected = f"a token of at least {MIN_LENGTH} visible ASCII characters without spaces"
        raise UserError(f"{where}: expected {expected}, got another one of {len(text)}")
    return text


def make_token(file: str | Path | None = None) -> Path:
    """Write a new random token that only its owner can read; an existing file is never replaced."""
    path = Path(file) if file else default_token_file()
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
            stream.write(secrets.token_urlsafe(32) + "\n")
        try:
            os.link(part, path)  # unlike a rename, this fails if another process was faster
        finally:
            os.unlink(part)
    except FileExistsError:
        pass
    except OSError as error:
        raise UserError(f"{path}: expected a place for the token: {error.strerror}") from error
    return path


def is_loopback(host: str) -> bool:
    """Whether an address, or every address of a name, belongs to this machine alone."""
    if not host:  # all addresses
        return False
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError) as error:
        raise UserError(f"serve.host: expected an address of this machine, got '{host}'") from error
    return all(ipaddress.ip_address(str(a).split("%")[0]).is_loopback for a in found)


def token_for(host: str, file: str | None) -> tuple[str, str]:
    """Return the token of a server on this address, and its source. A new token is made only for a loopback address.

    Raises:
        UserError: other machines can reach the address and there is no token, or what `read_token` raises.
    """
    loopback, token = is_loopback(host), read_token(file)
    place = file or str(default_token_file())
    if token is None:
        if not loopback:
            raise UserError(
                f"serve.host={host}: expected a token in ${VARIABLE} or {place}, as other machines can reach this "
                "address; start once on 127.0.0.1, which makes one"
            )
        make_token(file)
        token = read_token(file)
        if token is None:
            raise UserError(f"{place}: expected the new token, got nothing")
    return token, place if file or VARIABLE not in os.environ else f"${VARIABLE}"
