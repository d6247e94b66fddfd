"""Processor time of recording a demo of the cube, beside that of an earlier version of this repository.

    python benchmarks/recording.py                    # against the last version whose demos held no chunks of the expert
    python benchmarks/recording.py --commit <another>

The same ten episodes by each, in turn, by one thread; the median over the rounds. Only what was executed is the same in
both; with `recording.expert=16`, the default, the picker is also asked what it would have done instead. Rows into
docs/results/scale/summary.json.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from versions import ROOT, checked_out

BEFORE = "e971d88"
DEMOS = range(100_001, 100_011)


def demo_seconds(words: list[int]) -> float:
    """Processor seconds a demo in this process, by whichever version it imports."""
    from s2robot.demos.record import record_episode
    from s2robot.envs.cube_config import CubePickConfig

    try:
        from s2robot.envs.cube_config import PickerConfig
    except ImportError:  # where it was before
        from s2robot.demos.picker import PickerConfig  # type: ignore[no-redef]
    world, picker = CubePickConfig(), PickerConfig()
    record_episode(world, picker, DEMOS[0] - 1, *words)  # builds the world
    start = time.process_time()
    for seed in DEMOS:
        record_episode(world, picker, seed, *words)
    return (time.process_time() - start) / len(DEMOS)


def timed(tree: Path, *words: int) -> float:
    """The same in a process of its own, which imports the version in `tree`."""
    command = [sys.executable, __file__, "--one", *map(str, words)]
    env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    return float(subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commit", default=BEFORE, help=f"the earlier version (default {BEFORE})")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", type=int, nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(demo_seconds(args.one))
        return
    from rows import keep

    with checked_out(args.commit) as before:
        found = [(timed(before), timed(ROOT, 0), timed(ROOT, 16)) for _ in range(args.rounds)]
    base, plain, asked = (statistics.median(times) for times in zip(*found, strict=True))
    for what, ours in (("what was executed", plain), ("also what the picker would have done", asked)):
        row = {
            "what": f"recording a demo of the cube: {what}, against {args.commit}, which kept the former alone",
            "baseline": round(1000 * base),
            "ours": round(1000 * ours),
            "ratio": round(base / ours, 2),
            "unit": "ms of processor time",
            "command": "python benchmarks/recording.py",
        }
        keep(ROOT / "docs/results/scale/summary.json", "rows", row, by="what")


if __name__ == "__main__":
    main()
