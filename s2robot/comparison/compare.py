"""`s2robot compare`: arms on the same demos and the same cube positions, with as many training seeds as it takes.

    s2robot compare                                             # the encoders that ship, one seed each
    s2robot compare experiment=table10 hydra.run.dir=runs/table10   # the same command again goes on after a kill
    s2robot compare axes=[demos,lighting]                       # and where does S2 pay?

Every stage is an ordinary `s2robot record / encode / train / evaluate`, run in a process of its own. The run folder
holds compare.json (all figures), summary.json (the table), episodes.csv, report.html, and a folder for each arm and
training seed that is what `s2robot evaluate` writes.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from s2robot.common.errors import UserError
from s2robot.common.files import write_json
from s2robot.common.provenance import command, versions
from s2robot.common.run_folder import locked
from s2robot.common.settings import only_simulated, open_demos, plain
from s2robot.comparison import statistics as figures
from s2robot.comparison.arms import about, settings_of
from s2robot.comparison.cost import ms_per_action
from s2robot.comparison.film import film_disagreements
from s2robot.comparison.jobs import Job, run_jobs
from s2robot.comparison.paired import outcomes_of
from s2robot.comparison.plan import Plan, Runs, make_plan, word
from s2robot.comparison.report import write_compare_report
from s2robot.evaluation.records import read_json
from s2robot.probing.information import table_of


def compare(cfg: DictConfig, typed: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is not done yet and write the figures; returns what compare.json holds.

    ``typed``: the overrides of this command that all arms share; None: those that Hydra was given.
    """
    if typed is None:
        typed = list(HydraConfig.get().overrides.task)
    only_simulated(cfg)
    plan = make_plan(cfg, typed)
    with locked(plan.out):
        power, lines = figures.power_figures(plain(cfg.experiment.power), len(plan.seeds), plan.episodes)
        print("\n".join(lines))
        if cfg.record:
            run_jobs([plan.record_job(plan.out, ())], 1, plan.threads)
        stopping, episodes = _evaluate(plan, cfg)
        early = None if stopping is None or stopping["stopped_at"] is None else cfg.experiment.stopping.alpha
        runs = plan.read(plan.out, episodes)
        axes, rows = _axes(plan, cfg, episodes, early)
        result = _result(cfg, plan, runs, stopping)
        result |= {"power": power, "axes": axes, "commands": [job.command for job in plan.jobs]}
        figures.write_csv(plan.out / "episodes.csv", [*figures.csv_rows(runs), *rows])
        write_json(plan.out / "compare.json", result)
        write_json(plan.out / "summary.json", figures.summary_of(result))
        if cfg.experiment.videos and result["pairs"]:
            result["videos"] = film_disagreements(plan, runs, result["pairs"][0], cfg.experiment.videos)
            write_json(plan.out / "compare.json", result)
    labels = {arm.name: arm.label for arm in plan.arms}
    print()
    for pair in result["pairs"]:
        print(figures.headline(pair, labels))
    print(f"report: {write_compare_report(plan.out)}")
    return result


def _evaluate(plan: Plan, cfg: DictConfig) -> tuple[dict[str, Any] | None, int]:
    """Train, and evaluate all positions, or batches until every pair is decided: "stopping", and how many."""
    stopping = cfg.experiment.stopping
    training = plan.training_jobs(plan.out)

    def run(episodes: int) -> None:
        plan.run([*training, *plan.evaluation_jobs(plan.out, episodes, wait=True)])

    if not stopping.enabled:
        run(plan.episodes)
        return None, plan.episodes
    if stopping.batch < 1:
        raise UserError(f"experiment.stopping.batch: found {stopping.batch}, expected 1 or more positions")
    looks: list[dict[str, Any]] = []
    for episodes in [*range(stopping.batch, plan.episodes, stopping.batch), plan.episodes]:
        run(episodes)
        outcomes = outcomes_of(plan.read(plan.out, episodes))
        looks.append(figures.look_at(outcomes, plan.pairs, stopping.alpha))
        if looks[-1]["stop"]:
            break
    early = looks[-1]["stop"] and episodes < plan.episodes
    method = f"confidence sequences by betting, alpha {stopping.alpha:g} over {len(plan.pairs)} pairs"
    reason = "every pair is decided" if looks[-1]["stop"] else "all planned positions were tried"
    found = {"method": method, "looks": looks, "stopped_at": episodes if early else None, "reason": reason}
    return found, episodes


def _axes(
    plan: Plan, cfg: DictConfig, tried: int, looked: float | None
) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """The comparison along the chosen axes: the entries of compare.json and the rows of episodes.csv."""
    known, chosen = cfg.experiment.axes, list(cfg.axes or [])
    for name in chosen:
        if name not in known:
            raise UserError(f"axes: found '{name}', expected some of {', '.join(map(str, known))}")
    episodes = cfg.experiment.axis_episodes or tried
    points: dict[str, list[tuple[Any, Path]]] = {}
    jobs: list[Job] = []
    for name in chosen:
        spec = known[name]
        default = _default(plan, spec)
        points[name] = []
        for value in spec["values"]:
            if value == default:  # what the main comparison has run
                points[name].append((value, plan.out))
                jobs += plan.evaluation_jobs(plan.out, max(episodes, tried))
                continue
            root = plan.out / "axes" / name / str(value)
            extra = [f"{spec.key}={value}"]
            needs: list[str] = []
            if spec.record:
                jobs.append(plan.record_job(root, extra))
                needs = [jobs[-1].name]
                extra.append(f"demos.path={word(root / 'demos.zarr')}")
            trains = spec.record or spec.train
            if trains:
                jobs += plan.training_jobs(
                    root, extra, needs, "recorded by this comparison" if spec.record else None
                )
            jobs += plan.evaluation_jobs(root, episodes, extra, None if trains else plan.out, wait=trains)
            points[name].append((value, root))
    plan.run(list({job.name: job for job in jobs}.values()))
    found, rows = [], []
    for name in chosen:
        entry = {k: known[name][k] for k in ("label", "unit")}
        curves: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in plan.arms}
        for value, root in points[name]:
            runs = plan.read(root, episodes)
            if root != plan.out:
                rows += figures.csv_rows(runs, name, value)
            for arm, outcomes in outcomes_of(runs).items():
                low, high, _ = figures.arm_interval(outcomes, looked if episodes == tried else None)
                counts = {"episodes": int(outcomes.size), "successes": int(outcomes.sum())}
                curves[arm].append(
                    {"value": value, "success": float(outcomes.mean()), "low": low, "high": high, **counts}
                )
        values = [value for value, _ in points[name]]
        found.append(
            {"name": name, **entry, "default": _default(plan, known[name]), "values": values, "arms": curves}
        )
    return found, rows


def _default(plan: Plan, spec: DictConfig) -> Any:
    """The value that the main comparison has."""
    verb = "evaluate" if spec.key.startswith("evaluate.") else "train"
    words = [*plan.common, *plan.arms[0].overrides]
    with about("axes"):
        cfg = settings_of(verb, words)
    value = OmegaConf.select(cfg, spec.key)
    if value is None and spec.key == "demos.episodes":
        return len(open_demos(cfg))
    return value


def _result(cfg: DictConfig, plan: Plan, runs: Runs, stopping: dict[str, Any] | None) -> dict[str, Any]:
    """compare.json but for power and axes."""
    outcomes, positions = outcomes_of(runs), figures.positions_of(runs)
    cost = _cost(cfg, plan)
    arms, early, looked = [], None, None
    if stopping is not None and stopping["stopped_at"] is not None:
        early = cfg.experiment.stopping.alpha
        looked = early / len(plan.pairs)
    for arm in plan.arms:
        folders = [plan.folder(plan.out, arm, seed) for seed in plan.seeds]
        names = [folder.relative_to(plan.out).as_posix() for folder in folders]
        row = {
            **plan.about_arms[arm.name],
            **figures.arm_figures(outcomes[arm.name], plan.seeds, names, early),
        }
        row["gflops_per_frame"] = round(row["gflops_per_frame"] * _computed(folders), 3)
        arms.append({**row, "ms_per_action": cost[arm.name]})
    return {
        "title": cfg.experiment.title,
        "question": cfg.experiment.question,
        "arms": arms,
        "pairs": [figures.pair_figures(outcomes, positions, a, b, looked) for a, b in plan.pairs],
        "stopping": stopping,
        "information": None if cfg.information_run is None else _information(Path(cfg.information_run)),
        "readout": None if cfg.readout_run is None else read_json(Path(cfg.readout_run) / "readout.json"),
        "positions": {"seed": plan.position_seed, "episodes": len(positions)},
        "versions": versions(),
        "command": command(),
    }


def _computed(folders: Iterable[Path]) -> float:
    """Share of the tiles that scale-selective S2 computed; 1 without it."""
    shares = []
    for folder in folders:
        found = read_json(folder / "summary.json").get("selective")
        if found and found["frames"]:
            shares.append(found["computed_per_frame"] / found["tiles_per_frame"])
    return sum(shares) / len(shares) if shares else 1.0


def _cost(cfg: DictConfig, plan: Plan) -> dict[str, float]:
    """Milliseconds per action of each arm, measured once for a run folder."""
    path = plan.out / "cost.json"
    identity = {arm.name: list(arm.overrides) for arm in plan.arms}
    if path.exists() and (found := read_json(path)).get("arms") == identity:
        return found["ms_per_action"]
    chosen = {arm.name: plan.folder(plan.out, arm, plan.seeds[0]) / "checkpoint" for arm in plan.arms}
    settings = {
        arm.name: settings_of("evaluate", [*plan.common, *arm.overrides]).evaluate for arm in plan.arms
    }
    selective = {name: plain(evaluate.selective) for name, evaluate in settings.items()}
    first = settings[plan.arms[0].name]
    store = open_demos(settings_of("train", [*plan.common, *plan.arms[0].overrides]))
    cost = ms_per_action(chosen, selective, store, first.device, threads=first.threads)
    write_json(path, {"arms": identity, "ms_per_action": cost})
    return cost


def _information(folder: Path) -> dict[str, Any]:
    """The table of `s2robot information`, as columns and rows."""
    path = folder / "information.json"
    if not path.is_file():
        raise UserError(f"information_run: {path}: no such file; `s2robot information` writes it")
    try:
        columns, *rows = table_of(read_json(path))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"information_run: {path}: {type(error).__name__}: {error}, expected what `s2robot information` writes"
        ) from error
    return {"columns": columns, "rows": rows}
