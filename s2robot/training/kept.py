"""The checkpoints of a training that rolled out best: folders `checkpoint_<step>`, and `checkpoints.json` with an index.

Which ones are kept follows from the rows of metrics alone, so it is the same after a kill.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from s2robot.common.files import write_json

INDEX = "checkpoints.json"


def folder_of(out: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return out / f"checkpoint_{step}"


def best_rows(rows: Sequence[Mapping[str, float]], keep: int) -> list[Mapping[str, float]]:
    """The rows of highest success, best first; of equals the later one."""
    tried = [row for row in rows if "success" in row]
    return sorted(tried, key=lambda row: (-row["success"], -row["step"]))[:keep]


def keep_best(out: Path, rows: Sequence[Mapping[str, float]], keep: int) -> None:
    """Write the index, then remove the other checkpoints of steps."""
    index = [
        {"checkpoint": folder_of(out, int(r["step"])).name, "step": r["step"], "success": r["success"]}
        for r in best_rows(rows, keep)
    ]
    write_json(out / INDEX, index)
    kept = {entry["checkpoint"] for entry in index}
    for folder in out.glob("checkpoint_*"):
        if re.fullmatch(r"checkpoint_\d+", folder.name) and folder.name not in kept:
            shutil.rmtree(folder)
