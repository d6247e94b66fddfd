"""Heads that refine a chunk with a denoiser: flow, MIP and diffusion.

Flow matching: noise is carried to actions along straight lines (Lipman et al., 2023; as in pi-0). The network learns the
velocity from noise to action at a random point of the line, and a sample follows it in a few Euler steps.

MIP, the minimal iterative policy (arXiv 2512.01809), with net(chunk, time, context) and t = `time` (0.9 in the paper):

    training    | net(0, 0, context) - action |²  +  | net(t · action + (1 - t) · noise, t, context) - action |²
    acting      first = net(0, 0, context);  action = net(t · first, t, context)

The first step is plain regression, the second learns to correct a chunk that is nearly right. This is the paper's form;
its published code also has one that leaves out the factor t. It is deterministic and fits no distribution: of two equally
good ways it takes one answer, which may lie between them.

Diffusion: a chunk is denoised from pure noise in a few DDIM steps (Chi et al., 2023; Song et al., 2021), with `train_steps`
levels of noise on the squared-cosine schedule (Nichol & Dhariwal, 2021); the network predicts the noise or the chunk itself,
and DDIM visits every `train_steps / steps`-th level. The guess of the chunk is clipped at every step, since at high levels a
small error of the noise is a large one of the chunk: to the range of the demos at each step and number (buffers `low` and
`high`, which `ChunkPolicy.fit_range` sets), or to one bound, `clip`, in normalised units.

All take the squared error of all dimensions, the gripper as -1 or 1.
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

    def sample(self, context: Tensor, noise: Any = None, given: Any = None) -> Tensor:
        actions, steps = noise, self.settings.steps
        for i in range(steps):
            time, left = actions.new_full(actions.shape[:-2], i / steps), 1 - i / steps
            if given is None:
                actions = actions + self.net(actions, time, context) / steps
                continue
            clean = lambda x, time=time, left=left: x + left * self.net(x, time, context)  # noqa: E731
            found = self.guided(clean, actions, actions.new_tensor(i / steps), given)
            actions = torch.lerp(actions, found, 1 / (left * steps))
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
        found = self.net(
            torch.cat([torch.zeros_like(target), noisy]),
            torch.cat([start, start + self.settings.time]),
            torch.cat([context, context]),
        )  # (2B, K, A), both steps in one pass
        errors = (found - torch.cat([target, target])).square()
        loss, parts = by_part(errors, torch.cat([weight, weight]), self.slots)
        return HeadLoss(loss, unsigned(found[: len(target)].detach(), self.slots), parts)

    def sample(self, context: Tensor, noise: Any = None, given: Any = None) -> Tensor:
        start = context.new_zeros(len(context), dtype=torch.float32)  # (B,)
        first = self.put_in(self.net(start[:, None, None].expand(-1, *self.shape), start, context), given)
        again = self.put_in(self.net(self.settings.time * first, start + self.settings.time, context), given)
        return unsigned(again, self.slots)


class DiffusionSettings(DenoiserSettings, at="policy.head", file="policy/head/diffusion"):
    kind: Literal["diffusion"] = from_yaml()
    train_steps: int = from_yaml(ge=2)
    steps: int = from_yaml(ge=2)  # with 1, the only level would be the one without noise
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
            for name, none in (("low", -math.inf), ("high", math.inf)):
                self.register_buffer(name, torch.full(self.noise_shape, none))
        self.low: Tensor  # (K, A) of what the demos hold, binary numbers as -1 and 1
        self.high: Tensor

    def loss(self, context: Tensor, target: Tensor, weight: Tensor) -> HeadLoss:
        target = signed(target, self.slots)
        noise, last = torch.randn_like(target), self.settings.train_steps
        level = (torch.rand_like(target[..., 0, 0]) * last).long().clamp(max=last - 1)  # (B,)
        signal = self.signal[level][..., None, None]
        noisy = signal.sqrt() * target + (1 - signal).sqrt() * noise
        found = self.net(noisy, level / last, context)
        wanted = noise if self.settings.predicts == "epsilon" else target
        loss, parts = by_part((found - wanted).square(), weight, self.slots)
        guess = self._split(noisy, found.detach(), signal)[0]
        return HeadLoss(loss, unsigned(guess, self.slots), parts)

    def sample(self, context: Tensor, noise: Any = None, given: Any = None) -> Tensor:
        s, actions = self.settings, noise
        levels = [i * s.train_steps // s.steps for i in range(s.steps)]
        for level, below in zip(levels[::-1], [*levels[-2::-1], 0], strict=True):
            time, kept = actions.new_full(actions.shape[:-2], level / s.train_steps), self.signal[level]
            if given is None:
                clean, epsilon = self._split(actions, self.net(actions, time, context), kept)
            else:  # scaled as in flow matching
                size = kept.sqrt() + (1 - kept).sqrt()

                def guess(x: Tensor, size: Tensor = size, time: Tensor = time, kept: Tensor = kept) -> Tensor:
                    return self._split(size * x, self.net(size * x, time, context), kept)[0]

                clean = self.guided(guess, actions / size, kept.sqrt() / size, given)
                epsilon = (actions - kept.sqrt() * clean) / (1 - kept).sqrt()
            if level == 0:
                return unsigned(clean, self.slots)
            signal = self.signal[below]
            actions = signal.sqrt() * clean + (1 - signal).sqrt() * epsilon
        raise AssertionError("the levels end with 0")

    def _split(self, noisy: Tensor, found: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Clean chunk and noise that the network sees in a noisy one."""
        if self.settings.predicts == "epsilon":
            clean, epsilon = (noisy - (1 - signal).sqrt() * found) / signal.sqrt(), found
        else:
            clean, epsilon = found, (noisy - signal.sqrt() * found) / (1 - signal).sqrt()
        low, high = (self.low, self.high) if (clip := self.settings.clip) is None else (-clip, clip)
        return clean.clamp(low, high), epsilon


def squared_cosine(steps: int) -> Tensor:
    """The share of a chunk's variance that is left at each level of noise, from nearly 1 to nearly 0.  # (steps,)"""
    bend = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
    left = [max(after / before, 1 - 0.999) for before, after in zip(bend[:-1], bend[1:], strict=True)]
    return torch.tensor(left, dtype=torch.float64).cumprod(0).float()
