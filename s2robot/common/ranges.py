"""Values of settings that have to lie in a range, checked in their `__post_init__`.

check_ranges(self, "train", steps=(1, INFINITY), warmup=(0, 1))      # train.steps: found 0, expected 1 or more
"""

import math
from typing import Any

from s2robot.common.errors import UserError
from s2robot.policies import settings as policies

INFINITY = math.inf


def check_ranges(settings: Any, where: str, **ranges: tuple[float, float]) -> None:
    """Refuse values outside of [low, high]; None, which leaves a choice to the program, is in every range.

    Raises:
        UserError: names the key, what was found and what was expected.
    """
    policies.check_ranges(settings, where, UserError, **ranges)


def check_positive(settings: Any, where: str, *names: str) -> None:
    """Refuse values that are not above zero and finite."""
    for name in names:
        value = getattr(settings, name)
        if not (value > 0 and math.isfinite(value)):
            raise UserError(f"{where}.{name}: found {value}, expected a number above 0".lstrip("."))
