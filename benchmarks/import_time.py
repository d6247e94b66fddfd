"""What `from s2robot import S2` costs beside `import torch`, in fresh processes.

    python benchmarks/import_time.py
    python benchmarks/import_time.py --repeats 15 --most 1.4       # exit code 1 if the ratio is above

The two take turns, so that a disturbance meets both; times are medians of whole processes, the interpreter included.
`python -X importtime -c "from s2robot import S2"` says where time goes.
"""

import argparse
import statistics
import subprocess
import sys
import time

STATEMENTS = ("import torch", "from s2robot import S2")


def seconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def ratio(repeats: int) -> tuple[float, dict[str, float]]:
    """Median of the second over that of the first, and both medians in seconds."""
    taken: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    for statement in STATEMENTS:
        seconds(statement)  # into the disk's cache
    for _ in range(repeats):
        for statement in STATEMENTS:
            taken[statement].append(seconds(statement))
    medians = {statement: statistics.median(times) for statement, times in taken.items()}
    torch, ours = medians.values()
    return ours / torch, medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9, help="processes a statement (9)")
    parser.add_argument("--most", type=float, help="fail if the ratio is larger")
    args = parser.parse_args()
    found, medians = ratio(max(1, args.repeats))
    for statement, median in medians.items():
        print(f"{statement:<24}{median:>7.2f} s")
    print(f"ratio {found:.2f}")
    if args.most and found > args.most:
        sys.exit(f"the ratio {found:.2f} is above {args.most}")


if __name__ == "__main__":
    main()
