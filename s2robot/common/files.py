"""Files that appear whole or not at all."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s2robot.common.errors import UserError


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """A temporary name to write under, which becomes `path` at the end: a reader finds the old file or the new one.

    It stands beside `path` and has its suffix, by which many a library knows the format. Nothing is left behind if the
    writing fails; what a killed process has left is written over by the next one, unless it is `shared`.

    Args:
        path: of the file; its folder is made if it is not there.
        shared: other processes may write the same file meanwhile, so the name is this one's own.

    Raises:
        OSError: of the writing, with the file's name; `write` alone does not tell it.
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
    """A text, written as :func:`replacing` says."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """A value as JSON, written likewise."""
    write_text(path, json.dumps(value, indent=1))


def read_text(path: Path) -> str:
    """The text of a file; UserError with its name if it is missing or none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file; UserError with the file's name if it is missing or broken."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: broken JSON at line {error.lineno}: {error.msg}") from None


def changed(path: Path, settings: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first of `settings` that is another in the JSON file `path`, where work with them was begun.

    Returns:
        key, what the file has, what it is now, None for a key that one side lacks; None if all are the same.

    Raises:
        UserError: the file is missing, broken, or holds no settings.
    """
    before, now = read_json(path), json.loads(json.dumps(settings))
    if not isinstance(before, dict):
        raise UserError(f"{path}: found {type(before).__name__}, expected settings by their names")
    for key in [*now, *(key for key in before if key not in now)]:
        if before.get(key) != now.get(key):
            return key, before.get(key), now.get(key)
    return None
