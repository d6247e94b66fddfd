"""The comparison along an axis: one setting, its values, every arm's success at each.

line = line_of(plan, "demos", settings.experiment.axes["demos"])
run_jobs(stages_of(plan, line, policies, episodes=128, tried=128), parallel=2, threads=1)
curves(plan, line, episodes=128, looked=None)      # an entry of compare.json's "axes", rows of episodes.csv
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from s2robot.common.errors import UserError
from s2robot.comparison import statistics as figures
from s2robot.comparison.arms import demos_there, value_of
from s2robot.comparison.jobs import Job
from s2robot.comparison.paired import outcomes_of
from s2robot.comparison.plan import Plan, Policies, World, evaluation, read_runs, recording_of, training, word
from s2robot.comparison.settings import Axis

_RECORDED = "recorded by this comparison"  # what demos are that are made for one value


@dataclass(frozen=True)
class Point:
    """One value of an axis and where its arms run."""

    value: Any
    world: World
    trains: bool  # policies of its own, else those of the main comparison


@dataclass(frozen=True)
class Line:
    """An axis with its points, in the order of its values."""

    name: str
    axis: Axis
    default: Any  # the main comparison's value
    points: tuple[Point, ...]


def line_of(plan: Plan, name: str, axis: Axis) -> Line:
    """The points of an axis; at the value that all arms have it is the main comparison's world.

    UserError: a key of no stage, or numbers of demos that are none or more than there are.
    """
    values = [value_of(arm, plan.common, axis.key) for arm in plan.arms]
    default = values[0] if values.count(values[0]) == len(values) else None  # else an arm is at another value
    if axis.key == "demos.episodes":
        there = demos_there(plan.arms[0], plan.common, recorded=plan.main.recording is not None)
        default = there if default is None else default
        if wrong := [value for value in axis.values if type(value) is not int or value < 1]:
            raise UserError(
                f"experiment.axes.{name}.values: found {wrong[0]}, expected whole numbers from 1 to {there}"
            )
        if more := [value for value in axis.values if value > there]:
            raise UserError(
                f"axes: {name}: found {', '.join(map(str, more))}, expected at most {there}: there are no more demos "
                f"(experiment.axes.{name}.values)"
            )
    points = []
    for value in axis.values:
        if value == default:
            points.append(Point(value, plan.main, trains=False))
            continue
        root, label = plan.out / "axes" / name / str(value), f"{name} {value}, "
        words, recording = [f"{axis.key}={value}"], None
        if axis.record:
            recording = recording_of(root, label, [*plan.common, *words])
            words.append(f"demos.path={word(root / 'demos.zarr')}")
        world = World(root, label, tuple(words), recording, _RECORDED if axis.record else plan.main.demos)
        points.append(Point(value, world, trains=axis.record or axis.train))
    return Line(name, axis, default, tuple(points))


def stages_of(plan: Plan, line: Line, main: Policies, episodes: int, tried: int) -> list[Job]:
    """The evaluations of all points, with what they need.

    ``main``: the main comparison's policies; ``tried``: the positions that it was evaluated on, which are not cut.
    """
    jobs: list[Job] = []
    for point in line.points:
        policies = training(plan, point.world) if point.trains else main
        wanted = max(episodes, tried) if point.world is plan.main else episodes
        jobs += evaluation(plan, point.world, policies, wanted)
    return jobs


def curves(
    plan: Plan, line: Line, episodes: int, looked: float | None
) -> tuple[dict[str, Any], list[Sequence[Any]]]:
    """The axis's entry in compare.json, and its rows of episodes.csv; ``looked`` as in `statistics.arm_interval`."""
    arms: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in plan.arms}
    rows: list[Sequence[Any]] = []
    for point in line.points:
        runs = read_runs(plan, point.world, episodes)
        if point.world is not plan.main:
            rows += figures.csv_rows(runs, line.name, point.value)
        for arm, outcomes in outcomes_of(runs).items():
            low, high, _ = figures.arm_interval(outcomes, looked)
            counts = {"episodes": int(outcomes.size), "successes": int(outcomes.sum())}
            found = {"value": point.value, "success": float(outcomes.mean()), "low": low, "high": high}
            arms[arm].append(found | counts)
    axis = line.axis
    about = {"name": line.name, "label": axis.label, "unit": axis.unit, "default": line.default}
    return about | {"values": [point.value for point in line.points], "arms": arms}, rows
