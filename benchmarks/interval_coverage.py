"""How often the intervals of a comparison hold, and how wide they are: simulated, with the truth known.

    python -m benchmarks.interval_coverage                # three tables
    python -m benchmarks.interval_coverage runs=500       # a rougher one

Success of seed and position: a normal latent of which a position gives the share `hard`, and a level of the seed
from a Beta distribution whose mean is the truth; `spread` is its standard deviation in units of sqrt(p (1 - p)), so
0.1 is 5 points at p = 0.5 and 1 at 0.99. Widths are those of Wilson's interval of as many independent episodes.
"""

import math
import sys
from itertools import product
from typing import Any

import numpy as np
from scipy.special import ndtri

from s2robot.comparison.paired import bounds, log_evidence, predicted

RATES = (0.5, 0.9, 0.95, 0.98, 0.99)
SEEDS = (3, 5, 10)
WORLDS = ((0.0, 0.0), (0.0, 0.3), (0.05, 0.3), (0.1, 0.3), (0.2, 0.0))  # spread, hard; last: seeds dominate
POSITIONS, LOOK = 128, 16
SIMULATED = 500  # positions beside real trials


def draw(rng: Any, runs: int, seeds: int, rate: float, spread: float, hard: float) -> np.ndarray:
    """Outcomes 0 or 1 (runs, seeds, POSITIONS)."""
    latents = rng.standard_normal((runs, 1, POSITIONS))
    level = np.full((runs, 1, 1), rate)
    if spread:
        size = 1 / spread**2 - 1
        level = rng.beta(rate * size, (1 - rate) * size, (runs, seeds, 1))
    noise = math.sqrt(1 - hard) * rng.standard_normal((runs, seeds, POSITIONS))
    return (ndtri(level) + math.sqrt(hard) * latents + noise > 0).astype(float)


def arms(rng: Any, runs: int, seeds: int, rate: float, spread: float, hard: float) -> dict[str, float]:
    """Coverage of an arm's interval, and its width by Wilson's (median)."""
    x = draw(rng, runs, seeds, rate, spread, hard)
    low, high, _ = bounds(x)
    pooled_low, pooled_high, _ = bounds(x.reshape(runs, 1, -1))
    width = np.median((high - low) / (pooled_high - pooled_low))
    return {"covered": float(((low <= rate) & (rate <= high)).mean()), "width": float(width)}


def looks(rng: Any, runs: int, seeds: int, rate: float, hard: float) -> tuple[float, float]:
    """Chance that an arm's truth is inside at every look: of the confidence sequence, and of `bounds`."""
    x = draw(rng, runs, seeds, rate, 0.0, hard)
    means = (2 * x.mean(1) - 1).round(12)  # (runs, positions)
    values = np.unique(means)
    counts = np.cumsum(means[..., None] == values, 1)[:, LOOK - 1 :: LOOK]  # (runs, looks, values)
    truth, limit = 2 * rate - 1, math.log(20)
    lost = [any(log_evidence(values, n, truth) >= limit for n in run) for run in counts]
    inside = np.ones(runs, bool)
    for n in range(LOOK, POSITIONS + 1, LOOK):
        low, high, *_ = bounds(x[..., :n])
        inside &= (low <= rate) & (rate <= high)
    return 1 - float(np.mean(lost)), float(inside.mean())


def beside_simulation(
    rng: Any, runs: int, trials: int, rate: float, gap: float, alike: float
) -> tuple[float, float]:
    """Coverage of an arm's success by `trials` real trials and SIMULATED simulated ones, which succeed `gap` less often and share
    `alike` of a normal latent with the real one, and what it is worth: effective trials over `trials` (median)."""
    latent = math.sqrt(alike) * rng.standard_normal((runs, SIMULATED))
    drawn = lambda n, p: latent[:, :n] + math.sqrt(1 - alike) * rng.standard_normal((runs, n)) + ndtri(p) > 0  # noqa: E731
    real, simulated = drawn(trials, rate), drawn(SIMULATED, rate - gap)
    found = np.array([predicted(a, f[:trials], f[trials:]) for a, f in zip(real, simulated, strict=True)])
    covered = (found[:, 1] <= rate) & (rate <= found[:, 2])
    return float(covered.mean()), float(np.median(found[:, 3])) / trials


def main(words: list[str]) -> None:
    runs, rng = int(dict(word.split("=", 1) for word in words).get("runs", 4000)), np.random.default_rng(0)
    print("An arm: coverage %, width by Wilson's (median)")
    print("seeds spread hard | " + " | ".join(f"p = {rate:<4} " for rate in RATES))
    for seeds, (spread, hard) in product(SEEDS, WORLDS):
        found = [arms(rng, runs, seeds, rate, spread, hard) for rate in RATES]
        cells = [f"{100 * each['covered']:5.1f} {each['width']:4.2f}" for each in found]
        print(f"{seeds:5d} {spread:6.2f} {hard:4.1f} | " + " | ".join(cells))
    print(f"Inside at every look (each {LOOK} positions), %: confidence sequence, interval of a fixed number")
    for seeds in (1, 3):
        pairs = [looks(rng, max(200, runs // 10), seeds, rate, 0.3) for rate in RATES]
        print(f"{seeds:5d} | " + " | ".join(f"{100 * a:5.1f} {100 * b:5.1f}" for a, b in pairs))
    print(f"Real trials, {SIMULATED} simulated ones, as good or 15 points worse: coverage %, worth so many")
    for trials, alike in product((20, 40, 80), (0.0, 0.5, 0.9)):
        given = [(rate, gap, alike) for rate in RATES[:3] for gap in (0.0, 0.15)]
        worth = [beside_simulation(rng, runs // 2, trials, *each) for each in given]
        print(f"{trials:5d} {alike:4.1f} | " + " | ".join(f"{100 * a:4.1f} {b:4.2f}" for a, b in worth))


if __name__ == "__main__":
    main(sys.argv[1:])
