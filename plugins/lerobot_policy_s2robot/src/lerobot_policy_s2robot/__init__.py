"""s2robot's policies for LeRobot; importing registers `--policy.type=s2robot`."""

from .configuration_s2robot import S2robotConfig

__all__ = ["S2robotConfig"]
