"""Compare the pairs that our sequential test, nscore and sequentialized-barnard-tests need on recorded outcomes.

    python3 -m venv /tmp/theirs && /tmp/theirs/bin/pip install nscore sequentialized-barnard-tests
    python benchmarks/sequential.py --python /tmp/theirs/bin/python

Each replay draws a training seed of each arm, and positions with replacement; all tests see the same pairs. The other
packages run two one-sided tests, so all tests have an error of 10 % over both sides: STEP's stored rule has 5 % per side.
They assume independent arms and ignore that both arms share a position. They need a separate environment, and
sequentialized-barnard-tests is licensed for non-commercial use only.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MOST, SIDE = 500, 0.05  # pairs per replay; error per side
RESULTS = ROOT / "docs/results/s2/cube4-15-expert.json"
PAIRS = [("two", "one"), ("s2", "large"), ("large", "one")]


def drawn(replays: int) -> dict[str, np.ndarray]:
    """Return the outcomes int8 (2, replays, MOST) of each pair of arms."""
    from s2robot.comparison.replay import draw_outcomes
    from s2robot.comparison.trials import read_arms

    arms, rng = {arm.label: arm.outcomes for arm in read_arms(str(RESULTS))}, np.random.default_rng(0)
    found = {f"{a} - {b}": np.stack(draw_outcomes(arms[a], arms[b], replays, rng, MOST)) for a, b in PAIRS}
    a, b = found["two - one"]
    swap = rng.random(a.shape) < 0.5
    found["two - one, swapped at random"] = np.stack([np.where(swap, b, a), np.where(swap, a, b)])
    found["75 % both, independent"] = (rng.random((2, replays, MOST)) < 0.75).astype(np.int8)
    return found


def theirs(file: str) -> None:
    """Run their tests, in their environment, and write the pairs (replays,) after which each one stops; MOST + 1: never."""
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
    ours = {f"{name}/ours": stopping_pairs(a - b, 2 * SIDE) for name, (a, b) in outcomes.items()}
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/pairs.npz"
        np.savez(file, **outcomes)
        subprocess.run([args.python, __file__, file], check=True)
        ends = ours | dict(np.load(file))
    print("| arms, test | told apart | pairs: median | 80 % | mean |\n|---|---|---|---|---|")
    for name in sorted(ends, key=lambda n: list(outcomes).index(n.partition("/")[0])):
        n = ends[name]
        half, most = (int(np.quantile(n, q, method="higher")) for q in (0.5, 0.8))
        shown = [" | ".join(str(x) if x <= MOST else f"> {MOST}" for x in (half, most))]
        print("|", name, f"| {(n <= MOST).mean():.1%} |", *shown, f"| {np.minimum(n, MOST).mean():.0f} |")


if __name__ == "__main__":
    theirs(sys.argv[1]) if sys.argv[1].endswith(".npz") else main()
