"""What the tables of policies and of tasks share: runs of verbs, intervals over seeds, a summary that grows by rows."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.common.files import write_json
from s2robot.comparison.intervals import success_interval
from s2robot.comparison.paired import difference

ROOT = Path(__file__).resolve().parent.parent


def run(verb: str, words: list[str], folder: Path) -> None:
    """A verb in its run folder, unless it was done before."""
    if (folder / "done").exists():
        return
    start = time.monotonic()
    command = [sys.executable, "-m", "s2robot", verb, *words, f"hydra.run.dir={folder}"]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a") as log:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=True)
    (folder / "done").write_text(str(time.monotonic() - start))


def records(folder: Path) -> list[dict[str, Any]]:
    """The episodes of an evaluation, by position."""
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


def success(seeds: list[dict[str, Any]], first: int) -> dict[str, Any]:
    """What a row says of its success; `outcomes` of each seed are bool (positions,), the first is that of `first`."""
    outcomes = np.array([each["outcomes"] for each in seeds])  # (seeds, positions)
    low, high, method = success_interval(outcomes)
    rates = outcomes.mean(1)
    return {
        "seeds": [
            {
                "seed": each["seed"],
                "episodes": len(each["outcomes"]),
                "successes": int(sum(each["outcomes"])),
                "failed": [first + i for i, done in enumerate(each["outcomes"]) if not done],
            }
            for each in seeds
        ],
        "mean": round(float(rates.mean()), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "method": method,
        "worst": round(float(rates.min()), 4),
        "sd": round(float(rates.std(ddof=1)), 4) if len(rates) > 1 else None,
        "positions": [first, first + outcomes.shape[1] - 1],
    }


def against(name: str, seeds: list[dict[str, Any]], other: str, base: list[dict[str, Any]]) -> dict[str, Any]:
    """How far a row is above another, on the same positions: a line of the summary's `differences`."""
    mine, theirs = (np.array([each["outcomes"] for each in row]) for row in (seeds, base))
    found = difference(mine, theirs)
    return {
        "name": f"{name} − {other}",
        "successes": [[int(seed.sum()) for seed in arm] for arm in (mine, theirs)],
        "positions": found.positions,
        "points": round(100 * found.difference, 2),
        "low": round(100 * found.low, 2),
        "high": round(100 * found.high, 2),
        "p": round(found.p, 4),
        "scope": found.scope,
    }


def keep(path: Path, key: str, row: dict[str, Any], by: str = "name") -> None:
    """A row of a summary: printed, and in the place of the one of its name (or of the same `by`)."""
    print(json.dumps(row), flush=True)
    summary = json.loads(path.read_text()) if path.exists() else {"rows": []}
    found = {r[by]: r for r in summary.get(key, [])}
    summary[key] = list((found | {row[by]: row}).values())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, summary)
