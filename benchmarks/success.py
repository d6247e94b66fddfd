"""Success over training seeds, on positions that no choice of settings used: rows of docs/results/<table>/summary.json.

    python -m benchmarks.success policies                       # every row; hours on two cores
    python -m benchmarks.success tasks stack lift

Each row is trained with every seed and evaluated on the same positions. Runs are in runs/<table>: finished ones are skipped and
interrupted ones resume. Rows of the summary that are not run stay as they are.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.verify import ROOT, commit_of
from s2robot.core.files import read_json, write_json
from s2robot.core.provenance import versions
from s2robot.evaluation.records import read_records


@dataclass(frozen=True)
class Row:
    """Overrides of `s2robot train`, of both `train` and `evaluate`, and of `record` for demonstrations that do not ship."""

    train: str = ""
    world: str = ""
    record: str = ""
    dagger_rounds: int = 0
    base: str = ""  # with DAgger: the row whose policies it starts from


SOFTMAX = "policy.pooling.kind=spatial_softmax"
ROWS = {
    "policies": {
        "default": Row(),
        **{head: Row(f"policy.members=1 train.steps=3000 policy/head={head}") for head in "regression mip flow diffusion gmm act".split()},
        "15 demos": Row("demos.episodes=15"),
        "15 demos, DAgger": Row("demos.episodes=15", dagger_rounds=2, base="15 demos"),
        "DAgger": Row(dagger_rounds=1, base="default"),
        "transformer": Row("policy=transformer"),
        "panda": Row("", "robot=panda demos.path=runs/policies/panda.zarr", "robot=panda out=runs/policies/panda.zarr"),
    },
    "tasks": {
        task: Row("", f"task={task} demos.path={demos}", f"task={task} seed=100000 out={demos}")
        for task, demos in ((task, f"runs/tasks/{task}.zarr") for task in ("stack", "lift", "can", "square"))
    },
}  # fmt: skip


def run(verb: str, words: list[str], folder: Path) -> None:
    """Run a verb in its run directory, unless it has finished there."""
    if (folder / "done").exists():
        return
    command = [sys.executable, "-m", "s2robot", verb, *words, f"hydra.run.dir={folder}"]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a") as log:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=True)
    (folder / "done").touch()


def words_of(row: Row, seed: Any) -> list[str]:
    return ["features.augment=0", SOFTMAX, *row.train.split(), *row.world.split(), f"train.seed={seed}"]


def folder_of(table: str, name: str, seed: int) -> Path:
    return ROOT / "runs" / table / name.replace(",", "") / f"seed{seed}"


def trained(table: str, name: str, seed: int) -> Path:
    """Return the checkpoint of a row, which is trained first, on demonstrations that are recorded once."""
    row, folder = ROWS[table][name], folder_of(table, name, seed) / "train"
    if row.record:
        run("record", row.record.split(), ROOT / "runs" / table / "record" / Path(row.record).stem)
    run("train", words_of(row, seed), folder)
    return folder / "checkpoint"


def measured(table: str, name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    row, folder = ROWS[table][name], folder_of(table, name, seed)
    positions = [f"evaluate.episodes={args.episodes}", f"evaluate.seed={args.seed}", "evaluate.videos=0"]
    if rounds := row.dagger_rounds:
        tried = folder / "dagger"
        base = f"recording.checkpoint={trained(table, row.base, seed)}"
        run("dagger", [*words_of(row, seed), base, f"recording.rounds={rounds}", *positions], tried)
    else:
        tried = folder / "evaluate"
        run("evaluate", [f"checkpoint={trained(table, name, seed)}", *row.world.split(), *positions], tried)
    failed = [record["seed"] for record in read_records(tried / "episodes.jsonl") if not record["success"]]
    return {"seed": seed, "failed": failed}


def keep(path: Path, row: dict[str, Any]) -> None:
    """Print a row and store it in the summary, in place of the row with its name."""
    print(json.dumps(row), flush=True)
    summary = read_json(path) if path.exists() else {"rows": []}
    summary["rows"] = list(({r["name"]: r for r in summary["rows"]} | {row["name"]: row}).values())
    write_json(path, summary)


def keep_policy(table: str, name: str, args: argparse.Namespace) -> None:
    """Train and evaluate a row with every seed, and store it."""
    row = ROWS[table][name]
    command = f"s2robot train {' '.join(words_of(row, '<seed>'))}"
    if row.dagger_rounds:
        command += f" recording.checkpoint=<{row.base}> recording.rounds={row.dagger_rounds}"
        command = command.replace("train", "dagger", 1)
    facts = {
        "name": name,
        "seeds": [measured(table, name, seed, args) for seed in args.seeds],
        "positions": [args.seed, args.seed + args.episodes - 1],
        "commit": commit_of(ROOT),
        "versions": versions(),
        "command": command,
    }
    keep(ROOT / f"docs/results/{table}/summary.json", facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=ROWS)
    parser.add_argument("rows", nargs="*", help="rows of the table (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--episodes", type=int, default=128, help="positions (default 128)")
    parser.add_argument("--seed", type=int, default=60_000, help="of the first position (default 60000)")
    args = parser.parse_args()
    known = ROWS[args.table]
    if unknown := [name for name in args.rows if name not in known]:
        parser.error(f"rows: expected some of {', '.join(known)}, got {unknown[0]}")
    for name in args.rows or known:
        keep_policy(args.table, name, args)


if __name__ == "__main__":
    main()
