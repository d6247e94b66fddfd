"""The error that a user of the simulated worlds can cause."""

from s2robot.core.errors import UserError


class EnvError(UserError):
    """A setting or a machine on which the environment cannot run; its text is one clear line."""
