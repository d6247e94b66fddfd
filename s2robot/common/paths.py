"""Where the things that ship with the package lie, and where a user's own downloads and caches go.

`configs` and `demos` lie below the package `s2robot`: in a wheel as folders, in a clone and an editable install as
links to the folders at the top level. So every path starts from this file, and no other package has to be imported.
"""

import os
from pathlib import Path

from s2robot.common.errors import UserError

PACKAGE = Path(__file__).resolve().parent.parent


def configs_dir() -> Path:
    """The folder of Hydra configs (`run.yaml`, `encoder/`, ...)."""
    return (PACKAGE / "configs").resolve()


def weights_dir() -> Path:
    """The folder of the encoder weights that ship with the package."""
    return PACKAGE / "weights"


def demos_dir() -> Path:
    """The folder of the recorded demos that ship with the package."""
    return (PACKAGE / "demos").resolve() / "data"


def shipped_weights(name: str) -> Path:
    """The shipped file `<name>.safetensors`.

    Raises:
        UserError: nothing of that name ships; the text lists what does.
    """
    return _shipped(weights_dir(), name, ".safetensors", "weights")


def shipped_demos(name: str) -> Path:
    """The shipped dataset `<name>.zarr`.

    Raises:
        UserError: nothing of that name ships; the text lists what does.
    """
    return _shipped(demos_dir(), name, ".zarr", "demos")


def cache_dir(*parts: str) -> Path:
    """A folder for what can be made or fetched again; it is created.

    `$S2ROBOT_CACHE`, else `$XDG_CACHE_HOME/s2robot`, else `~/.cache/s2robot`, followed by `parts`.

    Raises:
        UserError: the folder cannot be created.
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


def _shipped(folder: Path, name: str, suffix: str, kind: str) -> Path:
    path = folder / f"{name}{suffix}"
    if not path.exists():
        found = sorted(p.stem for p in folder.glob(f"*{suffix}"))
        raise UserError(f"{kind}: found no shipped '{name}', expected one of: {', '.join(found) or 'none'}")
    return path
