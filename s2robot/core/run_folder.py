"""One run, one directory: locked by one process while it works, described in `.hydra`, removed if nothing came of it.

The system releases the lock on the file `.lock` when its holder dies, so nothing has to be cleared after a kill.
"""

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from s2robot.core.errors import UserError
from s2robot.core.files import write_text

LOCK = ".lock"
_WAIT_S = 5.0  # for a process that was just killed to end
INHERITED = "S2ROBOT_HELD_FOLDERS"  # the directories that the process that started this one holds
_HELD = {Path(p) for p in os.environ.get(INHERITED, "").split(os.pathsep) if p}  # by this process or for it


def is_first() -> bool:
    """Return whether this process, alone or the first of torchrun, srun or Lightning Fabric, is the one that writes."""
    names = ("RANK",) if "RANK" in os.environ else ("SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return all(int(os.environ.get(name) or 0) == 0 for name in names)


def held() -> dict[str, str]:
    """Return the environment in which a child process may work in the directories that this one holds."""
    return {INHERITED: os.pathsep.join(sorted(map(str, _HELD)))}


@contextmanager
def run_folder(
    folder: Path, about: Mapping[str, str], keep: bool = False, began: float = math.inf
) -> Iterator[None]:
    """Lock `folder` (UserError: another process works there), write `about` (file -> text) into it, and remove both if the run
    fails and wrote nothing else, unless ``keep`` or the folder is older than ``began`` (s since 1970). Other processes of a
    distributed run work in the first one's."""
    if not is_first():
        yield
        return
    made = True
    with suppress(FileNotFoundError):
        made = folder.stat().st_ctime >= began  # before the lock changes that time
    with locked(folder):
        fresh = {path.name for path in folder.iterdir()} <= {LOCK}
        try:
            for name, text in about.items():
                write_text(folder / name, text)
            yield
        except BaseException:
            ours = {LOCK, *(Path(name).parts[0] for name in about)}
            if fresh and not keep and {path.name for path in folder.iterdir()} <= ours:
                _remove(folder, ours, made)
            raise


def _remove(folder: Path, ours: set[str], made: bool) -> None:
    """Remove what a run has made: its directory, or in one that was there the names of `ours`."""
    for path in [folder] if made else [folder / name for name in ours]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if made and folder.parent.parent.name == "runs":  # runs/<verb>
        with suppress(OSError):  # holds other runs
            folder.parent.rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time (UserError) work in a directory, which is created; it may lock it again."""
    place = folder.resolve()
    if place in _HELD:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / LOCK)
    try:
        lock.acquire(timeout=_WAIT_S)
    except Timeout:
        why = "expected no other process in this directory; wait for it, or choose hydra.run.dir=<folder>"
        raise UserError(f"{folder}: {why}") from None
    _HELD.add(place)
    try:
        yield
    finally:
        _HELD.discard(place)
        lock.release()
