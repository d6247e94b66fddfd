# ruff: noqa: F401  # imported by name in __getattr__
"""Behaviour-cloned policies on frozen image features: pooling, networks, action chunks, checkpoint."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from s2robot.core.errors import UserError as PolicyError

if TYPE_CHECKING:
    from s2robot.policies.actor import Actor, BatchActor
    from s2robot.policies.checkpoint import check_contract, load_checkpoint, load_tuned, save_checkpoint
    from s2robot.policies.normalise import Normaliser, channel_moments, mixed_moments
    from s2robot.policies.parts import Part, Parts
    from s2robot.policies.policy import ChunkPolicy
    from s2robot.policies.spec import PolicySpec

_MODULES = {
    "actor": ("Actor", "BatchActor"),
    "checkpoint": ("check_contract", "load_checkpoint", "load_tuned", "save_checkpoint"),
    "normalise": ("Normaliser", "channel_moments", "mixed_moments"),
    "parts": ("Part", "Parts"),
    "policy": ("ChunkPolicy",),
    "spec": ("PolicySpec",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = ["PolicyError", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    # Import torch lazily: every verb reads settings, few need it.
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
