"""The error that a user of the commands can cause."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any


class UserError(ValueError):
    """Wrong input; its text is one clear line that names the file or key, what was found and what was expected."""

    user_error = True


def require(module: str, extra: str) -> None:
    """Raise UserError unless the package `module` of the extra `extra` is installed. Does not import it."""
    if find_spec(module) is None:
        raise UserError(f"{module} is not installed: pip install 's2robot[{extra}]'")


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return `, did you mean 'x'?` with the nearest candidate, or nothing if none is near."""
    near = get_close_matches(word, list(candidates), 1)
    return f", did you mean '{near[0]}'?" if near else ""


def one_of(key: str, value: Any, known: Collection[Any], hint: str = "") -> None:
    """Raise UserError, with the nearest choice, unless the value is a known one; long lists are not printed."""
    if value not in known:
        names, several = [str(name) for name in known], len(known) != 1
        choices = f"{'one of ' * several}{', '.join(names)}{hint}" if len(names) < 30 else "a known name"
        near = did_you_mean(str(value), names) if several else ""
        raise UserError(f"{key}: expected {choices}, got {value!r}{near}")
