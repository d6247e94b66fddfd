"""UserError for invalid user input, and helpers that raise it."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any


class UserError(ValueError):
    """Invalid input. The message is one line with the file or key, the expected and the actual value."""

    user_error = True
    status = 2  # exit code of the verb


def require(*modules: str, extra: str) -> None:
    """Raise UserError unless the packages `modules` of the extra `extra` are installed. Does not import them."""
    if missing := [module for module in modules if find_spec(module) is None]:
        raise UserError(f"{missing[0]} is not installed: pip install 's2robot[{extra}]'")


@contextmanager
def reported(
    where: object, hint: str = "", kinds: tuple[type[Exception], ...] = (Exception,), kind: type[UserError] = UserError
) -> Iterator[None]:  # fmt: skip
    """Turn any error into a one-line ``kind`` that starts with ``where``; a UserError is passed on unchanged."""
    try:
        yield
    except kinds as error:
        if isinstance(error, NameError) or getattr(error, "user_error", False):
            raise
        text = " ".join(str(error).split())[:300]
        text = text if " " in text else f"{type(error).__name__}: {text}"  # KeyError: 'encoder'
        raise kind(f"{where}: {text}{hint}") from error


def check_same(
    where: object, expected: Any, found: Any, why: str = "", remedy: str = "", free: Any = (), key: str = ""
) -> None:
    """Raise UserError for the first dotted key whose value differs between two mappings; ``free``: keys that may differ."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for name in {**found, **expected}:
            if (dotted := f"{key}.{name}".lstrip(".")) not in free:
                check_same(where, expected.get(name), found.get(name), why, remedy, free, dotted)
        return
    want, got = (list(value) if isinstance(value, tuple) else value for value in (expected, found))
    if want != got:
        at = f"{where}: {key}" if key else where
        raise UserError(f"{at}: expected {want!s:.200}{why}, got {got!s:.200}{remedy and '; '}{remedy}")


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return `, did you mean 'x'?` with the closest candidate, or "" if none is close."""
    near = get_close_matches(word, list(candidates), 1)
    return f", did you mean '{near[0]}'?" if near else ""


def one_of(key: str, value: Any, known: Collection[Any], hint: str = "") -> None:
    """Raise UserError, with the closest choice, unless the value is known. Long lists of choices are not printed."""
    if value not in known:
        names, several = [str(name) for name in known], len(known) != 1
        listed = ", ".join(repr(name) if " " in name else name for name in names)
        choices = f"{'one of ' * several}{listed}{hint}" if len(names) < 30 else "a known name"
        near = did_you_mean(str(value), names) if several else ""
        raise UserError(f"{key}: expected {choices}, got {value!r}{near}")
