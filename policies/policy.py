"""A policy maps pooled image features, states and past actions of a context to a chunk of K actions.

    spec = PolicySpec(cameras=("hand", "left", "right"), dim=384, tokens=64)
    policy = ChunkPolicy(spec)
    policy.fit_normaliser(proprio, actions, chunks, None, channel_moments(features))
    loss, scalars = policy(batch)                        # training
    plans = policy.plan_members(policy.pool(features), proprio, past_actions, pad, generators)    # (M, B, K, A)
    policy.clip(policy.combine(plans))                   # (B, K, 8) joint deltas in rad + gripper

Shapes: features (B, T, C, N, D), proprio (B, T, P), or with tasks (B, T, P + tasks), past_actions (B, T, A) with the
last step unknown, pad (B, T) True before the episode, actions (B, K, A), action_pad (B, K) True beyond its end. A batch
can hold each frame once, features (F, C, N, D), with indices, frames (B, T). For a causal body, it can have a target at
every step, actions (B, T, K, A) and action_pad (B, T, K). For a part of a batch, target_counts (K,) or (T, K) is what a
loss divides by: the batch's counts of targets, so that the parts' losses add up to its loss, or counts per process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from s2robot.core.errors import UserError
from s2robot.policies.heads.head import signed
from s2robot.policies.network import Members, Network
from s2robot.policies.normalise import Normaliser, Weights
from s2robot.policies.spec import PolicySpec
from s2robot.policies.task_vectors import TaskVectors, read_vectors

FADE = 3  # steps to blend from the previous plan into a new one; more is smoother, but slower to react
Before = tuple[np.ndarray, np.ndarray]  # actions (W, A), and a mask of windows without one (W,)


class ChunkPolicy(nn.Module):
    """One network, or several members, with normalisation."""

    def __init__(self, spec: PolicySpec):
        super().__init__()
        self.spec = spec
        self.network: Network | Members = Network(spec) if spec.members == 1 else Members(spec)
        self.cumulative = spec.action_target == "cumulative"
        parts = spec.proprio, spec.action, spec.chunk, self.cumulative, spec.normalise_parts
        self.normaliser = Normaliser(spec.normalise, *parts)
        self.tasks = TaskVectors(len(spec.tasks), spec.task_dim) if spec.task_dim else None
        self.width = self.network.body.embed_dim * self.network.count  # of the pooled vector per camera
        self.noise_shape: tuple[int, ...] = self.network.head.noise_shape  # per plan; (): deterministic

    def add_tasks(self, path: str | Path) -> None:
        """Add the tasks of a file, see `task_vectors` (UserError: they do not match, or the policy has no vectors)."""
        vectors = read_vectors(path)
        if self.tasks is None:
            known = ", ".join(self.spec.tasks) or "no task"
            raise UserError(f"task_vectors: expected a policy with policy.task_vectors, got one of {known}")
        new_tasks = self.tasks.extend(path, self.spec.tasks, vectors)
        self.spec = self.spec.replace(tasks=[*self.spec.tasks, *new_tasks])

    def fit_normaliser(
        self,
        proprio: np.ndarray,
        actions: np.ndarray,
        chunks: np.ndarray,
        chunk_pad: np.ndarray | None,
        feature_moments: tuple[np.ndarray, np.ndarray],
        weights: Weights | None = None,
        before: Before | None = None,
    ) -> None:
        """Set normalisation from the training data.

        Args:
            proprio, actions, chunks, chunk_pad, weights: see `Normaliser.fit`.
            feature_moments: mean and std (C, D) as `channel_moments` returns them.
            before: with `from_last`, the action before each chunk (W, A) and a mask of chunks without one (W,).
        """
        self.normaliser.fit(proprio, actions, chunks, chunk_pad, weights)
        if (starts := self._starts_of(proprio, before)) is not None:
            self.normaliser.fit(proprio, actions, chunks, chunk_pad, weights, starts)
        self.fit_range(proprio, chunks, chunk_pad, before)
        self.network.set_moments(*(torch.as_tensor(x, dtype=torch.float32) for x in feature_moments))

    @torch.no_grad()
    def fit_range(
        self,
        proprio: np.ndarray,
        chunks: np.ndarray,
        chunk_pad: np.ndarray | None = None,
        before: Before | None = None,
    ) -> None:
        """Extend the range to which a head clips chunks, with the current normalisation; see `fit_normaliser`."""
        bounds = {name.replace("/", "."): x for name, x in self.network.named_buffers()}
        if "head.low" not in bounds:
            return
        ends = self.normaliser.range_of(chunks, chunk_pad, self._starts_of(proprio, before))
        for end, name, wider in ((ends[0], "head.low", torch.minimum), (ends[1], "head.high", torch.maximum)):
            bound = bounds[name]
            limit = signed(end.to(bound), self.spec.action.inside)
            bound.copy_(torch.where(bound.isfinite(), wider(bound, limit), limit))

    def _starts_of(self, proprio: np.ndarray, before: Before | None) -> np.ndarray | None:
        """Return the start of each chunk's targets (W, inner width), see `_start`; None without `from_last`."""
        if not self.spec.from_last:
            return None
        assert before is not None, "from_last needs the action before each chunk"
        last, first, state = (torch.as_tensor(np.ascontiguousarray(x)) for x in (*before, proprio))
        return self._start(last.float(), first, state.float()).double().numpy()

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and scalars to log (0-dim tensors without gradient): loss, errors by part, and the head's own. The
        errors are those of the plan that acts; in training, those of the head's estimate, which may start from the target.

        Steps with action_pad True are ignored; see the module for `target_counts`.
        """
        spec, past, pad = self.spec, batch.get("past_actions"), batch.get("pad")
        actions = batch["actions"].float()  # (B, K, A), or (B, T, K, A)
        every = actions.ndim == 4
        action_pad = batch.get("action_pad")
        if action_pad is None:
            action_pad = actions.new_zeros(actions.shape[:-1], dtype=torch.bool)
        start = self._starts(batch["proprio"], past, pad, every)
        if every and start is not None:  # the action before the first step of a context is unknown
            action_pad = torch.cat([torch.ones_like(action_pad[:, :1]), action_pad[:, 1:]], 1)
        actions = actions.masked_fill(action_pad[..., None], 0)
        weight = counts = (~action_pad).float()  # (B, K)
        if "target_counts" in batch:  # a part of a batch
            counts = batch["target_counts"].float()  # (K,), or (T, K)
            if every and start is not None:
                counts = torch.cat([torch.zeros_like(counts[:1]), counts[1:]])
        weight = weight / counts.sum().clamp(min=1e-8)
        if "frames" in batch:  # pool each frame once, even if several windows use it
            means = batch["means"][None] if "means" in batch else None
            pooled = self.pool(batch["features"][None], means)[0][batch["frames"]]  # (B, T, C, E)
        else:
            pooled = self.pool(batch["features"])
        context = self._context(pooled, batch["proprio"], past, pad)
        target = self.normaliser.target(self._to_target(actions, start))  # shape of actions, with W
        loss, estimate, scalars = self.network("loss", *context, target, weight)
        with torch.no_grad():
            if self.training or every:
                real = self._to_actions(estimate.reshape(*actions.shape[:-1], spec.action.width), start)
            else:
                each = [torch.Generator().manual_seed(i) for i in range(len(actions))]
                real = self.combine(self.plan_members(pooled, batch["proprio"], past, pad, each))
            errors = spec.action.errors(real, actions).items()
            sums = {name: (error * weight).sum() for name, error in errors}
        return loss, scalars | {"loss": loss.detach()} | sums

    forward = loss  # the entry point of wrappers such as DDP

    def pool(self, features: Tensor, means: Tensor | None = None) -> Tensor:
        """Pool features (B, T, C, N, D) -> (B, T, C, E), the form in which a context stores earlier steps.

        means (B, T, C, D): means of the tokens, for features in the dtype that `CameraPooling.multiply_in` returns.
        """
        spec = self.spec
        expected = (len(spec.cameras), spec.tokens, spec.dim)
        if tuple(features.shape[2:]) != expected:
            raise UserError(f"features: expected shape (B, T, *{expected}), got {tuple(features.shape)}")
        flat = None if means is None else means.flatten(0, 1)
        return self.network("pool", features.flatten(0, 1), flat).unflatten(0, features.shape[:2])

    @torch.no_grad()
    def plan_members(
        self,
        pooled: Tensor,
        proprio: Tensor,
        past_actions: Tensor | None = None,
        pad: Tensor | None = None,
        generators: Sequence[torch.Generator] | None = None,
        pending: Tensor | None = None,
        fixed: int = 0,
    ) -> Tensor:
        """Return the plan of every member (M, B, K, A) from pooled features (B, T, C, E), in real units; binary parts are
        soft.

        generators: one per row, for a head that samples; by default seeded with 0.
        pending: actions (B, n, A) of the previous plan, from this step on, for a head that `continues`. The plan repeats
            the first `fixed`, and blends out of the others over the next `FADE` steps.
        """
        noise = None
        if self.noise_shape:
            generators = generators or [torch.Generator().manual_seed(0) for _ in range(len(pooled))]
            samples = [torch.randn(self.noise_shape, generator=g) for g in generators]
            noise = torch.stack(samples).to(pooled.device)
        start = self._starts(proprio, past_actions, pad, False)
        context = (*self._context(pooled, proprio, past_actions, pad), noise)
        if pending is None:
            out = self.network("sample", *context)
        else:
            before, guide, share = self._blend(pending, fixed, start)
            out = self.network("sample", *context, (before, guide))
            out = torch.lerp(out, before, share[:, None])
        return self._to_actions(out if self.network.count > 1 else out[None], start)

    def _blend(self, pending: Tensor, fixed: int, start: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return pending actions (B, n, A) as targets (B, K, W), their weight in guidance (K,): equation 5 of real-time
        chunking, and their minimum-jerk weight in a plan (K,)."""
        n, k = pending.shape[1], self.spec.chunk
        filled = torch.cat([pending, pending[:, -1:].expand(-1, k - n, -1)], 1)  # (B, K, A)
        steps = torch.arange(k, device=pending.device)
        x = ((steps - fixed + 1) / (FADE + 1)).clamp(0, 1)
        share = (1 - x**3 * (10 - 15 * x + 6 * x**2)) * (steps < n)
        near = ((n - steps) / (n - fixed + 1)).clamp(0, 1)
        guide = torch.where(steps < fixed, 1.0, near * near.expm1() / (math.e - 1))
        return self.normaliser.target(self._to_target(filled, start)), guide, share

    def combine(self, plans: Tensor) -> Tensor:
        """Combine the members' plans (M, B, K, A) into one (B, K, A).

        Deterministic plans are averaged (rotations as rot6d, orthonormalised). Otherwise, it is the plan nearest to the
        others, because the mean of two paths around an obstacle leads into it.
        """
        if len(plans) == 1:
            return plans[0]
        inner = self.spec.action.inner(plans)  # (M, B, K, W)
        if not self.noise_shape:
            return self.spec.action.outer(inner.mean(0))
        scaled = inner / self.normaliser.action.scale
        distance = (scaled[:, None] - scaled[None]).abs().sum((0, -2, -1))  # (M, B)
        return plans[distance.argmin(0), torch.arange(plans.shape[1], device=plans.device)]

    def disagreement(self, plans: Tensor) -> Tensor:
        """Return the spread of members (M, B, K, A) after the executed steps of a plan: the largest standard deviation
        of any number, such as a joint in rad, see `Parts.reached`.  # (B,)
        """
        reached = self.spec.action.reached(plans[:, :, : self.spec.planned])  # (M, B, numbers)
        if len(plans) == 1 or not reached.shape[-1]:
            return plans.new_zeros(plans.shape[1])
        return reached.std(0, correction=0).amax(-1)

    def clip(self, actions: Tensor) -> Tensor:
        """Clip actions to the limits of their parts, and round the gripper command to 0 or 1 if `binary_gripper`."""
        return self.spec.action.clip(actions, self.spec.binary_gripper)

    def _context(
        self, pooled: Tensor, proprio: Tensor, past_actions: Tensor | None, pad: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the network's normalised input: pooled, state, past actions, pad."""
        spec = self.spec
        b, t = pooled.shape[:2]
        if past_actions is None:
            past_actions = pooled.new_zeros(b, t, spec.action_dim)
        if pad is None:
            pad = torch.zeros(b, t, dtype=torch.bool, device=pooled.device)
        # A window that starts before its episode is padded with the first step, whose action is the target: a causal body
        # would reveal it to the next step. An acting policy has zeros there.
        past_actions = past_actions.masked_fill(pad[..., None], 0)
        proprio, task = proprio.float().split([spec.proprio_dim, len(spec.tasks)], -1)
        state = self.normaliser.proprio(spec.proprio.inner(proprio))  # (B, T, inner width)
        if self.training and spec.proprio_noise:
            state = state + spec.proprio_noise * torch.randn_like(state)
        if spec.tasks:
            state = torch.cat([state, self.tasks(task) if self.tasks else task], -1)
        return pooled, state, self.normaliser.action(spec.action.inner(past_actions.float())), pad

    def _starts(
        self, proprio: Tensor, past_actions: Tensor | None, pad: Tensor | None, every: bool
    ) -> Tensor | None:
        """Return `_start` for the last step (B, W), or for `every` step (B, T, W); None without `from_last`."""
        if not self.spec.from_last:
            return None
        assert past_actions is not None, "from_last needs the past actions"
        first = torch.zeros_like(proprio[..., 0], dtype=torch.bool) if pad is None else pad
        # (B, T, A) of the previous step; the current one, rolled to the front, is masked
        last = past_actions.roll(1, 1)
        first = torch.cat([torch.ones_like(first[:, :1]), first[:, :-1]], 1)
        steps = slice(None) if every else -1
        return self._start(last[:, steps].float(), first[:, steps], proprio[:, steps].float())

    def _start(self, last: Tensor, first: Tensor, state: Tensor) -> Tensor:
        """Return the start values of absolute parts, and 0 for others: the last action (..., A). At a `first` step (...),
        which has none, it is the state (..., P) if it measures the part, else the mean of the demos.  # (..., W)
        """
        parts, scaler = self.spec.action, self.normaliser.action
        initial = parts.outer(scaler.offset.expand(*last.shape[:-1], -1)).clone()
        for column, measured in self.spec.measured.items():
            initial[..., column] = state[..., measured]
        start = parts.inner(torch.where(first[..., None], initial, last))
        for part, at in parts.inside:
            if part.kind != "absolute":
                start[..., at] = 0
        return start

    def _to_target(self, actions: Tensor, start: Tensor | None = None) -> Tensor:
        """Convert actions (..., K, A) to targets (..., K, W) in real units, relative to the start (..., W)."""
        targets = self.spec.action.targets(actions, self.cumulative)
        return targets if start is None else targets - start[..., None, :]

    def _to_actions(self, out: Tensor, start: Tensor | None = None) -> Tensor:
        """Convert a head's output (..., K, W) to actions (..., K, A) in real units, with soft binary parts."""
        parts, targets = self.spec.action, self.normaliser.target.inverse(out)
        if start is not None:
            targets = targets + start[..., None, :]
        return parts.outer(parts.actions(targets, self.cumulative))
