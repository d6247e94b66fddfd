"""Heads map the context vector to a chunk of actions; `head.py` defines their interface."""

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


def read_head(values: Any) -> Settings:
    """Read the settings of a head from `{"kind": ..., its own keys}`; UserError names an unknown kind or key."""
    kind = values.get("kind", "regression") if isinstance(values, Mapping) else values
    one_of("policy.head.kind", kind, [*HEADS])
    return read(HEADS[kind][0], values)


def build_head(settings: Any, sizes: HeadSizes) -> Head:
    return HEADS[settings.kind][1](settings, sizes)  # type: ignore[call-arg]


__all__ = ["HEADS", "Head", "HeadLoss", "HeadSizes", "build_head", "read_head"]
