"""Flags and words of the command line that an arm's verbs know."""

import pytest

from s2robot.cli import VERBS, _translated
from s2robot.core.errors import UserError


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--live"], ["live=true"]), (["--episodes", "3"], ["episodes=3"]), (["--episodes=3", "a=b"], ["episodes=3", "a=b"]),
        (["--record", "my demos.zarr"], ["record='my demos.zarr'"]), (["--record", "it's"], ["record='it\\'s'"]),
        (["live=true", "--cfg", "job"], ["live=true", "--cfg", "job"]),
    ],
)  # fmt: skip
def test_flags_become_overrides(args, expected):
    assert _translated(VERBS["deploy"], args) == expected


def test_wrong_flags_are_rejected():
    for args, key in (
        (["--episodes"], "--episodes"),
        (["--record", "--live"], "--record"),
        (["--live=yes"], "--live"),
    ):
        with pytest.raises(UserError, match=f"^{key}: expected "):
            _translated(VERBS["deploy"], args)
