"""Assertions on the errors that a user can cause."""

from collections.abc import Callable
from typing import Any

import pytest

from s2robot.core.errors import UserError
from s2robot.envs.errors import EnvError


def refuses(words: str, call: Callable, /, *args: Any, **kwargs: Any) -> UserError:
    """Assert that a call raises a UserError, or a kind of it, whose text matches the regular expression; return it."""
    with pytest.raises(UserError, match=words) as refused:
        call(*args, **kwargs)
    return refused.value


def fails(words: str, call: Callable, /, *args: Any, **kwargs: Any) -> None:
    """As refuses, for an EnvError."""
    with pytest.raises(EnvError, match=words):
        call(*args, **kwargs)
