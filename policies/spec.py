"""All that is needed to build a policy again, as plain values that travel in its checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from s2robot.policies.errors import PolicyError
from s2robot.policies.normalise import MODES
from s2robot.policies.parts import Parts
from s2robot.policies.settings import check_ranges, read_settings

CHOICES = {
    "kind": ("mlp", "transformer"),
    "action_target": ("delta", "cumulative"),
    "joint_loss": ("huber", "mse"),
    "gripper_loss": ("bce", "huber"),
    "normalise": MODES,
}

_LATER = ("grids", "action_parts", "proprio_parts", "normalise_parts", "from_last")


@dataclass(frozen=True)
class PolicySpec:
    """All that is needed to build the same policy again."""

    cameras: tuple[str, ...]  # in the order of the feature axis
    dim: int  # channels of a token, all S² scales together
    tokens: int  # tokens of a camera, the most where they differ; 1 where features are mean-pooled already
    kind: str = "mlp"  # the body: mlp | transformer
    network: dict[str, Any] = field(default_factory=dict)  # the body's MlpSettings or TransformerSettings
    pooling: dict[str, Any] = field(default_factory=dict)  # PoolingSettings
    context: int = 1  # steps of observation that the network sees
    chunk: int = 8  # actions predicted at once
    execute: int = 2  # of which this many are executed before the next plan
    action_dim: int = 8  # numbers of an action
    proprio_dim: int = 8  # numbers of a state
    action_target: str = (
        "delta"  # delta: each step's own; cumulative: sums of deltas, products of turns from now on
    )
    normalise: str = "standard"  # standard | minmax | quantile
    joint_loss: str = "huber"  # huber | mse, of all parts that are not binary, in normalised units
    huber_delta: float = 1.0  # where Huber turns from square to linear
    gripper_loss: str = "bce"  # bce | huber, of binary parts
    gripper_weight: float = 1.0  # of the binary parts' loss against that of the others
    loss_discount: float = 1.0  # weight of chunk step j is loss_discount ** j
    proprio_noise: float = 0.0  # training: Gaussian noise on the state, in normalised units
    proprio_dropout: float = 0.0  # training: share of samples whose state is hidden (set to its mean)
    binary_gripper: bool = True  # a binary number is one of its two values, with the threshold in the middle
    ensemble: float | None = None  # ACT: plan every step; the i-th plan made for a step weighs exp(-this * i)
    zero_features: bool = False  # the control: normalised image features are all zero
    head: dict[str, Any] = field(default_factory=dict)  # {"kind": ..., the settings of that head}
    members: int = 1  # networks that are trained side by side; their plans are combined
    # (rows, columns) of each camera's token map, where they are not all squares of `tokens`; the largest has `tokens`
    grids: tuple[list[int], ...] = ()
    # Plain dicts, see `Parts.read`. None: joints (action: delta; state: absolute) and the gripper, which is last.
    action_parts: tuple[dict[str, Any], ...] | None = None
    proprio_parts: tuple[dict[str, Any], ...] | None = None
    normalise_parts: dict[str, str] = field(default_factory=dict)  # part -> mode, where it is not `normalise`
    from_last: bool = False  # absolute parts are predicted as their change since the action before

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                found = getattr(self, name)
                raise PolicyError(f"policy.{name} is '{found}', expected {' or '.join(choices)}")
        for name in ("dim", "tokens", "members", "context", "chunk", "execute", "action_dim", "proprio_dim"):
            if getattr(self, name) < 1:
                raise PolicyError(f"policy.{name} is {getattr(self, name)}, expected 1 or more")
        for key, usual in (("action_parts", "action"), ("proprio_parts", "proprio")):
            size = getattr(self, f"{usual}_dim")
            if Parts.read(getattr(self, key), size, f"policy.{key}", usual) == Parts.read(
                None, size, "", usual
            ):
                object.__setattr__(self, key, None)  # one way to say it, that of older checkpoints
        names = {part.name for parts in (self.action, self.proprio) for part in parts.parts}
        for name, mode in self.normalise_parts.items():
            if name not in names:
                raise PolicyError(
                    f"policy.normalise_parts: found '{name}', expected some of {', '.join(sorted(names))}"
                )
            if mode not in MODES:
                raise PolicyError(
                    f"policy.normalise_parts.{name} is '{mode}', expected one of {', '.join(MODES)}"
                )
        if self.execute > self.chunk:
            raise PolicyError(f"policy.execute {self.execute} is more than policy.chunk {self.chunk}")
        if self.from_last and self.context < 2:
            raise PolicyError(
                f"policy.from_last is true and policy.context {self.context}, expected 2 or more: it sees the action before"
            )
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise PolicyError(f"policy.cameras is {list(self.cameras)}, expected one or more different names")
        if self.grids:
            if (
                len(self.grids) != len(self.cameras)
                or any(len(grid) != 2 or min(grid) < 1 for grid in self.grids)
                or max(self.counts) != self.tokens
            ):
                raise PolicyError(
                    f"policy.grids is {[list(grid) for grid in self.grids]}, expected rows and columns of each of the "
                    f"{len(self.cameras)} cameras, the largest of {self.tokens} tokens"
                )
        if not 0 <= self.proprio_dropout < 1:
            raise PolicyError(f"policy.proprio_dropout is {self.proprio_dropout}, expected 0 <= value < 1")
        if not 0 < self.huber_delta < math.inf:
            raise PolicyError(f"policy.huber_delta is {self.huber_delta}, expected a value above 0")
        any_ = (0, math.inf)
        check_ranges(
            self,
            "policy",
            gripper_weight=any_,
            loss_discount=any_,
            ensemble=(-math.inf, math.inf),
            proprio_noise=any_,
        )
        self._check_weights()

    def _check_weights(self) -> None:
        """Refuse weights of plans and of steps that float32 cannot hold (PolicyError)."""
        if self.ensemble is not None and self.ensemble * self.chunk < -80:
            raise PolicyError(
                f"policy.ensemble is {self.ensemble}, expected {-80 / self.chunk:g} or more with {self.chunk} actions a plan"
            )
        if (
            self.loss_discount > 1 and (self.chunk - 1) * math.log(self.loss_discount) > 69
        ):  # e to the 69th: 1e30
            raise PolicyError(
                f"policy.loss_discount is {self.loss_discount}, expected a value whose {self.chunk - 1}th power is finite"
            )

    @cached_property
    def action(self) -> Parts:
        """The parts of an action."""
        return Parts.read(self.action_parts, self.action_dim, "policy.action_parts")

    @cached_property
    def proprio(self) -> Parts:
        """The parts of a state."""
        return Parts.read(self.proprio_parts, self.proprio_dim, "policy.proprio_parts", "proprio")

    @cached_property
    def measured(self) -> dict[int, int]:
        """Numbers of an action that the state measures, by their names: place in the action -> place in the state."""
        places = {}
        for parts in (self.proprio, self.action):
            places[parts] = {
                name: at.start + i
                for part, at in parts.outside
                if part.kind == "absolute" and part.names
                for i, name in enumerate(part.names)
            }
        state = places[self.proprio]
        return {place: state[name] for name, place in places[self.action].items() if name in state}

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], where: str = "policy", action_frame: str = ""
    ) -> PolicySpec:
        """From plain values (a config or policy.json); PolicyError names the key that is wrong.

        action_frame: of the demos, decides what an `action_target` of `auto` is. robosuite's controllers begin each step at
            the pose that they measure then, so that its commands do not add up to a way; deltas against the last
            command do.
        """
        if values.get("action_target") == "auto":
            anew = action_frame.startswith("robosuite:")
            values = {**values, "action_target": "delta" if anew else "cumulative"}
        return read_settings(cls, values, where)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` gives back an equal spec. What later versions added is left out where it is
        the usual, so that a checkpoint without stays as it was.
        """
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        values["grids"] = [list(grid) for grid in self.grids]
        return {k: v for k, v in values.items() if v or k not in _LATER}

    @property
    def maps(self) -> int | list[tuple[int, int]]:
        """Rows and columns of each camera's token map, or `tokens` where all are squares of so many."""
        return [(rows, columns) for rows, columns in self.grids] or self.tokens

    @property
    def counts(self) -> list[int]:
        """Tokens of each camera; a feature array holds `tokens` of each, the rest of them never read."""
        return [math.prod(grid) for grid in self.grids] if self.grids else [self.tokens] * len(self.cameras)
