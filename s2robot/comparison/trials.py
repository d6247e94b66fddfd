"""`s2robot stats`: intervals, differences and detectable gaps for trials from any source.

    s2robot stats 74/80 91/120                                # successes/trials of independent arms
    s2robot stats act:31/50 diffusion:44/50 against=act
    s2robot stats a/eval_info.json b/eval_info.json           # LeRobot files; run directories and CSV files work too
    s2robot stats runs/compare/mine replays=1000              # how many trials would tell these arms apart?
    s2robot stats real:runs/arm sim:runs/simulated simulated=sim   # estimate the arm's success from both
    s2robot stats a:runs/stress/a b:runs/stress/b             # folders of `s2robot stress`: which one is more robust?

A CSV file has a column `success` (0, 1, true or false) and may have `arm`, `training_seed`, `position` and `stage`. Arms on
the same positions are paired. Exit code 0: every pair was told apart; 3: at least one was not.
"""

import csv
import math
import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from omegaconf import DictConfig
from pydantic import Field
from scipy import stats
from scipy.optimize import brentq

from s2robot.comparison import paired
from s2robot.comparison import statistics as figures
from s2robot.comparison.replay import plan_lines, plan_pairs
from s2robot.comparison.settings import Power
from s2robot.comparison.statistics import MINUS, VERDICTS, p_text, pair_figures, power_at, verdict
from s2robot.core.errors import UserError, one_of
from s2robot.core.files import read_json, read_text, write_json
from s2robot.core.settings import Different, Settings, Stored, from_yaml, read, read_some
from s2robot.evaluation.records import mean_interval, read_records, wilson

UNDECIDED = 3  # exit code
_COUNTS = re.compile(r"(?:(?P<label>[^:/]+):)?(?P<successes>\d+)/(?P<trials>\d+)")
_METHOD = "independent trials, Newcombe's interval, Barnard's exact test (Fisher's for many trials)"
_MOST = 10_000_000  # trials of an arm
_TABLES = 4_000_000  # Barnard's test lists all tables up to this number
_CHANCES = 400  # points of its grid
_OUTSIDE = 1e-4  # probability that the pooled success rate is outside the grid, see `barnard`
_MIN_REAL_TRIALS = 10  # with simulated trials; with fewer, the intervals do not hold
_TRUTH = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


class StatsSettings(Settings, file="stats"):
    trials: tuple[str, ...] = from_yaml(min_length=1)
    against: str | None = from_yaml()
    power: float = from_yaml(gt=figures.LEVEL, lt=1)
    sequential: bool = from_yaml()
    stages: Annotated[tuple[str, ...], Different, Field(min_length=2)] | None = from_yaml()
    simulated: str | None = from_yaml()
    replays: int = from_yaml(ge=0)


class Arm(NamedTuple):
    label: str
    outcomes: np.ndarray  # bool (training seeds, trials)
    positions: tuple[Any, ...] | None  # of the trials; None: unknown, so the arm cannot be paired
    stages: np.ndarray | None = None  # str, same shape as outcomes: the stage each trial reached
    disturbances: tuple[Any, ...] = ()  # of a stress test, over which outcomes (1, trials) is a mean


class _Row(NamedTuple):
    arm: str
    seed: str | tuple[str, str]  # of training, or a disturbance and its strength
    position: Any
    success: bool
    stage: str = ""


class _Episode(Stored):
    success: bool
    seed: int | None = None


class _Successes(Stored):
    successes: tuple[bool, ...] = Field(min_length=1)


class _Task(Stored):
    metrics: _Successes


class _Recorded(Stored):
    """An arm of a file in docs/results: training seed -> one digit per position."""

    name: str
    outcomes: dict[str, str]


class _EvalInfo(Stored):
    """LeRobot's eval_info.json, of one environment or (since 0.4) several tasks. `arms`: a comparison in docs/results."""

    arms: tuple[_Recorded, ...] = ()
    positions: dict[str, int] = {}
    per_episode: tuple[_Episode, ...] = ()
    per_task: tuple[_Task, ...] = ()


def run_stats(cfg: DictConfig) -> int:
    """Print the figures of ``cfg.trials``, write them to stats.json in the run directory, and return the exit code."""
    settings = read_some(StatsSettings, cfg)
    return report([arm for word in settings.trials for arm in read_arms(word)], settings, Path(cfg.run_dir))


def report(arms: Sequence[Arm], settings: StatsSettings, out: Path) -> int:
    """Print and write the figures of these arms; return the exit code."""
    labels = [arm.label for arm in arms]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise UserError(f"trials: expected different names, got {min(twice)!r} twice; type <name>:<trials>")
    for key in ("against", "simulated"):
        if (name := getattr(settings, key)) is not None:
            one_of(key, name, labels)
    real = [arm for arm in arms if arm.label != settings.simulated]
    pairs = [(a, b) for a, b in combinations(real, 2) if settings.against in (None, a.label, b.label)]
    pairs = [(b, a) if a.label == settings.against else (a, b) for a, b in pairs]
    seq_alpha = figures.LEVEL / max(1, len(pairs)) if settings.sequential else None
    found = [compare_arms(a, b, settings, seq_alpha) for a, b in pairs]
    for pair, p in zip(found, paired.holm([pair["p"] for pair in found]), strict=True):
        pair["p_holm"] = p
    rows = [_arm_row(arm, seq_alpha and figures.LEVEL / len(arms)) for arm in arms]
    for simulated in (arm for arm in arms if arm.label == settings.simulated):
        for arm, row in zip(arms, rows, strict=True):
            if arm is not simulated:
                row["predicted"] = with_simulated(arm, simulated)
    print("\n".join(["", *_lines(rows, found, settings.power)]))
    write_json(out / "stats.json", {"arms": rows, "pairs": found})
    return 0 if all(verdict(pair) for pair in found) else UNDECIDED


def read_arms(word: str) -> list[Arm]:
    """Return the arms of `[<name>:]74/80` or `[<name>:]<file or folder>`. UserError for anything else, or a broken file."""
    if counts := _COUNTS.fullmatch(word):
        successes, trials = int(counts["successes"]), int(counts["trials"])
        if successes > trials or not 0 < trials <= _MOST:
            raise UserError(f"trials: expected successes/trials, such as 74/80, up to {_MOST:,}, got {word}")
        return [Arm(counts["label"] or word, np.arange(trials)[None] < successes, None)]
    label, colon, location = word.partition(":")
    path = Path(location if colon and not Path(word).exists() else word)
    name = label if path != Path(word) else ""
    if path.is_dir():
        known = [path / file for file in ("episodes.csv", "episodes.jsonl", "eval_info.json")]
        path = next((file for file in known if file.exists()), path / "episodes.jsonl")
    if not path.exists():
        raise UserError(f"trials: expected successes/trials such as 74/80, or a file, got {word}")
    readers = {".csv": _read_csv, ".json": _read_json, ".jsonl": _read_run}
    one_of(f"{path}: suffix", path.suffix, readers)
    if not (rows := readers[path.suffix](path)):
        raise UserError(f"{path}: expected one trial or more (JSON: per_episode or per_task), got none")
    own = path.stem if path.stem not in ("episodes", "eval_info") else path.resolve().parent.name
    arms = dict.fromkeys(row.arm for row in rows)
    labels = {arm: f"{name} {arm}" if name and len(arms) > 1 else name or arm or own for arm in arms}
    return [_arm(path, label, [row for row in rows if row.arm == arm]) for arm, label in labels.items()]


def _arm(path: Path, label: str, rows: Sequence[_Row]) -> Arm:
    seeds: dict[Any, dict[Any, _Row]] = {}
    for i, row in enumerate(rows):
        run = seeds.setdefault(row.seed, {})
        position = ("trial", i) if row.position is None else row.position
        if position in run:
            raise UserError(f"{path}: expected each position once, got {label} {position} twice")
        run[position] = row
    first, *others = seeds.values()
    if any(run.keys() != first.keys() for run in others):
        raise UserError(f"{path}: expected the same positions for all training seeds of {label}, got others")
    positions = tuple(sorted(first, key=str))
    known = all(row.position is not None for row in rows)
    success, stages = (
        np.array([[getattr(run[at], key) for at in positions] for run in seeds.values()])
        for key in ("success", "stage")
    )
    if isinstance(rows[0].seed, tuple):
        return Arm(label, success.mean(0, keepdims=True), positions, disturbances=(*seeds,))
    return Arm(label, success, positions if known else None, stages)


def _read_csv(path: Path) -> list[_Row]:
    text = read_text(path).lstrip("\ufeff\r\n")  # Excel's mark, and empty lines
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    rows.fieldnames = names = [name.strip().lower() for name in rows.fieldnames or ()]
    if names.count("success") != 1:
        got = ", ".join(names) or "none"
        raise UserError(f"{path}: expected a header with one column 'success', got {got}")
    compared = {"axis", "layout"} <= {*names}  # else these are the user's own columns
    stressed = {"disturbance", "value"} <= {*names}
    found = []
    for row in rows:
        success = _TRUTH.get((row["success"] or "").strip().lower())
        if success is None:
            where = f"{path} line {rows.line_num}: success"
            raise UserError(f"{where}: expected 0, 1, true or false, got {row['success']!r}")
        # only the main part of each kind of file
        if not (compared and row["axis"]) and not (stressed and row["disturbance"] == ""):
            position = row.get("position") or row.get("seed") or None
            arm, seed, stage = ((row.get(key) or "").strip() for key in ("arm", "training_seed", "stage"))
            seed = (row["disturbance"], row["value"]) if stressed else seed
            found.append(_Row(arm, seed, position, success, stage))
    return found


def _read_run(path: Path) -> list[_Row]:
    if path.stem == "episodes" and not path.with_name("summary.json").exists():
        print(f"note: {path}: its evaluation did not finish, and short episodes finish first")
    return [_Row("", "", str(r["seed"]), r["success"], r["stage"]) for r in read_records(path)]


def _read_json(path: Path) -> list[_Row]:
    info = read(_EvalInfo, read_json(path), f"{path}: ")
    rows = [_Row("", "", None if e.seed is None else str(e.seed), e.success) for e in info.per_episode]
    rows += [_Row("", "", None, success) for task in info.per_task for success in task.metrics.successes]
    first = info.positions.get("seed", 0)
    for arm in info.arms:
        for seed, digits in arm.outcomes.items():
            rows += [_Row(arm.name, seed, str(first + i), digit == "1") for i, digit in enumerate(digits)]
    return rows


def compare_arms(a: Arm, b: Arm, settings: StatsSettings, seq_alpha: float | None = None) -> dict[str, Any]:
    """Return the difference in success of a and b, as in compare.json, and the gap detectable with ``settings.power``. With
    ``settings.stages``, an arm wins a position by reaching a later stage. ``seq_alpha``: see `pair_figures`."""
    both = f"{a.label}, {b.label}"
    if a.disturbances != b.disturbances:
        raise UserError(f"{both}: expected the same disturbances for both")
    if matched := a.positions is not None and a.positions == b.positions:
        x, y = stage_wins(a, b, settings.stages) if settings.stages else (a.outcomes, b.outcomes)
        each = max(1, len(a.disturbances))
        found = pair_figures({a.label: x, b.label: y}, range(x.shape[1]), a.label, b.label, seq_alpha, each)
        found = {key: found[key] for key in ("a", "b", "difference", "low", "high", "p", "scope", "method")}
        if settings.replays and a.disturbances:
            raise UserError(f"replays: expected arms without disturbances, got a stress test of {a.label}")
        if settings.replays:
            found["plan"] = plan_pairs(x, y, settings.replays, settings.power)
        found["method"] += ", of the stages reached" * bool(settings.stages)
    else:
        if {*(a.positions or ())} & {*(b.positions or ())}:
            raise UserError(f"{both}: expected the same positions, or none in common, got a partial overlap")
        for key in ("sequential", "stages", "replays"):
            if value := getattr(settings, key):
                raise UserError(f"{key}: expected {a.label} and {b.label} on the same positions, got {value}")
        if len(a.outcomes) > 1 or len(b.outcomes) > 1:
            raise UserError(f"{both}: expected the same positions for arms of several training seeds")
        found = {"a": a.label, "b": b.label, **independent(a.outcomes[0], b.outcomes[0])}
        found |= {"scope": "new trials", "method": _METHOD}
    found["paired"] = matched
    if seq_alpha is None and not settings.stages and not a.disturbances:
        found["detectable"] = detectable(a, b, matched, settings.power)
    return found


def stage_wins(a: Arm, b: Arm, stages: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return two bool arrays (1, trials): where a reached a later stage than b, and b than a, in the order of ``stages``."""
    ranks = []
    for arm in (a, b):
        if len(arm.outcomes) > 1 or arm.stages is None:
            raise UserError(f"stages: expected one training seed of {arm.label}, with stages")
        for stage in np.unique(arm.stages):
            one_of(f"stages: a stage of {arm.label}", str(stage), stages)
        ranks.append(np.array([[stages.index(stage) for stage in row] for row in arm.stages]))
    return ranks[0] > ranks[1], ranks[0] < ranks[1]


def with_simulated(arm: Arm, simulated: Arm) -> dict[str, Any]:
    """Return the arm's success by `paired.predicted`, from real trials and simulation at these and other positions."""
    means = dict(zip(simulated.positions or (), simulated.outcomes.mean(0), strict=False))
    own = arm.positions or ()
    if len(arm.outcomes) > 1 or len(own) < _MIN_REAL_TRIALS or not means.keys() > {*own}:
        need = f"{simulated.label} on >= {_MIN_REAL_TRIALS} positions of {arm.label}, tried once each, and on others"
        raise UserError(f"simulated: expected {need}, got {len(means)} and {arm.outcomes.size} trials")
    here = np.array([means.pop(position) for position in own])
    found = paired.predicted(arm.outcomes[0], here, np.array([*means.values()]))
    names = ("success", "low", "high", "trials", "simulated_only")
    return dict(zip(names, (*found, len(means)), strict=True))


def independent(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Return difference, low, high and p of two independent arms (trials,): Newcombe 1998, method 10, and `barnard`."""
    (k, m), (j, n) = ((int(x.sum()), len(x)) for x in (a, b))
    (la, ua), (lb, ub), (pa, pb) = wilson(k, m), wilson(j, n), (k / m, j / n)
    d, down, up = pa - pb, math.hypot(pa - la, ub - pb), math.hypot(ua - pa, pb - lb)
    return {"difference": d, "low": d - down, "high": d + up, "p": barnard(k, m, j, n)}


def barnard(k: int, m: int, j: int, n: int) -> float:
    """Return the exact two-sided p of Barnard's test with the pooled z (Suissa & Shuster 1985): k of m against j of n.

    The p value is maximised over a grid of success rates in the 99.99 % interval of the pooled rate, plus 0.0001 for rates
    outside it (Berger & Boos 1994). scipy maximises over all rates, and often picks one that the data exclude. Beyond
    `_TABLES` tables, Fisher's exact test is used.
    """
    if max((m + 1) * (n + 1), _CHANCES * max(m, n)) > _TABLES:
        return float(stats.fisher_exact([[k, j], [m - k, n - j]]).pvalue)
    x, y = np.ogrid[: m + 1, : n + 1]
    pooled = (x + y) / (m + n)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.abs(x / m - y / n) / np.sqrt(pooled * (1 - pooled) * (1 / m + 1 / n))
    z = np.nan_to_num(z)  # none or all succeeded: no difference
    extreme = (z >= z[k, j] - 1e-9).astype(float)
    likely = stats.binomtest(k + j, m + n).proportion_ci(1 - _OUTSIDE)
    low, high = (math.asin(math.sqrt(chance)) for chance in (likely.low, likely.high))
    chances = np.sin(np.linspace(low, high, _CHANCES)[:, None]) ** 2  # (C, 1)
    first, second = (stats.binom.pmf(np.arange(size + 1), size, chances) for size in (m, n))
    return min(1.0, float(((first @ extreme) * second).sum(1).max()) + _OUTSIDE)


def detectable(a: Arm, b: Arm, matched: bool, power: float) -> float | None:
    """Return the smallest gap above the worse arm that these trials detect with ``power`` at 5 %; None if there is none."""
    x, y = sorted((a.outcomes.mean(0), b.outcomes.mean(0)), key=lambda arm: (arm.mean(), len(arm)))
    if (largest := 1 - x.mean()) <= 1e-6:
        return None
    design = _design(a.outcomes, b.outcomes, matched)
    base, m, n = design.base, len(x), len(y)

    def missing_power(gap: float) -> float:
        if matched:
            return power_at(gap, m, design, min(len(a.outcomes), len(b.outcomes))) - power
        q = min(base + gap, 1.0)
        pooled = (base * m + q * n) / (m + n)  # as in `barnard`
        limit = stats.norm.isf(design.alpha / 2) * math.sqrt(pooled * (1 - pooled) * (1 / m + 1 / n))
        error = math.sqrt(base * (1 - base) / m + q * (1 - q) / n)
        return float(stats.norm.sf((limit - gap) / max(error, 1e-9))) - power

    if missing_power(largest) < 0:
        return None
    return float(brentq(missing_power, 1e-6, largest, xtol=1e-4))


def _design(a: np.ndarray, b: np.ndarray, matched: bool = True, power: float = 0.8) -> Power:
    """Return the power settings estimated from outcomes (seeds, positions); the gap is a placeholder."""
    x, y = a.mean(0), b.mean(0)
    noise = math.sqrt(x.mean() * (1 - x.mean()) * y.mean() * (1 - y.mean()))
    rho = float(np.cov(x, y)[0, 1] / noise) if matched and noise and len(x) > 1 else 0.0
    seeded = [arm.astype(float) for arm in (a, b) if matched and len(arm) > 1]
    # variance of success between training seeds, minus the part due to positions
    spread = sum(float(arm.mean(1).var(ddof=1) - paired.noise(arm) / arm.shape[1]) for arm in seeded) / 2
    base, seed_sd = float(min(x.mean(), y.mean(), 1 - 1e-6)), min(math.sqrt(max(0.0, spread)), 0.49)
    return Power(gap=1e-9, base=base, correlation=min(max(rho, -0.95), 0.95), seed_sd=seed_sd, power=power)


def _arm_row(arm: Arm, seq_alpha: float | None) -> dict[str, Any]:
    found, each = figures.arm_interval(arm.outcomes, seq_alpha), max(1, len(arm.disturbances))
    size = each * arm.outcomes.size
    if arm.disturbances and seq_alpha is None:
        found["low"], found["high"] = mean_interval(arm.outcomes[0], size)
        found["interval"] = "Wilson, from the positions' means over disturbances"
    counts = {"successes": round(each * arm.outcomes.sum()), "trials": size, "seeds": len(arm.outcomes)}
    return {"label": arm.label, **counts, **{key: found[key] for key in ("low", "high", "interval")}}


def _lines(rows: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]], power: float) -> Iterator[str]:
    width = max(len(row["label"]) for row in rows)
    for row in rows:
        share, low, high = (100 * v for v in (row["successes"] / row["trials"], row["low"], row["high"]))
        of_seeds = f", {row['seeds']} training seeds" if row["seeds"] > 1 else ""
        count = f"{row['successes']} of {row['trials']}"
        yield f"{row['label']:<{width}}  {share:5.1f} % [{low:.1f}, {high:.1f}]  {count}{of_seeds}"
        if found := row.get("predicted"):
            share, low, high = (100 * found[key] for key in ("success", "low", "high"))
            worth = f"worth {found['trials']:.0f} trials"
            yield f"    with {found['simulated_only']} more simulated positions: {share:.1f} % [{low:.1f}, {high:.1f}], {worth}"
    for pair in pairs:
        points = [f"{100 * pair[key]:+.1f}".replace("-", MINUS) for key in ("difference", "low", "high")]
        name = f"{pair['a']} {MINUS} {pair['b']}"
        yield f"{name}: {points[0]} points [{points[1]}, {points[2]}], {p_text(pair['p_holm'])}: {VERDICTS[verdict(pair)]}"
        power_text = ""
        if "detectable" in pair:
            gaps = f"a gap of {100 * gap:.1f} points or more" if (gap := pair["detectable"]) else "no gap"
            power_text = f"; {gaps} would be detected with {100 * power:g} % power"
        yield f"    {'paired, ' * pair['paired']}{pair['method']}; holds for {pair['scope']}{power_text}"
        if "plan" in pair:
            yield from plan_lines(pair["plan"])
    if len(pairs) > 1:
        both = "sequential" in pairs[0]["method"]
        others = "the intervals are, too" if both else "intervals and detectable gaps are not"
        yield f"p is adjusted for {len(pairs)} pairs (Holm); {others}."
