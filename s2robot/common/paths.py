"""Where the package's own files are, and the user's downloads and caches.

`configs` and `demos` are below the package `s2robot`: folders in a wheel, links to the top level in a clone. So every path
starts from this file.
"""

import os
from pathlib import Path

from s2robot.common.errors import UserError

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
