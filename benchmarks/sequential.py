"""How many pairs our sequential test needs, beside those of nscore and sequentialized-barnard-tests, on recorded outcomes.

    python3 -m venv /tmp/theirs && /tmp/theirs/bin/pip install nscore sequentialized-barnard-tests
    python benchmarks/sequential.py --python /tmp/theirs/bin/python

Each replay draws a training seed of both arms and positions with replacement; all tests see the same pairs. Theirs are two
one-sided tests, so all are compared at 10 % for both sides together (5 % a side is what STEP's stored rule was made for).
Theirs take the arms to be independent and do not use that a position is shared. Their packages want an environment of
their own; sequentialized-barnard-tests may be used for other than commercial purposes only.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MOST, SIDE = 500, 0.05  # pairs of a replay; error a side
RESULTS = ROOT / "docs/results/s2/cube4-15-expert.json"
PAIRS = [("two", "one"), ("s2", "large"), ("large", "one")]


def drawn(replays: int) -> dict[str, np.ndarray]:
    """Return the outcomes bool (2, replays, MOST) of each pair of arms."""
    from s2robot.comparison.trials import read_arms

    arms, rng, found = (
        {arm.label: arm.outcomes for arm in read_arms(str(RESULTS))},
        np.random.default_rng(0),
        {},
    )
    for a, b in PAIRS:
        at = rng.integers(0, arms[a].shape[1], (replays, MOST))
        found[f"{a} - {b}"] = np.stack(
            [arms[x][rng.integers(0, len(arms[x]), (replays, 1)), at] for x in (a, b)]
        )
    a, b = found["two - one"]
    swap = rng.random(a.shape) < 0.5
    found["two - one, swapped at random"] = np.stack([np.where(swap, b, a), np.where(swap, a, b)])
    found["75 % both, independent"] = rng.random((2, replays, MOST)) < 0.75
    return found


def theirs(file: str) -> None:
    """Runs in their environment: write after how many pairs each of their tests ends (tests, replays); MOST + 1: never."""
    from nscore.nsm import MirroredPartialCreditNsmTest
    from nscore.savi import MirroredSaviTest
    from sequentialized_barnard_tests.step import MirroredStepTest
    from statistical_comparison_core import Decision, Hypothesis

    more = Hypothesis.P0MoreThanP1
    tests = {
        "nscore NSM": MirroredPartialCreditNsmTest(more, SIDE, c=np.array([0.0, 1.0])),
        "nscore SAVI": MirroredSaviTest(more, SIDE),
        "STEP (500 pairs)": MirroredStepTest(more, MOST, SIDE),
    }
    found = {}
    for name, (a, b) in np.load(file).items():
        for label, test in tests.items():
            ends = np.full(len(a), MOST + 1)
            for i in range(len(a)):
                test.reset()
                for n in range(MOST):
                    if test.step(int(a[i, n]), int(b[i, n])).decision != Decision.FailToDecide:
                        ends[i] = n + 1
                        break
            found[f"{name}/{label}"] = ends
    np.savez(file, **found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", required=True, help="of an environment with both packages")
    parser.add_argument("--replays", type=int, default=300)
    args = parser.parse_args()
    from s2robot.comparison.replay import stopping_pairs

    outcomes = drawn(args.replays)
    ours = {
        f"{name}/ours": stopping_pairs(a.astype(np.int8) - b, 2 * SIDE) for name, (a, b) in outcomes.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/pairs.npz"
        np.savez(file, **outcomes)
        subprocess.run([args.python, __file__, file], check=True)
        ends = ours | dict(np.load(file))
    print("| arms, test | told apart | pairs: median | 80 % | mean |\n|---|---|---|---|---|")
    for name in sorted(ends, key=lambda n: list(outcomes).index(n.partition("/")[0])):
        n = ends[name]
        half, most = (int(np.quantile(n, q, method="higher")) for q in (0.5, 0.8))
        shown = [str(x) if x <= MOST else f"> {MOST}" for x in (half, most)]
        print(
            f"| {name} | {(n <= MOST).mean():.1%} | {' | '.join(shown)} | {np.minimum(n, MOST).mean():.0f} |"
        )


if __name__ == "__main__":
    theirs(sys.argv[1]) if sys.argv[1].endswith(".npz") else main()
