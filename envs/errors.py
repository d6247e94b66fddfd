"""The error that a user of the simulated worlds can cause."""

from collections.abc import Iterable

from s2robot.core.errors import UserError, one_of


class EnvError(UserError):
    """A setting or a machine on which the environment cannot run; its text is one clear line."""


def expect(good: object, key: str, expected: str, got: object) -> None:
    """Raise EnvError, `<key>: expected <constraint>, got <value>`, unless something is right."""
    if not good:
        raise EnvError(f"{key}: expected {expected}, got {got}")


def check_known(key: str, found: Iterable[str], known: Iterable[str]) -> None:
    for name in found:
        one_of(key, name, list(known))
