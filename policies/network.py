"""The trained network: pooling, body and head, for one or several members.

It works in normalised units; `ChunkPolicy` adds the normaliser.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from s2robot.policies.bodies.mlp import MlpBody, MlpSettings
from s2robot.policies.bodies.rnn import RnnBody, RnnSettings
from s2robot.policies.bodies.transformer import TransformerBody
from s2robot.policies.heads import HeadLoss, HeadSizes, build_head
from s2robot.policies.pooling import CameraPooling
from s2robot.policies.spec import PolicySpec

# vmap runs fused attention one member at a time, which is still faster than the batched fallback.
warnings.filterwarnings("ignore", "There is a performance drop because we have not yet implemented")


class Network(nn.Module):
    count = 1

    def __init__(self, spec: PolicySpec):
        super().__init__()
        state = spec.proprio.width + (spec.task_dim or len(spec.tasks))  # numbers per step, with the task
        sizes = spec.context, state, spec.action.width
        self.body: MlpBody | RnnBody | TransformerBody
        if isinstance(spec.network, MlpSettings):
            self.body = MlpBody(spec.network, len(spec.cameras), *sizes)
        elif isinstance(spec.network, RnnSettings):
            self.body = RnnBody(spec.network, len(spec.cameras), *sizes)
        else:
            self.body = TransformerBody(spec.network, *sizes)
        images = len(spec.cameras), spec.dim, spec.grids or spec.tokens, self.body.embed_dim
        self.pooling = CameraPooling(spec.pooling, *images)
        losses = (spec.joint_loss, spec.huber_delta, spec.gripper_loss, spec.gripper_weight)
        self.head = build_head(spec.head, HeadSizes(self.body.width, spec.chunk, spec.action.inside, *losses))
        self.pooling.blind, self.pooling.placed = spec.zero_features, spec.placed

    def forward(self, method: str, *arguments: Any) -> Any:
        """Call `pool`, `loss` or `sample` by name, because torch.func and DDP call only `forward`."""
        return getattr(self, method)(*arguments)

    def set_moments(self, mean: Tensor, std: Tensor) -> None:
        self.pooling.set_moments(mean, std)

    def pool(self, features: Tensor, means: Tensor | None = None) -> Tensor:
        """(B, C, N, D) -> (B, C, E)."""
        return self.pooling(features, means)

    def loss(
        self, pooled: Tensor, state: Tensor, past: Tensor, pad: Tensor, target: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See `HeadLoss`; with target (B, T, K, A) and weight (B, T, K), every step of the context predicts."""
        if target.ndim == 4:
            context = self.body(pooled, state, past, pad, True)
            context, target, weight = (x.flatten(0, 1) for x in (context, target, weight))
        else:
            context = self.body(pooled, state, past, pad)
        result: HeadLoss = self.head.loss(context, target, weight)
        return result.loss, result.estimate, result.scalars

    def sample(
        self, pooled: Tensor, state: Tensor, past: Tensor, pad: Tensor, noise: Any, pending: Any = None
    ) -> Tensor:
        """Return normalised chunks (B, K, A); noise (B, *head.noise_shape); pending: see `Head`."""
        return self.head.sample(self.body(pooled, state, past, pad), noise, pending)


class Members(nn.Module):
    """Several networks of equal shape with separate weights, evaluated together with batched products.

    `pool` concatenates the members' vectors, so that the stored context remains one tensor.
    """

    def __init__(self, spec: PolicySpec):
        super().__init__()
        copies = [Network(spec) for _ in range(spec.members)]
        parameters, buffers = stack_module_state(copies)  # type: ignore[arg-type]
        self.count, persistent = spec.members, copies[0].state_dict()
        self._names = {name.replace(".", "/"): name for name in (*parameters, *buffers)}
        for own, name in self._names.items():
            if name in parameters:
                self.register_parameter(own, nn.Parameter(parameters[name].detach()))
            else:
                self.register_buffer(own, buffers[name], persistent=name in persistent)
        self._template = (copies[0],)  # in a tuple, so that its weights are not registered twice

    body = property(lambda self: self._template[0].body)
    head = property(lambda self: self._template[0].head)
    pooling = property(lambda self: self._template[0].pooling)

    def forward(self, method: str, *arguments: Any) -> Any:
        return getattr(self, method)(*arguments)

    def train(self, mode: bool = True) -> Members:
        self._template[0].train(mode)
        return super().train(mode)

    @torch.no_grad()
    def set_moments(self, mean: Tensor, std: Tensor) -> None:
        self.pooling.set_moments(mean, std)
        for name, value in self.pooling.named_buffers(prefix="pooling"):
            self.get_buffer(name.replace(".", "/")).copy_(value)

    def _each(self, method: str, inputs: tuple, dims: tuple) -> Any:
        """Call `method` of every member, and stack the results along a new first axis."""
        values = dict(self.named_parameters()) | dict(self.named_buffers())
        state = {self._names[name]: value for name, value in values.items()}
        template = self._template[0]

        def call(state: dict[str, Tensor], *arguments: Any) -> Any:
            return functional_call(template, state, (method, *arguments), tie_weights=False)

        return torch.vmap(call, in_dims=(0, *dims), randomness="different")(state, *inputs)

    def pool(self, *inputs: Tensor | None) -> Tensor:
        """(B, C, N, D) -> (B, C, M * E)."""
        return self._each("pool", inputs, (None,) * len(inputs)).movedim(0, -2).flatten(-2)

    def loss(self, *context: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the members' mean loss. AdamW's steps do not depend on its scale, but `grad_clip` clips members less."""
        loss, estimate, scalars = self._over_members("loss", *context)
        return loss.mean(0), estimate.mean(0), {name: value.mean(0) for name, value in scalars.items()}

    def sample(self, *context: Any) -> Tensor:
        """Return normalised chunks of all members (M, B, K, A), sampled from the same noise."""
        return self._over_members("sample", *context)

    def _over_members(self, method: str, pooled: Any, *shared: Any) -> Any:
        members = pooled.unflatten(-1, (self.count, -1))  # (B, T, C, M, E)
        return self._each(method, (members, *shared), (-2, *[None] * len(shared)))
