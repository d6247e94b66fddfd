"""The table of robosuite's worlds: success over training seeds on positions that played no part in any choice.

    python benchmarks/tasks.py                                  # every row; hours on two cores
    python benchmarks/tasks.py stack "stack, one scale" --seeds 0 1 2 --episodes 128 --demos 150
    python benchmarks/tasks.py --experts --episodes 128         # the scripted experts instead: minutes

Each row is a task and what is typed besides, trained with every seed and evaluated on the same positions. Demos are
recorded once a task. The runs lie in `--work`, finished ones are not run again, and an interrupted one goes on. The
result, with intervals over training seeds and positions and the command of each row, goes into
docs/results/tasks/summary.json: rows that are there already and are not asked for stay.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.common.files import write_json
from s2robot.comparison.intervals import success_interval

ROOT = Path(__file__).resolve().parent.parent
SUMMARY = ROOT / "docs" / "results" / "tasks" / "summary.json"
DEMOS_SEED = 100_000  # of the first demo


@dataclass(frozen=True)
class Row:
    """A task, and what is typed for `s2robot train` besides."""

    task: str
    train: str = ""

    @property
    def arm(self) -> str:
        return "one scale" if "s2=single" in self.train else "S2"


TASKS = ("stack", "lift", "can", "square")
ROWS = {task: Row(task) for task in TASKS}
ROWS |= {f"{task}, one scale": Row(task, "s2=single") for task in TASKS}


def run(verb: str, words: list[str], folder: Path) -> float:
    """Seconds of a verb in its run folder; those of then where it was done before."""
    if (folder / "done").exists():
        return float((folder / "done").read_text())
    start = time.monotonic()
    command = [sys.executable, "-m", "s2robot", verb, *words, f"hydra.run.dir={folder}"]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a") as log:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=True)
    seconds = time.monotonic() - start
    (folder / "done").write_text(str(seconds))
    return seconds


def one(name: str, row: Row, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate a row with one training seed."""
    demos = args.work / f"{row.task}.zarr"
    task = f"task={row.task}"
    asked = [f"episodes={args.demos}", f"seed={DEMOS_SEED}", f"out={demos}"]
    run("record", [task, *asked], args.work / "record" / row.task)
    folder = args.work / name.replace(",", "") / f"seed{seed}"
    words = [task, f"demos.path={demos}", *row.train.split()]
    run("train", [*words, f"train.seed={seed}"], folder / "train")
    positions = [f"evaluate.episodes={args.episodes}", f"evaluate.seed={args.seed}", "evaluate.videos=4"]
    checkpoint = f"checkpoint={folder / 'train' / 'checkpoint'}"
    run("evaluate", [checkpoint, task, *positions], folder / "evaluate")
    lines = (folder / "evaluate" / "episodes.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {
        "seed": seed,
        "outcomes": [bool(record["success"]) for record in records],
        "stages": [record["stage"] for record in records],
    }


def expert_outcome(task: str, seed: int) -> tuple[bool, int]:
    """Whether the expert of a task succeeds from a seed, pushed as in demos, and in how many steps."""
    from s2robot.envs.tasks import make, settings_class

    world = _WORLDS.get(task) or _WORLDS.setdefault(task, make(settings_class(task)(), draw=False))
    world.reset(seed=seed)
    expert = world.expert(np.random.default_rng([seed, 7]))
    steps = 0
    while not world.is_success and steps < world.settings.max_steps:
        world.step_physics(expert.act())
        steps += 1
    return world.is_success, steps


_WORLDS: dict[str, Any] = {}


def expert_row(task: str, args: argparse.Namespace, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """The expert of a task on the positions."""
    seeds = range(args.seed, args.seed + args.episodes)
    found = list(pool.map(expert_outcome, [task] * len(seeds), seeds))
    outcomes = np.array([[success for success, _ in found]])
    command = f"python benchmarks/tasks.py {task} --experts --episodes {args.episodes} --seed {args.seed}"
    return {
        **summarise(f"{task}, expert", Row(task), "expert", [{"seed": 0, "outcomes": outcomes[0]}], args),
        "command": command,
        "failed": [seed for seed, (success, _) in zip(seeds, found, strict=True) if not success],
        "steps": round(float(np.mean([steps for success, steps in found if success] or [0])), 1),
    }


def summarise(
    name: str, row: Row, arm: str, seeds: list[dict[str, Any]], args: argparse.Namespace
) -> dict[str, Any]:
    outcomes = np.array([each["outcomes"] for each in seeds])  # (seeds, positions)
    low, high, method = success_interval(outcomes)
    typed = f"task={row.task} demos.path=<demos> {row.train}".strip()
    stages = [stage for each in seeds for stage in each.get("stages", [])]
    return {
        "name": name,
        "task": row.task,
        "robot": "Panda",
        "controller": "OSC_POSE",
        "arm": arm,
        "demos": 0 if arm == "expert" else args.demos,
        "seeds": [
            {"seed": each["seed"], "episodes": len(each["outcomes"]), "successes": int(sum(each["outcomes"]))}
            for each in seeds
        ],
        "mean": round(float(outcomes.mean()), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "method": method,
        "stages": {stage: stages.count(stage) for stage in sorted(set(stages))},
        "command": f"s2robot train {typed} train.seed=<seed>",
        "positions": [args.seed, args.seed + args.episodes - 1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help=f"rows of the table (default: all): {', '.join(ROWS)}")
    parser.add_argument("--experts", action="store_true", help="the scripted experts; rows are tasks then")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--demos", type=int, default=150, help="demos a task (default 150)")
    parser.add_argument("--episodes", type=int, default=128, help="positions (default 128)")
    parser.add_argument("--seed", type=int, default=60_000, help="of the first position (default 60000)")
    parser.add_argument("--workers", type=int, default=2, help="processes that simulate experts")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "tasks", help="folder of the runs")
    parser.add_argument("--out", type=Path, default=SUMMARY, help="the summary")
    args = parser.parse_args()
    args.work = args.work.resolve()
    known = TASKS if args.experts else tuple(ROWS)
    if unknown := [name for name in args.rows if name not in known]:
        parser.error(f"unknown row {unknown[0]}, expected some of {', '.join(known)}")
    with ProcessPoolExecutor(args.workers) as pool:
        for name in args.rows or known:
            if args.experts:
                result = expert_row(name, args, pool)
            else:
                row = ROWS[name]
                trained = [one(name, row, seed, args) for seed in args.seeds]
                result = summarise(name, row, row.arm, trained, args)
            print(json.dumps(result), flush=True)
            rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(args.out, {"rows": [r for r in rows if r["name"] != result["name"]] + [result]})


if __name__ == "__main__":
    main()
