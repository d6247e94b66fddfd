"""Which episodes of a dataset are trained on and which are held out, as a user says it.

select(store, 40, None, 0.1, seed)                # of the first 40, a tenth held out
select(store, ["0:40", 50], None, 0.0, seed)      # 0 to 39 and 50
select(store, None, Path("split.json"), 0.0, 0)   # {"train": ["0:40"], "validation": [40, 41]}
"""

import json
import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator

from s2robot.core.errors import UserError
from s2robot.core.settings import Stored, read
from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.store import EpisodeStore, Split


def _count_or_list(episodes: Any) -> Any:
    if isinstance(episodes, bool | float) or (isinstance(episodes, int) and episodes < 1):
        raise ValueError(f"expected a count >= 1, a list of episodes, or null for all, got {episodes}")
    return episodes


Episodes = Annotated[
    Any, AfterValidator(_count_or_list)
]  # of settings: None, a count of the first ones, or a list


def select(
    store: EpisodeStore,
    episodes: Any,
    split: str | Path | None,
    fraction: float,
    seed: int,
    spent: Collection[int] = (),
) -> Split:
    """Episodes to train on and to validate on.

    Args:
        episodes: None for all, the number of the first ones, or a list of numbers and ranges "0:40".
        split: a JSON file with "train" and "validation", lists likewise; instead of the two others.
        fraction: of the episodes held out, drawn by the seed.
        spent: those that a drawn split does not hold out.

    Raises:
        DatasetError: an episode that is not there, or twice; nothing to train on; a file that is none.
    """
    if split is not None:
        return _split_of(store, Path(split), fraction)
    if episodes is None or isinstance(episodes, int):
        return store.split(fraction, seed, episodes, spent)
    return store.split(fraction, seed, sorted(numbers(episodes, len(store), "demos.episodes")), spent)


def numbers(given: Any, total: int, where: str) -> list[int]:
    """The episodes that a list of numbers and ranges names, in its order; "0:40" is 0 to 39, "40:" all from 40 on.

    Raises:
        DatasetError: names what is not one of the `total` episodes, or stands twice, or that there is none.
    """
    items = given if isinstance(given, Sequence) and not isinstance(given, str) else str(given).split(",")
    found: list[int] = []
    for item in items:
        text = str(item).strip()
        if not re.fullmatch(r"\d+|\d*:\d*", text):
            raise mismatch(where, repr(item), "numbers of episodes and ranges such as 0:40")
        first, colon, last = text.partition(":")
        begin = int(first or 0)
        end = int(last or total) if colon else begin + 1
        if max(begin, end - 1) >= total:
            raise mismatch(where, f"episode {max(begin, end - 1)}", f"some of the {total}, 0 to {total - 1}")
        if begin >= end:
            raise mismatch(where, f"no episode in '{text}'", "at least one: 20:40 is 20 to 39")
        found += range(begin, end)
    for before, number in pairwise(sorted(found)):
        if before == number:
            raise mismatch(where, f"episode {number} twice", "each once")
    if not found:
        raise mismatch(where, "no episode", "at least one")
    return found


class _SplitFile(Stored, extra="forbid"):
    """Episodes by number and range, as a JSON file holds them."""

    train: list[int | str] | str
    validation: list[int | str] | str | None = None


def _split_of(store: EpisodeStore, file: Path, fraction: float) -> Split:
    where, total = f"demos.split: {file}", len(store)
    if fraction:
        raise DatasetError(
            f"train.validation: expected 0, as demos.split says what is held out, got {fraction}"
        )
    try:
        found = read(_SplitFile, json.loads(file.read_text("utf-8")), f"{where}: ")
    except UserError as error:
        raise DatasetError(str(error)) from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{where}: cannot be read ({error})") from None
    train = numbers(found.train, total, f"{where}: train")
    held = numbers(found.validation, total, f"{where}: validation") if found.validation else []
    if both := sorted(set(train) & set(held)):
        raise mismatch(where, f"episode {both[0]} in train and in validation", "each in one")
    return np.sort(train), np.sort(np.array(held, dtype=int))
