"""`s2robot inspect`: print a dataset, look for what is odd in it, and make a page of it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as Printed

from s2robot.common.extras import require_simulator
from s2robot.common.progress import bar
from s2robot.common.settings import DemosSettings
from s2robot.core.settings import Settings, from_yaml
from s2robot.demos.errors import mismatch
from s2robot.demos.layouts import starts, task_of
from s2robot.demos.schema import PARTS
from s2robot.demos.store import EpisodeStore
from s2robot.inspection.films import FilmSettings, Tiles, film_all
from s2robot.inspection.findings import FrameStats, Thresholds, find, unchecked_kinds
from s2robot.inspection.page import FOLDER, facts_of, write_inspection
from s2robot.inspection.tables import Table, tables


class InspectSettings(Settings, file="inspect"):
    """Settings of `s2robot inspect`; configs/inspect.yaml documents each value."""

    workers: int = from_yaml(ge=1)
    videos: FilmSettings = from_yaml()
    odd: Thresholds = from_yaml()


def inspect_demos(demos: DemosSettings, settings: InspectSettings, out: Path) -> Path:
    """Print what a dataset holds and what is odd in it; write `inspect.html` and its folder into `out`.

    Returns:
        The page's path.

    Raises:
        UserError: a file that cannot be written, a setting out of range, no simulator to draw states.
        DatasetError: no dataset, or one that cannot be read.
    """
    store = EpisodeStore.open(demos.folder())
    if not len(store):
        raise mismatch(store.path, "no episodes", "at least one")
    count = min(len(store), demos.first() or len(store))
    ends, numbers = store.episode_ends[:count], tables(store, count)
    print_summary(store, numbers, ends)
    films: Tiles | None = None
    pictures: list[dict[str, FrameStats]] = []
    if settings.videos.write and store.cameras:
        if store.attrs["kind"] == "states":
            require_simulator()
        with bar("videos") as update:
            films, pictures = film_all(store, count, settings.videos, settings.workers, out / FOLDER, update)
    findings = find(numbers, ends, store.attrs["rate_hz"], pictures, settings.odd)
    unknown = unchecked_kinds(numbers, ends, pictures)
    kinds = Counter(finding.kind for finding in findings)
    print("odd: " + (", ".join(f"{kind} {n}" for kind, n in kinds.items()) or "nothing"))
    return write_inspection(store, numbers, ends, films, findings, unknown, out / "inspect.html")


def print_summary(
    store: EpisodeStore, numbers: Sequence[Table], ends: np.ndarray, console: Console | None = None
) -> None:
    """Print what a dataset holds, and the ranges of action and proprioception."""
    console, attrs = console or Console(), store.attrs
    facts = Printed(title=str(store.path), title_justify="left", show_header=False)
    rows = [
        ("episodes", f"{len(ends)} ({ends[-1]} steps)"),
        *facts_of(store, ends),
        ("actions", attrs["action_frame"]),
        (
            "holds",
            f"{attrs['kind']}: {', '.join(store.keys)}; per episode: {', '.join(store.meta_keys) or '-'}",
        ),
        ("env", f"{attrs['env_version']}, seed {attrs['seed']}"),
    ]
    if "perturbed" in store.keys:
        rows.append(
            (
                "perturbed",
                f"{100 * (store.read('perturbed', 0, int(ends[-1])) != 0).mean():.1f} % of the steps",
            )
        )
    layouts = [task_of(store).layout_of(start) for start in starts(store)[: len(ends)]]
    for name in dict.fromkeys(name for layout in layouts for name in layout):
        values = [layout[name] for layout in layouts if name in layout]
        rows.append((f"{name} at the start", f"{min(values):+.3g} to {max(values):+.3g}"))
    for row in [*rows, ("fingerprint", store.fingerprint[:16])]:
        facts.add_row(*row)
    console.print(facts)
    ranges = Printed(title="ranges", title_justify="left")
    for column in ("of", "min", "median", "max"):
        ranges.add_column(column, justify="left" if column == "of" else "right")
    for table in numbers:
        if table.key in PARTS:
            for name, (low, _, median, _, high) in zip(table.names, table.ranges().T, strict=True):
                ranges.add_row(f"{table.key} {name}", *(f"{x:+.3f}" for x in (low, median, high)))
    console.print(ranges)
