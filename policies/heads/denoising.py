"""Heads that refine a chunk with a denoiser: flow, MIP and diffusion.

Flow matching: noise moves to actions along straight lines (Lipman et al., 2023; as in pi-0). The network learns the
velocity from noise to action at a random point on the line, and a sample integrates it in a few Euler steps.

MIP, the minimal iterative policy (arXiv 2512.01809), with net(chunk, time, context) and t = `time` (0.9 in the paper):

    training    | net(0, 0, context) - action |²  +  | net(t · action + (1 - t) · noise, t, context) - action |²
    inference   first = net(0, 0, context);  action = net(t · first, t, context)

The first step is plain regression; the second learns to correct a nearly right chunk. This is the form in the paper;
its published code also has one without the factor t. It is deterministic and models no distribution: for two equally
good ways, it predicts a single chunk, which may lie between them.

Diffusion: a chunk is denoised from pure noise in a few DDIM steps (Chi et al., 2023; Song et al., 2021), with `train_steps`
levels of noise on the squared-cosine schedule (Nichol & Dhariwal, 2021); the network predicts the noise or the chunk itself,
and DDIM visits every `train_steps / steps`-th level. Every step clips the estimated chunk, because at high levels a small
error in the noise is a large error in the chunk: to the range of the demos for each step and number (buffers `low` and
`high`, set by `ChunkPolicy.fit_range`), or to a single bound, `clip`, in normalised units.

All use the squared error over all dimensions, with the gripper as -1 or 1.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from s2robot.core.settings import from_yaml
from s2robot.policies.heads.denoiser import DenoiserSettings, DenoisingHead
from s2robot.policies.heads.head import HeadLoss, HeadSizes, by_part, signed, unsigned


class FlowSettings(DenoiserSettings, at="policy.head", file="policy/head/flow"):
    kind: Literal["flow"] = from_yaml()
    steps: int = from_yaml(ge=1)


class FlowHead(DenoisingHead):
    settings: FlowSettings

    def __init__(self, settings: FlowSettings, sizes: HeadSizes):
        super().__init__(settings, sizes)
        self.noise_shape = self.shape

    def loss(self, context: Tensor, target: Tensor, weight: Tensor) -> HeadLoss:
        target = signed(target, self.slots)
        noise, time = torch.randn_like(target), torch.rand_like(target[..., 0, 0])  # (B, K, A), (B,)
        at = time[..., None, None]
        noisy = torch.lerp(noise, target, at)
        velocity = self.net(noisy, time, context)
        loss, parts = by_part((velocity - (target - noise)).square(), weight, self.slots)
        estimate = unsigned((noisy + (1 - at) * velocity).detach(), self.slots)
        return HeadLoss(loss, estimate, parts)

    def sample(self, context: Tensor, noise: Any = None, pending: Any = None) -> Tensor:
        actions, steps = noise, self.settings.steps
        for i in range(steps):
            time, left = actions.new_full(actions.shape[:-2], i / steps), 1 - i / steps
            if pending is None:
                actions = actions + self.net(actions, time, context) / steps
                continue
            clean = lambda x, time=time, left=left: x + left * self.net(x, time, context)  # noqa: E731
            estimate = self.guided(clean, actions, actions.new_tensor(i / steps), pending)
            actions = torch.lerp(actions, estimate, 1 / (left * steps))
        return unsigned(actions, self.slots)


class MipSettings(DenoiserSettings, at="policy.head", file="policy/head/mip"):
    kind: Literal["mip"] = from_yaml()
    time: float = from_yaml(gt=0, lt=1)


class MipHead(DenoisingHead):
    settings: MipSettings

    def loss(self, context: Tensor, target: Tensor, weight: Tensor) -> HeadLoss:
        target = signed(target, self.slots)
        noisy = torch.lerp(torch.randn_like(target), target, self.settings.time)
        start = torch.zeros_like(target[..., 0, 0])  # (B,)
        chunks = self.net(
            torch.cat([torch.zeros_like(target), noisy]),
            torch.cat([start, start + self.settings.time]),
            torch.cat([context, context]),
        )  # (2B, K, A), both steps in one pass
        errors = (chunks - torch.cat([target, target])).square()
        loss, parts = by_part(errors, torch.cat([weight, weight]), self.slots)
        return HeadLoss(loss, unsigned(chunks[: len(target)].detach(), self.slots), parts)

    def sample(self, context: Tensor, noise: Any = None, pending: Any = None) -> Tensor:
        start = context.new_zeros(len(context), dtype=torch.float32)  # (B,)
        first = self.insert(self.net(start[:, None, None].expand(-1, *self.shape), start, context), pending)
        time = self.settings.time
        second = self.insert(self.net(time * first, start + time, context), pending)
        return unsigned(second, self.slots)


class DiffusionSettings(DenoiserSettings, at="policy.head", file="policy/head/diffusion"):
    kind: Literal["diffusion"] = from_yaml()
    train_steps: int = from_yaml(ge=2)
    steps: int = from_yaml(ge=2)  # with 1, the only level would have no noise
    predicts: Literal["sample", "epsilon"] = from_yaml()
    clip: float | None = from_yaml(gt=0)

    def rules(self) -> Iterator[tuple[Any, ...]]:
        yield "steps", self.steps <= self.train_steps, f"<= {self.train_steps}, policy.head.train_steps"


class DiffusionHead(DenoisingHead):
    settings: DiffusionSettings

    def __init__(self, settings: DiffusionSettings, sizes: HeadSizes):
        super().__init__(settings, sizes)
        self.noise_shape = self.shape
        self.register_buffer("signal", squared_cosine(settings.train_steps), persistent=False)
        self.signal: Tensor  # (train_steps,)
        if settings.clip is None:
            for name, unset in (("low", -math.inf), ("high", math.inf)):
                self.register_buffer(name, torch.full(self.noise_shape, unset))
        self.low: Tensor  # (K, A) range of the demos, binary values as -1 and 1
        self.high: Tensor

    def loss(self, context: Tensor, target: Tensor, weight: Tensor) -> HeadLoss:
        target = signed(target, self.slots)
        noise, last = torch.randn_like(target), self.settings.train_steps
        level = (torch.rand_like(target[..., 0, 0]) * last).long().clamp(max=last - 1)  # (B,)
        signal = self.signal[level][..., None, None]
        noisy = signal.sqrt() * target + (1 - signal).sqrt() * noise
        output = self.net(noisy, level / last, context)
        expected = noise if self.settings.predicts == "epsilon" else target
        loss, parts = by_part((output - expected).square(), weight, self.slots)
        estimate = self._split(noisy, output.detach(), signal)[0]
        return HeadLoss(loss, unsigned(estimate, self.slots), parts)

    def sample(self, context: Tensor, noise: Any = None, pending: Any = None) -> Tensor:
        s, actions = self.settings, noise
        levels = [i * s.train_steps // s.steps for i in range(s.steps)]
        for level, below in zip(levels[::-1], [*levels[-2::-1], 0], strict=True):
            time, alpha = actions.new_full(actions.shape[:-2], level / s.train_steps), self.signal[level]
            if pending is None:
                clean, epsilon = self._split(actions, self.net(actions, time, context), alpha)
            else:  # scaled as in flow matching
                size = alpha.sqrt() + (1 - alpha).sqrt()

                def guess(x: Tensor, size: Tensor = size, time: Tensor = time, a: Tensor = alpha) -> Tensor:
                    return self._split(size * x, self.net(size * x, time, context), a)[0]

                clean = self.guided(guess, actions / size, alpha.sqrt() / size, pending)
                epsilon = (actions - alpha.sqrt() * clean) / (1 - alpha).sqrt()
            signal = self.signal[below]
            actions = signal.sqrt() * clean + (1 - signal).sqrt() * epsilon
        return unsigned(clean, self.slots)  # of level 0

    def _split(self, noisy: Tensor, output: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Split a noisy chunk into the clean chunk and the noise, by the network's output."""
        if self.settings.predicts == "epsilon":
            clean, epsilon = (noisy - (1 - signal).sqrt() * output) / signal.sqrt(), output
        else:
            clean, epsilon = output, (noisy - signal.sqrt() * output) / (1 - signal).sqrt()
        low, high = (self.low, self.high) if (clip := self.settings.clip) is None else (-clip, clip)
        return clean.clamp(low, high), epsilon


def squared_cosine(steps: int) -> Tensor:
    """Return the share of signal variance at each noise level, from nearly 1 to nearly 0.  # (steps,)"""
    bend = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
    left = [max(after / before, 1 - 0.999) for before, after in zip(bend[:-1], bend[1:], strict=True)]
    return torch.tensor(left, dtype=torch.float64).cumprod(0).float()
