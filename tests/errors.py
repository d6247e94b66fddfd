"""Assertions on the errors that a user can cause."""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from s2robot.core.errors import UserError
from s2robot.envs.errors import EnvError

T = TypeVar("T", bound=Exception)


def raised(kind: type[T], words: str, call: Callable, /, *args: Any, **kwargs: Any) -> T:
    """Assert that a call raises an error of a kind whose text matches the regular expression; return it."""
    with pytest.raises(kind, match=words) as caught:
        call(*args, **kwargs)
    return caught.value


def refuses(words: str, call: Callable, /, *args: Any, **kwargs: Any) -> UserError:
    """As raised, for a UserError or a kind of it."""
    return raised(UserError, words, call, *args, **kwargs)


def fails(words: str, call: Callable, /, *args: Any, **kwargs: Any) -> EnvError:
    """As raised, for an EnvError."""
    return raised(EnvError, words, call, *args, **kwargs)
