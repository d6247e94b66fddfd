"""Heads: what turns the context into a chunk of actions. One file each behind the signature of `head.py`."""

from collections.abc import Mapping
from typing import Any

from s2robot.policies.errors import PolicyError
from s2robot.policies.heads.flow import FlowHead, FlowSettings
from s2robot.policies.heads.head import Head, HeadLoss, HeadSizes
from s2robot.policies.heads.regression import RegressionHead, RegressionSettings
from s2robot.policies.settings import read_settings

HEADS: dict[str, tuple[type, type[Head]]] = {
    "regression": (RegressionSettings, RegressionHead),
    "flow": (FlowSettings, FlowHead),
}


def build_head(settings: Mapping[str, Any], sizes: HeadSizes) -> Head:
    """The head that `settings` ({"kind": ..., its own keys}) describe.

    Raises:
        PolicyError: names an unknown kind or key.
    """
    values = dict(settings)
    kind = values.pop("kind", "regression")
    if kind not in HEADS:
        raise PolicyError(f"policy.head.kind is '{kind}', expected one of {', '.join(HEADS)}")
    settings_of, head = HEADS[kind]
    return head(read_settings(settings_of, values, "policy.head"), sizes)  # type: ignore[call-arg]


__all__ = ["HEADS", "Head", "HeadLoss", "HeadSizes", "build_head"]
