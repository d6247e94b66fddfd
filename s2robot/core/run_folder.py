"""Run directories: locked by the process that works in them, described in `.hydra`, removed if the run wrote nothing.

The operating system releases the lock on `.lock` when its holder dies, so no cleanup is needed after a kill.
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
_WAIT_S = 5.0  # time for a killed process to end
INHERITED = "S2ROBOT_HELD_FOLDERS"  # environment variable: directories that the parent process has locked
_HELD = {Path(p) for p in os.environ.get(INHERITED, "").split("\n") if p}  # locked by us or a parent


def is_first() -> bool:
    """Return whether this process writes the files: a single process, or rank 0 of torchrun, srun or Lightning Fabric."""
    names = ("RANK",) if "RANK" in os.environ else ("SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return all(int(os.environ.get(name) or 0) == 0 for name in names)


def held() -> dict[str, str]:
    """Return the environment that lets a child process work in the directories locked by this one."""
    return {INHERITED: "\n".join(sorted(map(str, _HELD)))}


@contextmanager
def run_folder(
    folder: Path, about: Mapping[str, str], keep: bool = False, began: float = math.inf
) -> Iterator[None]:
    """Lock `folder` (UserError if another process uses it) and write `about` (file -> text) into it. If the run fails and wrote
    nothing else, remove these files unless ``keep``, and the folder if it was created after ``began`` (s since 1970). After
    a UserError, files of an earlier run are as before. Other ranks of a distributed run use the folder of rank 0."""
    if not is_first():
        yield
        return
    created = True
    with suppress(FileNotFoundError):
        created = folder.stat().st_ctime >= began  # checked first, because the lock changes that time
    with locked(folder):
        fresh = {path.name for path in folder.iterdir()} <= {LOCK}
        before = {name: path.read_text("utf-8") for name in about if (path := folder / name).is_file()}
        try:
            for name, text in about.items():
                write_text(folder / name, text)
            yield
        except BaseException as error:
            for name, text in before.items() if isinstance(error, UserError) else ():
                write_text(folder / name, text)
            written = {LOCK, *(Path(name).parts[0] for name in about)}
            if fresh and not keep and {path.name for path in folder.iterdir()} <= written:
                _remove(folder, written, created)
            raise


def _remove(folder: Path, written: set[str], created: bool) -> None:
    """Remove a run's directory, or only the `written` names in it if the directory existed before."""
    for path in [folder] if created else [folder / name for name in written]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if created and folder.parent.parent.name == "runs":  # runs/<verb>
        with suppress(OSError):  # not empty
            folder.parent.rmdir()


@contextmanager
def locked(folder: Path, remedy: str = "wait for it, or choose hydra.run.dir=<folder>") -> Iterator[None]:
    """Create a directory and lock it for this process (UserError if another holds the lock). Locking is reentrant."""
    path = folder.resolve()
    if path in _HELD:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=_WAIT_S)
    except Timeout:
        raise UserError(f"{folder}: expected no other process in this directory; {remedy}") from None
    _HELD.add(path)
    try:
        yield
    finally:
        _HELD.discard(path)
        lock.release()
