"""`s2robot inspect`: print a dataset, look for what is odd in it, and make a page of it; or replay its actions."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from s2robot.config import DemosSettings
from s2robot.core.errors import UserError
from s2robot.core.progress import bar
from s2robot.core.settings import Settings, from_yaml
from s2robot.demos.errors import mismatch
from s2robot.demos.layouts import starts, task_of
from s2robot.demos.replay import replay_episode, world_of_demos
from s2robot.demos.schema import PARTS
from s2robot.demos.store import EpisodeStore
from s2robot.envs.gl import require_simulator
from s2robot.envs.tasks import make
from s2robot.inspection.films import FilmSettings, Tiles, film_all
from s2robot.inspection.findings import FrameStats, Thresholds, find, unchecked_kinds
from s2robot.inspection.page import FOLDER, facts_of, write_inspection
from s2robot.inspection.tables import Table, tables


class InspectSettings(Settings, file="inspect"):
    """Settings of `s2robot inspect`; configs/inspect.yaml documents each value."""

    workers: int = from_yaml(ge=1)
    replay: bool = from_yaml()
    videos: FilmSettings = from_yaml()
    odd: Thresholds = from_yaml()


def _opened(demos: DemosSettings) -> tuple[EpisodeStore, int]:
    """The dataset, and how many of its first episodes are meant (DatasetError)."""
    store = EpisodeStore.open(demos.folder())
    if not len(store):
        raise mismatch(store.path, "no episodes", "at least one")
    return store, min(len(store), demos.first() or len(store))


def inspect_demos(demos: DemosSettings, settings: InspectSettings, out: Path) -> Path:
    """Print what a dataset holds and what is odd in it; write `inspect.html` and its folder into `out`.

    Returns:
        The page's path.

    Raises:
        UserError: a file that cannot be written, a setting out of range, no simulator to draw states.
        DatasetError: no dataset, or one that cannot be read.
    """
    store, count = _opened(demos)
    ends, numbers = store.episode_ends[:count], tables(store, count)
    print(summary(store, numbers, ends))
    films: Tiles | None = None
    frames: list[dict[str, FrameStats]] = []
    if settings.videos.write and store.cameras:
        if store.attrs["kind"] == "states":
            require_simulator()
        with bar("videos") as update:
            films, frames = film_all(store, count, settings.videos, settings.workers, out / FOLDER, update)
    findings = find(numbers, ends, store.attrs["rate_hz"], frames, settings.odd)
    unknown = unchecked_kinds(numbers, ends, frames)
    kinds = Counter(finding.kind for finding in findings)
    print("odd: " + (", ".join(f"{kind} {n}" for kind, n in kinds.items()) or "nothing"))
    return write_inspection(store, numbers, ends, films, findings, unknown, out / "inspect.html")


def replay_demos(demos: DemosSettings) -> str:
    """Execute the recorded actions of each episode again, open loop; returns the result in words.

    Raises:
        UserError: an episode that does not succeed again. DatasetError: demos that no task of ours can replay.
    """
    store, count = _opened(demos)
    env, worst, failed = make(world_of_demos(store), draw=False), 0.0, list[int]()
    with bar("replaying") as update:
        for i in range(count):
            result = replay_episode(store, env, i)
            worst = max(worst, result["max_error"])
            failed += [] if result["success"] else [i]
            update(i + 1, count, f"{len(failed)} failed")
    if failed:
        raise UserError(
            f"{store.path}: {len(failed)} of {count} episodes fail when replayed (first {failed[0]}); the recorded "
            "actions are not what this environment executes"
        )
    return f"{count} of {count} episodes succeed again; proprioception differs by at most {worst:.2g}"


def summary(store: EpisodeStore, numbers: Sequence[Table], ends: np.ndarray) -> str:
    """What a dataset holds, and the ranges of action and proprioception."""
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
    layouts = [task_of(store).layout_of(start) for start in starts(store)[: len(ends)]]
    for name in dict.fromkeys(name for layout in layouts for name in layout):
        values = [layout[name] for layout in layouts if name in layout]
        rows.append((f"{name} at the start", f"{min(values):+.3g} to {max(values):+.3g}"))
    rows += [("fingerprint", store.fingerprint[:16]), ("", "     min  median     max")]
    for table in (table for table in numbers if table.key in PARTS):
        for name, (low, _, median, _, high) in zip(table.names, table.ranges().T, strict=True):
            rows.append((f"{table.key} {name}", "".join(f"{x:+8.3f}" for x in (low, median, high))))
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join([str(store.path), *(f"  {name:<{width}}{value}" for name, value in rows)])
