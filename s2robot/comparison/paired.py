"""Arm against arm on the same cube positions, with several training seeds an arm.

outcomes = outcomes_of({"base + S²": {0: records, 1: records, 2: records}, "base": {0: ..., 1: ..., 2: ...}})
difference(outcomes["base + S²"], outcomes["base"])           # difference, low, high, p, scope
needed(0.10, Design(base=0.5, seeds=3, seed_sd=0.03))         # positions for 80 % power
sequential(tally(outcomes["base + S²"], outcomes["base"]))    # may we stop? valid after every position

Outcomes are bool (seeds, positions); differences are fractions, first arm minus second.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import logsumexp

from s2robot.common.errors import UserError

Array = np.ndarray
SEEDS_AND_POSITIONS = "new training seeds and new cube positions"
POSITIONS = "new cube positions, for these trained policies only"
_DRAWS = 4000  # of the bootstrap: its ends then wobble by about 2 % of the width
_MOST_POSITIONS = 1_000_000  # beyond this an evaluation is out of reach, and the search for N ends


def outcomes_of(records: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]) -> dict[str, Array]:
    """Success of every arm, training seed and position from episode records.

    `records[arm][training seed]` lists episodes with "seed" (of the position) and "success" (bool). Returns
    arm -> bool (seeds, positions), both in rising order. Raises UserError that names arm, training seed and
    position where the positions of two evaluations differ or one stands there twice.
    """
    found: dict[tuple[str, int], dict[int, bool]] = {}
    for arm, by_seed in records.items():
        if not by_seed:
            raise UserError(f"arm {arm!r}: no training seed, expected at least 1")
        for seed, episodes in by_seed.items():
            run = found[arm, seed] = {}
            for episode in episodes:
                position, success = episode.get("seed"), episode.get("success")
                where = f"arm {arm!r} seed {seed}: position {position!r}"
                if type(position) is not int or type(success) is not bool:  # a bool is no position
                    raise UserError(f"{where} with success {success!r}, expected integer and true or false")
                if position in run:
                    raise UserError(f"{where} stands there twice, expected every position once")
                run[position] = success
    if not any(found.values()):
        raise UserError("found no episode to compare, expected at least 1 arm with 1 episode")
    (arm_0, seed_0), expected = next(iter(found.items()))
    for (arm, seed), run in found.items():
        if odd := expected.keys() ^ run.keys():
            where = f"arm {arm!r} seed {seed}: position {min(odd)}"
            state = "is missing" if min(odd) in expected else "is one too many"
            raise UserError(f"{where} {state}, expected the positions of arm {arm_0!r} seed {seed_0}")
    return {
        arm: np.array([[found[arm, seed][p] for p in sorted(expected)] for seed in sorted(by_seed)])
        for arm, by_seed in records.items()
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


def difference(a: Array, b: Array, confidence: float = 0.95, paired_seeds: bool = False) -> Difference:
    """Difference in success of arms a and b (seeds, positions), whose columns are the same positions.

    Two seeds or more an arm: t interval and test in which seeds and positions are both random (`_estimate`):
    they hold for SEEDS_AND_POSITIONS. One seed in either arm: how much training varies cannot be known; they
    hold for POSITIONS: Agresti & Min 2005 (adjusted Wald, half an episode added to each cell of the paired
    table) and the sign-flip test. `paired_seeds`: row i of both arms shares its training seed (data order).
    Raises UserError for arrays that do not fit.
    """
    a, b = _checked(a, b, paired_seeds)
    _fraction("confidence", confidence)
    both = min(len(a), len(b)) > 1
    arms = ([a - b] if paired_seeds else [a, b]) if both else []
    centre, error, df = (float(v) for v in _estimate(a.mean(0) - b.mean(0), arms))
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


def _estimate(d: Any, arms: Sequence[Any]) -> tuple[Any, Any, Any]:
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
        within = _noise(x) / (k * positions)
        excess = excess + between - within
        spread = spread + between**2 / (k - 1) + within**2 / ((k - 1) * max(1, positions - 1))
    variance = variance + np.maximum(excess, 0)
    fewest = min((x.shape[-2] for x in arms), default=2)
    return centre, np.sqrt(variance), np.maximum(variance**2 / spread, fewest - 1)


def _noise(x: Any) -> Any:
    """Mean square (...) of x (..., seeds, positions) that neither seed nor position explains."""
    rest = x - x.mean(-1, keepdims=True) - x.mean(-2, keepdims=True) + x.mean((-2, -1), keepdims=True)
    return (rest**2).sum((-2, -1)) / ((x.shape[-2] - 1) * max(1, x.shape[-1] - 1))


def bootstrap(a: Array, b: Array, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the difference by the two-way bootstrap, a check on `difference`.

    Each draw resamples the training seeds of each arm (clusters) and, jointly for all, the positions (Owen
    2007, "The pigeonhole bootstrap"). It counts chance within an episode up to three times, so it is wide
    where seeds agree, and with two to five seeds that differ a lot it is too narrow: `difference` mends both.
    With one seed an arm only positions vary. `seed` fixes the draws. Raises UserError as `difference` does.
    """
    a, b = _checked(a, b)
    _fraction("confidence", confidence)
    rng = np.random.default_rng(seed)
    sizes = (a.shape[1], len(a), len(b))  # weights (draws, n) of positions and of the seeds of each arm
    places, of_a, of_b = (rng.multinomial(n, np.full(n, 1 / n), _DRAWS) / n for n in sizes)
    drawn = ((of_a @ a - of_b @ b) * places).sum(1)  # (draws,)
    low, high = np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p value of McNemar's test: b positions won by one arm only, c by the other only.

    mcnemar(3, 0) -> 0.25. Raises UserError for a count below 0. Source: McNemar 1947, binomial form.
    """
    if b < 0 or c < 0:
        raise UserError(f"discordant counts must be 0 or more, found {b} and {c}")
    return float(min(1.0, 2 * stats.binom.cdf(min(b, c), b + c, 0.5)))


def sign_flip(a: Array, b: Array) -> float:
    """Exact two-sided p value of the sign-flip test over positions; with one seed an arm it is McNemar's.

    A position with all its seeds is one unit: with no difference, its mean difference is as likely reversed.
    Holds for POSITIONS: other training seeds may fall otherwise. Convolution counts all 2^N flips, none are
    drawn. Source: Fisher 1935, "The Design of Experiments", section 21.
    """
    a, b = _checked(a, b)
    d = np.rint(len(b) * a.sum(0) - len(a) * b.sum(0)).astype(int)  # (positions,), whole numbers
    d //= max(1, int(np.gcd.reduce(d)))
    chances = np.ones(1)  # of the sums -total .. total
    for size, count in zip(*np.unique(np.abs(d[d != 0]), return_counts=True), strict=True):
        step = np.zeros(2 * size * count + 1)
        step[:: 2 * size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, step)
    total = len(chances) // 2
    return float(min(1.0, chances[np.abs(np.arange(-total, total + 1)) >= abs(int(d.sum()))].sum()))


@dataclass(frozen=True)
class Design:
    """What a power analysis assumes; `pilot` estimates it from a first run.

    Correlations (phi) are of two policies' success on the same position. UserError for a value out of range.
    """

    base: float  # success of the weaker arm
    correlation: float = 0.3  # between policies of different arms
    correlation_within: float | None = None  # between training seeds of one arm; None: as between arms
    discordant: float | None = None  # where one seed of each arm disagree; replaces `correlation`
    seeds: int = 1  # training seeds an arm
    seed_sd: float = 0.0  # standard deviation of success over training seeds of an arm (0.03 = 3 points)
    alpha: float = 0.05  # two-sided error rate

    def __post_init__(self) -> None:
        _fraction("base", self.base)
        _fraction("alpha", self.alpha)
        related = max(abs(self.correlation), abs(self.correlation_within or 0.0)) < 1
        if not related or self.seeds < 1 or not 0 <= self.seed_sd < 0.5:
            raise UserError(f"expected correlations in -1..1, seeds > 0, seed_sd in 0..0.5, found {self}")


def pilot(a: Array, b: Array, seeds: int | None = None) -> Design:
    """The design that a first run suggests, for `seeds` seeds an arm (default: as many as b has).

    base stays half an episode off 0 and 1. With one seed an arm nothing is known about seeds: seed_sd is 0.
    """
    a, b = _checked(a, b)
    p, q = ((x.sum() + 0.5) / (x.size + 1) for x in (a, b))
    covariance = (p + q - np.mean(a[:, None] != b[None])) / 2 - p * q
    several = [(x, rate) for x, rate in ((a, p), (b, q)) if len(x) > 1]
    spread = [x.mean(1).var(ddof=1) - _noise(x) / x.shape[1] for x, _ in several]
    within = [1 - _noise(x) / (rate * (1 - rate)) for x, rate in several]
    return Design(
        base=float(min(p, q)),
        correlation=float(np.clip(covariance / math.sqrt(p * (1 - p) * q * (1 - q)), -0.99, 0.99)),
        correlation_within=float(np.clip(np.mean(within), -0.99, 0.99)) if within else None,
        seeds=seeds or len(b),
        seed_sd=min(math.sqrt(max(0.0, float(np.mean(spread)))), 0.49) if spread else 0.0,
    )


def power_at(gap: float, positions: int, design: Design) -> float:
    """Chance to find the better arm better (p < alpha in `difference`) when it is `gap` above the base.

    One seed: exact power of McNemar's exact test, summed over the number of discordant positions. More seeds:
    chance that the estimate passes the limit of `difference`, averaged over the mean squares that few seeds
    may show. Sources: Miettinen 1968, Connor 1987 (paired table). Raises UserError for an impossible gap.
    """
    p, q = design.base, min(design.base + gap, 1.0)
    if not 0 < gap <= 1 - p + 1e-9 or positions < 2:
        raise UserError(f"found gap {gap:g} and {positions} positions, expected 0..{1 - p:g} and 2 or more")
    v, w = p * (1 - p), max(q * (1 - q), 1e-9)
    least, most = max(0.0, p + q - 1) - p * q, min(p, q) - p * q  # all that a 2 × 2 table can hold
    covariance = min(max(design.correlation * math.sqrt(v * w), least), most)
    if design.discordant is not None:
        covariance = (p + q - design.discordant) / 2 - p * q
        if not least - 1e-9 <= covariance <= most + 1e-9:
            fits = f"{gap:g}..{min(p + q, 2 - p - q):g} at success {p:g} and {q:g}"
            raise UserError(f"found discordant = {design.discordant:g}, expected {fits}")
    if design.seeds == 1:
        return _mcnemar_power(gap, p + q - 2 * (covariance + p * q), positions, design.alpha)
    k, n = design.seeds, positions + 2
    rho = covariance / math.sqrt(v * w) if design.correlation_within is None else design.correlation_within
    of_mean = max(0.0, (v + w) * (1 + (k - 1) * rho) / k - 2 * covariance)  # of a position's mean difference
    of_positions = (positions * (of_mean + 2 * gap**2 / n) + 1) / n**2
    quantiles = stats.chi2.ppf((np.arange(40) + 0.5) / 40, k - 1) / (k - 1)
    within = [x * (1 - rho) / (k * positions) for x in (v, w)]
    x, y = np.meshgrid(*((design.seed_sd**2 / k + part) * quantiles for part in within))
    error = np.sqrt(of_positions + np.maximum(x + y - sum(within), 0))  # what `_estimate` would find
    df = np.maximum(error**4 * (k - 1) / (x**2 + y**2), k - 1)
    true_error = math.sqrt(positions * of_mean / n**2 + 2 * design.seed_sd**2 / k + 1e-12)
    limit = stats.t.ppf(1 - design.alpha / 2, df) * error
    return float(stats.norm.sf((limit - gap * positions / n) / true_error).mean())


def _mcnemar_power(gap: float, discordant: float, positions: int, alpha: float) -> float:
    mean, sd = positions * discordant, math.sqrt(positions * discordant * (1 - discordant))
    m = np.arange(max(0, int(mean - 9 * sd)), min(positions, int(mean + 9 * sd) + 1) + 1)  # discordant
    limit = stats.binom.ppf(alpha / 2, m, 0.5)
    limit -= stats.binom.cdf(limit, m, 0.5) > alpha / 2  # the most losses that still reject; -1: none
    losses = np.clip((1 - gap / discordant) / 2, 0, 1)
    return float((stats.binom.pmf(m, positions, discordant) * stats.binom.cdf(limit, m, losses)).sum())


def needed(gap: float, design: Design, power: float = 0.8) -> int:
    """Positions needed to see `gap` (fraction) with `power`: needed(0.1, Design(base=0.5)) -> 291.

    Raises UserError where no number of positions would do, and says how many seeds would.
    """
    _fraction("power", power)
    if (most := power_at(gap, _MOST_POSITIONS, design)) < power:
        more = (replace(design, seeds=k) for k in range(2, 1000))
        enough = next((x.seeds for x in more if power_at(gap, _MOST_POSITIONS, x) >= power), "over 1000")
        raise UserError(
            f"{design.seeds} seeds an arm that differ by {100 * design.seed_sd:g} points see a gap of "
            f"{100 * gap:g} points with {100 * most:.0f} % power on any number of positions, expected "
            f"{100 * power:g} %: take {enough} seeds"
        )
    low, high = 1, 2  # power_at(low) < power <= power_at(high)
    while power_at(gap, high, design) < power:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_at(gap, middle, design) >= power else (middle, high)
    return high


def smallest_gap(positions: int, design: Design, power: float = 0.8) -> float:
    """The smallest gap (fraction) that `positions` can see with `power`; UserError if they can see none."""
    _fraction("power", power)
    low, high = 0.0, 1 - design.base
    if design.discordant is not None:  # what fits a 2 × 2 table
        high = min(high, design.discordant, 2 - 2 * design.base - design.discordant)
        low = max(0.0, design.discordant - 2 * design.base)
    if (most := power_at(high, positions, design)) < power:
        found = f"{100 * most:.0f} % power for {100 * high:.0f} points at {design.seeds} seeds"
        raise UserError(f"{positions} positions: found {found}, expected {100 * power:g} %")
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if power_at(middle, positions, design) >= power else (middle, high)
    return high


def power_text(gap: float, design: Design, power: float = 0.8) -> str:
    """`needed` as a sentence: "To see a gap of 10 points with 80 % power you need 291 positions …"."""
    return (
        f"To see a gap of {100 * gap:g} points with {100 * power:g} % power you need "
        f"{needed(gap, design, power)} positions (training seeds an arm: {design.seeds}, spread "
        f"{100 * design.seed_sd:g} points, base {100 * design.base:g} %, alpha {100 * design.alpha:g} %); it "
        f"holds for {POSITIONS if design.seeds == 1 else SEEDS_AND_POSITIONS}."
    )


@dataclass(frozen=True)
class Look:
    """One look at a running comparison; every field is valid at every look and at any stop."""

    e: float  # evidence against no difference; by chance it ever reaches 1 / alpha with probability <= alpha
    p: float  # anytime-valid p value, min(1, 1 / e)
    stop: bool  # e >= 1 / alpha: the arms differ
    low: float  # confidence sequence of the difference, level 1 - alpha
    high: float
    positions: int


def tally(a: Array, b: Array) -> dict[float, int]:
    """How many positions had each mean difference; the whole state of `sequential`.

    One seed an arm: {-1.0: losses, 0.0: ties, 1.0: wins}. A position belongs in once all seeds have run it.
    """
    a, b = _checked(a, b)
    values, counts = np.unique((a.mean(0) - b.mean(0)).round(12), return_counts=True)
    return {float(v): int(n) for v, n in zip(values, counts, strict=True)}


def sequential(counts: Mapping[float, int], alpha: float = 0.05) -> Look:
    """Test and interval that may be looked at after every position, in the fixed order of evaluation.

    `counts`: positions by mean difference (`tally`). A bet on each position grows by 1 + λ (d - m), λ spread
    evenly; if the difference is m, it ever reaches 1 / alpha with probability <= alpha (Ville 1939). At m = 0
    McNemar's pairs give the mixture likelihood ratio 2^(w+l) B(w+1, l+1) (Robbins 1970). Holds for POSITIONS.
    After an early stop report this interval: `difference` assumes an N fixed beforehand. UserError for values
    outside -1..1 or counts below 0. Source of the interval: Waudby-Smith & Ramdas 2024.
    """
    _fraction("alpha", alpha)
    for value, count in counts.items():
        if not -1 <= value <= 1 or count < 0:
            raise UserError(f"found {count} positions of difference {value}, expected >= 0 and -1..1")
    d, n = np.array(list(counts), dtype=float), np.array(list(counts.values()), dtype=float)
    mean, limit, ends = float((d * n).sum() / max(1.0, n.sum())), -math.log(alpha), []
    for end in (-1.0, 1.0):  # the evidence is convex in m and at most 1 at the mean: one crossing a side
        inside = mean
        for _ in range(50):
            middle = (inside + end) / 2
            inside, end = (middle, end) if _log_evidence(d, n, middle) < limit else (inside, middle)
        ends.append(end)
    log_e = _log_evidence(d, n, 0.0)
    e, p = math.exp(min(log_e, 700.0)), min(1.0, math.exp(-log_e))
    return Look(e, p, stop=log_e >= limit, low=ends[0], high=ends[1], positions=int(n.sum()))


def _log_evidence(d: np.ndarray, n: np.ndarray, mean: float) -> float:
    if not -1 < mean < 1:
        return 0.0  # the bets' scale ends here: m = -1 or 1 is never excluded
    nodes, logs = _quadrature(min(1 << (int(n.sum()) // 2).bit_length(), 512))
    sides = [(1 + d) / (1 + mean), (1 - d) / (1 - mean)]  # bets on a difference above the mean, and below it
    grown = [np.log(1 - nodes + nodes * x[:, None]).T @ n for x in sides]  # (nodes,) each
    return float(logsumexp(np.concatenate([g + logs for g in grown])) - math.log(2))


@lru_cache(maxsize=64)
def _quadrature(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes on 0..1 and log weights; exact for polynomials, as bets are, up to 2 count - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, np.log(weights / 2)


def _checked(a: Any, b: Any, paired_seeds: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Both arms as float (seeds, positions); UserError with the shapes or the value that does not fit."""
    a, b = (np.asarray(x) for x in (a, b))
    found = f"found outcomes of shape {a.shape} and {b.shape}"
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise UserError(f"{found}, expected (seeds, positions) with the same positions")
    if paired_seeds and len(a) != len(b):
        raise UserError(f"{found}, expected as many seeds in both: they are paired")
    for x in (a, b):
        if (wrong := x[~np.isin(x, (0, 1))]).size:
            raise UserError(f"found an outcome of {wrong[0]}, expected true or false")
    return a.astype(float), b.astype(float)


def _fraction(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise UserError(f"{name} must lie between 0 and 1, found {value}")
