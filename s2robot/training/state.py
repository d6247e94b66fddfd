"""What a killed training needs to go on: one file, which appears whole or not at all.

It is written last, after all that stands for the same moment (checkpoint, metrics). So whatever a kill leaves
behind, the state is never ahead of it, and going on from the state writes it again.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from s2robot.common.errors import UserError
from s2robot.common.files import replacing


@contextmanager
def told(path: Path) -> Iterator[None]:
    """A write that fails (full disk, no permission) as one line that names the file and the remedy."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch wraps what a file says
        cause = error if isinstance(error, OSError) else error.__cause__ or error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"{cause.filename or path}: cannot be written: {cause.strerror or cause}; "
            "mend that and give the same command again"
        ) from error


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state under a temporary name, then rename.

    Raises:
        UserError: a disk that is full or read-only.
    """
    with told(path), replacing(path) as part, part.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())  # whole before it gets its name, also after a power cut


def load_state(path: Path, identity: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """The state of a run with this identity.

    Raises:
        UserError: a file that cannot be read, of another version, or of a run with other settings, data or
            encoder; names the first that differs.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        raise UserError(f"{path}: not a readable state of a training; remove it to start over") from error
    # pre-trainings of earlier versions have their whole config in it instead
    saved = state.get("identity", state.get("config")) if isinstance(state, dict) else None
    if not isinstance(saved, dict):
        raise UserError(f"{path}: found the state of another version; remove it or choose another folder")
    for key, value in identity.items():
        if key in saved and (difference := _difference(key, saved[key], value)):
            more = f"; train.from={path.parent / 'checkpoint'} begins with its weights"
            raise UserError(
                f"{path}: found the state of another run; remove it or choose another folder ({difference})"
                + (more if key == "train.steps" else "")
            )
    return state


def _difference(key: str, was: Any, now: Any) -> str:
    """The first value that differs, with its dotted key; nothing where all agree."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        each = (_difference(f"{key}.{k}", was.get(k), now.get(k)) for k in {**was, **now})
        return next(filter(None, each), "")
    was, now = (list(value) if isinstance(value, tuple) else value for value in (was, now))
    return "" if was == now else f"made with {key} {_short(was)}, this run has {_short(now)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
