"""`s2robot compare`: arms on the same demos and the same positions, with as many training seeds as it takes.

    s2robot compare                                             # the encoders that ship, one seed each
    s2robot compare experiment=table10 hydra.run.dir=runs/table10   # the same command again resumes after a kill
    s2robot compare axes=[demos,lighting]                       # and where does S2 pay?

Every stage is an ordinary `s2robot record / encode / train / evaluate`, run in a process of its own. The run directory
holds compare.json (all figures), summary.json (the table), episodes.csv, report.html, and a run directory of `s2robot
evaluate` for each arm and training seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from s2robot.comparison import statistics as figures
from s2robot.comparison.arms import demos_of
from s2robot.comparison.cost import ms_per_action
from s2robot.comparison.film import film_disagreements
from s2robot.comparison.jobs import Job, run_jobs, with_needs
from s2robot.comparison.paired import outcomes_of
from s2robot.comparison.plan import (
    Plan,
    Point,
    Policies,
    Runs,
    evaluation,
    make_plan,
    points_of,
    read_runs,
    training,
)
from s2robot.comparison.report import write_compare_report
from s2robot.comparison.settings import Axis, Compare, read_compare
from s2robot.config import only_simulated
from s2robot.core.files import read_json, write_csv, write_json
from s2robot.core.provenance import command, versions
from s2robot.core.run_folder import locked


def compare(cfg: DictConfig, typed: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is not done yet and write the figures; returns what compare.json holds.

    ``typed``: the overrides of this command that all arms share; None: those that Hydra was given.
    """
    if typed is None:
        typed = list(HydraConfig.get().overrides.task)
    only_simulated(cfg)
    settings = read_compare(cfg)
    plan = make_plan(settings, typed)
    with locked(plan.out):
        result = _run(settings, plan)
    labels = {arm.name: arm.label for arm in plan.arms}
    lines = [figures.headline(pair, labels) for pair in result["pairs"]]
    print("\n".join(["", *lines, f"report: {write_compare_report(plan.out)}"]))
    return result


@dataclass
class Runner:
    """Runs stages, and remembers them for compare.json."""

    parallel: int
    threads: int
    ran: dict[str, Job] = field(default_factory=dict)  # by name, in order

    def __call__(self, jobs: Sequence[Job]) -> None:
        self.ran = {job.name: job for job in with_needs(jobs)} | self.ran
        run_jobs(jobs, self.parallel, self.threads)


@dataclass(frozen=True)
class Tried:
    """How the main comparison ended."""

    episodes: int  # positions
    stopping: dict[str, Any] | None  # the looks, for compare.json
    looked: float | None  # their alpha if they ended it early: such figures need intervals of their own


def _run(settings: Compare, plan: Plan) -> dict[str, Any]:
    experiment, run = settings.experiment, Runner(plan.parallel, plan.threads)
    power, lines = figures.power_figures(experiment.power, len(plan.seeds), plan.episodes)
    print("\n".join(lines))
    axes = {name: points_of(plan, name, experiment.axes[name]) for name in settings.axes or ()}
    policies = training(plan, plan.main)
    tried = _evaluate(settings, plan, policies, run)
    runs = read_runs(plan, plan.main, tried.episodes)
    episodes = experiment.axis_episodes or tried.episodes
    for _, points in axes.values():
        run([job for point in points for job in _stages(plan, point, policies, episodes, tried.episodes)])
    looked = tried.looked if episodes == tried.episodes else None
    entries, rows = [], figures.csv_rows(runs)
    for name, (default, points) in axes.items():
        entry, more = _curves(plan, name, experiment.axes[name], points, episodes, looked)
        entries.append(entry | {"default": default})
        rows += more
    result = {
        "title": experiment.title,
        "question": experiment.question,
        **_figures(plan, runs, tried),
        "stopping": tried.stopping,
        "power": power,
        "axes": entries,
        "positions": {"seed": plan.position_seed, "episodes": tried.episodes},
        "versions": versions(),
        "command": command(),
        "commands": [job.command for job in run.ran.values()],
        "videos": [],
    }
    write_csv(plan.out / "episodes.csv", figures.COLUMNS, rows)
    write_json(plan.out / "compare.json", result)
    write_json(plan.out / "summary.json", {key: result[key] for key in ("arms", "pairs")})
    if experiment.videos and result["pairs"]:
        result["videos"] = film_disagreements(plan, runs, result["pairs"][0], experiment.videos)
        write_json(plan.out / "compare.json", result)
    return result


def _evaluate(settings: Compare, plan: Plan, policies: Policies, run: Runner) -> Tried:
    """Train, and evaluate all positions, or batches until every pair is decided."""
    stopping = settings.experiment.stopping
    if not stopping.enabled:
        run(evaluation(plan, plan.main, policies, plan.episodes))
        return Tried(plan.episodes, None, None)
    looks: list[dict[str, Any]] = []
    for episodes in [*range(stopping.batch, plan.episodes, stopping.batch), plan.episodes]:
        run(evaluation(plan, plan.main, policies, episodes))
        outcomes = outcomes_of(read_runs(plan, plan.main, episodes))
        looks.append(figures.look_at(outcomes, plan.pairs, stopping.alpha))
        if looks[-1]["stop"]:
            break
    early = looks[-1]["stop"] and episodes < plan.episodes
    method = f"confidence sequences by betting, alpha {stopping.alpha:g} over {len(plan.pairs)} pairs"
    reason = "every pair is decided" if looks[-1]["stop"] else "all planned positions were tried"
    found = {"method": method, "looks": looks, "stopped_at": episodes if early else None, "reason": reason}
    return Tried(episodes, found, stopping.alpha if early else None)


def _figures(plan: Plan, runs: Runs, tried: Tried) -> dict[str, Any]:
    """The figures of arms and pairs."""
    outcomes, cost = outcomes_of(runs), _cost(plan)
    arms = []
    for arm in plan.arms:
        folders = [plan.folder(plan.main, arm, seed).relative_to(plan.out).as_posix() for seed in plan.seeds]
        found = figures.arm_figures(outcomes[arm.name], plan.seeds, folders, tried.looked)
        arms.append({**plan.known[arm.name].about, **found, "ms_per_action": cost[arm.name]})
    return {
        "arms": arms,
        "pairs": figures.all_pairs(outcomes, figures.positions_of(runs), plan.pairs, tried.looked),
    }


def _cost(plan: Plan) -> dict[str, float]:
    """Milliseconds per action of each arm, measured once for a run directory."""
    path = plan.out / "cost.json"
    identity = {arm.name: list(arm.overrides) for arm in plan.arms}
    if path.exists() and (found := read_json(path)).get("arms") == identity:
        return found["ms_per_action"]
    checkpoints = {arm.name: plan.folder(plan.main, arm, plan.seeds[0]) / "checkpoint" for arm in plan.arms}
    first, store = plan.known[plan.arms[0].name], demos_of(plan.arms[0], plan.common)
    cost = ms_per_action(checkpoints, store, first.device, threads=first.threads)
    write_json(path, {"arms": identity, "ms_per_action": cost})
    return cost


def _stages(plan: Plan, point: Point, main: Policies, episodes: int, tried: int) -> list[Job]:
    """The evaluations of a point of an axis; ``tried``: positions of the main comparison, which are not cut."""
    policies = training(plan, point.world) if point.trains else main
    wanted = max(episodes, tried) if point.world is plan.main else episodes
    return evaluation(plan, point.world, policies, wanted)


def _curves(
    plan: Plan, name: str, axis: Axis, points: Sequence[Point], episodes: int, looked: float | None
) -> tuple[dict[str, Any], list[list[Any]]]:
    """The axis's entry in compare.json, and its rows of episodes.csv; ``looked`` as in `statistics.arm_interval`."""
    arms: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in plan.arms}
    rows: list[list[Any]] = []
    for point in points:
        runs = read_runs(plan, point.world, episodes)
        if point.world is not plan.main:
            rows += figures.csv_rows(runs, name, point.value)
        for arm, outcomes in outcomes_of(runs).items():
            low, high, _ = figures.arm_interval(outcomes, looked)
            counts = {"episodes": int(outcomes.size), "successes": int(outcomes.sum())}
            success = {"value": point.value, "success": float(outcomes.mean()), "low": low, "high": high}
            arms[arm].append(success | counts)
    about = {"name": name, "label": axis.label, "unit": axis.unit}
    return about | {"values": [point.value for point in points], "arms": arms}, rows
