# ruff: noqa: F401  # the public names of this package
"""Behaviour-cloned policies on frozen image features: pooling, networks, action chunks, checkpoint."""

from s2robot.policies.actor import Actor, BatchActor
from s2robot.policies.checkpoint import check_contract, load_checkpoint, load_tuned, save_checkpoint
from s2robot.policies.normalise import Normaliser, channel_moments, mixed_moments
from s2robot.policies.parts import Part, Parts
from s2robot.policies.policy import ChunkPolicy
from s2robot.policies.spec import PolicySpec
