"""The episodes of an evaluation as they end, so that a killed evaluation resumes.

journal = Journal(run / "episodes.jsonl", settings={"seed": 10000, "policy": sha256})
journal.records, journal.actions   # what an earlier process has finished, by episode
journal.append(record, actions)    # on disk when it returns

Beside `episodes.jsonl` lie `episodes.settings.json` (all that decides an episode but its number) and
`actions/episode_0000.npy` (float32 (steps, A), to film it later).
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.core.errors import UserError
from s2robot.core.files import claim, replacing, write_text
from s2robot.evaluation.records import read_records

_REMEDY = "choose another run folder, or start again with evaluate.resume=false"


class Journal:
    """Finished episodes on disk.

    Args:
        path: `episodes.jsonl`.
        settings: JSON types, of everything that decides an episode; None: whatever is there is written over.

    Opening drops a last line that a kill has cut off, and any episode whose actions are not on disk.

    Raises:
        UserError: episodes made with other settings are there, or a broken line before the last.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any] | None = None):
        self.path = path
        self.records: dict[int, dict[str, Any]] = {}
        self.actions: dict[int, np.ndarray] = {}  # episode -> float32 (steps, A)
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "actions").mkdir(exist_ok=True)
        known = path.with_suffix(".settings.json")
        if settings is not None:
            found = path.exists() and path.stat().st_size > 0
            if found and not known.exists():
                raise UserError(f"{path}: expected {known.name} beside it, got none; {_REMEDY}")
            if not found:
                known.unlink(missing_ok=True)
            claim(known, settings, _REMEDY)  # before the journal: a kill leaves no episodes of unknown origin
            if found:
                self._read()
        write_records(list(self.records.values()), path)
        if settings is None:
            known.unlink(missing_ok=True)

    def append(self, record: Mapping[str, Any], actions: np.ndarray) -> None:
        """Keep one ended episode: its actions first, so that every line of the journal has them."""
        file = _actions_file(self.path.parent, record["episode"])
        with replacing(file) as part:
            np.save(part, actions, allow_pickle=False)
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        self.records[record["episode"]], self.actions[record["episode"]] = dict(record), actions

    def _read(self) -> None:
        text = self.path.read_text(encoding="utf-8", errors="replace")
        if not text.endswith("\n"):  # a whole line ends with one
            write_text(self.path, text[: text.rfind("\n") + 1])
        for record in read_records(self.path):
            try:
                actions = read_actions(self.path.parent, record["episode"])
            except (OSError, ValueError, EOFError):
                continue
            if actions.dtype == np.float32 and len(actions) == record["steps"]:
                self.records[record["episode"]] = {**record, "video": None}
                self.actions[record["episode"]] = actions


def write_records(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """All records in order, replacing the journal at once."""
    write_text(path, "".join(json.dumps(r) + "\n" for r in records))


def read_actions(run_dir: Path, episode: int) -> np.ndarray:
    """The actions of an episode of a run folder, float32 (steps, A)."""
    return np.load(_actions_file(run_dir, episode), allow_pickle=False)


def _actions_file(run_dir: Path, episode: int) -> Path:
    return run_dir / "actions" / f"episode_{episode:04d}.npy"
