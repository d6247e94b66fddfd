"""A policy in the loop: remembers the context, executes k of the K planned actions, plans again.

One robot or environment, as in the contract:

    actor = Actor(policy, encoder.encode_cameras)
    actor.reset()                                        # actor.seed: of what a head draws in this episode
    action = actor.act(observation)                      # (8,)

Many episodes side by side, one network call for all that need a plan:

    actor = BatchActor(policy, n=16)
    actor.reset(range(16), seeds=range(16))
    actions = actor.plan([0, 3], features, proprio)      # (2, k, 8)
    actor.disagreement[[0, 3]]                           # rad, how far the members' plans are apart

With a context of 1 that is all. With a longer one (`actor.every_step`) each step that is not a plan needs
`observe`, and each executed action `record_actions`; a call to `plan` observes what it is given.
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

FAR = 25.0  # spreads from the middle of the demos' states; radians taken for degrees are beyond it


class BatchActor:
    """The memory of n parallel episodes and their plans. Puts the policy in eval mode."""

    def __init__(self, policy: ChunkPolicy, n: int):
        self.policy = policy.eval()
        self.n = n
        spec = policy.spec
        t, k = spec.context, spec.chunk
        self.every_step = t > 1  # whether `observe` and `record_actions` matter
        self.execute = spec.planned
        self.device = next(policy.parameters()).device
        zeros = partial(torch.zeros, n, device=self.device)
        self._context = (  # pooled features, states, actions, and where there is no step yet
            zeros(t, len(spec.cameras), policy.width), zeros(t, spec.proprio_dim + len(spec.tasks)), zeros(t, spec.action_dim),
            torch.ones(n, t, dtype=torch.bool, device=self.device),
        )  # fmt: skip
        # ensembling: the weighted sum of plans (rotations as rot6d), its weights, and how many plans are in it
        self._votes = (zeros(k, spec.action.width), zeros(k, 1), zeros(k, 1))
        self._task = zeros(len(spec.tasks))  # one-hot: what each episode is to do
        self.disagreement = zeros()  # of the newest plans, rad
        self._doubts = zeros(2)  # of an episode: the sum over its plans, and how many
        self._generators = [torch.Generator() for _ in range(n)]

    def reset(
        self, indices: Iterable[int], seeds: Iterable[int] | None = None, task: str | None = None
    ) -> None:
        """Forget the episodes with these indices; seeds: of all that a head draws in each (0 by default); task: what they are to
        do, by default the only task that the policy has learnt. UserError: another task, or none of several."""
        rows = list(indices)
        for row, seed in zip(rows, [0] * len(rows) if seeds is None else seeds, strict=True):
            self._generators[row].manual_seed(seed)
        for memory in self.memory:
            memory[rows] = 0
        self._context[-1][rows] = True
        self.set_task(rows, task)

    def set_task(self, rows: Sequence[int], task: str | None) -> None:
        """Say what these episodes are to do from now on; as :meth:`reset`, but a policy of no task takes any."""
        told, known = self.policy.spec.told(task), self.policy.spec.tasks
        self._task[rows] = torch.tensor([float(name == told) for name in known], device=self.device)

    @property
    def memory(self) -> tuple[Tensor, ...]:
        """The tensors, not copies, that later plans depend on besides their observations."""
        return (*self._context, *self._votes, self._task, self.disagreement, self._doubts)

    def mean_disagreement(self, index: int) -> float | None:
        """Over the plans of an episode so far, rad; None for a policy of one member, and before the first plan."""
        total, plans = self._doubts[index].tolist()
        return total / plans if plans and self.policy.spec.members > 1 else None

    @property
    def noise(self) -> list[Tensor]:
        """The states of the episodes' generators, which `noise = ...` puts back."""
        return [generator.get_state() for generator in self._generators]

    @noise.setter
    def noise(self, states: list[Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)

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
        """Store which action (n_i, A) followed the step observed last."""
        done = torch.as_tensor(actions, dtype=torch.float32, device=self.device)
        self._context[2][list(indices), -1] = done

    def plan(
        self, indices: Iterable[int], features: Any, proprio: Any, pending: Any = None, fixed: int = 0
    ) -> np.ndarray:
        """Observe (n_i, C, N, D) and (n_i, P), then return the next k actions, float32 (n_i, k, A); all K with actions that are
        `pending` (n_i, n, A) from the plans before, of which the first are `fixed`."""
        rows = list(indices)
        self.observe(rows, features, proprio)
        generators = [self._generators[row] for row in rows]
        pooled, *others = (memory[rows] for memory in self._context)
        whole = pending is not None
        if whole:
            pending = torch.as_tensor(pending, dtype=torch.float32, device=self.device)
            pending = pending if pending.shape[1] else None
        plans = self.policy.plan_members(pooled, *others, generators, pending, fixed)  # (M, n_i, K, A)
        self.disagreement[rows] = self.policy.disagreement(plans)
        self._doubts[rows] += nn.functional.pad(self.disagreement[rows, None], (0, 1), value=1.0)
        soft = self.policy.combine(plans)  # (n_i, K, A)
        if self.policy.spec.ensemble is not None:
            soft = self._ensemble(rows, soft, self.policy.spec.ensemble)
        out = self.policy.clip(soft)[:, : None if whole else self.execute].cpu().numpy()
        if not np.isfinite(out).all():
            raise UserError("policy: the planned action holds NaN or infinity")
        return out

    @torch.no_grad()
    def unclipped(self, features: Any, proprio: Any) -> np.ndarray:
        """Return the whole plans of all episodes' first step, before they are clipped, float32 (n, K, A)."""
        rows = range(self.n)
        self.reset(rows, rows, next(iter(self.policy.spec.tasks), None))
        self.observe(rows, features, proprio)
        plans = self.policy.plan_members(*self._context, generators=self._generators)
        return self.policy.combine(plans).float().cpu().numpy()

    def _ensemble(self, rows: list[int], plan: Tensor, rate: float) -> Tensor:
        """ACT's weights: the i-th plan made for a step counts exp(-rate * i), the oldest (i = 0) most."""
        for memory in self._votes:
            memory[rows] = torch.cat([memory[rows, 1:], torch.zeros_like(memory[rows, :1])], 1)
        total, weights, plans = self._votes
        weight, parts = torch.exp(-rate * plans[rows]), self.policy.spec.action
        total[rows] += weight * parts.inner(plan)
        weights[rows] += weight
        plans[rows] += 1
        return parts.outer(total[rows] / weights[rows])


class Actor:
    """The contract's policy for one robot: reset(), act(observation) -> float32 (A,).

    With a context of 1, images are encoded only when a new plan is due.

    Args:
        encode: one uint8 (B, H, W, 3) a camera -> features (B, C, N, D).
        sizes: (H, W) of each camera's frames in the demos, if known. Frames of another size, and states far from any in the
            demos (degrees instead of radians), are warned of once.
        map_of: (H, W) -> rows and columns of the tokens that `encode` gives; with it, frames of another shape than the
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
        self.encode = torch.no_grad()(encode)  # which may be a user's, on a model that is trained elsewhere
        self.cameras = policy.spec.cameras
        self.sizes, self._map_of = dict(sizes or {}), map_of
        self._warned: set[str] = set()
        self._accepted: set[tuple] = set()  # camera, dtype and shape of frames that have passed
        self.remaining: list[np.ndarray] = []  # actions of the plan
        self.reset()

    def reset(self, seed: int | None = None, task: str | None = None) -> None:
        """Begin an episode, whose heads draw from `seed`; None draws one, which `self.seed` stores. task: see `BatchActor.reset`;
        an observation may name it, too."""
        self.seed = secrets.randbits(32) if seed is None else seed
        known = self.batch.policy.spec.tasks
        self._named = task is not None or len(known) < 2
        self.batch.reset([0], [self.seed], task if self._named else known[0])
        self.remaining = []

    @property
    def disagreement(self) -> float:
        """Spread of the members' newest plans, rad; 0 for a policy of one member."""
        return float(self.batch.disagreement[0])

    @property
    def mean_disagreement(self) -> float | None:
        """The same over the plans of the episode so far; None for a policy of one member."""
        return self.batch.mean_disagreement(0)

    def replan(self) -> None:
        """Drop what is left of the plan, so that the next action comes from a new one."""
        self.remaining = []

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the next action from {"images": {camera: uint8 (H, W, 3)}, "proprio": (P,)}, and "task" for what is to be done.

        UserError at every call for what is missing, of another shape or type, or not finite.
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
        """Return a new plan in full, float32 (K, A); `act` is not to be called in the same episode.

        pending: the actions (n, A) that are left of the plan before, n = 0 for none. The first `fixed` will be executed before
            this plan can be used: it repeats them, and goes on from there. Only for a head that `continues`.
        """
        proprio, frames = self._checked(observation)
        return self.batch.plan([0], self.encode(frames), proprio[None], pending[None], fixed)[0]

    def plan(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the next actions that need no further observation, float32 (k, A): as k calls of `act` give them.

        k is 1 for a policy that has to see every step, otherwise what is left of its plan.
        """
        first = self.act(observation)
        if self.batch.every_step:
            return first[None]
        rest, self.remaining = self.remaining, []
        return np.stack([first, *rest])  # (k, A)

    def remember(self) -> tuple[list[Tensor], list[np.ndarray], list[Tensor]]:
        """Return the state of the episode, for `restore`."""
        return [tensor.clone() for tensor in self.batch.memory], list(self.remaining), self.batch.noise

    def restore(self, memory: tuple[list[Tensor], list[np.ndarray], list[Tensor]]) -> None:
        """Go back to what `remember` returned, which may be used again."""
        tensors, queue, self.batch.noise = memory
        for tensor, old in zip(self.batch.memory, tensors, strict=True):
            tensor.copy_(old)
        self.remaining = list(queue)

    def _checked(self, observation: Mapping[str, Any]) -> tuple[np.ndarray, list[np.ndarray]]:
        """The state (P,) and the frames of an observation, whose task is set."""
        for key in ("images", "proprio"):
            if observation.get(key) is None:
                raise _wrong(key, "a value", ", ".join(observation) or "nothing")
        if (task := observation.get("task")) is not None or not self._named:
            self.batch.set_task([0], task)
            self._named = True
        return self._state(observation["proprio"]), self._frames(observation["images"])

    def _state(self, given: Any) -> np.ndarray:
        """The proprioception (P,), checked; warns of one that is far from all that the normalisation was fitted on."""
        policy = self.batch.policy
        scaler, parts = policy.normaliser.proprio, policy.spec.proprio
        expected = f"{parts.size} numbers"
        try:
            proprio = np.asarray(given, np.float32)
        except (TypeError, ValueError):
            raise _wrong("proprio", expected, type(given).__name__) from None
        if proprio.shape != (parts.size,):
            raise _wrong("proprio", expected, f"shape {proprio.shape}")
        if not np.isfinite(proprio).all():
            raise _wrong("proprio", "finite numbers", str(proprio))
        check_values(parts.parts, proprio[None], "observation: proprio", limits=False)
        if "proprio" not in self._warned:
            state = parts.inner(torch.from_numpy(proprio))
            middle, spread = scaler.offset.cpu(), scaler.scale.cpu()
            away = (state - middle).abs() / spread
            if away[i := int(away.argmax())] > FAR:
                usual = "joints are in rad, the gripper's opening is 0..1"
                units = usual if policy.spec.proprio_parts is None else f"the policy's state is {parts}"
                demos = f"{middle[i]:.3g} ± {spread[i]:.2g}"
                text = f"proprio[{i}] is {state[i]:.4g}, in the policy's demos it was {demos}; {units}"
                self._warn("proprio", text)
        return proprio

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f"observation: {message}", stacklevel=4)

    def _frames(self, images: Any) -> list[np.ndarray]:
        """The cameras' frames in the policy's order, checked, uint8 (1, H, W, 3) each."""
        if not isinstance(images, Mapping):
            raise _wrong("images", "camera -> frame", type(images).__name__)
        if missing := [name for name in self.cameras if name not in images]:
            found = f"{', '.join(images)}; the policy needs {', '.join(self.cameras)}"
            raise _wrong(f"camera '{missing[0]}'", "a frame", found)
        frames = [np.asarray(images[name]) for name in self.cameras]
        for i, (name, frame) in enumerate(zip(self.cameras, frames, strict=True)):
            if (i, frame.dtype, frame.shape) in self._accepted:
                continue
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
                raise _wrong(f"camera '{name}'", "uint8 (H, W, 3)", f"{frame.dtype} {frame.shape}")
            height, width = frame.shape[:2]
            wanted, demos = self.batch.policy.spec.shapes[i], self.sizes.get(name, (height, width))
            tokens = self._map_of(height, width) if self._map_of else wanted
            if tokens != wanted and math.prod(wanted) > 1:
                expected = f"frames of {wanted[0]} x {wanted[1]} tokens, as in the policy's demos"
                got = f"{height} x {width} px, {tokens[0]} x {tokens[1]} tokens"
                raise _wrong(f"camera '{name}'", expected, got)
            self._accepted.add((i, frame.dtype, frame.shape))
            if (height, width) != tuple(demos):
                had = f"the policy's demos had {demos[0]} x {demos[1]}"
                self._warn("size", f"camera '{name}' has {height} x {width} px, {had}")
        return [frame[None] for frame in frames]


def _wrong(what: str, expected: str, got: str) -> UserError:
    return UserError(f"observation: {what}: expected {expected}, got {got}")
