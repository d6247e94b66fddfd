"""The error that a user of the commands can cause."""

from s2robot.core.errors import UserError

__all__ = ["UserError"]
