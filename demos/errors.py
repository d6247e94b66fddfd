"""The error that a user of datasets can cause."""

import errno


class DatasetError(ValueError):
    """A dataset that cannot be made, read or used as asked; its text is one clear line."""

    user_error = True


class DiskError(DatasetError):
    """A disk that refuses to be written: nothing is wrong with what was to be written."""


def mismatch(where: object, found: object, expected: object) -> DatasetError:
    """``where`` (file or key) holds ``found`` where ``expected`` was wanted."""
    return DatasetError(f"{where}: found {found}, expected {expected}")


def disk_error(path: object, error: OSError, then: str) -> DiskError:
    """A disk that refuses to write `path`, and what that means."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    what = "the disk is full" if full else "writing failed"
    return DiskError(f"{path}: {what} ({error.strerror or error}), {then}")
