"""Settings of a policy, and its spec: the settings and data shapes that rebuild it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from s2robot.core.errors import one_of
from s2robot.core.settings import Settings, from_yaml, read
from s2robot.policies.bodies.mlp import MlpSettings
from s2robot.policies.bodies.rnn import RnnSettings
from s2robot.policies.bodies.transformer import TransformerSettings
from s2robot.policies.heads import read_head
from s2robot.policies.normalise import Mode
from s2robot.policies.parts import Parts
from s2robot.policies.pooling import PoolingSettings

_NETWORKS: dict[str, type[Settings]] = {
    "mlp": MlpSettings,
    "rnn": RnnSettings,
    "transformer": TransformerSettings,
}


class PolicySettings(Settings, at="policy", file="policy/mlp"):
    kind: Literal["mlp", "rnn", "transformer"] = from_yaml()
    network: MlpSettings | RnnSettings | TransformerSettings
    pooling: PoolingSettings = from_yaml()
    head: Any
    context: int = from_yaml(ge=1)
    chunk: int = from_yaml(ge=1)
    execute: int = from_yaml(ge=1)
    action_target: Literal["auto", "delta", "cumulative"] = from_yaml()
    from_last: bool = from_yaml()
    normalise: Mode = from_yaml()
    normalise_parts: dict[str, Mode] = from_yaml()
    joint_loss: Literal["huber", "mse"] = from_yaml()
    huber_delta: float = from_yaml(gt=0)
    gripper_loss: Literal["bce", "huber"] = from_yaml()
    gripper_weight: float = from_yaml(ge=0)
    proprio_noise: float = from_yaml(ge=0)
    binary_gripper: bool = from_yaml()
    ensemble: float | None = from_yaml(ge=-1)
    zero_features: bool = from_yaml()
    members: int = from_yaml(ge=1, le=100)
    by_task: bool = from_yaml()
    task_vectors: str | None = from_yaml()

    @model_validator(mode="before")
    @classmethod
    def _by_kind(cls, values: Any) -> Any:
        """Read the settings of the network and the head by their kind."""
        network, head = values.get("network", {}), values.get("head", {"kind": "regression"})
        if isinstance(network, Mapping) and (settings := _NETWORKS.get(values.get("kind", "mlp"))):
            network = read(settings, network)
        return {**values, "network": network, "head": head if isinstance(head, Settings) else read_head(head)}

    def rules(self) -> Iterator[tuple[Any, ...]]:
        yield "execute", self.execute <= self.chunk, f"<= policy.chunk, which is {self.chunk}"
        yield "context", self.context >= 2 or not self.from_last, ">= 2 with policy.from_last"


class PolicySpec(PolicySettings):
    """Everything required to rebuild a policy, as plain values that its checkpoint stores."""

    cameras: tuple[str, ...] = Field(min_length=1)  # in the order of the feature axis
    dim: int = Field(ge=1)  # channels per token, over all S² scales
    tokens: int = Field(ge=1)  # maximum per camera; 1 for mean-pooled features
    placed: bool = False  # whether a token holds its place in its last channels, see `pooling.PLACED`
    action_dim: int = Field(default=8, ge=1)  # numbers per action
    proprio_dim: int = Field(default=8, ge=1)  # numbers per state
    # texts of the training tasks; the network receives the selected one with the state
    tasks: tuple[str, ...] = ()
    # length of a task's vector; 0: a one-hot vector over `tasks`
    task_dim: int = Field(default=0, ge=0)
    # (rows, columns) of each camera's token map, unless all are squares of `tokens`; the largest has `tokens`
    grids: tuple[tuple[PositiveInt, PositiveInt], ...] = ()
    # Plain dicts, see `Parts.read`. None: joints (action: delta; state: absolute), then the gripper.
    action_parts: tuple[dict[str, Any], ...] | None = None
    proprio_parts: tuple[dict[str, Any], ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _decide_the_target(cls, values: Any) -> Any:
        """Resolve `auto` for deltas relative to the last command, which accumulate; see `from_dict` for others."""
        auto = values.get("action_target", "auto") == "auto"
        return {**values, "action_target": "cumulative"} if auto else values

    @model_validator(mode="after")
    def _parts_in_one_way(self) -> Self:
        for key in ("action", "proprio"):
            if getattr(self, key) == Parts.read(None, getattr(self, f"{key}_dim"), "", key):
                object.__setattr__(self, f"{key}_parts", None)
        return self

    def rules(self) -> Iterator[tuple[Any, ...]]:
        yield from super().rules()
        names = {part.name for parts in (self.action, self.proprio) for part in parts.parts}
        for name in self.normalise_parts:
            yield "normalise_parts", name in names, f"some of {', '.join(sorted(names))}", name
        fits = math.isqrt(self.tokens) ** 2 == self.tokens or self.pooling.kind == "mean"
        if self.grids:
            fits = len(self.grids) == len(self.cameras) and max(self.counts) == self.tokens
        expected = f"rows and columns of {len(self.cameras)} cameras, the largest of {self.tokens} tokens"
        yield "grids", fits, expected
        alike = len(set(self.grids)) < 2 or not self.pooling.shared
        yield "pooling.shared", alike, "false with maps of several shapes", True

    def resolve_task(self, task: str | None) -> str | None:
        """Return the task, by default the only one; UserError: unknown, or ambiguous. Without tasks, any is accepted."""
        task = self.tasks[0] if task is None and len(self.tasks) == 1 else task
        if self.tasks:
            hint = ", or a text with a vector (task_vectors)" if self.task_dim else ""
            one_of("task", task, self.tasks, hint)
        return task

    @cached_property
    def action(self) -> Parts:
        return Parts.read(self.action_parts, self.action_dim, "policy.action_parts")

    @cached_property
    def proprio(self) -> Parts:
        return Parts.read(self.proprio_parts, self.proprio_dim, "policy.proprio_parts", "proprio")

    @cached_property
    def measured(self) -> dict[int, int]:
        """Action numbers that the state also measures, matched by name: index in the action -> index in the state."""
        action, state = (
            {
                name: at.start + i
                for part, at in parts.outside
                if part.kind == "absolute"
                for i, name in enumerate(part.names or ())
            }
            for parts in (self.action, self.proprio)
        )
        return {index: state[name] for name, index in action.items() if name in state}

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], where: str = "policy", action_frame: str = ""
    ) -> PolicySpec:
        """Read plain values (a config or policy.json); UserError names the invalid key.

        action_frame: of the demos. With `action_target` `auto`, robosuite's controllers use single deltas, because they
            start each step at the measured pose, so that commands do not accumulate.
        """
        if values.get("action_target") == "auto" and action_frame.startswith("robosuite:"):
            values = {**values, "action_target": "delta"}
        return read(cls, values, where)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `from_dict` returns an equal spec."""
        return self.model_dump(mode="json")

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and columns of each camera's token map."""
        side = math.isqrt(self.tokens)
        return list(self.grids) or [(side, side)] * len(self.cameras)

    @property
    def planned(self) -> int:
        """Actions that a plan returns: 1 if every step plans and averages with earlier plans."""
        return self.execute if self.ensemble is None else 1

    @property
    def counts(self) -> list[int]:
        """Tokens of each camera; a feature array has `tokens` per camera, of which the others are ignored."""
        return [math.prod(grid) for grid in self.grids] if self.grids else [self.tokens] * len(self.cameras)
