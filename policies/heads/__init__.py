"""Heads: what turns the context into a chunk of actions. One file each behind the signature of `head.py`."""

from collections.abc import Mapping
from typing import Any

from s2robot.policies.errors import PolicyError
from s2robot.policies.heads.act import ActHead, ActSettings
from s2robot.policies.heads.diffusion import DiffusionHead, DiffusionSettings
from s2robot.policies.heads.flow import FlowHead, FlowSettings
from s2robot.policies.heads.gmm import GmmHead, GmmSettings
from s2robot.policies.heads.head import Head, HeadLoss, HeadSizes
from s2robot.policies.heads.mip import MipHead, MipSettings
from s2robot.policies.heads.regression import RegressionHead, RegressionSettings
from s2robot.policies.settings import read_settings

HEADS: dict[str, tuple[type, type[Head]]] = {
    "regression": (RegressionSettings, RegressionHead),
    "mip": (MipSettings, MipHead),
    "flow": (FlowSettings, FlowHead),
    "diffusion": (DiffusionSettings, DiffusionHead),
    "gmm": (GmmSettings, GmmHead),
    "act": (ActSettings, ActHead),
}


def build_head(settings: Mapping[str, Any], sizes: HeadSizes) -> Head:
    """The head that `settings` ({"kind": ..., its own keys}) describe.

    Raises:
        PolicyError: names an unknown kind or key.
    """
    values = dict(settings)
    kind = values.pop("kind", "regression")
    if not isinstance(kind, str) or kind not in HEADS:
        raise PolicyError(f"policy.head.kind is '{kind}', expected one of {', '.join(HEADS)}")
    settings_of, head = HEADS[kind]
    return head(read_settings(settings_of, values, "policy.head"), sizes)  # type: ignore[call-arg]


__all__ = ["HEADS", "Head", "HeadLoss", "HeadSizes", "build_head"]
