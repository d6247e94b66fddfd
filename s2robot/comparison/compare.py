"""`s2robot compare`: arms on the same demos and the same positions, with as many training seeds as it takes.

    s2robot compare                                             # the encoders that ship, one seed each
    s2robot compare experiment=table10 hydra.run.dir=runs/table10   # the same command again goes on after a kill
    s2robot compare axes=[demos,lighting]                       # and where does S2 pay?

Every stage is an ordinary `s2robot record / encode / train / evaluate`, run in a process of its own. The run folder
holds compare.json (all figures), summary.json (the table), episodes.csv, report.html, and a folder for each arm and
training seed that is what `s2robot evaluate` writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from s2robot.common.files import write_json
from s2robot.common.run_folder import locked
from s2robot.common.settings import only_simulated
from s2robot.comparison import statistics as figures
from s2robot.comparison.axes import curves, line_of, stages_of
from s2robot.comparison.film import film_disagreements
from s2robot.comparison.jobs import Job, run_jobs, with_needs
from s2robot.comparison.paired import outcomes_of
from s2robot.comparison.plan import Plan, Policies, evaluation, make_plan, read_runs, training
from s2robot.comparison.report import write_compare_report
from s2robot.comparison.result import result_of
from s2robot.comparison.settings import Compare, read_compare


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
    print()
    for pair in result["pairs"]:
        print(figures.headline(pair, labels))
    print(f"report: {write_compare_report(plan.out)}")
    return result


@dataclass
class Runner:
    """Runs stages, and remembers them for compare.json."""

    parallel: int
    threads: int
    ran: dict[str, Job] = field(default_factory=dict)  # by name, in order

    def __call__(self, jobs: Sequence[Job]) -> None:
        for job in with_needs(jobs):
            self.ran.setdefault(job.name, job)
        run_jobs(jobs, self.parallel, self.threads)


@dataclass(frozen=True)
class Tried:
    """How the main comparison ended."""

    episodes: int  # positions
    stopping: dict[str, Any] | None  # what compare.json says of its looks
    looked: float | None  # their alpha where they ended it early: such figures need intervals of their own


def _run(settings: Compare, plan: Plan) -> dict[str, Any]:
    experiment, run = settings.experiment, Runner(plan.parallel, plan.threads)
    power, lines = figures.power_figures(experiment.power, len(plan.seeds), plan.episodes)
    print("\n".join(lines))
    planned = [line_of(plan, name, experiment.axes[name]) for name in settings.axes]
    policies = training(plan, plan.main)
    tried = _evaluate(settings, plan, policies, run)
    runs = read_runs(plan, plan.main, tried.episodes)
    episodes = experiment.axis_episodes or tried.episodes
    run([job for line in planned for job in stages_of(plan, line, policies, episodes, tried.episodes)])
    looked = tried.looked if episodes == tried.episodes else None
    axes = [curves(plan, line, episodes, looked) for line in planned]
    result = result_of(settings, plan, runs, tried.stopping, tried.looked)
    result |= {"power": power, "axes": [entry for entry, _ in axes]}
    result["commands"] = [job.command for job in run.ran.values()]
    rows = [row for _, rows in axes for row in rows]
    figures.write_csv(plan.out / "episodes.csv", [*figures.csv_rows(runs), *rows])
    write_json(plan.out / "compare.json", result)
    write_json(plan.out / "summary.json", figures.summary_of(result))
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
