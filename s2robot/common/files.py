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


def changed(path: Path, settings: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first of `settings` that differs from the JSON file `path`: key, stored value, value now.

    None stands for a key that one side lacks; the result is None if all are equal. UserError: the file holds no settings.
    """
    before, now = read_json(path), json.loads(json.dumps(settings))
    if not isinstance(before, dict):
        raise UserError(f"{path}: expected keys and values, got {type(before).__name__}")
    for key in [*now, *(key for key in before if key not in now)]:
        if before.get(key) != now.get(key):
            return key, before.get(key), now.get(key)
    return None
