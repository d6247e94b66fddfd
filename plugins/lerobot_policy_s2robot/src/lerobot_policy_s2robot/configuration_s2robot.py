"""Settings of `--policy.type=s2robot`."""

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig


@PreTrainedConfig.register_subclass("s2robot")
@dataclass
class S2robotConfig(PreTrainedConfig):
    """A frozen encoder at several scales, pooling, an MLP and a head that predicts a chunk of actions."""

    encoder: str = "mvp-tiny"
    encoder_checkpoint: str | None = None
    scales: list[float] = field(default_factory=lambda: [1.0, 2.0])
    head: str = "regression"
    hidden: list[int] = field(default_factory=lambda: [512, 512])
    chunk_size: int = 16
    n_action_steps: int = 8
    optimizer_lr: float = 5e-4
    optimizer_weight_decay: float = 1e-2
    normalization_mapping: dict[str, Any] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,  # the encoder normalises images itself
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        }
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(
                f"n_action_steps: expected 1 to chunk_size={self.chunk_size}, got {self.n_action_steps}"
            )

    observation_delta_indices = reward_delta_indices = None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(lr=self.optimizer_lr, weight_decay=self.optimizer_weight_decay)

    def get_scheduler_preset(self) -> None:
        return None

    def validate_features(self) -> None:
        if not self.image_features:
            raise ValueError("input_features: expected at least one camera, got none")
        if self.robot_state_feature is None or self.action_feature is None:
            raise ValueError("input_features: expected observation.state and action, got neither or one")
