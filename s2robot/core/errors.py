"""The error that a user of the commands can cause."""


class UserError(ValueError):
    """Wrong input; its text is one clear line that names the file or key, what was found and what was expected."""

    user_error = True
