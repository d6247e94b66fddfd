"""A policy: pooled image features, state and past actions of a context in, a chunk of K actions out.

    spec = PolicySpec(cameras=("hand", "left", "right"), dim=384, tokens=64)
    policy = ChunkPolicy(spec)
    policy.fit_normaliser(proprio, actions, chunks, None, channel_moments(features))
    loss, scalars = policy(batch)                        # training
    policy.plan(features, proprio, past_actions, pad)    # (B, K, 8) joint deltas in rad + gripper

Shapes: features (B, T, C, N, D), proprio (B, T, P), or with tasks (B, T, P + tasks), past_actions (B, T, A) with the last step unknown,
pad (B, T) True before the episode began, actions (B, K, A), action_pad (B, K) True beyond its end. A batch may
give each frame once, features (F, C, N, D), and say where it stands, frames (B, T); for a body that is causal it
may have a target at every step of the context, actions (B, T, K, A) and action_pad (B, T, K). A batch that is one process's share
may say how many targets a process has in the mean, target_counts (K,) or (T, K): the mean of all losses is that of the whole.
"""

from __future__ import annotations

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

FADE = 3  # steps in which a plan leaves the one that it continues: the whole overlap is smoother, and slower to react
Before = tuple[np.ndarray, np.ndarray]  # actions (W, A), and where there is none (W,)


class ChunkPolicy(nn.Module):
    """Network (or several, its members) and normalisation together."""

    def __init__(self, spec: PolicySpec):
        super().__init__()
        self.spec = spec
        self.network: Network | Members = Network(spec) if spec.members == 1 else Members(spec)
        self.cumulative = spec.action_target == "cumulative"
        parts = spec.proprio, spec.action, spec.chunk, self.cumulative, spec.normalise_parts
        self.normaliser = Normaliser(spec.normalise, *parts)
        self.tasks = TaskVectors(len(spec.tasks), spec.task_dim) if spec.task_dim else None
        self.width = self.network.body.embed_dim * self.network.count  # of a camera's pooled vector
        self.noise_shape: tuple[int, ...] = self.network.head.noise_shape  # of one plan; (): deterministic

    def add_tasks(self, path: str | Path) -> None:
        """Act on the further texts of a file, too, see `task_vectors` (UserError: it does not fit, or the policy has no vectors)."""
        vectors = read_vectors(path)
        if self.tasks is None:
            known = ", ".join(self.spec.tasks) or "no task"
            raise UserError(f"task_vectors: expected a policy with policy.task_vectors, got one of {known}")
        further = self.tasks.extend(path, self.spec.tasks, vectors)
        self.spec = self.spec.replace(tasks=[*self.spec.tasks, *further])

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
            before: with `from_last` the action before each chunk (W, A), and where there is none (W,).
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
        """Widen the range that a head clips its chunks to by these, in the normalisation that is set; as `fit_normaliser`."""
        bounds = {name.replace("/", "."): x for name, x in self.network.named_buffers()}
        if "head.low" not in bounds:
            return
        ends = self.normaliser.range_of(chunks, chunk_pad, self._starts_of(proprio, before))
        for end, name, wider in ((ends[0], "head.low", torch.minimum), (ends[1], "head.high", torch.maximum)):
            bound = bounds[name]
            found = signed(end.to(bound), self.spec.action.slots)
            bound.copy_(torch.where(bound.isfinite(), wider(bound, found), found))

    def _starts_of(self, proprio: np.ndarray, before: Before | None) -> np.ndarray | None:
        """Return the start of each chunk's targets (W, width inside), see `_start`; None without `from_last`."""
        if not self.spec.from_last:
            return None
        assert before is not None, "from_last needs the action before each chunk"
        last, first, state = (torch.as_tensor(np.ascontiguousarray(x)) for x in (*before, proprio))
        return self._start(last.float(), first, state.float()).double().numpy()

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(batch)  # a wrapper such as DDP sees this call

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and scalars (0-dim tensors without gradient) to log: loss, errors by part, and the head's own.

        Steps with action_pad True count nothing; see the module for `target_counts`.
        """
        spec, past, pad = self.spec, batch.get("past_actions"), batch.get("pad")
        actions = batch["actions"].float()  # (B, K, A), or (B, T, K, A)
        every = actions.ndim == 4
        action_pad = batch.get("action_pad")
        if action_pad is None:
            action_pad = actions.new_zeros(actions.shape[:-1], dtype=torch.bool)
        start = self._starts(batch["proprio"], past, pad, every)
        if every and start is not None:  # what came before the first step of a context is not seen
            action_pad = torch.cat([torch.ones_like(action_pad[:, :1]), action_pad[:, 1:]], 1)
        actions = actions.masked_fill(action_pad[..., None], 0)
        weight = counts = (~action_pad).float()  # (B, K)
        if "target_counts" in batch:  # of a batch that several processes share
            counts = batch["target_counts"].float()  # (K,), or (T, K)
            if every and start is not None:
                counts = torch.cat([torch.zeros_like(counts[:1]), counts[1:]])
        weight = weight / counts.sum().clamp(min=1e-8)
        if "frames" in batch:  # a frame that several windows show is pooled once
            means = batch["means"][None] if "means" in batch else None
            pooled = self.pool(batch["features"][None], means)[0][batch["frames"]]  # (B, T, C, E)
        else:
            pooled = self.pool(batch["features"])
        context = self._context(pooled, batch["proprio"], past, pad)
        target = self.normaliser.target(self._to_target(actions, start))  # as the actions
        loss, estimate, scalars = self.network("loss", *context, target, weight)
        with torch.no_grad():
            real = self._to_actions(estimate.reshape(*actions.shape[:-1], spec.action.width), start)
            errors = spec.action.errors(real, actions).items()
            sums = {name: (error * weight).sum() for name, error in errors}
        return loss, scalars | {"loss": loss.detach()} | sums

    @torch.no_grad()
    def plan(
        self,
        features: Tensor,
        proprio: Tensor,
        past_actions: Tensor | None = None,
        pad: Tensor | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """Actions (B, K, A) in real units, by default joint deltas in rad and the gripper 0 or 1, see `clip`.

        generators: one for each row, for a head that samples; none seeds them with 0.
        """
        plans = self.plan_members(self.pool(features), proprio, past_actions, pad, generators)
        return self.clip(self.combine(plans))

    def pool(self, features: Tensor, means: Tensor | None = None) -> Tensor:
        """Features (B, T, C, N, D) -> (B, T, C, E), what a context of earlier steps has to remember.

        means (B, T, C, D): of the tokens, beside features in the number format `token_dtype` of the pooling.
        """
        spec = self.spec
        want = (len(spec.cameras), spec.tokens, spec.dim)
        if tuple(features.shape[2:]) != want:
            raise UserError(f"features: expected shape (B, T, *{want}), got {tuple(features.shape)}")
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
        """The plan of every member (M, B, K, A) from pooled features (B, T, C, E); binary parts are soft.

        pending: actions (B, n, A) of the plan before, from this step on, for a head that `continues`: the plan repeats the
            first `fixed`, and leaves the others in the next `FADE` steps.
        """
        noise = None
        if self.noise_shape:
            generators = generators or [torch.Generator().manual_seed(0) for _ in range(len(pooled))]
            drawn = [torch.randn(self.noise_shape, generator=g) for g in generators]
            noise = torch.stack(drawn).to(pooled.device)
        start = self._starts(proprio, past_actions, pad, False)
        context = (*self._context(pooled, proprio, past_actions, pad), noise)
        if pending is None:
            out = self.network("sample", *context)
        else:
            before, weight = self._given(pending, fixed, start)
            out = self.network("sample", *context, (before, (weight == 1).float()))
            out = torch.lerp(out, before, weight[:, None])
        return self._to_actions(out if self.network.count > 1 else out[None], start)

    def _given(self, pending: Tensor, fixed: int, start: Tensor | None) -> tuple[Tensor, Tensor]:
        """Pending actions (B, n, A) as heads take them (B, K, W), and their share of a plan (K,), which falls with least jerk."""
        n, k = pending.shape[1], self.spec.chunk
        filled = torch.cat([pending, pending[:, -1:].expand(-1, k - n, -1)], 1)  # (B, K, A)
        steps = torch.arange(k, device=pending.device)
        x = ((steps - fixed + 1) / (FADE + 1)).clamp(0, 1)
        share = (1 - x**3 * (10 - 15 * x + 6 * x**2)) * (steps < n)
        return self.normaliser.target(self._to_target(filled, start)), share

    def combine(self, plans: Tensor) -> Tensor:
        """One plan (B, K, A) of the members' (M, B, K, A).

        Their mean where plans are deterministic (of rotations that of their rot6d, made proper); otherwise the one that
        the others are nearest to, since the mean of two ways round a thing leads into it.
        """
        if len(plans) == 1:
            return plans[0]
        inner = self.spec.action.inner(plans)  # (M, B, K, W)
        if not self.noise_shape:
            return self.spec.action.outer(inner.mean(0))
        scaled = inner / self.normaliser.action.scale
        away = (scaled[:, None] - scaled[None]).abs().sum((0, -2, -1))  # (M, B)
        return plans[away.argmin(0), torch.arange(plans.shape[1], device=plans.device)]

    def disagreement(self, plans: Tensor) -> Tensor:
        """How far members (M, B, K, A) are apart after the steps of a plan that are executed: the number (a joint, in
        rad) with the largest spread (sd), see `Parts.reached`.  # (B,)
        """
        reached = self.spec.action.reached(plans[:, :, : self.spec.execute])  # (M, B, numbers)
        if len(plans) == 1 or not reached.shape[-1]:
            return plans.new_zeros(plans.shape[1])
        return reached.std(0, correction=0).amax(-1)

    def clip(self, actions: Tensor) -> Tensor:
        """Actions within the limits of their parts; the gripper command as 0 or 1 where binary_gripper says so."""
        return self.spec.action.clip(actions, self.spec.binary_gripper)

    def _context(
        self, pooled: Tensor, proprio: Tensor, past_actions: Tensor | None, pad: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalise the network's input: pooled, state, past actions, pad."""
        spec = self.spec
        b, t = pooled.shape[:2]
        if past_actions is None:
            past_actions = pooled.new_zeros(b, t, spec.action_dim)
        if pad is None:
            pad = torch.zeros(b, t, dtype=torch.bool, device=pooled.device)
        # A window that begins before its episode repeats the first step there, whose action is what the policy is to find:
        # a causal body shows a step the action before it. An acting policy has zeros in that place.
        past_actions = past_actions.masked_fill(pad[..., None], 0)
        proprio, task = proprio.float().split([spec.proprio_dim, len(spec.tasks)], -1)
        state = self.normaliser.proprio(spec.proprio.inner(proprio))  # (B, T, width of the state)
        if self.training and spec.proprio_noise:
            state = state + spec.proprio_noise * torch.randn_like(state)
        if spec.tasks:
            state = torch.cat([state, self.tasks(task) if self.tasks else task], -1)
        return pooled, state, self.normaliser.action(spec.action.inner(past_actions.float())), pad

    def _starts(
        self, proprio: Tensor, past_actions: Tensor | None, pad: Tensor | None, every: bool
    ) -> Tensor | None:
        """What `_start` gives for the last step of a context (B, W), or for `every` one (B, T, W); None without `from_last`."""
        if not self.spec.from_last:
            return None
        assert past_actions is not None, "from_last needs the past actions"
        first = torch.zeros_like(proprio[..., 0], dtype=torch.bool) if pad is None else pad
        # (B, T, A) of the step before; the present one's, in front, counts as none
        last = past_actions.roll(1, 1)
        first = torch.cat([torch.ones_like(first[:, :1]), first[:, :-1]], 1)
        steps = slice(None) if every else -1
        return self._start(last[:, steps].float(), first[:, steps], proprio[:, steps].float())

    def _start(self, last: Tensor, first: Tensor, state: Tensor) -> Tensor:
        """Where absolute parts start from, 0 for all others: the last action (..., A), and where there is `first` (...)
        none, the state (..., P) as far as it measures them, else the middle of the demos.  # (..., W)
        """
        parts, scaler = self.spec.action, self.normaliser.action
        usual = parts.outer(scaler.offset.expand(*last.shape[:-1], -1)).clone()
        for place, measured in self.spec.measured.items():
            usual[..., place] = state[..., measured]
        start = parts.inner(torch.where(first[..., None], usual, last))
        for part, at in parts.inside:
            if part.kind != "absolute":
                start[..., at] = 0
        return start

    def _to_target(self, actions: Tensor, start: Tensor | None = None) -> Tensor:
        """Real actions (..., K, A) -> what is predicted (..., K, W), in real units, from the start (..., W) on."""
        targets = self.spec.action.targets(actions, self.cumulative)
        return targets if start is None else targets - start[..., None, :]

    def _to_actions(self, out: Tensor, start: Tensor | None = None) -> Tensor:
        """A head's chunk (..., K, W) -> real actions (..., K, A) with soft binary parts."""
        parts, targets = self.spec.action, self.normaliser.target.inverse(out)
        if start is not None:
            targets = targets + start[..., None, :]
        return parts.outer(parts.actions(targets, self.cumulative))
