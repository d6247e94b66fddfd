"""A data set printed, looked through, and made into a page."""

from collections import Counter
from pathlib import Path

from s2robot.common.extras import require_simulator
from s2robot.common.progress import bar
from s2robot.common.settings import DemosSettings
from s2robot.core.settings import Settings, from_yaml
from s2robot.demos.inspect import print_description
from s2robot.demos.store import EpisodeStore
from s2robot.inspection.films import FilmSettings, Tiles, film_all
from s2robot.inspection.findings import Pictures, Thresholds, find, not_looked_for
from s2robot.inspection.page import FOLDER, write_inspection
from s2robot.inspection.tables import tables


class InspectSettings(Settings, file="inspect"):
    """Settings of `s2robot inspect`; configs/inspect.yaml documents each value."""

    workers: int = from_yaml(ge=1)
    videos: FilmSettings = from_yaml()
    odd: Thresholds = from_yaml()


def inspect_demos(demos: DemosSettings, settings: InspectSettings, out: Path) -> Path:
    """Print what the demos hold and what is odd in them; write `inspect.html` and its folder into `out`.

    Returns the page's path.

    Raises:
        UserError: a file that cannot be written, a setting out of range, no simulator to draw states.
        DatasetError: no data set, or one that cannot be read.
    """
    store = EpisodeStore.open(demos.folder())
    print_description(store)
    count = min(len(store), demos.first() or len(store))
    ends = store.episode_ends[:count]
    films: Tiles | None = None
    pictures: list[dict[str, Pictures]] = []
    if settings.videos.write and store.cameras:
        if store.attrs["kind"] == "states":
            require_simulator()
        with bar("videos") as update:
            films, pictures = film_all(store, count, settings.videos, settings.workers, out / FOLDER, update)
    found_tables = tables(store, count)
    found = find(found_tables, ends, store.attrs["rate_hz"], pictures, settings.odd)
    unknown = not_looked_for(found_tables, ends, pictures)
    kinds = Counter(finding.kind for finding in found)
    print("odd: " + (", ".join(f"{kind} {n}" for kind, n in kinds.items()) or "nothing"))
    return write_inspection(store, found_tables, ends, films, found, unknown, out / "inspect.html")
