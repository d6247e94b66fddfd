"""Arm against arm on the same positions, with several training seeds an arm.

outcomes = outcomes_of({"base + S²": {0: records, 1: records, 2: records}, "base": {0: ..., 1: ..., 2: ...}})
difference(outcomes["base + S²"], outcomes["base"])           # difference, low, high, p, scope

Outcomes are bool (seeds, positions); differences are fractions, first arm minus second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from s2robot.core.errors import UserError

Array = np.ndarray
SEEDS_AND_POSITIONS = "new training seeds and new positions"
POSITIONS = "new positions, for these trained policies only"


def outcomes_of(records: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]) -> dict[str, Array]:
    """Return the success of every arm, training seed and position.

    Args:
        records: arm -> training seed -> episodes with "seed" (of the position) and "success".

    Returns:
        Arm -> bool (seeds, positions), both sorted.

    Raises:
        UserError: no episodes, or positions that differ between two evaluations.
    """
    found = {arm: {s: {e["seed"]: e["success"] for e in es} for s, es in by_seed.items()} for arm, by_seed in records.items()}  # fmt: skip
    runs = [
        (f"arm {arm!r} seed {seed}", run) for arm, by_seed in found.items() for seed, run in by_seed.items()
    ]
    if not runs or not all(found.values()) or not runs[0][1]:
        raise UserError(
            "expected one or more training seeds of each arm, with one or more episodes, got none"
        )
    first, expected = runs[0]
    for where, run in runs:
        if odd := expected.keys() ^ run.keys():
            state = "no" if min(odd) in expected else "another"
            raise UserError(f"{where}: expected the positions of {first}, got {state} position {min(odd)}")
    return {
        arm: np.array([[by_seed[seed][p] for p in sorted(expected)] for seed in sorted(by_seed)])
        for arm, by_seed in found.items()
    }


@dataclass(frozen=True)
class Difference:
    """Success of the first arm minus that of the second (fractions), and how sure it is."""

    difference: float
    low: float
    high: float
    p: float  # two-sided, of no difference, for `scope`
    p_positions: float  # the same for POSITIONS: exact sign-flip test, with one seed an arm McNemar's
    scope: str  # what low, high and p speak about: SEEDS_AND_POSITIONS or POSITIONS
    seeds: tuple[int, int]
    positions: int


def difference(a: Array, b: Array, confidence: float = 0.95) -> Difference:
    """Difference in success of arms a and b (seeds, positions), whose columns are the same positions.

    Two seeds or more an arm: t interval and test in which seeds and positions are both random (`estimate`):
    they hold for SEEDS_AND_POSITIONS. One seed in either arm: how much training varies cannot be known; they
    hold for POSITIONS: Agresti & Min 2005 (adjusted Wald, half an episode added to each cell of the paired
    table) and the sign-flip test. Raises UserError for arrays that do not fit.
    """
    a, b = checked(a, b)
    fraction("confidence", confidence)
    both = min(len(a), len(b)) > 1
    arms = [a, b] if both else []
    centre, error, df = (float(v) for v in estimate(a.mean(0) - b.mean(0), arms))
    half = float(stats.t.ppf(0.5 + confidence / 2, df)) * error
    flips = sign_flip(a, b)
    return Difference(
        difference=float(a.mean() - b.mean()),
        low=max(-1.0, centre - half),
        high=min(1.0, centre + half),
        p=float(2 * stats.t.sf(abs(centre) / error, df)) if both else flips,
        p_positions=flips,
        scope=SEEDS_AND_POSITIONS if both else POSITIONS,
        seeds=(len(a), len(b)),
        positions=a.shape[1],
    )


def estimate(d: Any, arms: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Centre, standard error, degrees of freedom (...) of differences d (..., positions).

    `arms`: outcomes (..., seeds, positions) whose seeds are random; none: the seeds are taken as they are.
    Variance = that of d, kept above zero by Agresti & Min's two added positions (half a win, half a loss, one
    tie), + what seeds add: mean square between seeds less what d already counts, never below zero. Degrees of
    freedom: Satterthwaite 1946. Components: Searle, Casella & McCulloch 1992, two-way crossed.
    """
    n = d.shape[-1] + 2
    centre = d.sum(-1) / n
    variance = ((d**2).sum(-1) + 1 - n * centre**2) / n**2
    excess, spread = np.zeros_like(centre), np.full_like(centre, 1e-300)
    for x in arms:
        k, positions = x.shape[-2:]
        between = x.mean(-1).var(-1, ddof=1) / k
        within = noise(x) / (k * positions)
        excess = excess + between - within
        spread = spread + between**2 / (k - 1) + within**2 / ((k - 1) * max(1, positions - 1))
    variance = variance + np.maximum(excess, 0)
    fewest = min((x.shape[-2] for x in arms), default=2)
    return centre, np.sqrt(variance), np.maximum(variance**2 / spread, fewest - 1)


def noise(x: Any) -> Any:
    """Mean square (...) of x (..., seeds, positions) that neither seed nor position explains."""
    rest = x - x.mean(-1, keepdims=True) - x.mean(-2, keepdims=True) + x.mean((-2, -1), keepdims=True)
    return (rest**2).sum((-2, -1)) / ((x.shape[-2] - 1) * max(1, x.shape[-1] - 1))


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p value of McNemar's test: b positions won by one arm only, c by the other only.

    mcnemar(3, 0) -> 0.25. Raises UserError for a count below 0. Source: McNemar 1947, binomial form.
    """
    if b < 0 or c < 0:
        raise UserError(f"discordant counts must be 0 or more, found {b} and {c}")
    return float(min(1.0, 2 * stats.binom.cdf(min(b, c), b + c, 0.5)))


def holm(p: Sequence[float]) -> list[float]:
    """The p values of a family of tests, adjusted so that any false positive is as rare as one test's (Holm 1979).

    holm([0.01, 0.04, 0.03]) -> [0.03, 0.06, 0.06]. Valid for p values of any dependence, at every look if they are.
    """
    order = np.argsort(p)
    stepped = np.maximum.accumulate(np.asarray(p, float)[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted.tolist()


def sign_flip(a: Array, b: Array) -> float:
    """Exact two-sided p value of the sign-flip test over positions; with one seed an arm it is McNemar's.

    A position with all its seeds is one unit: with no difference, its mean difference is as likely reversed.
    Holds for POSITIONS: other training seeds may fall otherwise. Convolution counts all 2^N flips, none are
    drawn. Source: Fisher 1935, "The Design of Experiments", section 21.
    """
    a, b = checked(a, b)
    d = np.rint(len(b) * a.sum(0) - len(a) * b.sum(0)).astype(int)  # (positions,), whole numbers
    d //= max(1, int(np.gcd.reduce(d)))
    chances = np.ones(1)  # of the sums -total .. total
    for size, count in zip(*np.unique(np.abs(d[d != 0]), return_counts=True), strict=True):
        step = np.zeros(2 * size * count + 1)
        step[:: 2 * size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, step)
    total = len(chances) // 2
    return float(min(1.0, chances[np.abs(np.arange(-total, total + 1)) >= abs(int(d.sum()))].sum()))


def checked(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both arms as float (seeds, positions); UserError with the shapes or the value that does not fit."""
    a, b = (np.asarray(x) for x in (a, b))
    found = f"found outcomes of shape {a.shape} and {b.shape}"
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise UserError(f"{found}, expected (seeds, positions) with the same positions")
    for x in (a, b):
        if (wrong := x[~np.isin(x, (0, 1))]).size:
            raise UserError(f"found an outcome of {wrong[0]}, expected true or false")
    return a.astype(float), b.astype(float)


def fraction(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise UserError(f"{name} must lie between 0 and 1, found {value}")
