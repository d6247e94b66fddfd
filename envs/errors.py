"""The error that a user of the simulated worlds can cause."""


class EnvError(ValueError):
    """A setting or a machine on which the environment cannot run; its text is one clear line."""

    user_error = True
