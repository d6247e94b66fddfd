"""The error that a user of the policies can cause."""


class PolicyError(ValueError):
    """A setting, a batch or a checkpoint that a policy cannot use; its text is one clear line."""

    user_error = True
