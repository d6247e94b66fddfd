"""Frozen S2 encoders, the cache of their features, and the tuning of their last blocks."""

from s2robot.encoders.build import build_encoder
from s2robot.encoders.encoder import S2Encoder

__all__ = ["S2Encoder", "build_encoder"]
