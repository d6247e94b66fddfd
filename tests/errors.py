"""Assertions on the errors that a user can cause."""

from collections.abc import Callable
from typing import Any

import pytest

from s2robot.core.errors import UserError


def refuses(words: str, call: Callable, /, *args: Any, **kwargs: Any) -> None:
    """Assert that a call raises a UserError, or a kind of it, whose text matches the regular expression."""
    with pytest.raises(UserError, match=words):
        call(*args, **kwargs)
