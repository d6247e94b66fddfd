"""The error that a user of the commands can cause."""

from importlib.util import find_spec


class UserError(ValueError):
    """Wrong input; its text is one clear line that names the file or key, what was found and what was expected."""

    user_error = True


def require(module: str, extra: str) -> None:
    """Raise UserError unless the package `module` of the extra `extra` is installed. Does not import it."""
    if find_spec(module) is None:
        raise UserError(f"{module} is not installed: pip install 's2robot[{extra}]'")
