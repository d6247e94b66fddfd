"""One run, one folder: claimed by one process while it works, described in `.hydra`, gone if nothing came of it.

with run_folder(Path("runs/train/mine"), {".hydra/config.yaml": text}):
    ...                                            # a second process that comes here gets a UserError

The claim is a lock of the system on the file `.lock`: the system lets go of it when its holder dies, however that
may be, so nothing has to be cleared away after a kill.
"""

import fcntl
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from s2robot.common.errors import UserError
from s2robot.common.files import write_text

LOCK = ".lock"
_WAIT_S = 5.0  # for a process that was just killed to end
INHERITED = "S2ROBOT_HELD_FOLDERS"  # names what the process that started this one holds meanwhile
_HELD = {Path(p) for p in os.environ.get(INHERITED, "").split(os.pathsep) if p}  # by this process or for it


def is_first() -> bool:
    """Whether this process is the one of a distributed run that writes; every process alone is.

    torchrun counts processes in RANK, srun in SLURM_PROCID; Lightning Fabric names the machine and the place on it.
    """
    names = ("RANK",) if "RANK" in os.environ else ("SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return all(int(os.environ.get(name) or 0) == 0 for name in names)


def held() -> dict[str, str]:
    """The environment in which a process that this one starts may work in the folders that this one holds."""
    return {INHERITED: os.pathsep.join(sorted(map(str, _HELD)))}


@contextmanager
def run_folder(
    folder: Path, about: Mapping[str, str], keep: bool = False, began: float = math.inf
) -> Iterator[None]:
    """Claim `folder`, write `about` (file -> text) into it, and remove both if the run fails and wrote nothing else.

    The other processes of a distributed run work in the folder that the first one has claimed.

    Args:
        folder: made if it is not there; one that was there stays, without what was written.
        about: what describes the run, paths relative to the folder.
        keep: leave the folder there whatever happens.
        began: when the run did, in seconds since 1970: what has been made since, as Hydra makes it, is the run's too.

    Raises:
        UserError: another process works in it.
    """
    if not is_first():
        yield
        return
    made = True
    with suppress(FileNotFoundError):
        made = folder.stat().st_ctime >= began  # before the lock changes that time
    with locked(folder):
        fresh = not _others(folder, {LOCK})
        try:
            for name, text in about.items():
                write_text(folder / name, text)
            yield
        except BaseException:
            ours = {LOCK, *(Path(name).parts[0] for name in about)}
            if fresh and not keep and not _others(folder, ours):
                _remove(folder, ours, made)
            raise


def _remove(folder: Path, ours: set[str], made: bool) -> None:
    """What a run has made, which may be gone already: all of its folder, or in one that was there what is `ours`."""
    for path in [folder] if made else [folder / name for name in ours]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if made and folder.parent.parent.name == "runs":  # runs/<verb>; no other folder is ours
        with suppress(OSError):  # holds other runs
            folder.parent.rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time works in a folder, which is made if it is not there; a second claim of its own holds too.

    Raises:
        UserError: another process goes on doing so; the text names it.
    """
    if folder.resolve() in _HELD:
        yield
        return
    file = _claim(folder)
    _HELD.add(folder.resolve())
    try:
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
    finally:
        _HELD.discard(folder.resolve())
        file.close()


def _claim(folder: Path) -> TextIO:
    """The folder's lock file, held."""
    until = time.monotonic() + _WAIT_S
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = (folder / LOCK).open("a+", encoding="utf-8")
        except FileNotFoundError:  # removed by a failed run between the two lines
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(file, folder / LOCK):
                return file
            file.close()  # its holder has removed the folder: there is a new one to claim
        except OSError:
            file.seek(0)
            holder = file.read().strip()
            file.close()
            if time.monotonic() > until:
                raise UserError(
                    f"{folder}: another process{f' ({holder})' if holder else ''} works in this folder; wait for it, "
                    "or choose another one with hydra.run.dir=<folder>"
                ) from None
            time.sleep(0.05)


def _is_still(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _others(folder: Path, ours: set[str]) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name not in ours]
