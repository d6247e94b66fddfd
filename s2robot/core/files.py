"""Paths of package files and user caches, and atomic file writes.

`configs` and `demos` are below the package: folders in a wheel, links to the top level in a clone.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s2robot.core.errors import UserError, check_same, reported

PACKAGE = Path(__file__).resolve().parent.parent
WEIGHTS = PACKAGE / "weights"  # of the encoders that ship


def configs_dir() -> Path:
    """Return the folder of Hydra configs (`run.yaml`, `encoder/`, ...)."""
    return (PACKAGE / "configs").resolve()


def shipped_demos(name: str) -> Path:
    return (PACKAGE / "demos").resolve() / "data" / f"{name}.zarr"


def cache_dir(*parts: str) -> Path:
    """Create and return the folder `parts` in `$S2ROBOT_CACHE`, or else `$XDG_CACHE_HOME/s2robot` or `~/.cache/s2robot`."""
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(os.environ.get("S2ROBOT_CACHE") or os.path.join(user, "s2robot"), *parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` at the end, or is deleted if writing fails. `shared`: other processes may
    write the same file at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    process = f"{os.getpid()}." if shared else ""
    part = path.with_name(f".{path.stem}.{process}part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        if error.errno and error.filename in (None, str(part)):
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1))


def read_bytes(path: Path) -> bytes:
    """Return the content of a file. UserError if it is missing, or a pipe or device, which could block forever."""
    try:
        if path.is_file() or not path.exists():
            return path.read_bytes()
        why = "not a file"
    except OSError as error:
        why = str(error.strerror)
    raise UserError(f"{path}: cannot be read ({why})")


def read_text(path: Path) -> str:
    with reported(f"{path}: cannot be read"):
        return read_bytes(path).decode()


def parse_json(where: object, text: str | bytes) -> Any:
    with reported(f"{where}: cannot be read: broken JSON"):
        return json.loads(text)


def read_json(path: Path) -> Any:
    return parse_json(path, read_text(path))


def claim(path: Path, settings: Mapping[str, Any], remedy: str) -> None:
    """Store the settings (JSON types) that determine a run's results. UserError with the
    ``remedy`` if the run began with different ones."""
    now = json.loads(json.dumps(settings))
    if path.exists():
        check_same(path, read_json(path), now, " as when the run began", remedy)
    write_json(path, now)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV, atomically."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_text(path, text.getvalue())
