"""The error that a user of the simulated worlds can cause."""

import importlib
from typing import Any

from s2robot.core.errors import UserError


class EnvError(UserError):
    """A setting or a machine on which the environment cannot run; its text is one clear line."""


def import_extra(module: str, extra: str) -> Any:
    """Import a package that an extra brings. Raises EnvError where it is not installed, or cannot be imported."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # some raise more than ImportError without a library of the system
        raise EnvError(f"found no {module} ({error}), expected it: pip install 's2robot[{extra}]'") from None
