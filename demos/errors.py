"""The errors that a user of datasets can cause."""

import errno

from s2robot.core.errors import UserError


class DatasetError(UserError):
    """A dataset that cannot be made, read or used as asked; its text is one clear line."""


class DiskError(DatasetError):
    """A disk that rejects a write; the data itself is fine."""


def mismatch(where: object, found: object, expected: object) -> DatasetError:
    """``where`` (file or key) holds ``found`` where ``expected`` was required."""
    return DatasetError(f"{where}: found {found}, expected {expected}")


def disk_error(path: object, error: OSError, then: str) -> DiskError:
    """A write to `path` that failed, and the consequence."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    what = "the disk is full" if full else "writing failed"
    return DiskError(f"{path}: {what} ({error.strerror or error}), {then}")


def one_line(error: BaseException) -> str:
    """Kind and text of an error, shortened to fit into a message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
