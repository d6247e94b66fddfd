"""Which episodes are trained on and held out, as a user specifies it; mistakes are one line."""

import json

import numpy as np
import pytest

from s2robot.core.errors import UserError
from s2robot.demos.selection import numbers, select
from s2robot.demos.store import EpisodeStore
from tests.demos.test_store import ATTRIBUTES


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    row = np.zeros((1, 8), np.float32)
    with EpisodeStore.create(tmp_path_factory.mktemp("store") / "ten.zarr", ATTRIBUTES) as filling:
        for _ in range(10):
            filling.append({"action": row, "proprio": row})
    return EpisodeStore.open(filling.path)


def lists(split):
    return tuple(part.tolist() for part in split)


def test_numbers_and_ranges():
    for given, found in (
        (["0:3", 5], [0, 1, 2, 5]), ("0:3,5", [0, 1, 2, 5]), (["8:"], [8, 9]), ([":2", "9"], [0, 1, 9]), ([7, 2], [7, 2]),
    ):  # fmt: skip
        assert numbers(given, 10, "x") == found
    for given, got in (
        ([10], "10"), ([3, "2:5"], "3 twice"), ([-1], "-1"), ([], "none"), ([1, "7:4"], "'7:4'"), ([True], "True"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"^x: expected .*, got {got}$"):
            numbers(given, 10, "x")


def test_drawn_splits(store):
    for episodes, fraction, seed in ((None, 0.0, 0), (None, 0.3, 5), (6, 0.5, 1), (40, 0.1, 2)):
        drawn = select(store, episodes, None, fraction, seed)
        assert lists(drawn) == lists(store.split(fraction, seed, episodes))
    train, held = lists(select(store, ["1:4", 8, 9], None, 0.4, 3))
    assert sorted(train + held) == [1, 2, 3, 8, 9] and len(held) == 2
    assert lists(select(store, [9, 1], None, 0.0, 0)) == ([1, 9], [])


def test_a_split_file(store, tmp_path):
    path = tmp_path / "split.json"

    def selected(text, fraction=0.0):
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        return lists(select(store, None, path, fraction, 0))

    both = {"train": ["0:3", 7], "validation": [4, 3]}
    assert selected(both) == ([0, 1, 2, 7], [3, 4]) and selected({"train": [5]}) == ([5], [])
    for text, words in (
        ({"train": [0, 1], "validation": [1]}, "validation: expected .*, got 1"),
        ({"train": [0, 10]}, "train: expected episodes of 0 to 9"),
        ({"train": 2}, "train: expected"),
        ({"validation": [1]}, "train: expected a value"),
        ({"train": [1], "test": [2]}, "test: expected no such key"),
        ("{", "cannot be read"),
    ):
        with pytest.raises(UserError, match=rf"split.json: {words}[^\n]*\Z"):
            selected(text)
    with pytest.raises(UserError, match=r"^train.validation: expected 0"):
        selected(both, 0.1)
    with pytest.raises(UserError, match="none.json: expected a file"):
        select(store, None, tmp_path / "none.json", 0.0, 0)
