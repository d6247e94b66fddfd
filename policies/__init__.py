"""Behaviour-cloned policies on frozen image features: pooling, networks, action chunks, checkpoint."""

from policies.actor import Actor, BatchActor
from policies.checkpoint import check_contract, load_checkpoint, save_checkpoint
from policies.errors import PolicyError
from policies.normalise import Normaliser, channel_moments
from policies.policy import ChunkPolicy, PolicySpec

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
