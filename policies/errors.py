"""The error that a user of the policies can cause: a setting, a batch or a checkpoint that a policy cannot use."""

from s2robot.core.errors import UserError as PolicyError

__all__ = ["PolicyError"]
