"""Open-loop evaluation without a simulator: compare a policy's predictions with recorded actions at every step.

    plans = predict(BatchActor(policy, 8), store, features, [3, 7])       # {3: (T, K, A), 7: (T, K, A)}
    found = measure(policy, store, plans, mean)                           # errors of the policy and the baselines
    summarise(policy, found)["verdict"]                                   # "better than both baselines"

There are two baselines: `repeat` repeats the previous action, and `mean` always predicts the mean action. A step counts
if training would use it and an action precedes it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from s2robot.demos.errors import mismatch
from s2robot.demos.mix import task_of_steps
from s2robot.demos.store import EpisodeStore
from s2robot.demos.windows import make_windows
from s2robot.policies import BatchActor, ChunkPolicy, Part

METHODS = ("policy", "repeat", "mean")
WORDS = {"policy": "policy", "repeat": "repeating the last action", "mean": "the mean action"}
OVERALL = "normalised"  # error of all non-binary dimensions, divided by their spread in the demos


def predict(
    actor: BatchActor,
    store: EpisodeStore,
    features: np.ndarray,
    episodes: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, np.ndarray]:
    """Return the full action chunk at every step, with the recorded actions as the past: episode -> (T, K, A).

    The actor's size is the number of episodes run in parallel; each episode has its own random numbers. ``features``: (all
    steps of the store, C, N, D), as in training.
    """
    actor.execute = actor.policy.spec.chunk  # the full chunk, not only the executed part
    states, actions = store["proprio"], store["action"]
    plans, known = dict[int, np.ndarray](), actor.policy.spec.tasks
    tasks = [known[i] for i in task_of_steps(store, known)] if len(known) > 1 else []
    for begin in range(0, len(episodes), actor.n):
        group = episodes[begin : begin + actor.n]
        slices = [store.episode_slice(i) for i in group]
        for slot, i in enumerate(group):
            actor.reset([slot], [i], tasks[slices[slot].start] if tasks else None)
        rows: list[list[np.ndarray]] = [[] for _ in group]
        for t in range(max(s.stop - s.start for s in slices)):
            running = [slot for slot, s in enumerate(slices) if s.start + t < s.stop]
            now = [slices[slot].start + t for slot in running]
            chunks = actor.plan(running, np.asarray(features[now]), states[now])  # (n, K, A)
            actor.record_actions(running, actions[now])
            for slot, plan in zip(running, chunks, strict=True):
                rows[slot].append(plan)
        plans |= {i: np.stack(row) for i, row in zip(group, rows, strict=True)}
        progress(len(plans), len(episodes))
    return plans


def mean_action(policy: ChunkPolicy, actions: np.ndarray) -> np.ndarray:
    """Return the mean (A,) of actions (N, A); for rotations, the projected mean of the rotation matrices."""
    parts = policy.spec.action
    return parts.outer(parts.inner(torch.from_numpy(actions).double()).mean(0)).float().numpy()


class Measured(NamedTuple):
    """Errors by episode and step of the chunk.

    errors: method -> measure -> (E, K), means over an episode's steps, NaN where no step counts. Measures:
    `<part>_error` and `<part>_accuracy` from `Parts.errors`, and `normalised`: the mean absolute difference, divided by
    the spread in the policy's normalisation.
    counts: (E, K) number of steps in each mean.
    """

    episodes: list[int]
    execute: int
    errors: Mapping[str, Mapping[str, np.ndarray]]
    counts: np.ndarray

    def values(self, method: str, measure: str) -> np.ndarray:
        """Return the mean over the executed actions of a chunk, by episode.  # (E,)"""
        values, counts = (x[:, : self.execute] for x in (self.errors[method][measure], self.counts))
        return _mean(values, counts, 1)

    def by_step(self, method: str, measure: str) -> np.ndarray:
        """Return the mean over the episodes, by step of the chunk.  # (K,)"""
        return _mean(self.errors[method][measure], (self.counts > 0).astype(float), 0)

    @property
    def ranking(self) -> str:
        return OVERALL if OVERALL in self.errors["policy"] else next(iter(self.errors["policy"]))

    def worst_first(self) -> list[int]:
        """Return the indices of the episodes, largest error first."""
        sign = 1 if self.ranking.endswith("_accuracy") else -1
        return np.argsort(sign * self.values("policy", self.ranking), kind="stable").tolist()


def _mean(values: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.nansum(np.where(weights > 0, values * weights, 0), axis) / weights.sum(axis)


def measure(
    policy: ChunkPolicy, store: EpisodeStore, plans: Mapping[int, np.ndarray], mean: np.ndarray
) -> Measured:
    """Return the errors of plans and baselines against the recorded actions; `mean`: action (A,) of the mean baseline.

    Episodes without a step that counts are skipped; DatasetError if no episode has one.
    """
    spec, actions = policy.spec, store["action"]
    windows = make_windows(store, np.array(list(plans)), 1, spec.chunk, "recorded")
    totals: dict[str, dict[str, list[np.ndarray]]] = {method: {} for method in METHODS}
    measured, counts = list[int](), list[np.ndarray]()
    for i, plan in plans.items():
        episode = store.episode_slice(i)
        own = (windows.steps > episode.start) & (windows.steps < episode.stop)  # step 0 has no predecessor
        if not own.any():
            continue
        measured.append(i)
        steps, target = windows.steps[own], torch.from_numpy(np.ascontiguousarray(windows.actions[own]))
        real = torch.from_numpy(~windows.action_pad[own])  # (n, K)
        counts.append(real.sum(0).numpy())
        predictions = {
            "policy": plan[steps - episode.start],
            "repeat": np.repeat(actions[steps - 1][:, None], spec.chunk, 1),
            "mean": np.broadcast_to(mean, target.shape),
        }
        for method, predicted in predictions.items():
            found = _errors(policy, torch.from_numpy(np.array(predicted, np.float32)), target.float())
            for name, error in found.items():
                total = (error * real).sum(0) / real.sum(0)  # NaN if no window is that long
                totals[method].setdefault(name, []).append(total.numpy())
    if not counts:
        raise mismatch(store.path, "an episode with a step to imitate after its first", "none")
    errors = {method: {name: np.stack(x) for name, x in found.items()} for method, found in totals.items()}
    return Measured(measured, spec.planned, errors, np.stack(counts))


def _errors(policy: ChunkPolicy, predicted: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    parts = policy.spec.action
    error = (parts.inner(predicted) - parts.inner(target)).abs() / policy.normaliser.action.scale.cpu()
    scaled = [error[..., at] for part, at in parts.inside if part.kind != "binary"]
    return parts.errors(predicted, target) | ({OVERALL: torch.cat(scaled, -1).mean(-1)} if scaled else {})


def summarise(policy: ChunkPolicy, measured: Measured) -> dict[str, Any]:
    """Return the figures of each part as JSON types, and whether the policy beats both baselines."""
    parts = [_part(part, measured, policy.spec.action_parts is None) for part in policy.spec.action.parts]
    errors = measured.errors["policy"]
    judged = [part for part in parts if part["measure"] == "error"] or parts
    worse = {m: [part["part"] for part in judged if not part["better_than"][m]] for m in METHODS[1:]}
    failed = [f"NOT better than {WORDS[m]} in {', '.join(names)}" for m, names in worse.items() if names]
    ratios = [part[key]["high"] for part in judged for key in part if key.startswith("of_")]
    sure = all(high is not None and high < 1 for high in ratios)
    better = f"better than both baselines{'' if sure else ', which may be chance'}"
    return {
        "verdict": f"{'; '.join(map(_words, parts))}: {' and '.join(failed) or better}",
        "better": not failed,
        "parts": parts,
        "overall": _figures(measured, OVERALL) if OVERALL in errors else None,
        "episodes": measured.episodes,
        "by_episode": {n: {m: measured.values(m, n).tolist() for m in METHODS} for n in errors},
        "steps": int(measured.counts[:, 0].sum()),
        "execute": measured.execute,
    }


def _part(part: Part, measured: Measured, default_parts: bool) -> dict[str, Any]:
    kind, sign = ("accuracy", -1) if part.kind == "binary" else ("error", 1)
    name = f"{part.label}_{kind}"
    figures = _figures(measured, name)
    by_step = {m: [None if np.isnan(v) else float(v) for v in measured.by_step(m, name)] for m in METHODS}
    value = sign * figures["policy"]["value"]
    return {
        "part": part.name,
        "measure": kind,
        "unit": "rad" if part.kind == "rotation" or (default_parts and part.name == "joints") else "",
        **figures,
        "by_step": by_step,
        "better_than": {m: bool(value < sign * figures[m]["value"]) for m in METHODS[1:]},
    }


def _words(part: Mapping[str, Any]) -> str:
    policy, repeating, mean = (f"{part[m]['value']:.3g}" for m in METHODS)
    unit = f" {part['unit']}" if part["unit"] else ""
    return f"{part['part']} {part['measure']} {policy}{unit} (repeating {repeating}, mean {mean})"


def _figures(measured: Measured, name: str) -> dict[str, Any]:
    """Return each method's value with its interval; for errors, also the ratio of the policy's error to each baseline's."""
    values = {method: measured.values(method, name) for method in METHODS}  # (E,) each
    if name.endswith("_accuracy"):
        return {method: interval(each, upper=1.0) for method, each in values.items()}
    found = {method: interval(each) for method, each in values.items()}
    return found | {f"of_{m}": interval(values["policy"], values[m]) for m in METHODS[1:]}


def interval(values: np.ndarray, base: np.ndarray | None = None, upper: float = math.inf) -> dict[str, Any]:
    """Return the mean of values (E,), or its ratio to the mean of a base, with the 95 % interval for new episodes: jackknife
    with Student's quantile, on the log scale for a ratio. None if undefined; `upper`: bound."""
    from scipy.stats import t  # takes half a second to import

    n = len(values)
    if base is not None and not (values.any() and base.any()):  # one of the two errors is 0
        return {"value": 0.0 if base.any() else None, "low": None, "high": None}
    inverse: Callable[[float], float] = float if base is None else math.exp
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, left_out = values.mean(), (values.sum() - values) / (n - 1)
        if base is not None:
            mean = np.log(values.sum() / base.sum())
            left_out = np.log((values.sum() - values) / (base.sum() - base))
        half = t.ppf(0.975, n - 1) * np.sqrt((n - 1) * left_out.var())
    if not math.isfinite(half):
        return {"value": inverse(mean), "low": None, "high": None}
    low, high = max(0.0, inverse(mean - half)), min(upper, inverse(mean + half))
    return {"value": inverse(mean), "low": low, "high": high}
