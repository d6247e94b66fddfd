"""s2robot's network behind LeRobot's policy interface."""

from collections import deque
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from s2robot.encoders.build import build_encoder
from s2robot.encoders.encoder import encode_cameras, token_maps
from s2robot.policies import PolicySpec
from s2robot.policies.network import Network

from .configuration_s2robot import S2robotConfig

ACTION, STATE = "action", "observation.state"


class S2robotPolicy(PreTrainedPolicy):
    """A policy on states and actions normalised by LeRobot's processors, and images as floats in 0 to 1."""

    config_class = S2robotConfig
    name = "s2robot"

    def __init__(self, config: S2robotConfig, **_: Any):
        super().__init__(config)
        config.validate_features()
        settings = {"name": config.encoder, "scales": list(config.scales)}
        if config.encoder_checkpoint:
            settings["checkpoint"] = config.encoder_checkpoint
        self._frozen = (
            build_encoder(settings).eval().requires_grad_(False),
        )  # in a tuple, so that its weights are not the policy's
        self.cameras = sorted(config.image_features)
        sizes = {name: tuple(config.image_features[name].shape[1:]) for name in self.cameras}
        maps = token_maps(self.encoder, sizes)
        spec: dict[str, Any] = {
            "cameras": [name.rpartition(".")[2] for name in self.cameras], "dim": self.encoder.dim,
            "tokens": max(rows * columns for rows, columns in maps), "grids": [list(shape) for shape in maps],
            "chunk": config.chunk_size, "execute": config.n_action_steps, "context": 1, "members": 1, "action_target": "delta",
            "head": {"kind": config.head} | ({"clip": 5.0} if config.head == "diffusion" else {}), "network": {"hidden": list(config.hidden)},
        }  # fmt: skip
        for key, feature in (("action", config.action_feature), ("proprio", config.robot_state_feature)):
            size = int(feature.shape[0])
            spec |= {
                f"{key}_dim": size,
                f"{key}_parts": [{"name": "value", "size": size, "kind": "absolute"}],
            }
        self.network = Network(PolicySpec.from_dict(spec))
        self.register_buffer(
            "measured", torch.zeros((), dtype=torch.bool)
        )  # whether the first batch has set the features' moments
        self.reset()

    @property
    def encoder(self) -> Any:
        return self._frozen[0]

    def get_optim_params(self) -> Any:
        return self.network.parameters()

    def reset(self) -> None:
        # LeRobot's `drop_queued_actions` clears it by this name
        self._action_queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict]:
        """Return the head's loss on chunks (B, K, A), without steps beyond the episode's end (`action_is_pad`)."""
        target = batch[ACTION]
        weight = torch.ones(target.shape[:2], device=target.device)
        if (pad := batch.get("action_is_pad")) is not None:
            weight = (~pad).to(weight.dtype)
        loss, _, scalars = self.network.loss(
            *self._context(batch), target, weight / weight.sum().clamp(min=1)
        )
        return loss, {name: float(value.detach()) for name, value in scalars.items()}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        context, shape = self._context(batch), self.network.head.noise_shape
        noise = torch.randn(len(context[0]), *shape, device=context[0].device) if shape else None
        return self.network.sample(*context, noise)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        self.eval()
        if not self._action_queue:
            self._action_queue.extend(
                self.predict_action_chunk(batch)[:, : self.config.n_action_steps].transpose(0, 1)
            )
        return self._action_queue.popleft()

    def _context(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return pooled images (B, 1, C, E), state (B, 1, P), zeros for past actions, and no padding."""
        state = batch[STATE]
        tokens = self._tokens(batch)
        if self.training and not self.measured:
            features = tokens.movedim(1, 0).flatten(1, 2)  # (C, B * N, D)
            self.network.set_moments(features.mean(1), features.std(1).clamp(min=1e-6))
            self.measured.fill_(True)
        pooled = self.network.pool(tokens)[:, None]
        past = torch.zeros(len(state), 1, self.config.action_feature.shape[0], device=state.device)
        return pooled, state[:, None], past, torch.zeros(len(state), 1, dtype=torch.bool, device=state.device)

    @torch.no_grad()
    def _tokens(self, batch: dict[str, Tensor]) -> Tensor:
        """Encode all cameras' images (B, 3, H, W) in 0 to 1 as tokens (B, C, N, D)."""
        device = batch[STATE].device
        self.encoder.to(device)
        frames = [
            (batch[name] * 255).round().clamp(0, 255).to(torch.uint8).movedim(1, -1) for name in self.cameras
        ]
        tokens = encode_cameras(self.encoder.encode, [frame.cpu().numpy() for frame in frames])
        return tokens.to(device).float().clone()  # inference-mode tensors cannot be used in training
