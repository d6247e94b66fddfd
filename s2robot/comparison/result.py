"""What compare.json says of a comparison whose episodes are there."""

from pathlib import Path
from typing import Any

from s2robot.common.errors import UserError
from s2robot.common.files import read_json, write_json
from s2robot.comparison import statistics as figures
from s2robot.comparison.arms import demos_of
from s2robot.comparison.cost import ms_per_action
from s2robot.comparison.paired import outcomes_of
from s2robot.comparison.plan import Plan, Runs
from s2robot.comparison.settings import Compare
from s2robot.core.provenance import command, versions
from s2robot.probing.report import tables_of


def result_of(
    settings: Compare, plan: Plan, runs: Runs, stopping: dict[str, Any] | None, looked: float | None
) -> dict[str, Any]:
    """compare.json but for power, axes and commands; ``looked``: the alpha of looks that ended it early."""
    outcomes, positions = outcomes_of(runs), figures.positions_of(runs)
    cost = _cost(plan)
    arms = []
    for arm in plan.arms:
        folders = [plan.folder(plan.main, arm, seed) for seed in plan.seeds]
        names = [folder.relative_to(plan.out).as_posix() for folder in folders]
        row = {
            **plan.known[arm.name].about,
            **figures.arm_figures(outcomes[arm.name], plan.seeds, names, looked),
        }
        arms.append({**row, "ms_per_action": cost[arm.name]})
    readout = settings.readout_run
    return {
        "title": settings.experiment.title,
        "question": settings.experiment.question,
        "arms": arms,
        "pairs": figures.all_pairs(outcomes, positions, plan.pairs, looked),
        "stopping": stopping,
        "information": None if settings.information_run is None else information(settings.information_run),
        "readout": None if readout is None else read_json(readout / "readout.json"),
        "positions": {"seed": plan.position_seed, "episodes": len(positions)},
        "versions": versions(),
        "command": command(),
    }


def _cost(plan: Plan) -> dict[str, float]:
    """Milliseconds per action of each arm, measured once for a run folder."""
    path = plan.out / "cost.json"
    identity = {arm.name: list(arm.overrides) for arm in plan.arms}
    if path.exists() and (found := read_json(path)).get("arms") == identity:
        return found["ms_per_action"]
    checkpoints = {arm.name: plan.folder(plan.main, arm, plan.seeds[0]) / "checkpoint" for arm in plan.arms}
    first = plan.known[plan.arms[0].name]
    store = demos_of(plan.arms[0], plan.common)
    cost = ms_per_action(checkpoints, store, first.device, threads=first.threads)
    write_json(path, {"arms": identity, "ms_per_action": cost})
    return cost


def information(folder: Path) -> dict[str, Any]:
    """Return the table of a run of `s2robot probe probe=information`; UserError names the file."""
    path = folder / "information.json"
    if not path.is_file():
        raise UserError(f"information_run: {path}: no such file; `s2robot probe probe=information` writes it")
    try:
        columns, *rows = tables_of(read_json(path)["results"])[0]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"information_run: {path}: expected what `s2robot probe` writes, got {type(error).__name__}: {error}"
        ) from error
    return {"columns": columns, "rows": rows}
