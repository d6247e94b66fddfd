"""Train and evaluate peers' networks on our cached features: `s2robot` with three more heads.

    <python of LeRobot 0.6.1 and robomimic 0.3.0> -m benchmarks.peers.heads train policy.head.kind=lerobot_act
    <the same> -m benchmarks.peers.heads evaluate checkpoint=<run>/checkpoint

The heads are the peers' own classes and losses. They read pooled features and state: no body of ours is between. `robomimic_rnn_gmm`
needs `policy.context=10 policy.chunk=1 policy.execute=1`."""

import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from s2robot.cli import main
from s2robot.core.settings import Settings
from s2robot.policies import network
from s2robot.policies.heads import HEADS, Head, HeadLoss, HeadSizes
from s2robot.policies.heads.head import signed, unsigned

KIND = Literal["lerobot_act", "lerobot_diffusion", "robomimic_rnn_gmm"]


class Inputs(nn.Module):
    """In the place of a body: each step's pooled features and state. Acting, a row holds all steps of the context."""

    causal = True

    def __init__(self, settings: Any, cameras: int, context: int, proprio_dim: int, action_dim: int):
        super().__init__()
        self.embed_dim = settings.image_dim
        self.width = cameras * settings.image_dim + proprio_dim

    def forward(self, images: Tensor, proprio: Tensor, past: Any, pad: Tensor, every: bool = False) -> Tensor:
        steps = torch.cat([images.flatten(2), proprio], -1).masked_fill(pad[..., None], 0)  # (B, T, I)
        return steps.float() if every else steps.flatten(1).float()


class PeerSettings(Settings):
    kind: KIND
    width: int = 128  # LeRobot's default is 512


class PeerHead(Head):
    build: Callable[[int], nn.Module]

    def __init__(self, settings: PeerSettings, sizes: HeadSizes):
        super().__init__()
        self.sizes = sizes
        self.peer = self.build(settings.width)

    def lerobot(self) -> dict[str, Any]:
        """Settings of both LeRobot policies. They ask for a state and one of the world: both are the same vector."""
        from lerobot.configs.types import FeatureType, PolicyFeature

        kinds = {"state": FeatureType.STATE, "environment_state": FeatureType.ENV}
        inputs = {f"observation.{k}": PolicyFeature(kind, (self.sizes.context,)) for k, kind in kinds.items()}
        action = PolicyFeature(FeatureType.ACTION, (self.sizes.action_dim,))
        features = {"input_features": inputs, "output_features": {"action": action}}
        return {**features, "device": "cpu", "n_action_steps": self.sizes.chunk}

    def batch(self, context: Tensor, actions: Tensor, weight: Tensor) -> dict[str, Tensor]:
        seen = {f"observation.{name}": context for name in ("state", "environment_state")}
        return {**seen, "action": signed(actions, self.sizes.slots), "action_is_pad": weight == 0}


class LeRobotAct(PeerHead):
    def build(self, width: int) -> nn.Module:
        from lerobot.policies.act.modeling_act import ACT, ACTConfig

        sizes = {"dim_model": width, "dim_feedforward": 4 * width, "chunk_size": self.sizes.chunk}
        return ACT(ACTConfig(**self.lerobot(), **sizes))

    def loss(self, context: Tensor, target: Tensor, weight: Tensor) -> HeadLoss:
        batch = self.batch(context, target, weight)
        chunk, (mean, log_variance) = self.peer(batch)
        away = (batch["action"] - chunk).abs() * ~batch["action_is_pad"][..., None]  # as ACTPolicy.forward
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1).mean()
        return HeadLoss(away.mean() + 10 * divergence, unsigned(chunk.detach(), self.sizes.slots))

    def sample(self, context: Tensor, noise: Any = None, pending: Any = None) -> Tensor:
        empty = context.new_zeros(len(context), self.sizes.chunk, self.sizes.action_dim)
        return unsigned(self.peer(self.batch(context, empty, empty[..., 0]))[0], self.sizes.slots)


class LeRobotDiffusion(PeerHead):
    def build(self, width: int) -> nn.Module:
        from lerobot.policies.diffusion.modeling_diffusion import DiffusionConfig, DiffusionModel

        self.noise_shape = self.sizes.chunk, self.sizes.action_dim
        sizes = {"horizon": self.sizes.chunk, "n_obs_steps": 1, "down_dims": (width // 2, width, 2 * width)}
        levels = {"noise_scheduler_type": "DDIM", "num_inference_steps": 16}
        return DiffusionModel(DiffusionConfig(**self.lerobot(), **sizes, **levels))

    def loss(self, context: Tensor, target: Tensor, weight: Tensor) -> HeadLoss:
        return HeadLoss(self.peer.compute_loss(self.batch(context[:, None], target, weight)), target)

    def sample(self, context: Tensor, noise: Any = None, pending: Any = None) -> Tensor:
        chunk = self.peer.conditional_sample(len(context), context.repeat(1, 2), noise=noise)
        return unsigned(chunk, self.sizes.slots)


class RobomimicRnnGmm(PeerHead):
    """Acting, the noise draws a mode, whose mean is taken: robomimic samples around it with a deviation of 1e-4."""

    STEPS = 10
    noise_shape = (1,)

    def build(self, width: int) -> nn.Module:
        from robomimic.models.policy_nets import RNNGMMActorNetwork
        from robomimic.utils.obs_utils import initialize_obs_utils_with_obs_specs

        initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["seen"]}})
        shapes = OrderedDict(seen=(self.sizes.context,))
        kinds = "core_class core_kwargs obs_randomizer_class obs_randomizer_kwargs".split()
        raw: dict[str, Any] = {"low_dim": {kind: {} if "kwargs" in kind else None for kind in kinds}}
        lstm = {"rnn_hidden_dim": 400, "rnn_num_layers": 2, "rnn_kwargs": {}, "encoder_kwargs": raw}
        peer = RNNGMMActorNetwork(shapes, self.sizes.action_dim, [], **lstm, min_std=1e-4)
        del peer.nets["decoder"]  # a second name of weights in its LSTM, which a checkpoint cannot hold
        return peer

    def loss(self, context: Tensor, target: Tensor, weight: Tensor) -> HeadLoss:
        steps = (-1, self.STEPS)
        found = self.peer.forward_train({"seen": context.unflatten(0, steps)})  # (B, T, I)
        actions = signed(target, self.sizes.slots)[:, 0].unflatten(0, steps)
        loss = -(found.log_prob(actions) * (weight[:, 0].unflatten(0, steps) > 0)).mean()
        return HeadLoss(loss, unsigned(found.mean.detach().flatten(0, 1)[:, None], self.sizes.slots))

    def sample(self, context: Tensor, noise: Any = None, pending: Any = None) -> Tensor:
        found = self.peer.forward_train({"seen": context.unflatten(-1, (self.STEPS, -1))})
        shares, means = found.mixture_distribution.probs[:, -1], found.component_distribution.mean[:, -1]
        chosen = (torch.special.ndtr(noise) > shares.cumsum(-1)).sum(-1).clamp(max=shares.shape[-1] - 1)
        return unsigned(means[torch.arange(len(means)), chosen][:, None], self.sizes.slots)


PEERS = zip(get_args(KIND), (LeRobotAct, LeRobotDiffusion, RobomimicRnnGmm), strict=True)
HEADS |= {kind: (PeerSettings, head) for kind, head in PEERS}
network.MlpBody = Inputs  # type: ignore[misc, assignment]  # of policy=mlp, the default

if __name__ == "__main__":
    sys.exit(main())
