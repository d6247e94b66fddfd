"""`s2robot compare`: compare arms on the same demos and the same positions, with one or more training seeds.

    s2robot compare                                             # the encoders that ship, one seed each
    s2robot compare experiment=table10 hydra.run.dir=runs/table10   # repeat the command to resume after a kill
    s2robot compare axes=[demos,lighting]                       # also vary settings: where does S2 help?

Every stage is an ordinary `s2robot record / encode / train / evaluate` in a separate process. The run directory
holds compare.json (all figures), summary.json (the table), episodes.csv, report.html, and one `s2robot evaluate`
run directory per arm and training seed.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from itertools import product, zip_longest
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from s2robot.comparison import plan as planning
from s2robot.comparison import statistics as figures
from s2robot.comparison.jobs import REMEDY, Job, run_jobs, with_needs
from s2robot.comparison.paired import outcomes_of
from s2robot.comparison.plan import Plan, Policies, Runs, World, demos_of, make_plan, read_runs
from s2robot.comparison.report import write_compare_report
from s2robot.comparison.settings import Axis, Compare, Stopping
from s2robot.config import only_simulated
from s2robot.core.files import claim, read_json, write_csv, write_json
from s2robot.core.provenance import command, versions
from s2robot.core.run_folder import locked
from s2robot.core.settings import plain, read_some
from s2robot.core.workers import worker_pool
from s2robot.demos.replay import episode_frames
from s2robot.evaluation.records import read_actions
from s2robot.evaluation.rollouts import LearnedPlanner
from s2robot.evaluation.video import film
from s2robot.loading import image_size_of, load_networks

_ROUNDS, _STEPS = 3, 12  # cost measurement: passes (after a warm-up pass) over this many first frames


def compare(cfg: DictConfig, typed: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the unfinished stages, write the figures and return the contents of compare.json. ``typed``: the overrides shared by
    all arms; defaults to the command line's."""
    typed = list(HydraConfig.get().overrides.task) if typed is None else typed
    only_simulated(cfg)
    settings = read_some(Compare, cfg, "")
    plan = make_plan(settings, typed)
    with locked(plan.out):
        result = _run(settings, plan)
    labels = {arm.name: arm.label for arm in plan.arms}
    lines = [figures.headline(pair, labels) for pair in result["pairs"]]
    print("\n".join(["", *lines, f"report: {write_compare_report(plan.out)}"]))
    return result


def _run(settings: Compare, plan: Plan) -> dict[str, Any]:
    experiment = settings.experiment
    power, lines = figures.power_figures(experiment.power, len(plan.seeds), len(plan.positions))
    print("\n".join(lines))
    if experiment.stopping.enabled or len(plan.pairs) > 1:
        print("note: this power is for a single pair without early stopping; otherwise it is lower")
    # once outcomes were looked at, the interval of a fixed number of positions would be too narrow
    if experiment.stopping.enabled or (plan.out / "stopping.json").exists():
        claim(plan.out / "stopping.json", experiment.stopping.model_dump(), REMEDY)
    for arm in plan.arms:  # the files at a path may change between two runs
        words = [*plan.common, *arm.overrides]  # the same ones may give other settings, in your own files
        trained = {key: plain(planning.settings_of("train", words)[key]) for key in ("policy", "train")}
        inputs = {"encoder": plan.facts[arm.name].encoder, "demos": plan.demos, **trained}
        claim(plan.out / "arms" / arm.name / "inputs.json", inputs, REMEDY)
    chosen = experiment.default_axes if settings.axes is None else settings.axes
    axes = {name: planning.worlds_of(plan, name, experiment.axes[name]) for name in chosen}
    policies = planning.training(plan, plan.main)
    jobs, tried, stopping = _evaluate(experiment.stopping, plan, policies)
    # also at the planned end: the looks have spent part of alpha
    seq_alpha, arm_alpha = (experiment.stopping.alpha, figures.LEVEL) if stopping else (None, None)
    runs, episodes = read_runs(plan, plan.main, tried), experiment.axis_episodes or tried
    for _, worlds in axes.values():
        stages = list[Job]()
        for world in worlds:
            own = planning.training(plan, world) if world.trains else policies
            count = max(episodes, tried) if world.root == plan.out else episodes  # keep all main episodes
            stages += planning.evaluation(plan, world, own, count)
        run_jobs(stages, plan.parallel, plan.threads)
        jobs += stages
    outcomes, cost, arms = outcomes_of(runs), _cost(plan), []
    for arm in plan.arms:
        folders = [plan.folder(plan.main, arm, seed).relative_to(plan.out).as_posix() for seed in plan.seeds]
        found = figures.arm_figures(outcomes[arm.name], plan.seeds, folders, arm_alpha)
        near = figures.mean_progress(runs[arm.name]) if experiment.measure else {}
        arms.append({**plan.facts[arm.name].about, **found, **near, "ms_per_action": cost[arm.name]})
    entries, rows = [], figures.csv_rows(runs)
    for name, (default, worlds) in axes.items():
        alpha = arm_alpha if episodes == tried else None
        entry, more = _curves(plan, name, experiment.axes[name], worlds, episodes, alpha)
        entries.append(entry | {"default": default})
        rows += more
    result: dict[str, Any] = {
        **{"title": experiment.title, "question": experiment.question, "arms": arms},
        **{"measure": experiment.measure, "published": [each.model_dump() for each in experiment.published]},
        "pairs": figures.all_pairs(outcomes, plan.positions, plan.pairs, seq_alpha),
        "stopping": stopping,
        "power": power,
        "axes": entries,
        "positions": {"seed": plan.positions.start, "episodes": tried},
        **{"versions": versions(), "command": command()},
        "commands": [job.command for job in with_needs(jobs)],
        "videos": [],
    }
    write_csv(plan.out / "episodes.csv", figures.COLUMNS, rows)
    write_json(plan.out / "compare.json", result)
    write_json(plan.out / "summary.json", {key: result[key] for key in ("arms", "pairs")})
    if experiment.videos and plan.pairs:
        result["videos"] = film_disagreements(plan, runs, result["pairs"][0], experiment.videos)
        write_json(plan.out / "compare.json", result)
    return result


def _evaluate(
    stopping: Stopping, plan: Plan, policies: Policies
) -> tuple[list[Job], int, dict[str, Any] | None]:
    """Train and evaluate all positions, or in batches until every pair is decided. Return jobs, positions and looks."""
    if not stopping.enabled or not plan.pairs:
        jobs = planning.evaluation(plan, plan.main, policies, len(plan.positions))
        run_jobs(jobs, plan.parallel, plan.threads)
        return jobs, len(plan.positions), None
    looks, jobs = list[dict[str, Any]](), list[Job]()
    for episodes in [*range(stopping.batch, len(plan.positions), stopping.batch), len(plan.positions)]:
        jobs += (batch := planning.evaluation(plan, plan.main, policies, episodes))
        run_jobs(batch, plan.parallel, plan.threads)
        outcomes = outcomes_of(read_runs(plan, plan.main, episodes))
        looks.append(figures.interim(outcomes, plan.pairs, stopping.alpha))
        if looks[-1]["stop"]:
            break
    found = {
        "method": f"confidence sequences by betting, alpha {stopping.alpha:g} over {len(plan.pairs)} pairs",
        "looks": looks,
        "stopped_at": episodes if looks[-1]["stop"] and episodes < len(plan.positions) else None,
        "reason": "every pair is decided" if looks[-1]["stop"] else "all planned positions were tried",
    }
    return jobs, episodes, found


def _curves(
    plan: Plan, name: str, axis: Axis, worlds: Sequence[World], episodes: int, seq_alpha: float | None
) -> tuple[dict[str, Any], list[list[Any]]]:
    """Return the axis's entry in compare.json and its rows of episodes.csv."""
    arms: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in plan.arms}
    rows: list[list[Any]] = []
    for world in worlds:
        runs = read_runs(plan, world, episodes)
        if world.root != plan.out:
            rows += figures.csv_rows(runs, name, world.value)
        for arm, outcomes in outcomes_of(runs).items():
            counts = {"episodes": int(outcomes.size), "successes": int(outcomes.sum())}
            arms[arm].append({"value": world.value, **figures.arm_interval(outcomes, seq_alpha), **counts})
    about = {"name": name, "label": axis.label, "unit": axis.unit}
    return about | {"values": [world.value for world in worlds], "arms": arms}, rows


def _cost(plan: Plan) -> dict[str, float]:
    path = plan.out / "cost.json"
    if not path.exists() or not read_json(path).keys() >= plan.facts.keys():
        write_json(path, ms_per_action(plan))
    return read_json(path)


def ms_per_action(plan: Plan) -> dict[str, float]:
    """Return the median time from frames to the next action by arm. Arms alternate, so slow phases affect all of them."""
    store, settings = demos_of(plan), plan.facts[plan.arms[0].name].evaluate
    threads, planners, observations = torch.get_num_threads(), {}, {}
    torch.set_num_threads(settings.threads)
    for arm in plan.arms:
        folder = plan.folder(plan.main, arm, plan.seeds[0]) / "checkpoint"
        policy, encoder, contract = load_networks(folder, torch.device("cpu"))
        cameras, size = tuple(contract["cameras"]), image_size_of(contract, encoder)
        planners[arm.name] = LearnedPlanner(policy, encoder, cameras, device=settings.device)
        # (T, H, W, 3) each
        frames = dict(zip(cameras, episode_frames(store.path, 0, cameras, size), strict=True))
        observations[arm.name] = [
            {"images": {name: f[t] for name, f in frames.items()}, "proprio": state}
            for t, state in enumerate(store.episode(0)["proprio"][:_STEPS])
        ]
    times: dict[str, list[float]] = {name: [] for name in planners}
    for iteration, (name, planner) in product(range(_ROUNDS + 1), planners.items()):
        planner.reset({"seed": 0, "task": next(iter(planner.policy.spec.tasks), None)})
        for observation in observations[name]:
            start = time.perf_counter()
            planner.plan([observation])
            if iteration:  # the first one warms up
                times[name].append(1000 * (time.perf_counter() - start))
    torch.set_num_threads(threads)
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


def film_disagreements(plan: Plan, runs: Runs, pair: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Film up to `count` positions that only one arm of the pair solves, alternating wins and losses, each with the first
    training seed that has the majority outcome. Return the entries for compare.json."""
    arms = {arm.name: arm for arm in plan.arms}
    videos, tasks = [], []
    positions = [at for turn in zip_longest(pair["only_a"], pair["only_b"]) for at in turn if at is not None]
    for position, name in product(positions[:count], (pair["a"], pair["b"])):
        outcome = (name == pair["a"]) == (position in pair["only_a"])
        attempts = ((s, r) for s, records in runs[name].items() for r in records if r["seed"] == position)
        seed, record = next((s, r) for s, r in attempts if r["success"] == outcome)
        path = plan.out / "videos" / f"{position}_{name}-{seed}.mp4"
        videos.append({"path": f"videos/{path.name}", "position": position, "arm": name, "seed": seed})
        if not path.exists():  # videos are written atomically
            actions = read_actions(plan.folder(plan.main, arms[name], seed), record["episode"])
            tasks.append((plan.facts[name].world, record, actions, path))
    with worker_pool(plan.parallel) as pool:
        list(pool.in_order(film, tasks))
    return videos
