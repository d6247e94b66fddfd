"""Success on robosuite's tasks over training seeds, on positions that no choice of settings used.

    python benchmarks/tasks.py                                  # every row; hours on two cores
    python benchmarks/tasks.py stack "stack, one scale" --seeds 0 1 2 --episodes 128
    python benchmarks/tasks.py --experts --episodes 128         # the scripted experts instead: minutes
The demonstrations of each task are recorded once.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from rows import arguments, fill, run, success

from s2robot.demos.store import EpisodeStore
from s2robot.evaluation.records import read_records

DEMOS_SEED = 100_000  # of the first demonstration
TASKS = ("stack", "lift", "can", "square")
ROWS = {  # row -> task, overrides of `s2robot train`
    **{task: (task, "") for task in TASKS},
    **{f"{task}, one scale": (task, "s2=single") for task in TASKS},
}


def expert_outcome(task: str, seed: int) -> bool:
    """Return whether a task's expert succeeds from a seed, with the pushes of demonstrations."""
    from s2robot.envs.tasks import make_cached, settings_class

    world: Any = make_cached(settings_class(task)(), draw=False)
    world.reset(seed=seed)
    expert, steps = world.expert(np.random.default_rng([seed, 7])), 0
    while not world.is_success and steps < world.settings.max_steps:
        world.step_physics(expert.act())
        steps += 1
    return world.is_success


def row_of(name: str, task: str, arm: str, seeds: list[dict[str, Any]], args: argparse.Namespace, command: str) -> dict:  # fmt: skip
    demos = 0 if arm == "expert" else len(EpisodeStore.open(args.work / f"{task}.zarr"))
    about = {"name": name, "task": task, "robot": "Panda", "controller": "OSC_POSE", "arm": arm}
    return about | {"demos": demos} | success(seeds, args.seed) | {"command": command}


def experts(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """The rows of the experts."""

    def one(task: str, seed: int) -> dict[str, Any]:
        seeds = range(args.seed, args.seed + args.episodes)
        with ProcessPoolExecutor(args.workers) as pool:
            return {"seed": 0, "outcomes": list(pool.map(partial(expert_outcome, task), seeds))}

    def summarise(task: str, seeds: list[dict[str, Any]]) -> dict[str, Any]:
        words = f"{task} --experts --episodes {args.episodes} --seed {args.seed}"
        return row_of(f"{task}, expert", task, "expert", seeds, args, f"python benchmarks/tasks.py {words}")

    args.seeds = [0]
    fill(parser, args, TASKS, one, summarise)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "tasks")
    parser.add_argument("--experts", action="store_true", help="the scripted experts; rows are tasks then")
    parser.add_argument("--workers", type=int, default=2, help="processes that simulate experts")
    args = parser.parse_args()
    args.work = args.work.resolve()
    if args.experts:
        return experts(parser, args)

    def one(name: str, seed: int) -> dict[str, Any]:
        task, train = ROWS[name]
        demos, world = args.work / f"{task}.zarr", f"task={task}"
        run("record", [world, f"seed={DEMOS_SEED}", f"out={demos}"], args.work / "record" / task)
        folder = args.work / name.replace(",", "") / f"seed{seed}"
        run("train", [world, f"demos.path={demos}", *train.split(), f"train.seed={seed}"], folder / "train")
        positions = [f"evaluate.episodes={args.episodes}", f"evaluate.seed={args.seed}", "evaluate.videos=4"]
        run("evaluate", [f"checkpoint={folder}/train/checkpoint", world, *positions], folder / "evaluate")
        played = read_records(folder / "evaluate/episodes.jsonl")
        return {"seed": seed, "outcomes": [bool(record["success"]) for record in played]}

    def summarise(name: str, seeds: list[dict[str, Any]]) -> dict[str, Any]:
        task, train = ROWS[name]
        typed = f"task={task} demos.path=<demos> {train}".strip()
        arm = "one scale" if "s2=single" in train else "S2"
        return row_of(name, task, arm, seeds, args, f"s2robot train {typed} train.seed=<seed>")

    fill(parser, args, ROWS, one, summarise)


if __name__ == "__main__":
    main()
