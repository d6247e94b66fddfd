"""The error that a user of the simulated worlds can cause."""

from collections.abc import Iterable

from s2robot.core.errors import UserError


class EnvError(UserError):
    """A setting or a machine on which the environment cannot run; its text is one clear line."""


def check_known(key: str, found: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in (name for name in found if name not in known):
        raise EnvError(f"{key}: found '{name}', expected one of {', '.join(known) or 'none'}")
