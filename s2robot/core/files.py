"""Where the package's own files and the user's caches are; files that appear whole or not at all.

`configs` and `demos` are below the package `s2robot`: folders in a wheel, links to the top level in a clone. So every path
starts from this file.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s2robot.core.errors import UserError

PACKAGE = Path(__file__).resolve().parent.parent


def configs_dir() -> Path:
    """Return the folder of Hydra configs (`run.yaml`, `encoder/`, ...)."""
    return (PACKAGE / "configs").resolve()


def weights_dir() -> Path:
    """Return the folder of the encoder weights that ship with the package."""
    return PACKAGE / "weights"


def shipped_demos(name: str) -> Path:
    """Return the shipped dataset `<name>.zarr`; UserError lists what ships if there is none of that name."""
    folder = (PACKAGE / "demos").resolve() / "data"
    path = folder / f"{name}.zarr"
    if not path.exists():
        found = ", ".join(sorted(p.stem for p in folder.glob("*.zarr"))) or "none"
        raise UserError(f"demos.name: expected one of {found}, got '{name}'")
    return path


def cache_dir(*parts: str) -> Path:
    """Create and return a folder for what can be made or fetched again (UserError if that fails).

    `$S2ROBOT_CACHE`, else `$XDG_CACHE_HOME/s2robot`, else `~/.cache/s2robot`, followed by `parts`.
    """
    base = os.environ.get("S2ROBOT_CACHE")
    if not base:
        base = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "s2robot")
    path = Path(base, *parts)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cache folder {path}: {error.strerror}; name another one with S2ROBOT_CACHE=<folder>"
        ) from error
    return path


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write to, which replaces `path` at the end.

    It has the suffix of `path`, from which many libraries infer the format. Nothing is left if the writing fails; the next
    writer overwrites what a killed process left, unless it is `shared`.

    Args:
        path: of the file; its folder is created.
        shared: other processes may write the same file meanwhile, so the name is this one's own.

    Raises:
        OSError: of the writing, with the file's name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f"{os.getpid()}." if shared else ""
    part = path.with_name(f".{path.stem}.{own}part{path.suffix}")
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
    """Write a text as :func:`replacing` does."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, as :func:`replacing` does."""
    write_text(path, json.dumps(value, indent=1))


def read_text(path: Path) -> str:
    """Return the text of a file; UserError names a file that is missing or no text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; UserError names a file that is missing or broken."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: broken JSON at line {error.lineno}: {error.msg}") from None


def claim(path: Path, settings: Mapping[str, Any], remedy: str) -> None:
    """Store the settings that decide the results of a run, or check that a run to be resumed has the same.

    Args:
        path: a JSON file of the run directory.
        settings: JSON types.
        remedy: how to get out of it, for the message.

    Raises:
        UserError: the run was begun with other settings, or the file is broken.
    """
    now = json.loads(json.dumps(settings))
    if path.exists() and (found := _difference(read_json(path), now)):
        key, was, new = found
        raise UserError(
            f"{path}: {key or 'content'}: expected {was} as when the run began, got {new}; {remedy}"
        )
    write_json(path, now)


def _difference(was: Any, now: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first dotted key whose value differs, with both values."""
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return None if was == now else (key, was, now)
    keys = [*now, *(name for name in was if name not in now)]
    found = (_difference(was.get(name), now.get(name), f"{key}.{name}".lstrip(".")) for name in keys)
    return next(filter(None, found), None)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table as CSV, written likewise."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())
