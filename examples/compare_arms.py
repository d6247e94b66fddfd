"""Check whether one policy is better than another: two arms with some training seeds each, on the same cube positions.

    python examples/compare_arms.py --a runs/s2/0 runs/s2/1 runs/s2/2 --b runs/single/0 runs/single/1 runs/single/2

Each folder is a finished `s2robot run` or `s2robot evaluate`; `s2robot compare` creates them, and a report.
"""

import argparse
from pathlib import Path

from s2robot.comparison.paired import Difference, difference, outcomes_of
from s2robot.evaluation.records import read_records


def main(argv: list[str] | None = None) -> Difference:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--a", nargs="+", type=Path, required=True, help="runs of one arm, one per training seed"
    )
    parser.add_argument("--b", nargs="+", type=Path, required=True, help="runs of the other arm")
    args = parser.parse_args(argv)

    records = {
        name: {seed: read_records(folder / "episodes.jsonl") for seed, folder in enumerate(folders)}
        for name, folders in (("a", args.a), ("b", args.b))
    }
    outcomes = outcomes_of(records)  # arm -> bool (training seeds, positions)
    for name, won in outcomes.items():
        print(f"{name}: {100 * won.mean():.1f} % of {won.size}, by training seed {won.sum(1).tolist()}")
    result = difference(outcomes["a"], outcomes["b"])
    print(
        f"a - b: {100 * result.difference:+.1f} points, 95 % interval "
        f"[{100 * result.low:+.1f}, {100 * result.high:+.1f}], p = {result.p:.3g}; valid for {result.scope}"
    )
    return result


if __name__ == "__main__":
    main()
