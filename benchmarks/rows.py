"""Shared by the tables of policies and of tasks: train and evaluate rows, summarise them, extend the committed summary.
Each row is trained with every seed and evaluated on the same positions. Runs are in `--work`: finished ones are skipped and
interrupted ones resume. Rows of the summary that are not run stay as they are.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.comparison.paired import difference, success_interval
from s2robot.core.files import write_json

ROOT = Path(__file__).resolve().parent.parent


def run(verb: str, words: list[str], folder: Path) -> None:
    """Run a verb in its run directory, unless it has finished there."""
    if (folder / "done").exists():
        return
    command = [sys.executable, "-m", "s2robot", verb, *words, f"hydra.run.dir={folder}"]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a") as log:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=True)
    (folder / "done").touch()


def success(seeds: list[dict[str, Any]], first: int) -> dict[str, Any]:
    """Summarise a row; `outcomes` of each seed are bool (positions,) from position `first` on."""
    outcomes = np.array([each["outcomes"] for each in seeds])  # (seeds, positions)
    low, high, method = success_interval(outcomes)
    rates = outcomes.mean(1)
    found = [
        {"seed": each["seed"], "episodes": len(done), "successes": int(done.sum()),
         "failed": [first + int(i) for i in np.flatnonzero(~done)]}
        for each, done in zip(seeds, outcomes, strict=True)
    ]  # fmt: skip
    return {
        "seeds": found,
        "mean": round(float(rates.mean()), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "method": method,
        "worst": round(float(rates.min()), 4),
        "sd": round(float(rates.std(ddof=1)), 4) if len(rates) > 1 else None,
        "positions": [first, first + outcomes.shape[1] - 1],
    }


def against(name: str, seeds: list[dict[str, Any]], other: str, base: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the paired difference of two rows on the same positions."""
    mine, theirs = (np.array([each["outcomes"] for each in row]) for row in (seeds, base))
    found = difference(mine, theirs)
    points = {"points": found.difference, "low": found.low, "high": found.high}
    return {
        "name": f"{name} − {other}",
        "successes": [[int(seed.sum()) for seed in arm] for arm in (mine, theirs)],
        "positions": found.positions,
        **{key: round(100 * value, 2) for key, value in points.items()},
        "p": round(found.p, 4),
        "scope": found.scope,
    }


def keep(path: Path, key: str, row: dict[str, Any]) -> None:
    """Print a row and store it in the summary, in place of the row with its name."""
    print(json.dumps(row), flush=True)
    summary = json.loads(path.read_text()) if path.exists() else {"rows": []}
    summary[key] = list(({r["name"]: r for r in summary.get(key, [])} | {row["name"]: row}).values())
    write_json(path, summary)


def arguments(description: str, name: str) -> argparse.ArgumentParser:
    """Return the options of a table whose summary is docs/results/<name>/summary.json."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("rows", nargs="*", help="rows of the table (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--episodes", type=int, default=128, help="positions (default 128)")
    parser.add_argument("--seed", type=int, default=60_000, help="of the first position (default 60000)")
    parser.add_argument("--against", help="a row that is subtracted from the others, position by position")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / name, help="folder of the runs")
    out = ROOT / "docs" / "results" / name / "summary.json"
    parser.add_argument("--out", type=Path, default=out, help="the summary")
    return parser


def fill(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    rows: Collection[str],
    one: Callable[[str, int], dict[str, Any]],
    summarise: Callable[[str, list[dict[str, Any]]], dict[str, Any]],
) -> None:
    """Measure the chosen rows: `one` trains and evaluates a row with a seed, `summarise` makes the row of the summary."""
    if unknown := [name for name in [*args.rows, *filter(None, [args.against])] if name not in rows]:
        parser.error(f"rows: expected some of {', '.join(rows)}, got {unknown[0]}")
    for name in args.rows or rows:
        seeds = [one(name, seed) for seed in args.seeds]
        keep(args.out, "rows", summarise(name, seeds))
        if args.against not in (None, name):
            base = [one(args.against, seed) for seed in args.seeds]
            keep(args.out, "differences", against(name, seeds, args.against, base))
