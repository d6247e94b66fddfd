"""A policy: pooled image features, state and past actions of a context in, a chunk of K actions out.

    spec = PolicySpec(cameras=("hand", "left", "right"), dim=384, tokens=64)
    policy = ChunkPolicy(spec)
    policy.fit_normaliser(proprio, actions, episode_ends, channel_moments(features))
    loss, scalars = policy(batch)                        # training; the same as policy.loss(batch)
    policy.plan(features, proprio, past_actions, pad)    # (B, K, 8) joint deltas in rad + gripper

Shapes: features (B, T, C, N, D), proprio (B, T, P), past_actions (B, T, A) with the last step unknown,
pad (B, T) True before the episode began, actions (B, K, A), action_pad (B, K) True beyond its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2robot.policies.errors import PolicyError
from s2robot.policies.mlp import MlpPolicy, MlpSettings
from s2robot.policies.normalise import MODES, Normaliser
from s2robot.policies.pooling import CameraPooling, PoolingSettings
from s2robot.policies.settings import read_settings
from s2robot.policies.transformer import TransformerPolicy, TransformerSettings

CHOICES = {
    "kind": ("mlp", "transformer"),
    "action_target": ("delta", "cumulative"),
    "joint_loss": ("huber", "mse"),
    "gripper_loss": ("bce", "huber"),
    "normalise": MODES,
}


@dataclass(frozen=True)
class PolicySpec:
    """All that is needed to build the same policy again."""

    cameras: tuple[str, ...]  # in the order of the feature axis
    dim: int  # channels of a token, all S² scales together
    tokens: int  # tokens of a camera; 1 where features are mean-pooled already
    kind: str = "mlp"  # mlp | transformer
    network: dict[str, Any] = field(default_factory=dict)  # MlpSettings or TransformerSettings
    pooling: dict[str, Any] = field(default_factory=dict)  # PoolingSettings
    context: int = 1  # steps of observation that the network sees
    chunk: int = 8  # actions predicted at once
    execute: int = 2  # of which this many are executed before the next plan
    action_dim: int = 8  # 7 joint deltas (rad) + gripper command, which is last
    proprio_dim: int = 8  # 7 joint positions (rad) + gripper opening
    action_target: str = "delta"  # delta: each step's own; cumulative: the sum of deltas from now on
    normalise: str = "standard"  # standard | minmax
    joint_loss: str = "huber"  # huber | mse, in normalised units
    huber_delta: float = 1.0  # where Huber turns from square to linear
    gripper_loss: str = "bce"  # bce | huber
    gripper_weight: float = 1.0  # of the gripper loss against the joint loss
    loss_discount: float = 1.0  # weight of chunk step j is loss_discount ** j
    proprio_noise: float = 0.0  # training: Gaussian noise on the state, in normalised units
    proprio_dropout: float = 0.0  # training: share of samples whose state is hidden (set to its mean)
    binary_gripper: bool = True  # the gripper command is 0 or 1, threshold 0.5
    ensemble: float | None = None  # ACT: plan every step; the i-th plan made for a step weighs exp(-this * i)
    zero_features: bool = False  # the control: normalised image features are all zero

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                found = getattr(self, name)
                raise PolicyError(f"policy.{name} is '{found}', expected {' or '.join(choices)}")
        for name in ("dim", "tokens", "context", "chunk", "execute", "proprio_dim"):
            if getattr(self, name) < 1:
                raise PolicyError(f"policy.{name} is {getattr(self, name)}, expected 1 or more")
        if self.action_dim < 2:
            raise PolicyError(f"policy.action_dim is {self.action_dim}, expected joints and a gripper")
        if self.execute > self.chunk:
            raise PolicyError(f"policy.execute {self.execute} is more than policy.chunk {self.chunk}")
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise PolicyError(f"policy.cameras is {list(self.cameras)}, expected one or more different names")
        if not 0 <= self.proprio_dropout < 1:
            raise PolicyError(f"policy.proprio_dropout is {self.proprio_dropout}, expected 0 <= value < 1")
        if self.huber_delta <= 0:
            raise PolicyError(f"policy.huber_delta is {self.huber_delta}, expected a value above 0")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "policy") -> PolicySpec:
        """From plain values (a config or policy.json); PolicyError names the key that is wrong."""
        return read_settings(cls, values, where)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` gives back an equal spec."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


class ChunkPolicy(nn.Module):
    """Pooling, network and normalisation together."""

    def __init__(self, spec: PolicySpec):
        super().__init__()
        self.spec = spec
        sizes = (len(spec.cameras), spec.context, spec.chunk, spec.proprio_dim, spec.action_dim)
        self.network: MlpPolicy | TransformerPolicy
        if spec.kind == "mlp":
            self.network = MlpPolicy(read_settings(MlpSettings, spec.network, "policy.network"), *sizes)
        else:
            settings = read_settings(TransformerSettings, spec.network, "policy.network")
            self.network = TransformerPolicy(settings, *sizes)
        self.pooling_settings = read_settings(PoolingSettings, spec.pooling, "policy.pooling")
        self.pooling = CameraPooling(
            self.pooling_settings, len(spec.cameras), spec.dim, spec.tokens, self.network.embed_dim
        )
        self.normaliser = Normaliser(
            spec.normalise, spec.proprio_dim, spec.action_dim, spec.chunk, spec.action_target == "cumulative"
        )
        steps = torch.arange(spec.chunk, dtype=torch.float32)
        self.register_buffer("step_weight", spec.loss_discount**steps, persistent=False)
        self.pooling.blind = spec.zero_features

    def fit_normaliser(
        self,
        proprio: np.ndarray,
        actions: np.ndarray,
        episode_ends: np.ndarray,
        feature_moments: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """Set normalisation from the training episodes.

        proprio (M, P), actions (M, A), episode_ends (E,); feature_moments: mean and std (C, D) as
        `channel_moments` gives them, needed with pooling norm "channel" and ignored otherwise.
        """
        self.normaliser.fit(proprio, actions, episode_ends)
        if self.pooling_settings.norm != "channel":
            return
        want = (len(self.spec.cameras), self.spec.dim)
        if feature_moments is None:
            raise PolicyError("pooling norm 'channel' needs feature_moments: give channel_moments(features)")
        mean, std = (torch.as_tensor(x, dtype=torch.float32) for x in feature_moments)
        if tuple(mean.shape) != want or tuple(std.shape) != want:
            raise PolicyError(f"feature_moments have shape {tuple(mean.shape)}, expected {want}")
        self.pooling.set_moments(mean, std)

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The same as `loss`, so that a wrapper such as DDP sees the call."""
        return self.loss(batch)

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss, and scalars (0-dim tensors without gradient) to log.

        Steps with action_pad True count nothing. Scalars: loss, joint_loss, gripper_loss, joint_error
        (mean absolute error of a joint delta, rad) and gripper_accuracy (share of 1).
        """
        spec = self.spec
        for key in ("features", "proprio", "actions"):
            if key not in batch:
                raise PolicyError(f"batch: key '{key}' is missing, found {', '.join(sorted(batch))}")
        actions = batch["actions"].float()  # (B, K, A)
        if tuple(actions.shape[1:]) != (spec.chunk, spec.action_dim):
            raise PolicyError(
                f"batch: actions have shape {tuple(actions.shape)}, "
                f"expected (B, {spec.chunk}, {spec.action_dim})"
            )
        out = self._predict(
            self.pool(batch["features"]), batch["proprio"], batch.get("past_actions"), batch.get("pad")
        )
        action_pad = batch.get("action_pad")
        if action_pad is None:
            action_pad = actions.new_zeros(actions.shape[:2], dtype=torch.bool)
        actions = actions.masked_fill(action_pad[..., None], 0)
        keep = (~action_pad).to(out.dtype)  # (B, K)
        weight = keep * self.step_weight
        weight, keep = weight / weight.sum().clamp(min=1e-8), keep / keep.sum().clamp(min=1)
        target = self.normaliser.target(self._to_target(actions))  # (B, K, A)
        joints, gripper = out[..., :-1], out[..., -1]
        if spec.joint_loss == "mse":
            joint_each = F.mse_loss(joints, target[..., :-1], reduction="none")
        else:
            joint_each = F.huber_loss(joints, target[..., :-1], reduction="none", delta=spec.huber_delta)
        joint_loss = (joint_each.mean(-1) * weight).sum()
        if spec.gripper_loss == "bce":
            gripper_each = F.binary_cross_entropy_with_logits(gripper, actions[..., -1], reduction="none")
        else:
            gripper_each = F.huber_loss(gripper, actions[..., -1], reduction="none", delta=spec.huber_delta)
        gripper_loss = (gripper_each * weight).sum()
        loss = joint_loss + spec.gripper_weight * gripper_loss
        with torch.no_grad():
            real = self._to_actions(out)
            error = ((real - actions)[..., :-1].abs().mean(-1) * keep).sum()
            right = (((real[..., -1] > 0.5) == (actions[..., -1] > 0.5)) * keep).sum()
        scalars = {"joint_loss": joint_loss, "gripper_loss": gripper_loss, "joint_error": error}
        scalars |= {"loss": loss, "gripper_accuracy": right}
        return loss, {name: value.detach() for name, value in scalars.items()}

    @torch.no_grad()
    def plan(
        self, features: Tensor, proprio: Tensor, past_actions: Tensor | None = None, pad: Tensor | None = None
    ) -> Tensor:
        """Actions (B, K, A) in real units: joint deltas in rad, gripper 0..1 (0 or 1 if binary_gripper)."""
        return self.harden(self.plan_pooled(self.pool(features), proprio, past_actions, pad))

    def pool(self, features: Tensor) -> Tensor:
        """Features (B, T, C, N, D) -> (B, T, C, E), what a context of earlier steps has to remember."""
        spec = self.spec
        want = (len(spec.cameras), spec.tokens, spec.dim)
        if features.ndim != 5 or tuple(features.shape[2:]) != want:
            raise PolicyError(
                f"features have shape {tuple(features.shape)}, expected (B, T, cameras, tokens, dim) "
                f"with (cameras, tokens, dim) = {want}"
            )
        return self.pooling(features)

    @torch.no_grad()
    def plan_pooled(
        self, pooled: Tensor, proprio: Tensor, past_actions: Tensor | None = None, pad: Tensor | None = None
    ) -> Tensor:
        """As `plan` from pooled features (B, T, C, E); the gripper stays soft (0..1)."""
        return self._to_actions(self._predict(pooled, proprio, past_actions, pad))

    def harden(self, actions: Tensor) -> Tensor:
        """The gripper command as 0 or 1 where binary_gripper says so."""
        if not self.spec.binary_gripper:
            return actions
        return torch.cat([actions[..., :-1], (actions[..., -1:] > 0.5).to(actions.dtype)], -1)

    def _predict(
        self, pooled: Tensor, proprio: Tensor, past_actions: Tensor | None, pad: Tensor | None
    ) -> Tensor:
        """Normalised chunk (B, K, A); the gripper is a logit with BCE."""
        spec = self.spec
        b, t = pooled.shape[:2]
        if t != spec.context:
            raise PolicyError(f"features hold {t} steps of context, expected {spec.context}")
        if tuple(proprio.shape) != (b, t, spec.proprio_dim):
            raise PolicyError(
                f"proprio has shape {tuple(proprio.shape)}, expected {(b, t, spec.proprio_dim)}"
            )
        if past_actions is None:
            if t > 1 and self.network.settings.action_history:
                raise PolicyError("past_actions are missing, and the policy's network has action_history on")
            past_actions = pooled.new_zeros(b, t, spec.action_dim)
        if tuple(past_actions.shape) != (b, t, spec.action_dim):
            raise PolicyError(
                f"past_actions have shape {tuple(past_actions.shape)}, expected {(b, t, spec.action_dim)}"
            )
        if pad is None:
            pad = torch.zeros(b, t, dtype=torch.bool, device=pooled.device)
        state = self.normaliser.proprio(proprio.float())  # (B, T, P)
        if self.training and spec.proprio_noise:
            state = state + spec.proprio_noise * torch.randn_like(state)
        if self.training and spec.proprio_dropout:
            state = state * (torch.rand(b, 1, 1, device=state.device) >= spec.proprio_dropout)
        return self.network(pooled, state, self.normaliser.action(past_actions.float()), pad).float()

    def _to_target(self, actions: Tensor) -> Tensor:
        """Real actions (B, K, A) -> what is predicted: joints summed from now on if cumulative."""
        if self.spec.action_target == "delta":
            return actions
        return torch.cat([actions[..., :-1].cumsum(1), actions[..., -1:]], -1)

    def _to_actions(self, out: Tensor) -> Tensor:
        """Network output (B, K, A) -> real actions with a soft gripper 0..1."""
        joints = self.normaliser.target.inverse(out)[..., :-1]
        if self.spec.action_target == "cumulative":
            joints = torch.diff(joints, dim=1, prepend=torch.zeros_like(joints[:, :1]))
        gripper = out[..., -1:].sigmoid() if self.spec.gripper_loss == "bce" else out[..., -1:].clamp(0, 1)
        return torch.cat([joints, gripper], -1)
