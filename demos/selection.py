"""Select the training and validation episodes of a dataset, as the user specifies them.

select(store, 40, None, 0.1, seed)                # the first 40, a tenth of them held out
select(store, ["0:40", 50], None, 0.0, seed)      # 0 to 39 and 50
select(store, None, Path("split.json"), 0.0, 0)   # {"train": ["0:40"], "validation": [40, 41]}
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator

from s2robot.core.settings import Stored, read
from s2robot.demos.bounds import json_file
from s2robot.demos.errors import mismatch
from s2robot.demos.store import EpisodeStore, Split


def _count_or_list(episodes: Any) -> Any:
    if isinstance(episodes, bool | float) or (isinstance(episodes, int) and episodes < 1):
        raise ValueError(f"expected a count >= 1, a list of episodes, or null for all, got {episodes}")
    return episodes


Episodes = Annotated[Any, AfterValidator(_count_or_list)]  # None, a count from the start, or a list


class _SplitFile(Stored, extra="forbid"):
    train: list[int | str] | str
    validation: list[int | str] | str | None = None


def select(
    store: EpisodeStore,
    episodes: Any,
    split: str | Path | None,
    fraction: float,
    seed: int,
    spent: Collection[int] = (),
) -> Split:
    """Return the episodes to train on and to validate on (UserError: see :func:`numbers` and `EpisodeStore.split`).

    Args:
        episodes: None for all, a count from the start, or a list of numbers and ranges such as "0:40".
        split: a JSON file with the lists "train" and "validation", instead of `episodes` and `fraction`.
        spent: episodes that a split by `fraction` and `seed` must not hold out.
    """
    if split is None:
        listed = episodes is not None and not isinstance(episodes, int)
        chosen = sorted(numbers(episodes, len(store), "demos.episodes")) if listed else episodes
        return store.split(fraction, seed, chosen, spent)
    if fraction:
        raise mismatch("train.validation", "0 with demos.split", fraction)
    where = f"demos.split: {split}: "
    lists = read(_SplitFile, json_file(Path(split)), where)
    train = numbers(lists.train, len(store), f"{where}train")
    held_out = numbers(lists.validation, len(store), f"{where}validation") if lists.validation else []
    _check_once([*train, *held_out], f"{where}train and validation")
    return np.sort(train), np.sort(np.array(held_out, dtype=int))


def numbers(ranges: Any, total: int, where: str, what: str = "episodes") -> list[int]:
    """Expand numbers and ranges of episodes (or ``what``): "0:40" is 0 to 39, "40:" all from 40 on (DatasetError)."""
    selected: list[int] = []
    is_list = isinstance(ranges, Sequence) and not isinstance(ranges, str)
    for item in ranges if is_list else str(ranges).split(","):
        text = str(item).strip()
        first, colon, last = text.partition(":")
        is_valid = re.fullmatch(r"\d+|\d*:\d*", text)
        begin = int(first or 0) if is_valid else 0
        end = (int(last or total) if colon else begin + 1) if is_valid else 0
        if not begin < end <= total:
            expected = f"{what} of 0 to {total - 1} and ranges such as 20:40, which is 20 to 39"
            raise mismatch(where, expected, repr(item))
        selected += range(begin, end)
    _check_once(selected, where, what)
    return selected


def _check_once(episodes: list[int], where: str, what: str = "episodes") -> None:
    if len(episodes) != len(set(episodes)) or not episodes:
        twice = next((i for i, count in Counter(episodes).items() if count > 1), None)
        raise mismatch(where, f"{what} once each", "none" if twice is None else f"{twice} twice")
