"""The error that a user of the simulated worlds can cause."""

import importlib
from collections.abc import Iterable
from typing import Any

from s2robot.core.errors import UserError


class EnvError(UserError):
    """A setting or a machine on which the environment cannot run; its text is one clear line."""


def check_known(key: str, found: Iterable[str], known: Iterable[str]) -> None:
    """Reject names that are not among those that exist."""
    known = list(known)
    for name in (name for name in found if name not in known):
        raise EnvError(f"{key}: found '{name}', expected one of {', '.join(known) or 'none'}")


def import_extra(module: str, extra: str) -> Any:
    """Import a package that an extra brings. Raises EnvError where it is not installed, or cannot be imported."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # some raise more than ImportError without a library of the system
        raise EnvError(f"found no {module} ({error}), expected it: pip install 's2robot[{extra}]'") from None
