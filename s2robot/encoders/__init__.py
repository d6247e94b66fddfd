"""Frozen S2 encoders of this project, the cache of their features, and scale-selective encoding."""

from s2robot.encoders.build import build_encoder
from s2robot.encoders.encoder import S2Encoder

__all__ = ["S2Encoder", "build_encoder"]
