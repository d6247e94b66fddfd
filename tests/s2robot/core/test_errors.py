"""One-line errors: differences between stored and current values, and errors of libraries."""

import pytest

from s2robot.core.errors import UserError, check_same, reported


def test_error_names_the_dotted_key_of_the_first_difference():
    stored = {"a": 1, "b": {"c": [1, 2], "d": 3}, "e": None}
    check_same("run", stored, {"b": {"c": (1, 2), "d": 3}, "a": 1})  # list equals tuple, missing equals None
    check_same("run", stored, {"a": 2, "b": {"c": [1, 2], "d": 4}}, free=("a", "b.d"))
    for current, words in (
        ({**stored, "b": {"c": [1, 2], "d": 4}}, "run: b.d: expected 3 as before, got 4"),
        ({**stored, "f": 0}, "run: f: expected None as before, got 0"),
        ({"a": 1}, "run: b: expected .* as before, got None"),
        ([], "run: expected .* as before, got \\[\\]"),
    ):
        with pytest.raises(UserError, match=f"^{words}; restart$"):
            check_same("run", stored, current, " as before", "restart")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "disk full"), "file: .*disk full; free some"),
        (KeyError("encoder"), "file: KeyError: 'encoder'; free some"),
        (ValueError("two\n  lines"), "file: two lines; free some"),
        (UserError("key: expected 1"), "key: expected 1"),
    ],
)
def test_library_error_becomes_one_line(error, words):
    with pytest.raises(UserError, match=f"^{words}$"), reported("file", "; free some"):
        raise error
    with pytest.raises(NameError), reported("file"):  # a program error
        raise NameError("x")
    with pytest.raises(OSError, match="other"), reported("file", kinds=(ValueError,)):
        raise OSError("other")
