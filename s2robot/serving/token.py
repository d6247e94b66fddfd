"""The token that a policy server and its client share, in a file or the environment: `ps` and run folders never show it."""

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
    """Return the token of a file; without a file, that of `$S2ROBOT_TOKEN`, else of :func:`token_path`; None without one.

    UserError: a token that is too short or not visible ASCII, or a file that others can read.
    """
    path = token_path(file)
    if not file and VARIABLE in os.environ:
        where, text = f"${VARIABLE}", os.environ[VARIABLE]
    elif not path.exists():
        return None
    else:
        if (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
            raise UserError(f"{path}: expected mode 0600 (`chmod 600`), got {mode:04o}: it holds a secret")
        where, text = str(path), path.read_bytes().decode("ascii", "replace").strip()
    if len(text) < MIN_LENGTH or not all("!" <= c <= "~" for c in text):
        expected = f"a token of at least {MIN_LENGTH} visible ASCII characters without spaces"
        raise UserError(f"{where}: expected {expected}, got another one of {len(text)}")
    return text


def make_token(path: Path) -> None:
    """Write a new random token that only its owner can read; an existing file is never replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "w", opener=partial(os.open, mode=0o600)) as stream:
            stream.write(secrets.token_urlsafe(32) + "\n")
        with suppress(FileExistsError):
            os.link(part, path)  # a rename would replace the token of a faster process
    finally:
        part.unlink(missing_ok=True)


def is_loopback(host: str) -> bool:
    """Whether an address, or every address of a name, belongs to this machine alone."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)} if host else {"0.0.0.0"}
    except (OSError, UnicodeError) as error:
        raise UserError(f"serve.host: expected an address of this machine, got '{host}'") from error
    return all(ipaddress.ip_address(str(a).split("%")[0]).is_loopback for a in found)


def token_for(host: str, file: str | None) -> tuple[str, str]:
    """Return the token of a server on this address, and its source; a new one is made only for a loopback address.

    UserError: other machines can reach the address and there is no token, or what `read_token` raises.
    """
    path, loopback, token = token_path(file), is_loopback(host), read_token(file)
    if token is None and loopback:
        make_token(path)
        token = read_token(file)
    if token is None:
        hint = "as other machines can reach this address; start once on 127.0.0.1, which makes one"
        raise UserError(f"serve.host={host}: expected a token in ${VARIABLE} or {path}, {hint}")
    return token, str(path) if file or VARIABLE not in os.environ else f"${VARIABLE}"
