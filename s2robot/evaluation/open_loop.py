"""Open loop, without any simulator: what a policy would have done at every step of recorded episodes.

    plans = predict(BatchActor(policy, 8), store, features, [3, 7])       # {3: (T, K, A), 7: (T, K, A)}
    found = measure(policy, store, plans, mean)                           # how far each is from what was done
    found.values("policy", "joint_error")                                 # (episodes,), over the executed actions

Two baselines are measured beside it: `repeat`, the action before a step again and again, and `mean`, one and the same
action always. A step counts where training would learn from it and an action stands before it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from s2robot.demos.store import EpisodeStore
from s2robot.demos.windows import Windows, make_windows
from s2robot.policies import BatchActor, ChunkPolicy

METHODS = ("policy", "repeat", "mean")
OVERALL = "normalised"  # all numbers that are not binary, over their spread in the demos


def predict(
    actor: BatchActor,
    store: EpisodeStore,
    features: np.ndarray,
    episodes: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, np.ndarray]:
    """The whole plan at every step, with the recorded actions as the past: episode -> (T, K, A).

    Args:
        actor: as many of the episodes run side by side as it has places; what a head draws is each episode's own.
        features: (all steps of the store, C, N, D), as they were trained on.
    """
    actor.execute = actor.policy.spec.chunk  # all of a plan, not what is executed alone
    states, actions = store["proprio"], store["action"]
    plans, done = dict[int, np.ndarray](), 0
    for begin in range(0, len(episodes), actor.n):
        group = episodes[begin : begin + actor.n]
        at = [store.episode_slice(i) for i in group]
        actor.reset(range(len(group)), group)
        rows: list[list[np.ndarray]] = [[] for _ in group]
        for t in range(max(s.stop - s.start for s in at)):
            running = [place for place, s in enumerate(at) if s.start + t < s.stop]
            now = [at[place].start + t for place in running]
            found = actor.plan(running, np.asarray(features[now]), states[now])  # (n, K, A)
            actor.record_actions(running, actions[now])
            for place, plan in zip(running, found, strict=True):
                rows[place].append(plan)
        plans |= {i: np.stack(row) for i, row in zip(group, rows, strict=True)}
        done += len(group)
        progress(done, len(episodes))
    return plans


def mean_action(policy: ChunkPolicy, actions: np.ndarray) -> np.ndarray:
    """The action (A,) in the middle of many (N, A): of rotations the mean of their matrices, made proper."""
    parts = policy.spec.action
    return parts.outer(parts.inner(torch.from_numpy(actions).double()).mean(0)).float().numpy()


def remembered_mean(policy: ChunkPolicy, actions: np.ndarray) -> np.ndarray:
    """What the checkpoint alone knows of that: the middle of its normalisation (A,). Of what is binary it keeps
    nothing: there the mean of other actions (N, A) stands.
    """
    parts = policy.spec.action
    inner = policy.normaliser.action.offset.detach().cpu().clone()
    given = parts.inner(torch.from_numpy(actions)).mean(0)
    for part, at in parts.inside:
        if part.kind == "binary":
            inner[at] = given[at]
    return parts.outer(inner).numpy()


@dataclass(frozen=True)
class Measured:
    """Errors by episode and step of the chunk.

    errors: method -> measure -> (E, K), means over an episode's steps, NaN where none reaches so far. Measures:
    `<part>_error` and `<part>_accuracy` as `Parts.errors` has them, `<part>_normalised` and `normalised`: mean absolute
    difference over the spread that the policy's normalisation knows.
    counts: (E, K) how many steps each is of.
    over_time: method -> episode -> `normalised` (T,) over the executed actions, NaN where none counts.
    """

    episodes: list[int]
    execute: int
    errors: Mapping[str, Mapping[str, np.ndarray]]
    counts: np.ndarray
    over_time: Mapping[str, Mapping[int, np.ndarray]]

    def values(self, method: str, measure: str) -> np.ndarray:
        """Of each episode, over the actions of a plan that are executed.  # (E,)"""
        return self._mean(self.errors[method][measure][:, : self.execute], self.counts[:, : self.execute], 1)

    def by_step(self, method: str, measure: str) -> np.ndarray:
        """At each step of the chunk, over the episodes.  # (K,)"""
        return self._mean(self.errors[method][measure], (self.counts > 0).astype(float), 0)

    @cached_property
    def measures(self) -> list[str]:
        return list(self.errors[METHODS[0]])

    @staticmethod
    def _mean(values: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.nansum(np.where(weights > 0, values * weights, 0), axis) / weights.sum(axis)


def measure(
    policy: ChunkPolicy, store: EpisodeStore, plans: Mapping[int, np.ndarray], mean: np.ndarray
) -> Measured:
    """How far plans are from what there is to imitate, beside the baselines. `mean`: the action (A,) of the second.

    Episodes without a step that counts are left out.

    Raises:
        DatasetError: no episode has one.
    """
    spec, actions = policy.spec, store["action"]
    windows = make_windows(store, np.array(list(plans)), 1, spec.chunk)
    totals: dict[str, dict[str, list[np.ndarray]]] = {method: {} for method in METHODS}
    kept, counts = list[int](), list[np.ndarray]()
    over_time: dict[str, dict[int, np.ndarray]] = {method: {} for method in METHODS}
    for i, plan in plans.items():
        episode = store.episode_slice(i)
        mine = _of(windows, episode)
        if not mine.any():
            continue
        kept.append(i)
        steps, wanted = windows.steps[mine], torch.from_numpy(np.ascontiguousarray(windows.actions[mine]))
        real = torch.from_numpy(~windows.action_pad[mine])  # (n, K)
        counts.append(real.sum(0).numpy())
        tries = {
            "policy": plan[steps - episode.start],
            "repeat": np.repeat(actions[steps - 1][:, None], spec.chunk, 1),
            "mean": np.broadcast_to(mean, wanted.shape),
        }
        for method, tried in tries.items():
            found = _errors(policy, torch.from_numpy(np.array(tried, np.float32)), wanted.float())
            for name, error in found.items():
                total = (error * real).sum(0) / real.sum(0)  # NaN where no window is so long
                totals[method].setdefault(name, []).append(total.numpy())
            curve = np.full(episode.stop - episode.start, np.nan)
            near = real[:, : spec.execute].float()
            shown = found.get(OVERALL, torch.zeros(real.shape))[:, : spec.execute]
            curve[steps - episode.start] = ((shown * near).sum(1) / near.sum(1)).numpy()
            over_time[method][i] = curve
    errors = {
        method: {name: np.stack(each) for name, each in found.items()} for method, found in totals.items()
    }
    return Measured(kept, spec.execute, errors, np.stack(counts), over_time)


def _of(windows: Windows, episode: slice) -> np.ndarray:
    """Which windows start in an episode, after its first step: before that there is no action to repeat."""
    return (windows.steps > episode.start) & (windows.steps < episode.stop)


def _errors(policy: ChunkPolicy, found: torch.Tensor, wanted: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of actions (n, K, A), by measure (n, K)."""
    parts = policy.spec.action
    errors = parts.errors(found, wanted)
    away = (parts.inner(found) - parts.inner(wanted)).abs() / policy.normaliser.action.scale.cpu()
    told = [(part, at) for part, at in parts.inside if part.kind != "binary"]
    errors |= {f"{part.label}_normalised": away[..., at].mean(-1) for part, at in told}
    if told:
        errors[OVERALL] = torch.cat([away[..., at] for _, at in told], -1).mean(-1)
    return errors
