"""S2, scaling on scales, on any vision model: the authors' function (`forward`) and the module (`s2robot.S2`)."""

from s2robot.s2.reference import forward

__all__ = ["forward"]
