"""Errors that a user of the simulated worlds can cause."""

from collections.abc import Iterable

from s2robot.core.errors import UserError, one_of


class EnvError(UserError):
    """A setting or machine on which the environment cannot run; the message is one line."""


def expect(good: object, key: str, expected: str, got: object) -> None:
    """Raise EnvError, `<key>: expected <constraint>, got <value>`, unless `good` is true."""
    if not good:
        raise EnvError(f"{key}: expected {expected}, got {got}")


def check_known(key: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        one_of(key, name, list(known))
