"""How the learning rate rises and falls: shares of the peak rate, for torch's LambdaLR."""

import math


def warm_up_then_cosine(step: int, steps: int, rising: int) -> float:
    """Linear over the first `rising` steps, then a cosine to zero over the rest."""
    rising = max(1, rising)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def cosine_with_warm_up(step: int, done: float, rising: int) -> float:
    """A cosine to zero as `done` goes 0 to 1, cut by a linear rise over the first `rising` steps.

    What is done may be counted in steps or by a clock.
    """
    return min((step + 1) / max(1, rising), 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
