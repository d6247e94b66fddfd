"""Behaviour-cloned policies on frozen image features: pooling, networks, action chunks, checkpoint."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from s2robot.policies.errors import PolicyError

if TYPE_CHECKING:
    from s2robot.policies.actor import Actor, BatchActor
    from s2robot.policies.checkpoint import check_contract, load_checkpoint, load_tuned, save_checkpoint
    from s2robot.policies.normalise import Normaliser, channel_moments, mixed_moments
    from s2robot.policies.parts import Part, Parts
    from s2robot.policies.policy import ChunkPolicy
    from s2robot.policies.spec import PolicySpec

__all__ = [
    "Actor",
    "BatchActor",
    "ChunkPolicy",
    "Normaliser",
    "Part",
    "Parts",
    "PolicyError",
    "PolicySpec",
    "channel_moments",
    "check_contract",
    "load_checkpoint",
    "load_tuned",
    "mixed_moments",
    "save_checkpoint",
]

_ROOMS = {
    "Actor": "actor",
    "BatchActor": "actor",
    "ChunkPolicy": "policy",
    "Normaliser": "normalise",
    "Part": "parts",
    "Parts": "parts",
    "PolicySpec": "spec",
    "channel_moments": "normalise",
    "check_contract": "checkpoint",
    "load_checkpoint": "checkpoint",
    "load_tuned": "checkpoint",
    "mixed_moments": "normalise",
    "save_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> Any:
    # What reads settings alone (every verb does) should not wait for torch.
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
