"""Frozen S2 encoders of this project, the cache of their features, and scale-selective encoding."""

from s2robot.encoders.encoder import S2Encoder, build_encoder

__all__ = ["S2Encoder", "build_encoder"]
