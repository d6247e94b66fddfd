"""Open loop, without any simulator: what a policy would have done at every step of recorded episodes.

    plans = predict(BatchActor(policy, 8), store, features, [3, 7])       # {3: (T, K, A), 7: (T, K, A)}
    found = measure(policy, store, plans, mean)                           # how far each is from what was done
    summarise(policy, found)["verdict"]                                   # "better than both baselines"

Two baselines are measured beside it: `repeat`, the action before a step again and again, and `mean`, always the same
action. A step counts if training would learn from it and an action precedes it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from s2robot.demos.mix import task_of_steps
from s2robot.demos.store import EpisodeStore
from s2robot.demos.windows import make_windows
from s2robot.policies import BatchActor, ChunkPolicy, Part

METHODS = ("policy", "repeat", "mean")
WORDS = {"policy": "policy", "repeat": "repeating the last action", "mean": "the mean action"}
OVERALL = "normalised"  # all numbers that are not binary, over their spread in the demos


def predict(
    actor: BatchActor,
    store: EpisodeStore,
    features: np.ndarray,
    episodes: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, np.ndarray]:
    """Return the whole plan at every step, with the recorded actions as the past: episode -> (T, K, A).

    Args:
        actor: runs as many episodes side by side as it has places; each has random numbers of its own.
        features: (all steps of the store, C, N, D), as they were trained on.
    """
    actor.execute = actor.policy.spec.chunk  # all of a plan, not only what is executed
    states, actions = store["proprio"], store["action"]
    plans, known = dict[int, np.ndarray](), actor.policy.spec.tasks
    tasks = [known[i] for i in task_of_steps(store, known)] if len(known) > 1 else []
    for begin in range(0, len(episodes), actor.n):
        group = episodes[begin : begin + actor.n]
        at = [store.episode_slice(i) for i in group]
        for place, i in enumerate(group):
            actor.reset([place], [i], tasks[at[place].start] if tasks else None)
        rows: list[list[np.ndarray]] = [[] for _ in group]
        for t in range(max(s.stop - s.start for s in at)):
            running = [place for place, s in enumerate(at) if s.start + t < s.stop]
            now = [at[place].start + t for place in running]
            found = actor.plan(running, np.asarray(features[now]), states[now])  # (n, K, A)
            actor.record_actions(running, actions[now])
            for place, plan in zip(running, found, strict=True):
                rows[place].append(plan)
        plans |= {i: np.stack(row) for i, row in zip(group, rows, strict=True)}
        progress(len(plans), len(episodes))
    return plans


def mean_action(policy: ChunkPolicy, actions: np.ndarray) -> np.ndarray:
    """Return the mean (A,) of actions (N, A); for rotations, the projected mean of their matrices."""
    parts = policy.spec.action
    return parts.outer(parts.inner(torch.from_numpy(actions).double()).mean(0)).float().numpy()


@dataclass(frozen=True)
class Measured:
    """Errors by episode and step of the chunk.

    errors: method -> measure -> (E, K), means over an episode's steps, NaN where no step counts. Measures:
    `<part>_error` and `<part>_accuracy` as `Parts.errors` has them, and `normalised`: mean absolute difference over the
    spread in the policy's normalisation.
    counts: (E, K) how many steps each is of.
    """

    episodes: list[int]
    execute: int
    errors: Mapping[str, Mapping[str, np.ndarray]]
    counts: np.ndarray

    def values(self, method: str, measure: str) -> np.ndarray:
        """Return the mean over the executed actions of a plan, by episode.  # (E,)"""
        values, counts = (x[:, : self.execute] for x in (self.errors[method][measure], self.counts))
        return _mean(values, counts, 1)

    def by_step(self, method: str, measure: str) -> np.ndarray:
        """Return the mean over the episodes, by step of the chunk.  # (K,)"""
        return _mean(self.errors[method][measure], (self.counts > 0).astype(float), 0)

    @property
    def ranking(self) -> str:
        return OVERALL if OVERALL in self.errors["policy"] else next(iter(self.errors["policy"]))

    def worst_first(self) -> list[int]:
        """Return the places of the episodes, those of the largest error first."""
        sign = 1 if self.ranking.endswith("_accuracy") else -1
        return np.argsort(sign * self.values("policy", self.ranking), kind="stable").tolist()


def _mean(values: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.nansum(np.where(weights > 0, values * weights, 0), axis) / weights.sum(axis)


def measure(
    policy: ChunkPolicy, store: EpisodeStore, plans: Mapping[int, np.ndarray], mean: np.ndarray
) -> Measured:
    """Return how far plans are from the recorded actions, beside the baselines; `mean`: the action (A,) of the second.

    Episodes without a step that counts are left out; DatasetError if no episode has one.
    """
    spec, actions = policy.spec, store["action"]
    windows = make_windows(store, np.array(list(plans)), 1, spec.chunk)
    totals: dict[str, dict[str, list[np.ndarray]]] = {method: {} for method in METHODS}
    measured, counts = list[int](), list[np.ndarray]()
    for i, plan in plans.items():
        episode = store.episode_slice(i)
        own = (windows.steps > episode.start) & (windows.steps < episode.stop)  # the first has none to repeat
        if not own.any():
            continue
        measured.append(i)
        steps, wanted = windows.steps[own], torch.from_numpy(np.ascontiguousarray(windows.actions[own]))
        real = torch.from_numpy(~windows.action_pad[own])  # (n, K)
        counts.append(real.sum(0).numpy())
        tries = {
            "policy": plan[steps - episode.start],
            "repeat": np.repeat(actions[steps - 1][:, None], spec.chunk, 1),
            "mean": np.broadcast_to(mean, wanted.shape),
        }
        for method, tried in tries.items():
            found = _errors(policy, torch.from_numpy(np.array(tried, np.float32)), wanted.float())
            for name, error in found.items():
                total = (error * real).sum(0) / real.sum(0)  # NaN if no window is that long
                totals[method].setdefault(name, []).append(total.numpy())
    errors = {method: {name: np.stack(x) for name, x in found.items()} for method, found in totals.items()}
    return Measured(measured, spec.execute, errors, np.stack(counts))


def _errors(policy: ChunkPolicy, found: torch.Tensor, wanted: torch.Tensor) -> dict[str, torch.Tensor]:
    parts = policy.spec.action
    away = (parts.inner(found) - parts.inner(wanted)).abs() / policy.normaliser.action.scale.cpu()
    scaled = [away[..., at] for part, at in parts.inside if part.kind != "binary"]
    overall = {OVERALL: torch.cat(scaled, -1).mean(-1)} if scaled else {}
    return parts.errors(found, wanted) | overall


def summarise(policy: ChunkPolicy, measured: Measured) -> dict[str, Any]:
    """Return the figures by part as JSON types, and whether the policy is better than both baselines."""
    parts = [_part(part, measured, policy.spec.action_parts is None) for part in policy.spec.action.parts]
    errors = measured.errors["policy"]
    judged = [part for part in parts if part["measure"] == "error"] or parts
    worse = {m: [part["part"] for part in judged if not part["better_than"][m]] for m in METHODS[1:]}
    failed = [f"NOT better than {WORDS[m]} in {', '.join(names)}" for m, names in worse.items() if names]
    return {
        "verdict": f"{'; '.join(map(_words, parts))}: {' and '.join(failed) or 'better than both baselines'}",
        "better": not failed,
        "parts": parts,
        "overall": _figures(measured, OVERALL) if OVERALL in errors else None,
        "episodes": measured.episodes,
        "by_episode": {n: {m: measured.values(m, n).tolist() for m in METHODS} for n in errors},
        "steps": int(measured.counts[:, 0].sum()),
        "execute": measured.execute,
    }


def _part(part: Part, measured: Measured, usual: bool) -> dict[str, Any]:
    kind, sign = ("accuracy", -1) if part.kind == "binary" else ("error", 1)
    name = f"{part.label}_{kind}"
    figures = _figures(measured, name)
    by_step = {m: [None if np.isnan(v) else float(v) for v in measured.by_step(m, name)] for m in METHODS}
    value = sign * figures["policy"]["value"]
    return {
        "part": part.name,
        "measure": kind,
        "unit": "rad" if part.kind == "rotation" or (usual and part.name == "joints") else "",
        **figures,
        "by_step": by_step,
        "better_than": {m: bool(value < sign * figures[m]["value"]) for m in METHODS[1:]},
    }


def _words(part: Mapping[str, Any]) -> str:
    ours, repeating, mean = (f"{part[m]['value']:.3g}" for m in METHODS)
    unit = f" {part['unit']}" if part["unit"] else ""
    return f"{part['part']} {part['measure']} {ours}{unit} (repeating {repeating}, mean {mean})"


def _figures(measured: Measured, name: str) -> dict[str, Any]:
    """The value of each method with its interval; for errors also the policy's share of each baseline's."""
    values = {method: measured.values(method, name) for method in METHODS}  # (E,) each
    if name.endswith("_accuracy"):
        return {method: interval(each, most=1.0) for method, each in values.items()}
    found = {method: interval(each) for method, each in values.items()}
    return found | {f"of_{m}": interval(values["policy"], values[m]) for m in METHODS[1:]}


def interval(values: np.ndarray, of: np.ndarray | None = None, most: float = math.inf) -> dict[str, Any]:
    """Return the mean of values (E,), or its ratio to the mean of others, with its 95 % interval for new episodes: jackknife
    with Student's quantile, of a ratio by its logarithm. None if undefined; `most`: upper bound."""
    from scipy.stats import t  # half a second, which readers of settings need not wait for

    count = len(values)
    if of is not None and not (values.any() and of.any()):  # one of the two errors is 0
        return {"value": 0.0 if of.any() else None, "low": None, "high": None}
    with np.errstate(divide="ignore", invalid="ignore"):
        back: Callable[[float], float] = float if of is None else math.exp
        if of is None:
            whole, others = values.mean(), (values.sum() - values) / (count - 1)
        else:
            whole = np.log(values.sum() / of.sum())
            others = np.log((values.sum() - values) / (of.sum() - of))
        half = t.ppf(0.975, count - 1) * np.sqrt((count - 1) * others.var())
    if not math.isfinite(half):
        return {"value": back(whole), "low": None, "high": None}
    return {"value": back(whole), "low": max(0.0, back(whole - half)), "high": min(most, back(whole + half))}
