"""Errors about datasets that a user can cause."""

import errno
from contextlib import AbstractContextManager

from s2robot.core.errors import UserError, reported


class DatasetError(UserError):
    """A dataset that cannot be created, read or used as requested; its text is one line."""


class DiskError(DatasetError):
    """A disk that rejects a write; the data itself is fine."""


def mismatch(where: object, expected: object, got: object) -> DatasetError:
    """Return the error for a file or key with unexpected contents."""
    return DatasetError(f"{where}: expected {expected}, got {got}")


def disk_error(path: object, error: OSError, consequence: str) -> DiskError:
    """Return the error for a failed write to `path`."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    what = "the disk is full" if full else "writing failed"
    return DiskError(f"{path}: {what} ({error.strerror or error}), {consequence}")


def readable(where: object) -> AbstractContextManager[None]:
    """Turn any error that the contents of a foreign file cause into one line that names it (DatasetError)."""
    return reported(f"{where}: cannot be read", kind=DatasetError)
