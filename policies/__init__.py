"""Behaviour-cloned policies on frozen image features: pooling, networks, action chunks, checkpoint."""

from s2robot.policies.actor import Actor, BatchActor
from s2robot.policies.checkpoint import check_contract, load_checkpoint, save_checkpoint
from s2robot.policies.errors import PolicyError
from s2robot.policies.normalise import Normaliser, channel_moments
from s2robot.policies.policy import ChunkPolicy
from s2robot.policies.spec import PolicySpec

__all__ = [
    "Actor",
    "BatchActor",
    "ChunkPolicy",
    "Normaliser",
    "PolicyError",
    "PolicySpec",
    "channel_moments",
    "check_contract",
    "load_checkpoint",
    "save_checkpoint",
]
