"""Flags and words of the command line that an arm's verbs know."""

import pytest

from s2robot.cli import VERBS, _translated
from s2robot.core.errors import UserError


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--live"], ["live=true"]),
        (["--episodes", "3"], ["episodes=3"]),
        (["--episodes=3", "a=b"], ["episodes=3", "a=b"]),
        (["--record", "my demos.zarr"], ["record='my demos.zarr'"]),
        (["--record", "it's"], ["record='it\\'s'"]),
        (["live=true", "--cfg", "job"], ["live=true", "--cfg", "job"]),
    ],
)
def test_flags_become_overrides(args, expected):
    assert _translated(VERBS["deploy"], args) == expected


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--episodes"], "--episodes: expected a value"),
        (["--record", "--live"], "--record: expected a value"),
        (["--live=yes"], "--live: expected no value"),
    ],
)
def test_wrong_flags_are_rejected(args, text):
    with pytest.raises(UserError, match=text):
        _translated(VERBS["deploy"], args)
