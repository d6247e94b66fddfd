"""The token shared by a policy server and its client, in a file or environment variable, never in `ps` or a run directory."""

import ipaddress
import os
import secrets
import socket
import stat
from contextlib import suppress
from functools import partial
from pathlib import Path

from s2robot.core.errors import UserError

VARIABLE = "S2ROBOT_TOKEN"
MIN_LENGTH = 16  # characters


def token_path(file: str | Path | None = None) -> Path:
    """Return the file, by default `$XDG_CONFIG_HOME/s2robot/token`, else `~/.config/s2robot/token`."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(file or Path(base, "s2robot", "token"))


def read_token(file: str | Path | None = None) -> str | None:
    """Return the token in a file, by default that of `$S2ROBOT_TOKEN` or else of :func:`token_path`; None if there is none.

    Raises UserError if the token is too short or not visible ASCII, or if other users can read the file.
    """
    path = token_path(file)
    if not file and VARIABLE in os.environ:
        where, text = f"${VARIABLE}", os.environ[VARIABLE]
    elif not path.exists():
        return None
    else:
        if (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
            raise UserError(f"{path}: expected mode 0600 for a secret (`chmod 600`), got {mode:04o}")
        where, text = str(path), path.read_bytes().decode("ascii", "replace").strip()
    if len(text) < MIN_LENGTH or not all("!" <= c <= "~" for c in text):
        expected = f"a token of at least {MIN_LENGTH} visible ASCII characters without spaces"
        raise UserError(f"{where}: expected {expected}, got text of {len(text)} characters")
    return text


def make_token(path: Path) -> None:
    """Write a new random token to a file that only its owner can read; never replace an existing file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "w", opener=partial(os.open, mode=0o600)) as stream:
            stream.write(secrets.token_urlsafe(32) + "\n")
        with suppress(FileExistsError):
            os.link(part, path)  # a rename could replace the token of a concurrent process
    finally:
        part.unlink(missing_ok=True)


def is_loopback(host: str) -> bool:
    """Return whether an address, or every address of a host name, is reachable only from this machine."""
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)} if host else {"0.0.0.0"}
    except (OSError, UnicodeError) as error:
        raise UserError(f"serve.host: expected a local address, got '{host}'") from error
    return all(ipaddress.ip_address(str(a).split("%")[0]).is_loopback for a in addresses)


def token_for(host: str, file: str | None) -> tuple[str, str]:
    """Return the token of a server on this address, and its source; create a token only for a loopback address.

    Raises UserError as `read_token`, or if there is no token although other machines can reach the address.
    """
    path, loopback, token = token_path(file), is_loopback(host), read_token(file)
    if token is None and loopback:
        make_token(path)
        token = read_token(file)
    if token is None:
        hint = "got none; a start on 127.0.0.1 creates one (other machines can reach this address)"
        raise UserError(f"serve.host={host}: expected a token in ${VARIABLE} or {path}, {hint}")
    return token, str(path) if file or VARIABLE not in os.environ else f"${VARIABLE}"
