"""Heads turn the context into a chunk of actions, behind the signature of `head.py`."""

from collections.abc import Mapping
from typing import Any

from s2robot.core.errors import one_of
from s2robot.core.settings import Settings, read
from s2robot.policies.heads.act import ActHead, ActSettings
from s2robot.policies.heads.denoising import (
    DiffusionHead,
    DiffusionSettings,
    FlowHead,
    FlowSettings,
    MipHead,
    MipSettings,
)
from s2robot.policies.heads.gmm import GmmHead, GmmSettings
from s2robot.policies.heads.head import Head, HeadLoss, HeadSizes
from s2robot.policies.heads.regression import RegressionHead, RegressionSettings

HEADS: dict[str, tuple[type[Settings], type[Head]]] = {
    "regression": (RegressionSettings, RegressionHead),
    "mip": (MipSettings, MipHead),
    "flow": (FlowSettings, FlowHead),
    "diffusion": (DiffusionSettings, DiffusionHead),
    "gmm": (GmmSettings, GmmHead),
    "act": (ActSettings, ActHead),
}


def read_head(given: Any) -> Settings:
    """The settings of a head from `{"kind": ..., its own keys}`; UserError names an unknown kind or key."""
    kind = given.get("kind", "regression") if isinstance(given, Mapping) else given
    one_of("policy.head.kind", kind, [*HEADS])
    return read(HEADS[kind][0], given)


def build_head(settings: Any, sizes: HeadSizes) -> Head:
    """The head of these settings."""
    return HEADS[settings.kind][1](settings, sizes)  # type: ignore[call-arg]


__all__ = ["HEADS", "Head", "HeadLoss", "HeadSizes", "build_head", "read_head"]
