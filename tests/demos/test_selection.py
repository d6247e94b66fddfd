"""Which episodes are trained on and held out, as it is typed; what is wrong with it in one line."""

import json

import numpy as np
import pytest

from s2robot.demos.errors import DatasetError
from s2robot.demos.selection import numbers, select
from s2robot.demos.store import EpisodeStore
from tests.demos.test_store import ATTRIBUTES


@pytest.fixture
def store(tmp_path):
    row = np.zeros((1, 8), np.float32)
    with EpisodeStore.create(tmp_path / "ten.zarr", ATTRIBUTES) as filling:
        for _ in range(10):
            filling.append({"action": row, "proprio": row})
    return EpisodeStore.open(tmp_path / "ten.zarr")


def lists(split):
    return tuple(part.tolist() for part in split)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["0:3", 5], [0, 1, 2, 5]),
        ("0:3,5", [0, 1, 2, 5]),
        (["8:"], [8, 9]),
        ([":2", "9"], [0, 1, 9]),
        ([7, 2], [7, 2]),
    ],
)
def test_numbers_and_ranges(given, found):
    assert numbers(given, 10, "x") == found


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([10], "x: found episode 10, expected some of the 10, 0 to 9"),
        ([3, "2:5"], "x: found episode 3 twice, expected each once"),
        ([-1], "x: found -1, expected numbers of episodes and ranges such as 0:40"),
        ([], "x: found no episode, expected at least one"),
        ([1, "7:4"], "x: found no episode in '7:4', expected at least one: 20:40 is 20 to 39"),
        ([True], "x: found True, expected numbers"),
    ],
)
def test_what_is_no_list_of_episodes_is_one_line(given, words):
    with pytest.raises(DatasetError) as caught:
        numbers(given, 10, "x")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_first_ones_are_drawn_from_as_ever(store):
    for episodes, fraction, seed in ((None, 0.0, 0), (None, 0.3, 5), (6, 0.5, 1), (40, 0.1, 2)):
        assert lists(select(store, episodes, None, fraction, seed)) == lists(
            store.split(fraction, seed, episodes)
        )


def test_a_share_of_a_list_is_held_out(store):
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"train": [0, 1], "validation": [1]}, "found episode 1 in train and in validation, expected each in one"),
        ({"train": [0, 10]}, "split.json: train: found episode 10, expected some of the 10, 0 to 9"),
        ({"train": 2}, "split.json: train: expected"),
        ({"train": []}, "split.json: train: found no episode, expected at least one"),
        ({"train": [1], "validation": 0}, "split.json: validation: expected"),
        ({"validation": [1]}, "split.json: train: expected a value"),
        ({"train": [1], "test": [2]}, "split.json: test: unknown key"),
        ("{", "cannot be read"),
    ],
)  # fmt: skip
def test_a_split_file_that_is_none_is_one_line(store, tmp_path, text, words):
    with pytest.raises(DatasetError) as caught:
        select(store, None, written(tmp_path, text), 0.0, 0)
    assert words in str(caught.value) and str(caught.value).startswith("demos.split: ")


def test_a_share_beside_a_split_file_and_a_missing_file_are_refused(store, tmp_path):
    file = written(tmp_path, {"train": [0]})
    with pytest.raises(DatasetError, match=r"train.validation: expected 0, .* got 0.1"):
        select(store, None, file, 0.1, 0)
    with pytest.raises(DatasetError, match="none.json: cannot be read"):
        select(store, None, tmp_path / "none.json", 0.0, 0)
