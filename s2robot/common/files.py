"""Files that appear whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, then rename: a reader finds the old file or the new one.

    Raises:
        OSError: with the file's name, also where a full disk makes the writing fail; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        error.filename = str(path)  # write() alone does not tell
        raise


def write_json(path: Path, value: Any) -> None:
    """A value as JSON, written as :func:`write_text` does."""
    write_text(path, json.dumps(value, indent=1))
