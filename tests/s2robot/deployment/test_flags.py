"""Flags and words of the command line that an arm's verbs know."""

import pytest

from s2robot.cli import VERBS, _translated
from s2robot.common.errors import UserError


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


def test_robot_takes_its_word():
    assert _translated(VERBS["robot"], ["check", "robot.ip=1.2.3.4"]) == ["robot.ip=1.2.3.4"]
    assert _translated(VERBS["robot"], ["--cfg", "job"]) == ["--cfg", "job"]


@pytest.mark.parametrize(
    ("verb", "args", "text"),
    [
        ("robot", ["chekc"], "found 'chekc', expected 'check'"),
        (
            "robot",
            [],
            "found nothing, expected 'check' and its settings: `robot check`: does this policy fit",
        ),
        ("deploy", ["--episodes"], "--episodes: found no value"),
        ("deploy", ["--record", "--live"], "--record: found no value"),
        ("deploy", ["--live=yes"], "--live: found a value 'yes'"),
    ],
)
def test_wrong_flags_are_refused(verb, args, text):
    with pytest.raises(UserError, match=text):
        _translated(VERBS[verb], args)
