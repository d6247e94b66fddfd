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


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["0:3", 5], [0, 1, 2, 5]), ("0:3,5", [0, 1, 2, 5]), (["8:"], [8, 9]), ([":2", "9"], [0, 1, 9]), ([7, 2], [7, 2]),
    ],
)  # fmt: skip
def test_numbers_and_ranges(given, found):
    assert numbers(given, 10, "x") == found


@pytest.mark.parametrize(
    ("given", "got"),
    [
        ([10], "10"),
        ([3, "2:5"], "3 twice"),
        ([-1], "-1"),
        ([], "none"),
        ([1, "7:4"], "'7:4'"),
        ([True], "True"),
    ],
)
def test_a_wrong_list_of_episodes_is_one_line(given, got):
    with pytest.raises(UserError, match=f"^x: expected .*, got {got}$"):
        numbers(given, 10, "x")


def test_drawn_splits(store):
    for episodes, fraction, seed in ((None, 0.0, 0), (None, 0.3, 5), (6, 0.5, 1), (40, 0.1, 2)):
        drawn = select(store, episodes, None, fraction, seed)
        assert lists(drawn) == lists(store.split(fraction, seed, episodes))
    train, held = lists(select(store, ["1:4", 8, 9], None, 0.4, 3))
    assert sorted(train + held) == [1, 2, 3, 8, 9] and len(held) == 2
    assert lists(select(store, [9, 1], None, 0.0, 0)) == ([1, 9], [])


def written(tmp_path, text) -> str:
    path = tmp_path / "split.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return str(path)


def test_a_split_file(store, tmp_path):
    file = written(tmp_path, {"train": ["0:3", 7], "validation": [4, 3]})
    assert lists(select(store, None, file, 0.0, 0)) == ([0, 1, 2, 7], [3, 4])
    assert lists(select(store, None, written(tmp_path, {"train": [5]}), 0.0, 0)) == ([5], [])
    with pytest.raises(UserError, match=r"^train.validation: expected 0"):
        select(store, None, file, 0.1, 0)
    with pytest.raises(UserError, match="none.json: cannot be read"):
        select(store, None, tmp_path / "none.json", 0.0, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"train": [0, 1], "validation": [1]}, "train and validation: expected each episode once, got 1"),
        ({"train": [0, 10]}, "train: expected episodes of 0 to 9"),
        ({"train": 2}, "train: expected"),
        ({"validation": [1]}, "train: expected a value"),
        ({"train": [1], "test": [2]}, "test: expected no such key"),
        ("{", "cannot be read"),
    ],
)
def test_a_broken_split_file_is_one_line(store, tmp_path, text, words):
    with pytest.raises(UserError) as caught:
        select(store, None, written(tmp_path, text), 0.0, 0)
    assert f"split.json: {words}" in str(caught.value) and "\n" not in str(caught.value)
