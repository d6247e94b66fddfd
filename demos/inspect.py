"""What a dataset holds, as numbers and for the terminal; `s2robot.inspection` makes a page of it.

print_description(EpisodeStore.open("demos.zarr"))
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from s2robot.demos.errors import mismatch
from s2robot.demos.layouts import starts, task_of
from s2robot.demos.schema import PARTS
from s2robot.demos.store import EpisodeStore
from s2robot.envs.parts import MAX_DELTA, number_names, usual

STILL = 1e-6  # rad: joint deltas below this count as zero


def describe(store: EpisodeStore) -> dict[str, Any]:
    """The numbers of a dataset, as JSON types.

    ``episodes``, ``steps``, ``seconds`` (all episodes together), ``length`` (min, median, max in steps),
    ``success`` (count, or None where not recorded), ``action`` and ``proprio`` (per dimension: name, min, p1,
    median, p99, max; rad, gripper 0 to 1, or in the units of their parts), ``zero_actions`` and ``clipped_actions``
    (share of steps in which no joint moves, and in which some joint moves by the largest step that the env executes;
    of parts those that are steps and their limits; None without such),
    ``perturbed`` (share of steps pushed off the way on purpose, or None), ``layout`` (name: least and largest
    at the start of an episode), ``cameras``, ``attributes``, ``fingerprint``.

    Raises:
        DatasetError: no episodes, or no key ``action``.
    """
    if not len(store):
        raise mismatch(store.path, "no episodes", "at least one")
    lengths = store.lengths
    action = store["action"]  # (steps, joints + 1)
    names = dimension_names(store, action.shape[1])
    still, clipped = _moves(store, action)
    return {
        "path": str(store.path),
        "episodes": len(store),
        "steps": store.num_steps,
        "seconds": store.num_steps / store.attrs["rate_hz"],
        "length": {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "max": int(lengths.max()),
        },
        "success": int(store.meta("success").sum()) if "success" in store.meta_keys else None,
        "action": ranges(names, action),
        "proprio": ranges(dimension_names(store, store["proprio"].shape[1], "proprio"), store["proprio"])
        if "proprio" in store.keys
        else [],
        "zero_actions": still,
        "clipped_actions": clipped,
        "perturbed": float((store["perturbed"] != 0).mean()) if "perturbed" in store.keys else None,
        "layout": _layout(store),
        "cameras": list(store.cameras),
        "attributes": store.attrs,
        "fingerprint": store.fingerprint,
    }


def print_description(store: EpisodeStore, console: Console | None = None) -> None:
    """Print :func:`describe` as tables.

    Raises:
        DatasetError: as :func:`describe`.
    """
    console = console or Console()
    d = describe(store)
    a = d["attributes"]
    facts = Table(title=d["path"], title_justify="left", show_header=False)
    facts.add_column(style="bold")
    facts.add_column()
    length = d["length"]
    rows = [
        ("episodes", f"{d['episodes']} ({d['steps']} steps, {d['seconds']:.1f} s at {a['rate_hz']:g} Hz)"),
        ("length", f"{length['min']} to {length['max']} steps, median {length['median']:g}"),
        ("successful", "not recorded" if d["success"] is None else f"{d['success']} of {d['episodes']}"),
        ("robot", f"{a['robot']}, actions {a['action_frame']}"),
        ("holds", f"{a['kind']}: {', '.join(store.keys)}; per episode: {', '.join(store.meta_keys) or '-'}"),
        ("cameras", ", ".join(_camera(c, a["camera_geometry"].get(c, {})) for c in d["cameras"]) or "none"),
        ("env", f"{a['env_version']}, seed {a['seed']}"),
    ]
    if d["zero_actions"] is not None:
        clipped = "" if d["clipped_actions"] is None else f", {_share(d['clipped_actions'])} clipped"
        rows.append(("actions", f"{_share(d['zero_actions'])} zero{clipped}"))
    if d["perturbed"] is not None:
        rows.append(("perturbed", f"{_share(d['perturbed'])} of the steps"))
    if d["layout"]:
        spans = (f"{name} {low:+.3g} to {high:+.3g}" for name, (low, high) in d["layout"].items())
        rows.append(("at the start", ", ".join(spans)))
    rows.append(("fingerprint", d["fingerprint"][:16]))
    for row in rows:
        facts.add_row(*row)
    console.print(facts)

    units = "each in its unit" if PARTS["action"] in a else "joints in rad, gripper 0 to 1"
    ranges = Table(title=f"ranges ({units})", title_justify="left")
    ranges.add_column("of", style="bold", no_wrap=True)
    groups = [name for name in ("action", "proprio") if d[name]]
    for group in groups:
        for column in ("min", "median", "max"):
            ranges.add_column(f"{group} {column}", justify="right")
    for i in range(max(len(d[g]) for g in groups)):
        cells = [
            f"{d[g][i][c]:+.3f}" if i < len(d[g]) else "" for g in groups for c in ("min", "median", "max")
        ]
        named = dict.fromkeys(d[g][i]["name"] for g in groups if i < len(d[g]))
        ranges.add_row(" · ".join(named) if PARTS["action"] in a else next(iter(named)), *cells)
    console.print(ranges)


def dimension_names(store: EpisodeStore, size: int, key: str = "action") -> list[str]:
    """Names of the ``size`` dimensions of an action (or of proprio): joint 1 ... and the gripper last, or its parts'."""
    if PARTS[key] in store.attrs:
        return number_names(store.attrs[PARTS[key]])
    joints = len(store.attrs["joint_names"])
    if size == joints + 1:
        return [f"joint {i + 1}" for i in range(joints)] + ["gripper"]
    return [f"dim {i + 1}" for i in range(size)]


def _of_kinds(parts: Sequence[Mapping[str, Any]], *kinds: str) -> np.ndarray:
    """Which numbers of an action are of parts of these kinds.  # (A,) bool"""
    return np.repeat([part["kind"] in kinds for part in parts], [part["size"] for part in parts])


def _parts(store: EpisodeStore, size: int) -> list[dict[str, Any]]:
    """The parts of an action of so many numbers."""
    return store.attrs.get(PARTS["action"]) or usual(PARTS["action"], size - 1)


def _moves(store: EpisodeStore, action: np.ndarray) -> tuple[float | None, float | None]:
    """In which share of the steps (steps, A) nothing moves, and in which something moves as far as it may."""
    parts = _parts(store, action.shape[1])
    steps = _of_kinds(parts, "delta")
    if not steps.any():
        return None, None
    limit = store.attrs["env_config"].get("max_delta", MAX_DELTA)
    own = PARTS["action"] in store.attrs
    most = [part.get("high") or [np.inf if own else limit] * part["size"] for part in parts]
    moved, most = np.abs(action[:, steps]), np.concatenate(most)[steps]
    still = float((moved.max(1) <= STILL).mean())
    if not np.isfinite(most).any():
        return still, None
    return still, float((moved >= most * (1 - 1e-6)).any(1).mean())  # float32 rounds the limit


def _layout(store: EpisodeStore) -> dict[str, list[float]]:
    """Of each number of its episodes' layouts, the least and the largest."""
    layouts = [task_of(store).layout_of(start) for start in starts(store)]
    names = dict.fromkeys(name for layout in layouts for name in layout)
    values = {name: [layout[name] for layout in layouts if name in layout] for name in names}
    return {name: [float(min(found)), float(max(found))] for name, found in values.items()}


def ranges(names: list[str], values: np.ndarray) -> list[dict[str, Any]]:
    """Of each column of `values` (steps, columns) the name, min, p1, median, p99 and max; of numbers that are none: none."""
    values = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column of NaN alone: its quantiles are NaN
        quantiles = np.nanquantile(values, [0, 0.01, 0.5, 0.99, 1], axis=0)  # (5, columns)
    keys = ("min", "p1", "median", "p99", "max")
    return [
        {"name": n, **dict(zip(keys, q.tolist(), strict=True))}
        for n, q in zip(names, quantiles.T, strict=True)
    ]


def _camera(name: str, geometry: Mapping[str, Any]) -> str:
    size = geometry.get("size")
    return f"{name} {size[0]}×{size[1]}" if isinstance(size, list) and len(size) == 2 else name


def _share(x: float) -> str:
    return f"{100 * x:.1f} %"
