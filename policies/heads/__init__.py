"""Heads turn the context into a chunk of actions, behind the signature of `head.py`."""

from collections.abc import Mapping
from typing import Any

from s2robot.core.errors import one_of
from s2robot.core.settings import Settings, read
from s2robot.policies.heads import act, denoising, gmm, regression
from s2robot.policies.heads.head import Head, HeadLoss, HeadSizes

HEADS: dict[str, tuple[type[Settings], type[Head]]] = {
    "regression": (regression.RegressionSettings, regression.RegressionHead),
    "mip": (denoising.MipSettings, denoising.MipHead),
    "flow": (denoising.FlowSettings, denoising.FlowHead),
    "diffusion": (denoising.DiffusionSettings, denoising.DiffusionHead),
    "gmm": (gmm.GmmSettings, gmm.GmmHead),
    "act": (act.ActSettings, act.ActHead),
}


def read_head(given: Any) -> Settings:
    """The settings of a head from `{"kind": ..., its own keys}`; UserError names an unknown kind or key."""
    kind = given.get("kind", "regression") if isinstance(given, Mapping) else given
    one_of("policy.head.kind", kind, [*HEADS])
    return read(HEADS[kind][0], given)


def build_head(settings: Any, sizes: HeadSizes) -> Head:
    return HEADS[settings.kind][1](settings, sizes)  # type: ignore[call-arg]


__all__ = ["HEADS", "Head", "HeadLoss", "HeadSizes", "build_head", "read_head"]
