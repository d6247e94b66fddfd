"""inspect.html: a dataset's episodes with videos and curves in step, its ranges, what is odd in it.

Beside it lies `episodes/` with a video and a script a episode, which the page loads when the episode is chosen: a page
opened as a file may not fetch, but it may load scripts.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from s2robot.core.errors import UserError
from s2robot.core.files import write_text
from s2robot.demos.errors import DatasetError
from s2robot.demos.layouts import starts, task_of
from s2robot.demos.replay import world_of_demos
from s2robot.demos.store import EpisodeStore
from s2robot.envs.task_settings import Group
from s2robot.inspection.films import Tiles
from s2robot.inspection.findings import KINDS, Finding
from s2robot.inspection.tables import Table, curves, episodes_of, plots
from s2robot.reporting.page import drawing, flatten, write_page
from s2robot.reporting.style import BLUE, VERMILLION, styled

FOLDER = "episodes"
POINTS = 4000  # of a curve in the page: as many as a screen has dots
MOST = 200  # findings of a kind in the page; more are counted


def write_inspection(
    store: EpisodeStore,
    tables: Sequence[Table],
    ends: np.ndarray,
    films: Tiles | None,
    found: Sequence[Finding],
    unknown: Mapping[str, str],
    path: Path,
) -> Path:
    """Write the page and, beside it, the curves of each episode; the videos are there already.

    Args:
        tables, ends: numbers of all steps and where the episodes end in them.
        films: where the cameras lie in the videos; None without videos.
        found, unknown: what is odd, and what could not be looked for with the reason.
        path: of the page.

    Raises:
        UserError: a file that cannot be written.
    """
    for i, shown in enumerate(zip(*(episodes_of(table.values, ends) for table in tables), strict=True)):
        each, lines = curves(np.concatenate(shown, axis=1), POINTS)
        script = path.parent / FOLDER / f"{i:04d}.js"
        try:
            write_text(script, f"episode({i},{json.dumps([each, lines], separators=(',', ':'))})\n")
        except OSError as error:
            raise UserError(f"{script}: cannot be written ({error.strerror})") from error
    kinds = Counter(finding.kind for finding in found)
    counts = f"{_count(len(ends), 'episode')}, {_count(int(ends[-1]), 'step')}"
    # a cached copy is called by a number
    name = source["name"] if isinstance(source := store.attrs.get("source"), dict) else store.path.stem
    return write_page(
        path,
        "inspect.html.j2",
        title=f"{name}: {_count(len(ends), 'episode')}",
        headline=f"{name}: {counts}",
        facts=facts_of(store, ends),
        kinds=[(kind, meaning, kinds[kind]) for kind, meaning in KINDS.items() if kinds[kind]],
        looked=[meaning for kind, meaning in KINDS.items() if kind not in ", ".join(unknown).split(", ")],
        unknown=unknown,
        findings={kind: [f for f in found if f.kind == kind][:MOST] for kind in kinds},
        most=MOST,
        ranges=[(table.key, _cells(table)) for table in tables],
        pictures=_plots(store, ends),
        settings=[row for key, value in store.attrs.items() for row in flatten(key, value)],
        films=films,
        data={
            "folder": FOLDER,
            "rate": store.attrs["rate_hz"],
            "videos": films is not None,
            "charts": _charts(tables),
            "episodes": _episodes(store, ends),
            "findings": [asdict(f) for f in found if f.episode is not None],
        },
    )


def _charts(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """The plots of the curves, whose columns are counted over all tables."""
    first, charts = 0, []
    for table in tables:
        low, _, _, _, high = np.nan_to_num(table.ranges()).tolist()
        for title, columns in plots(table):
            lines = [
                {"column": first + c, "name": table.names[c], "low": low[c], "high": high[c]} for c in columns
            ]
            charts.append({"key": table.key, "title": title, "lines": lines})
        first += len(table.names)
    return charts


def _episodes(store: EpisodeStore, ends: np.ndarray) -> list[dict[str, Any]]:
    """Of each episode its steps, and what the store knows: success, task, number in the source."""
    found: list[dict[str, Any]] = [{"steps": int(steps)} for steps in np.diff(ends, prepend=0)]
    texts = store.attrs.get("tasks")
    shown: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "success": ("success", bool),
        "task": ("task", lambda number: _task(texts, number)),
        "source_episode": ("source", int),
    }
    for key, (name, convert) in shown.items():
        if key in store.meta_keys and (key != "task" or texts):
            for episode, value in zip(found, store.meta(key).tolist(), strict=False):
                episode[name] = convert(value)
    return found


def _task(texts: Any, number: Any) -> str:
    """The text of a task's number, from a list or a mapping; the number where there is none."""
    try:
        return str(texts[number] if isinstance(texts, list) else texts[str(number)])
    except (KeyError, IndexError, TypeError):
        return f"task {number}"


def facts_of(store: EpisodeStore, ends: np.ndarray) -> list[tuple[str, str]]:
    """Facts about a dataset, for page and terminal."""
    lengths, seconds, count = np.diff(ends, prepend=0), ends[-1] / store.attrs["rate_hz"], len(ends)
    facts = [
        ("robot", store.robot),
        ("rate", f"{store.attrs['rate_hz']:g} Hz"),
        ("together", f"{seconds / 60:.1f} min" if seconds > 90 else f"{seconds:.1f} s"),
        ("steps an episode", f"{lengths.min()} to {lengths.max()}, median {np.median(lengths):g}"),
        ("cameras", ", ".join(store.cameras) or "none"),
    ]
    if "success" in store.meta_keys:
        facts.append(("successful", f"{int(store.meta('success')[:count].sum())} of {count}"))
    return facts


def _cells(table: Table) -> list[list[str]]:
    return [[name, *_numbers(row)] for name, row in zip(table.names, table.ranges().T.tolist(), strict=True)]


def _numbers(values: list[float]) -> list[str]:
    """Numbers of one scale with as many decimals as tell them apart: 1e-18 beside 1 is 0."""
    largest = max((abs(x) for x in values if np.isfinite(x)), default=0.0)
    decimals = int(np.clip(3 - np.floor(np.log10(largest)), 0, 12)) if largest else 0
    return [f"{round(x, decimals) + 0.0:.{decimals}f}" for x in values]  # + 0.0: no -0


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}" + ("" if n == 1 else "s")


# -------------------------------------------------------------------- plots


def _plots(store: EpisodeStore, ends: np.ndarray) -> list[tuple[str, Any]]:
    """Titles and plots: lengths, and where the episodes began if the store holds it."""
    found = [("Lengths", drawing(_lengths(np.diff(ends, prepend=0), store.attrs["rate_hz"]), "lengths"))]
    task, records = task_of(store), starts(store)[: len(ends)]
    if all(task.layout_of(record) for record in records):
        found.append(("Where the episodes began", drawing(_starts(store, records), "starts")))
    return found


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


@styled
def _starts(store: EpisodeStore, records: Sequence[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    known = "success" in store.meta_keys
    good = store.meta("success")[: len(records)] if known else np.ones(len(records), bool)
    groups = [
        Group([r for r, yes in zip(records, good, strict=True) if bool(yes) is wanted], *look, 9)
        for wanted, look in ((True, ("successful", "o", BLUE)), (False, ("failed", "X", VERMILLION)))
    ]
    try:
        about = world_of_demos(store).placement()
    except DatasetError:
        about = {}
    shown = [group for group in groups if group.records]
    task_of(store).draw_layout(figure.add_subplot(), shown, about)
    return figure
