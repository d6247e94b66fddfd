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

from verify import ROOT, commit_of

from s2robot.core.files import write_json
from s2robot.core.provenance import versions


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
    """Return what a row stores of its seeds: `outcomes` of each are bool (positions,) from position `first` on."""
    failed = [[first + i for i, done in enumerate(each["outcomes"]) if not done] for each in seeds]
    return {
        "seeds": [{"seed": each["seed"], "failed": rest} for each, rest in zip(seeds, failed, strict=True)],
        "positions": [first, first + len(seeds[0]["outcomes"]) - 1],
        "commit": commit_of(ROOT),
        "versions": versions(),
    }


def keep(path: Path, row: dict[str, Any]) -> None:
    """Print a row and store it in the summary, in place of the row with its name."""
    print(json.dumps(row), flush=True)
    summary = json.loads(path.read_text()) if path.exists() else {"rows": []}
    summary["rows"] = list(({r["name"]: r for r in summary["rows"]} | {row["name"]: row}).values())
    write_json(path, summary)


def arguments(description: str, name: str) -> argparse.ArgumentParser:
    """Return the options of a table whose summary is docs/results/<name>/summary.json."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("rows", nargs="*", help="rows of the table (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12], help="training seeds")
    parser.add_argument("--episodes", type=int, default=128, help="positions (default 128)")
    parser.add_argument("--seed", type=int, default=80_000, help="of the first position (default 80000)")
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
    if unknown := [name for name in args.rows if name not in rows]:
        parser.error(f"rows: expected some of {', '.join(rows)}, got {unknown[0]}")
    for name in args.rows or rows:
        keep(args.out, summarise(name, [one(name, seed) for seed in args.seeds]))
