"""`s2robot inspect`: summarise a dataset, find its anomalies and write inspect.html, or replay its actions.

Next to the page, `episodes/` holds a video and a script per episode, which the page loads when you select the episode.
They are scripts because browsers block fetch() on pages opened as files.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from s2robot.config import DemosSettings
from s2robot.core.errors import UserError
from s2robot.core.files import write_text
from s2robot.core.parts import number_names, parts_of
from s2robot.core.progress import bar
from s2robot.core.settings import Settings, from_yaml
from s2robot.demos.binding import names_no_world
from s2robot.demos.errors import mismatch
from s2robot.demos.replay import follow_episode, replay_episode, starts, task_of, world_of_demos
from s2robot.demos.schema import PARTS
from s2robot.demos.store import EpisodeStore
from s2robot.envs.tasks import make
from s2robot.inspection.advice import AdviceSettings, advise
from s2robot.inspection.films import FilmSettings, Tiles, film_all
from s2robot.inspection.findings import KINDS, find, unchecked_kinds
from s2robot.inspection.tables import Finding, Frames, Table, Thresholds, curves, episodes_of, plots, tables
from s2robot.reporting.page import flatten, write_page
from s2robot.reporting.style import BLUE, VERMILLION, figure_svg, styled

FOLDER = "episodes"
POINTS = 4000  # per curve in the page: about the width of a screen
MAX_LISTED = 200  # findings per kind in the page; more are only counted


class InspectSettings(Settings, file="inspect"):
    workers: int = from_yaml(ge=1)
    replay: bool = from_yaml()
    videos: FilmSettings = from_yaml()
    anomalies: Thresholds = from_yaml()
    scales: AdviceSettings = from_yaml()


def _open(demos: DemosSettings, world: Any = None) -> tuple[EpisodeStore, int]:
    """Return the dataset, bound to ``world`` if it has no world, and the count of episodes to use (UserError)."""
    store = demos.open_one(world)
    if not len(store):
        raise mismatch(store.path, "at least one episode", "none")
    return store, min(len(store), demos.first() or len(store))


def replay_demos(demos: DemosSettings, world: Any = None) -> str:
    """Replay the recorded actions of each episode open loop; return a summary (UserError: an episode fails)."""
    store, count = _open(demos, world)
    if names_no_world(store.attrs):
        raise mismatch("task", f"the world of {store.path}, which does not store one", "none")
    env, worst, failed = make(world_of_demos(store), draw=False), 0.0, list[int]()
    if "state" not in store.keys:
        return _follow(store, env, count)
    with bar("replaying") as update:
        for i in range(count):
            result = replay_episode(store, env, i)
            worst = max(worst, result["max_error"])
            failed += [] if result["success"] else [i]
            update(i + 1, count, f"{len(failed)} failed")
    if failed:
        failures = f"{len(failed)} of {count} episodes fail when replayed (first {failed[0]})"
        raise UserError(f"{store.path}: {failures}; the environment may differ from the recorded one")
    return f"{count} of {count} episodes succeed again; proprioception differs by at most {worst:.2g}"


def _follow(store: EpisodeStore, env: Any, count: int) -> str:
    """Compare replayed with recorded states; if actions are absolute targets, they converge after a while."""
    errors = []
    with bar("replaying") as update:
        for i in range(count):
            errors.append(follow_episode(store, env, i))
            update(i + 1, count, "episodes")
    recorded = store.read("proprio", 0, store.episode_slice(count - 1).stop)
    spread = np.maximum(np.ptp(recorded, 0), 1e-9)
    error = np.median(np.concatenate(errors) / spread, 0)
    usual = np.median(np.abs(recorded - recorded.mean(0)) / spread, 0)
    rows = zip(number_names(parts_of(store.attrs, "proprio")), error, usual, strict=True)
    lines = [f"  {name}: {100 * a:.1f} % (mean state: {100 * b:.1f} %)" for name, a, b in rows]
    title = f"{count} episodes from other starts; median distance to the recorded state, in % of its range:"
    return "\n".join([title, *lines])


def inspect_demos(demos: DemosSettings, settings: InspectSettings, out: Path, world: Any = None) -> Path:
    """Print contents and anomalies, write `inspect.html` and its folder to `out`, and return its path (UserError)."""
    store, count = _open(demos, world)
    ends, numbers = store.episode_ends[:count], tables(store, count)
    print(summary(store, numbers, ends))
    films: Tiles | None = None
    frames: Frames = []
    advice = "not checked without videos"
    if settings.videos.write and store.cameras:
        with bar("videos") as update:
            films, frames = film_all(store, count, settings.videos, settings.workers, out / FOLDER, update)
        advice = advise(store, count, settings.scales)
        print(f"scales: {advice}")
    findings = find(numbers, ends, store.attrs["rate_hz"], frames, settings.anomalies)
    kinds = Counter(finding.kind for finding in findings)
    print("anomalies: " + (", ".join(f"{kind} {n}" for kind, n in kinds.items()) or "nothing"))
    for i, shown in enumerate(zip(*(episodes_of(table.values, ends) for table in numbers), strict=True)):
        points = json.dumps(curves(np.concatenate(shown, axis=1), POINTS), separators=(",", ":"))
        write_text(out / FOLDER / f"{i:04d}.js", f"episode({i},{points})\n")
    unknown = unchecked_kinds(numbers, ends, frames)
    facts = [*facts_of(store, ends), ("scales", advice)]
    return _write_page(store, numbers, ends, facts, films, findings, unknown, out / "inspect.html")


def facts_of(store: EpisodeStore, ends: np.ndarray) -> list[tuple[str, str]]:
    """Return facts about a dataset for the page and the terminal."""
    lengths, seconds, count = np.diff(ends, prepend=0), ends[-1] / store.attrs["rate_hz"], len(ends)
    facts = [
        ("robot", store.robot),
        ("rate", f"{store.attrs['rate_hz']:g} Hz"),
        ("duration", f"{seconds / 60:.1f} min" if seconds > 90 else f"{seconds:.1f} s"),
        ("steps per episode", f"{lengths.min()} to {lengths.max()}, median {np.median(lengths):g}"),
        ("cameras", ", ".join(store.cameras) or "none"),
    ]
    if "success" in store.meta_keys:
        facts.append(("successful", f"{int(store.meta('success')[:count].sum())} of {count}"))
    return facts


def summary(store: EpisodeStore, numbers: Sequence[Table], ends: np.ndarray) -> str:
    """Return a dataset's contents and the ranges of action and proprioception as text."""
    attrs = store.attrs
    rows = [
        ("episodes", f"{len(ends)} ({ends[-1]} steps)"),
        *facts_of(store, ends),
        ("actions", attrs["action_frame"]),
        ("holds", f"{attrs['kind']}: {', '.join(store.keys)}"),
        ("per episode", ", ".join(store.meta_keys) or "-"),
        ("env", f"{attrs['env_version']}, seed {attrs['seed']}"),
    ]
    if "perturbed" in store.keys:
        share = (store.read("perturbed", 0, int(ends[-1])) != 0).mean()
        rows.append(("perturbed", f"{100 * share:.1f} % of the steps"))
    layouts = [task_of(store).layout_of(start) for start in starts(store, len(ends))]
    for name in dict.fromkeys(name for layout in layouts for name in layout):
        values = [layout[name] for layout in layouts if name in layout]
        rows.append((f"{name} at the start", f"{min(values):+.3g} to {max(values):+.3g}"))
    columns = ("min", "median", "max")
    rows += [("fingerprint", store.fingerprint[:16]), ("", "".join(f" {name:>8}" for name in columns))]
    for table in (table for table in numbers if table.key in PARTS):
        for name, (low, _, median, _, high) in zip(table.names, table.ranges().T, strict=True):
            rows.append((f"{table.key} {name}", "".join(f" {x:+8.3f}" for x in (low, median, high))))
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join([str(store.path), *(f"  {name:<{width}}{value}" for name, value in rows)])


def _write_page(
    store: EpisodeStore,
    numbers: Sequence[Table],
    ends: np.ndarray,
    facts: Sequence[tuple[str, str]],
    films: Tiles | None,
    findings: Sequence[Finding],
    unknown: Mapping[str, str],
    path: Path,
) -> Path:
    kinds = Counter(finding.kind for finding in findings)
    # the folder name of a cached copy is not the dataset's name
    name = source["name"] if isinstance(source := store.attrs.get("source"), dict) else store.path.stem
    title, lengths = f"{name}: {len(ends):,} episode{'s' * (len(ends) != 1)}", np.diff(ends, prepend=0)
    return write_page(
        path,
        "inspect.html.j2",
        title=title,
        headline=f"{title}, {ends[-1]:,} step{'s' * bool(ends[-1] != 1)}",
        facts=facts,
        kinds=[(kind, meaning, kinds[kind]) for kind, meaning in KINDS.items() if kinds[kind]],
        looked=[meaning for kind, meaning in KINDS.items() if kind not in ", ".join(unknown).split(", ")],
        unknown=unknown,
        findings={kind: [f for f in findings if f.kind == kind][:MAX_LISTED] for kind in kinds},
        most=MAX_LISTED,
        ranges=[(table.key, _cells(table)) for table in numbers],
        pictures=[("Lengths", figure_svg(_lengths(lengths, store.attrs["rate_hz"]), "lengths"))],
        settings=[row for key, value in store.attrs.items() for row in flatten(key, value)],
        films=films,
        data={
            "folder": FOLDER,
            "rate": store.attrs["rate_hz"],
            "videos": films is not None,
            "charts": _charts(numbers),
            "episodes": _episodes(store, ends),
            "findings": [f._asdict() for f in findings if f.episode is not None],
        },
    )


def _charts(numbers: Sequence[Table]) -> list[dict[str, Any]]:
    """Return the plots of the curves; columns are numbered across all tables."""
    first, charts = 0, []
    for table in numbers:
        low, _, _, _, high = table.ranges().tolist()
        names = table.names
        for title, columns in plots(table):
            lines = [{"column": first + c, "name": names[c], "low": low[c], "high": high[c]} for c in columns]
            charts.append({"key": table.key, "title": title, "lines": lines})
        first += len(names)
    return charts


def _episodes(store: EpisodeStore, ends: np.ndarray) -> list[dict[str, Any]]:
    """Return the steps of each episode and, if stored, its success, task and number in the source."""
    episodes: list[dict[str, Any]] = [{"steps": int(steps)} for steps in np.diff(ends, prepend=0)]
    tasks = dict(enumerate(store.attrs.get("tasks") or []))
    values: dict[str, Any] = {"success": ("success", bool), "source_episode": ("source", int)}
    if tasks:
        values["task"] = ("task", lambda number: tasks.get(number, f"task {number}"))
    for key in values.keys() & {*store.meta_keys}:
        name, convert = values[key]
        for episode, value in zip(episodes, store.meta(key).tolist(), strict=False):
            episode[name] = convert(value)
    return episodes


def _cells(table: Table) -> list[list[str]]:
    """Return the name and ranges of each column, with decimals that suit its scale: next to 1, 1e-18 is 0."""
    rows = []
    for name, values in zip(table.names, table.ranges().T.tolist(), strict=True):
        largest = max(map(abs, values))
        decimals = int(np.clip(3 - np.floor(np.log10(largest)), 0, 12)) if largest else 0
        rows.append([name, *(f"{round(x, decimals) + 0.0:.{decimals}f}" for x in values)])  # + 0.0: no -0
    return rows


@styled
def _lengths(lengths: np.ndarray, rate: float) -> Figure:
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes: Axes = figure.add_subplot()
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // 24))  # whole steps
    axes.hist(lengths, bins=(np.arange(low, high + width + 1, width) - 0.5).tolist(), color=BLUE)
    median = float(np.median(lengths))
    axes.axvline(median, color=VERMILLION, lw=1.5)
    axes.set(title=f"median {median:g} steps ({median / rate:.1f} s)", xlabel="steps", ylabel="episodes")
    axes.locator_params(integer=True)
    return figure
