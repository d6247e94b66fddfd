"""Training and held-out episodes, which are recognised after conversion to any dataset format."""

import json
from functools import partial

import h5py
import numpy as np
import pytest

from s2robot.core.errors import UserError
from s2robot.demos.lineage import Lineage, episode_keys, open_copy, rounds_of
from s2robot.demos.mix import Mix
from s2robot.demos.selection import numbers, select
from s2robot.demos.store import EpisodeStore
from tests.demos.formats import made
from tests.demos.test_store import filled
from tests.errors import refuses


def matches(one: EpisodeStore, other: EpisodeStore) -> list[list[int]]:
    """Return, for every episode of `one`, the episodes of `other` that share a key."""
    others = [{*keys} for keys in episode_keys(other)]
    return [[i for i, keys in enumerate(others) if keys & {*own}] for own in episode_keys(one)]


@pytest.mark.parametrize(
    ("name", "sidecar"), zip(made.NAMES, ("meta/s2robot.json", None, ".zattrs"), strict=True)
)
def test_episode_is_recognised_in_every_format(tmp_path, name, sidecar):
    """Without the sidecar that our exporters add; formats/ tests the exact round trip with it."""
    store = made.store(tmp_path / "in.zarr")
    out = made.written(store, tmp_path / name, action_range="data")
    if sidecar:
        (out / sidecar).unlink()
    else:
        with h5py.File(out, "a") as file:
            del file["data"].attrs["s2robot"]
    assert matches(store, made.converted(out)) == [[0], [1]]


def changed(store: EpisodeStore, path, change) -> EpisodeStore:
    """Return a copy of a store with `change` applied to the arrays of every episode."""
    with EpisodeStore.create(path, store.attrs) as copy:
        for i in range(len(store)):
            copy.append(change(store.episode(i)), {"seed": i})
    return copy


def test_states_identify_episodes_but_constant_arrays_do_not(tmp_path):
    store = made.store(tmp_path / "in.zarr")

    def summed(arrays):
        return arrays | {"action": arrays["action"].cumsum(0).astype("f4").clip(-9, 1)}

    def constant(arrays, value):
        short = {k: v[:4] for k, v in arrays.items()}
        return short | {"action": np.zeros((4, 3), "f4"), "proprio": np.full((4, 4), value, "f4")}

    assert matches(store, changed(store, tmp_path / "summed.zarr", summed)) == [[0], [1]]
    a, b = (changed(store, tmp_path / f"{x}.zarr", partial(constant, value=x)) for x in (0, 1))
    assert matches(a, a) == [[0, 1], [0, 1]] and matches(a, b) == [[], []]


def test_stored_lineage_round_trips(tmp_path):
    store = made.store(tmp_path / "in.zarr")
    (store.path / "corrections.json").write_text('[{"positions": [20, 23]}, {"positions": [22, 24]}]')
    kept = open_copy(tmp_path / "kept.zarr", store, 2, lambda copy: copy.append_all(store))
    assert rounds_of(kept.path) == rounds_of(store.path) != []
    copy = made.converted(store.path)
    lineage = Lineage().trained_on(copy, [1]).with_positions("selected", range(5, 7))
    text = json.dumps(lineage.stored())
    assert Lineage.of({"lineage": json.loads(text)}) == lineage and lineage.seen(store) == [1]
    for seed, use in ((7, "recorded"), (8, "recorded"), (23, "corrected"), (6, "selected")):
        assert seed in lineage.positions[use]
        with pytest.raises(UserError, match=f"^evaluate.seed: .*first {seed}"):
            lineage.refuse(range(seed, seed + 1), "this", "evaluate.seed")
    lineage.refuse(range(9, 20), "this", "evaluate.seed")
    lineage.refuse(range(5, 7), "this", "train.rollouts.seed", ("recorded", "corrected"))
    more = changed(store, tmp_path / "more.zarr", dict)
    child = Lineage.of({"lineage": json.loads(text)}).trained_on(more, [0])
    for seed in (1, 7, 23, 6):  # the child's own and its parent's
        refuses(f"first {seed}", child.refuse, range(seed, seed + 1), "child", "evaluate.seed")


def test_copies_of_training_episodes_are_never_held_out(tmp_path):
    store = made.store(tmp_path / "in.zarr")
    mix = Mix([store, made.converted(made.written(store, tmp_path / "out", image_codec="png"))], [1, 1])
    assert Lineage().spent(mix) == [0, 1, 2, 3] and Lineage().spent(store) == []
    with pytest.raises(UserError, match="got 2, which is also episode 0, which is trained on"):
        Lineage().check_held_out(mix, np.array([0, 3]), np.array([2]))
    Lineage().check_held_out(mix, np.array([0, 2]), np.array([1]))
    altered = changed(store, tmp_path / "altered.zarr", lambda x: {**x, "action": x["action"] / 2})
    assert Lineage().spent(Mix([store, altered], [1, 1])) == [0, 1, 2, 3]
    lineage = Lineage().trained_on(store, [0])
    with pytest.raises(UserError, match="got 0, which train.from's policy was trained on"):
        lineage.check_held_out(store, np.array([1]), np.array([0]))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return EpisodeStore.open(filled(tmp_path_factory.mktemp("store") / "ten.zarr", 10))


def as_lists(split):
    return tuple(part.tolist() for part in split)


def test_numbers_and_ranges():
    for spec, expected in (
        (["0:3", 5], [0, 1, 2, 5]), ("0:3,5", [0, 1, 2, 5]), (["8:"], [8, 9]), ([":2", "9"], [0, 1, 9]), ([7, 2], [7, 2]),
    ):  # fmt: skip
        assert numbers(spec, 10, "x") == expected
    for spec, got in (
        ([10], "10"), ([3, "2:5"], "3 twice"), ([-1], "-1"), ([], "none"), ([1, "7:4"], "'7:4'"), ([True], "True"),
    ):  # fmt: skip
        refuses(f"^x: expected .*, got {got}$", numbers, spec, 10, "x")


def test_random_splits(store):
    for episodes, fraction, seed in ((None, 0.0, 0), (None, 0.3, 5), (6, 0.5, 1), (40, 0.1, 2)):
        split = select(store, episodes, None, fraction, seed)
        assert as_lists(split) == as_lists(store.split(fraction, seed, episodes))
    train, held = as_lists(select(store, ["1:4", 8, 9], None, 0.4, 3))
    assert sorted(train + held) == [1, 2, 3, 8, 9] and len(held) == 2
    assert as_lists(select(store, [9, 1], None, 0.0, 0)) == ([1, 9], [])


def test_split_file(store, tmp_path):
    path = tmp_path / "split.json"

    def selected(text, fraction=0.0):
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        return as_lists(select(store, None, path, fraction, 0))

    both = {"train": ["0:3", 7], "validation": [4, 3]}
    assert selected(both) == ([0, 1, 2, 7], [3, 4]) and selected({"train": [5]}) == ([5], [])
    for text, words in (
        ({"train": [0, 1], "validation": [1]}, "train and validation: expected .*, got 1"),
        ({"train": [0, 10]}, "train: expected episodes of 0 to 9"),
        ({"train": 2}, "train: expected"),
        ({"validation": [1]}, "train: expected a value"),
        ({"train": [1], "test": [2]}, "test: expected no such key"),
        ("{", "cannot be read"),
    ):
        refuses(rf"split.json: {words}[^\n]*\Z", selected, text)
    refuses(r"^train.validation: expected 0", selected, both, 0.1)
    refuses("none.json: cannot be read", select, store, None, tmp_path / "none.json", 0.0, 0)
