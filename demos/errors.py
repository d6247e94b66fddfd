"""The error that a user of datasets can cause."""


class DatasetError(ValueError):
    """A dataset that cannot be made, read or used as asked; its text is one clear line."""

    user_error = True


def mismatch(where: object, found: object, expected: object) -> DatasetError:
    """``where`` (file or key) holds ``found`` where ``expected`` was wanted."""
    return DatasetError(f"{where}: found {found}, expected {expected}")
