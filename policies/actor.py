"""Run a policy in closed loop: store the context, execute k of the K planned actions, and replan.

One robot or environment, as in the contract:

    actor = Actor(policy, encoder.encode_cameras)
    actor.reset()                                        # actor.seed: seed of this episode's sampling
    action = actor.act(observation)                      # (8,)

Many episodes in parallel, with one network call for all that need a plan:

    actor = BatchActor(policy, n=16)
    actor.reset(range(16), seeds=range(16))
    actions = actor.plan([0, 3], features, proprio)      # (2, k, 8)
    actor.disagreement[[0, 3]]                           # rad, spread of the members' plans

This is sufficient for a context of 1. With a longer one (`actor.every_step`), call `observe` at each step without a
plan, and `record_actions` with each executed action; `plan` itself observes its arguments.
"""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from s2robot.core.errors import UserError
from s2robot.core.parts import check_values
from s2robot.policies.policy import ChunkPolicy

FAR = 25.0  # spreads from the mean of the demos' states; degrees instead of radians exceed it


class BatchActor:
    """Context and plans of n parallel episodes. Puts the policy in eval mode."""

    def __init__(self, policy: ChunkPolicy, n: int):
        self.policy = policy.eval()
        self.n = n
        spec = policy.spec
        t, k = spec.context, spec.chunk
        self.every_step = t > 1  # whether `observe` and `record_actions` are required
        self.execute = spec.planned
        self.device = next(policy.parameters()).device
        zeros = partial(torch.zeros, n, device=self.device)
        self._context = (  # pooled features, states, actions, and a mask of steps before the episode
            zeros(t, len(spec.cameras), policy.width), zeros(t, spec.proprio_dim + len(spec.tasks)), zeros(t, spec.action_dim),
            torch.ones(n, t, dtype=torch.bool, device=self.device),
        )  # fmt: skip
        # ensembling: weighted sum of plans (rotations as rot6d), sum of weights, and count of plans
        self._votes = (zeros(k, spec.action.width), zeros(k, 1), zeros(k, 1))
        self._task = zeros(len(spec.tasks))  # one-hot task of each episode
        self.disagreement = zeros()  # of the latest plans, rad
        self._disagreement_sums = zeros(2)  # per episode: sum over its plans, and their count
        self.generators = [torch.Generator() for _ in range(n)]  # of the noise of each episode

    def reset(
        self, indices: Iterable[int], seeds: Iterable[int] | None = None, task: str | None = None
    ) -> None:
        """Start new episodes at these indices. seeds: for sampling in each episode (default 0). task: by default the
        policy's only task. UserError: an unknown task, or none although the policy has several."""
        rows = list(indices)
        for row, seed in zip(rows, [0] * len(rows) if seeds is None else seeds, strict=True):
            self.generators[row].manual_seed(seed)
        for memory in self.memory:
            memory[rows] = 0
        self._context[-1][rows] = True
        self.set_task(rows, task)

    def set_task(self, rows: Sequence[int], task: str | None) -> None:
        """Set the task of these episodes from now on, as in :meth:`reset`; a policy without tasks accepts any."""
        task, known = self.policy.spec.resolve_task(task), self.policy.spec.tasks
        self._task[rows] = torch.tensor([float(name == task) for name in known], device=self.device)

    @property
    def memory(self) -> tuple[Tensor, ...]:
        """The tensors, not copies, that later plans depend on in addition to their observations."""
        return (*self._context, *self._votes, self._task, self.disagreement, self._disagreement_sums)

    def mean_disagreement(self, index: int) -> float | None:
        """Mean over the plans of an episode so far, rad; None with one member, or before the first plan."""
        total, plans = self._disagreement_sums[index].tolist()
        return total / plans if plans and self.policy.spec.members > 1 else None

    @torch.no_grad()
    def observe(self, indices: Iterable[int], features: Any, proprio: Any) -> None:
        """Add a step to the context: features (n_i, C, N, D), proprio (n_i, P); arrays or tensors."""
        rows = list(indices)
        state = torch.as_tensor(proprio, dtype=torch.float32, device=self.device)
        state = torch.cat([state, self._task[rows]], -1)
        pooled = self.policy.pool(torch.as_tensor(features, device=self.device)[:, None])[:, 0]  # (n_i, C, E)
        unknown = torch.zeros(len(rows), self.policy.spec.action_dim, device=self.device)
        real = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        for memory, new in zip(self._context, (pooled, state, unknown, real), strict=True):
            memory[rows] = torch.cat([memory[rows, 1:], new[:, None].to(memory.dtype)], 1)

    def record_actions(self, indices: Iterable[int], actions: Any) -> None:
        """Store the action (n_i, A) that followed the last observed step."""
        executed = torch.as_tensor(actions, dtype=torch.float32, device=self.device)
        self._context[2][list(indices), -1] = executed

    def plan(
        self, indices: Iterable[int], features: Any, proprio: Any, pending: Any = None, fixed: int = 0
    ) -> np.ndarray:
        """Observe (n_i, C, N, D) and (n_i, P), then return the next k actions, float32 (n_i, k, A). With `pending`
        actions (n_i, n, A) of the previous plans, of which the first `fixed` are repeated, return all K."""
        rows = list(indices)
        self.observe(rows, features, proprio)
        generators = [self.generators[row] for row in rows]
        pooled, *others = (memory[rows] for memory in self._context)
        is_full = pending is not None
        if is_full:
            pending = torch.as_tensor(pending, dtype=torch.float32, device=self.device)
            pending = pending if pending.shape[1] else None
        plans = self.policy.plan_members(pooled, *others, generators, pending, fixed)  # (M, n_i, K, A)
        self.disagreement[rows] = self.policy.disagreement(plans)
        self._disagreement_sums[rows] += nn.functional.pad(self.disagreement[rows, None], (0, 1), value=1.0)
        soft = self.policy.combine(plans)  # (n_i, K, A)
        if self.policy.spec.ensemble is not None:
            soft = self._ensemble(rows, soft, self.policy.spec.ensemble)
        out = self.policy.clip(soft)[:, : None if is_full else self.execute].cpu().numpy()
        if not np.isfinite(out).all():
            raise UserError("policy: expected a finite plan, got NaN or infinity")
        return out

    @torch.no_grad()
    def unclipped(self, features: Any, proprio: Any) -> np.ndarray:
        """Return the whole plans of all episodes' first step, before they are clipped, float32 (n, K, A)."""
        rows = range(self.n)
        self.reset(rows, rows, next(iter(self.policy.spec.tasks), None))
        self.observe(rows, features, proprio)
        plans = self.policy.plan_members(*self._context, self.generators)
        return self.policy.combine(plans).float().cpu().numpy()

    def _ensemble(self, rows: list[int], plan: Tensor, rate: float) -> Tensor:
        """Average plans with ACT's weights exp(-rate * i), where i = 0 is the oldest plan for a step."""
        for memory in self._votes:
            memory[rows] = torch.cat([memory[rows, 1:], torch.zeros_like(memory[rows, :1])], 1)
        total, weights, plans = self._votes
        weight, parts = torch.exp(-rate * plans[rows]), self.policy.spec.action
        total[rows] += weight * parts.inner(plan)
        weights[rows] += weight
        plans[rows] += 1
        return parts.outer(total[rows] / weights[rows])


class Actor:
    """A policy that controls one robot: reset(), act(observation) -> float32 (A,).

    With a context of 1, images are encoded only when a new plan is due.

    Args:
        encode: one uint8 (B, H, W, 3) per camera -> features (B, C, N, D).
        sizes: (H, W) of each camera's frames in the demos, if known. Frames of another size, and states far from
            those in the demos (degrees instead of radians), raise one warning each.
        map_of: (H, W) -> rows and columns of the tokens from `encode`; with it, frames whose token map differs from the
            policy's are rejected before they are encoded.
    """

    def __init__(
        self,
        policy: ChunkPolicy,
        encode: Callable[[Sequence[np.ndarray]], Any],
        sizes: Mapping[str, Sequence[int]] | None = None,
        map_of: Callable[[int, int], tuple[int, int]] | None = None,
    ):
        self.batch = BatchActor(policy, 1)
        self.encode = torch.no_grad()(encode)  # a user's encoder may be in training elsewhere
        self.cameras = policy.spec.cameras
        self.sizes, self._map_of = dict(sizes or {}), map_of
        self._warned: set[str] = set()
        self._accepted: set[tuple] = set()  # (camera, dtype, shape) of validated frames
        self.remaining: list[np.ndarray] = []  # unexecuted actions of the plan
        self.reset()

    def reset(self, seed: int | None = None, task: str | None = None) -> None:
        """Start an episode that samples from `seed`; None draws a random one, stored in `self.seed`. task: see
        `BatchActor.reset`; an observation can set it as well."""
        self.seed = secrets.randbits(32) if seed is None else seed
        known = self.batch.policy.spec.tasks
        self._has_task = task is not None or len(known) < 2
        self.batch.reset([0], [self.seed], task if self._has_task else known[0])
        self.remaining = []

    @property
    def disagreement(self) -> float:
        """Spread of the members' latest plans, rad; 0 for a policy with one member."""
        return float(self.batch.disagreement[0])

    @property
    def mean_disagreement(self) -> float | None:
        """Mean of `disagreement` over the plans of the episode; None for a policy with one member."""
        return self.batch.mean_disagreement(0)

    def replan(self) -> None:
        """Drop the rest of the plan, so that the next call of `act` replans."""
        self.remaining = []

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the next action for {"images": {camera: uint8 (H, W, 3)}, "proprio": (P,)} and, optionally, "task".

        UserError, at every call: a value is missing, has another shape or type, or is not finite.
        """
        proprio, frames = self._checked(observation)
        if not self.remaining:
            self.remaining = list(self.batch.plan([0], self.encode(frames), proprio[None])[0])
        elif self.batch.every_step:
            self.batch.observe([0], self.encode(frames), proprio[None])
        action = self.remaining.pop(0)
        self.batch.record_actions([0], action[None])
        return action

    def plan_chunk(self, observation: Mapping[str, Any], pending: np.ndarray, fixed: int) -> np.ndarray:
        """Return a new full plan, float32 (K, A); do not call `act` in the same episode.

        pending: the remaining actions (n, A) of the previous plan, n = 0 for none. The first `fixed` are executed before
            the new plan is ready, so it repeats them and continues from there. Requires a head that `continues`.
        """
        proprio, frames = self._checked(observation)
        return self.batch.plan([0], self.encode(frames), proprio[None], pending[None], fixed)[0]

    def plan(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the next actions that need no further observation, float32 (k, A), as k calls of `act` would.

        k is 1 for a policy that must observe every step, otherwise the remaining length of its plan.
        """
        first = self.act(observation)
        if self.batch.every_step:
            return first[None]
        others, self.remaining = self.remaining, []
        return np.stack([first, *others])  # (k, A)

    def remember(self) -> tuple[list[Tensor], list[np.ndarray], Tensor, bool]:
        """Return the state of the episode, for `restore`."""
        tensors = [tensor.clone() for tensor in self.batch.memory]
        return tensors, list(self.remaining), self.batch.generators[0].get_state(), self._has_task

    def restore(self, memory: tuple[list[Tensor], list[np.ndarray], Tensor, bool]) -> None:
        """Restore a state from `remember`, which can be reused."""
        tensors, queue, noise, self._has_task = memory
        self.batch.generators[0].set_state(noise)
        for tensor, old in zip(self.batch.memory, tensors, strict=True):
            tensor.copy_(old)
        self.remaining = list(queue)

    def _checked(self, observation: Mapping[str, Any]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Validate an observation, set its task, and return its state (P,) and frames."""
        for key in ("images", "proprio"):
            if observation.get(key) is None:
                raise _invalid(key, "a value", ", ".join(observation) or "nothing")
        checked = self._state(observation["proprio"]), self._frames(observation["images"])
        if (task := observation.get("task")) is not None or not self._has_task:
            self.batch.set_task([0], task)
            self._has_task = True
        return checked

    def _state(self, values: Any) -> np.ndarray:
        """Validate proprioception (P,), and warn if it is far from the data that the normaliser was fitted on."""
        policy = self.batch.policy
        scaler, parts = policy.normaliser.proprio, policy.spec.proprio
        expected = f"{parts.size} numbers"
        try:
            proprio = np.asarray(values, np.float32)
        except (TypeError, ValueError):
            raise _invalid("proprio", expected, type(values).__name__) from None
        if proprio.shape != (parts.size,):
            raise _invalid("proprio", expected, f"shape {proprio.shape}")
        if not np.isfinite(proprio).all():
            raise _invalid("proprio", "finite numbers", str(proprio))
        check_values(parts.parts, proprio[None], "observation: proprio", limits=False)
        if "proprio" not in self._warned:
            state = parts.inner(torch.from_numpy(proprio))
            mean, spread = scaler.offset.cpu(), scaler.scale.cpu()
            distance = (state - mean).abs() / spread
            if distance[i := int(distance.argmax())] > FAR:
                default = "joints are in rad, the gripper's opening is 0..1"
                units = default if policy.spec.proprio_parts is None else f"the policy's state is {parts}"
                demos = f"{mean[i]:.3g} ± {spread[i]:.2g}"
                text = f"proprio[{i}] is {state[i]:.4g}, but {demos} in the policy's demos; {units}"
                self._warn("proprio", text)
        return proprio

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f"observation: {message}", stacklevel=4)

    def _frames(self, images: Any) -> list[np.ndarray]:
        """Validate the frames, and return them in the policy's camera order, uint8 (1, H, W, 3) each."""
        if not isinstance(images, Mapping):
            raise _invalid("images", "camera -> frame", type(images).__name__)
        if missing := [name for name in self.cameras if name not in images]:
            got = f"{', '.join(images)}; the policy requires {', '.join(self.cameras)}"
            raise _invalid(f"camera '{missing[0]}'", "a frame", got)
        frames = [np.asarray(images[name]) for name in self.cameras]
        for i, (name, frame) in enumerate(zip(self.cameras, frames, strict=True)):
            if (i, frame.dtype, frame.shape) in self._accepted:
                continue
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
                raise _invalid(f"camera '{name}'", "uint8 (H, W, 3)", f"{frame.dtype} {frame.shape}")
            height, width = frame.shape[:2]
            shape, demos = self.batch.policy.spec.shapes[i], self.sizes.get(name, (height, width))
            tokens = self._map_of(height, width) if self._map_of else shape
            if tokens != shape and math.prod(shape) > 1:
                expected = f"frames of {shape[0]} x {shape[1]} tokens, as in the policy's demos"
                got = f"{height} x {width} px, {tokens[0]} x {tokens[1]} tokens"
                raise _invalid(f"camera '{name}'", expected, got)
            self._accepted.add((i, frame.dtype, frame.shape))
            if (height, width) != tuple(demos):
                trained = f"the policy's demos had {demos[0]} x {demos[1]}"
                self._warn("size", f"camera '{name}' has {height} x {width} px, {trained}")
        return [frame[None] for frame in frames]


def _invalid(key: str, expected: str, got: str) -> UserError:
    return UserError(f"observation: {key}: expected {expected}, got {got}")
