"""What a dataset holds: numbers for the terminal and one picture.

store = EpisodeStore.open("demos.zarr")
print_description(store)
draw_dataset(store, {"hand": frames}, "dataset.png")   # frames: uint8 (n, H, W, 3) of one episode
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.layouts import starts, task_of
from s2robot.demos.replay import world_of_demos
from s2robot.demos.schema import PARTS
from s2robot.demos.store import EpisodeStore
from s2robot.envs.parts import number_names, usual
from s2robot.envs.picture import draw_layout
from s2robot.envs.task_settings import Group

BLUE, RED, GREY = "#0072b2", "#d55e00", "#8a8a8a"  # told apart by colour-blind eyes too
STILL = 1e-6  # rad: joint deltas below this count as zero
MAX_DELTA = (
    0.25  # rad a step and joint: where the first task clips; another env says so as env_config["max_delta"]
)


def describe(store: EpisodeStore) -> dict[str, Any]:
    """The numbers of a dataset, as JSON types.

    ``episodes``, ``steps``, ``seconds`` (all episodes together), ``length`` (min, median, max in steps),
    ``success`` (count, or None where not recorded), ``action`` and ``proprio`` (per dimension: name, min, p5,
    median, p95, max; rad, gripper 0 to 1, or in the units of their parts), ``zero_actions`` and ``clipped_actions``
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
        "action": _ranges(names, action),
        "proprio": _ranges(dimension_names(store, store["proprio"].shape[1], "proprio"), store["proprio"])
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


def draw_dataset(store: EpisodeStore, frames: Mapping[str, np.ndarray], path: str | Path) -> None:
    """Draw layouts, lengths, action ranges and a contact sheet into one picture file.

    ``frames``: camera -> uint8 (n, H, W, 3), the same n moments of one episode for each; may be empty.

    Raises:
        DatasetError: as :func:`describe`; frames of another form or of a camera that the dataset lacks.
    """
    d = describe(store)
    store.check(cameras=list(frames))
    first = next(iter(frames.values()), np.empty(0))
    for camera, images in frames.items():
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or len(images) != len(first):
            found = f"{images.dtype} {images.shape}"
            raise mismatch(f"frames of {camera}", found, f"uint8 ({len(first)}, H, W, 3)")
    columns = len(first)
    tile = 11.6 / columns if columns else 0.0  # inches
    sheet = sum(tile * f.shape[1] / f.shape[2] for f in frames.values()) + 0.5 * bool(frames)
    figure = Figure(figsize=(13, 4.9 + sheet), layout="constrained", dpi=110)
    seconds = f"{d['steps']} steps, {d['seconds']:.0f} s"
    figure.suptitle(f"{store.path.name}: {d['episodes']} episodes of {store.robot}, {seconds}", weight="bold")
    parts = figure.subfigures(
        2 if frames else 1, 1, height_ratios=[4.6, sheet][: 1 + bool(frames)], squeeze=False
    )
    top = parts[0, 0]
    if frames:
        _draw_sheet(parts[1, 0], frames)
    start_axes, length_axes, joint_axes, grip_axes = top.subplots(
        1, 4, gridspec_kw={"width_ratios": [4.4, 3, 4.2, 0.7]}
    )
    _draw_starts(start_axes, store)
    _draw_lengths(length_axes, store.lengths, store.attrs["rate_hz"])
    binary = _of_kinds(_parts(store, len(d["action"])), "binary")
    moving = [r for r, b in zip(d["action"], binary, strict=True) if not b]
    if PARTS["action"] in d["attributes"]:
        _draw_ranges(joint_axes, moving, "actions", "each in its unit")
    else:
        _draw_ranges(joint_axes, moving, "joint actions", "change a step (rad)")
    joint_axes.axhline(0, color=GREY, lw=0.8, zorder=0)
    if binary.any():
        _draw_gripper(grip_axes, store["action"][:, int(binary.argmax())])
    else:
        grip_axes.set_axis_off()
    path = Path(path)
    fresh = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        figure.savefig(fresh)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


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


def _ranges(names: list[str], values: np.ndarray) -> list[dict[str, Any]]:
    if len(names) != values.shape[1]:
        names = [f"dim {i + 1}" for i in range(values.shape[1])]
    quantiles = np.quantile(values.astype(np.float64), [0, 0.05, 0.5, 0.95, 1], axis=0)  # (5, dimensions)
    keys = ("min", "p5", "median", "p95", "max")
    return [
        {"name": n, **dict(zip(keys, q.tolist(), strict=True))}
        for n, q in zip(names, quantiles.T, strict=True)
    ]


def _camera(name: str, geometry: Mapping[str, Any]) -> str:
    size = geometry.get("size")
    return f"{name} {size[0]}×{size[1]}" if isinstance(size, list) and len(size) == 2 else name


def _share(x: float) -> str:
    return f"{100 * x:.1f} %"


# -------------------------------------------------------------------- drawing


def _draw_starts(axes: Axes, store: EpisodeStore) -> None:
    """Where the episodes began, as their task draws it."""
    task, records = task_of(store), starts(store)
    axes.set_title("at the start")
    if not all(task.layout_of(record) for record in records):
        axes.text(0.5, 0.5, "no layout recorded", ha="center", va="center", transform=axes.transAxes)
        return
    good = store.meta("success").astype(bool) if "success" in store.meta_keys else np.ones(len(records), bool)
    ways = ((good, "successful", BLUE), (~good, "failed", RED))
    groups = [
        Group([r for r, which in zip(records, chosen, strict=True) if which], label, "o", colour, 9)
        for chosen, label, colour in ways
        if chosen.any()
    ]
    try:
        about = world_of_demos(store).placement()
    except DatasetError:
        about = {}
    draw_layout(axes, groups, task, about)
    if not good.all():
        axes.set_title(f"at the start ({(~good).sum()} failed, orange)")


def _draw_lengths(axes: Axes, lengths: np.ndarray, rate: float) -> None:
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // 24))  # whole steps
    bins = np.arange(low, high + width + 1, width) - 0.5
    axes.hist(lengths, bins=bins.tolist(), color=BLUE, alpha=0.8, edgecolor="white")
    median = float(np.median(lengths))
    axes.axvline(median, color=RED, lw=1.5)
    title = f"lengths, median {median:g} ({median / rate:.1f} s)"
    axes.set(title=title, xlabel="steps", ylabel="episodes")
    axes.locator_params(integer=True)


def _draw_ranges(axes: Axes, ranges: list[dict[str, Any]], title: str, unit: str) -> None:
    at = np.arange(len(ranges))
    low, p5, median, p95, high = (
        np.array([r[k] for r in ranges]) for k in ("min", "p5", "median", "p95", "max")
    )
    axes.vlines(at, low, high, color=BLUE, lw=1.5)
    axes.vlines(at, p5, p95, color=BLUE, lw=9, alpha=0.45)
    axes.plot(at, median, "_", color="black", ms=11, mew=1.6)
    joints = all(r["name"].startswith("joint ") for r in ranges)
    axes.set_xticks(at, [r["name"].removeprefix("joint ") for r in ranges], rotation=0 if joints else 90)
    what = "joint  " if joints else ""
    axes.set(title=title, xlabel=f"{what}(line: all, bar: 5 to 95 %, tick: median)", ylabel=unit)


def _draw_gripper(axes: Axes, command: np.ndarray) -> None:
    closed = float((command >= 0.5).mean())
    axes.bar([0], [100 * (1 - closed)], color=GREY, alpha=0.45)
    axes.bar([0], [100 * closed], bottom=[100 * (1 - closed)], color=BLUE, alpha=0.8)
    for name, share, middle in (
        ("open", 1 - closed, 50 * (1 - closed)),
        ("closed", closed, 100 - 50 * closed),
    ):
        if share > 0.1:
            axes.text(0, middle, f"{name}\n{100 * share:.0f} %", ha="center", va="center", fontsize=8)
    axes.set(title="gripper", xticks=[], ylim=(0, 100), yticks=[], xlabel="steps")
    axes.spines[:].set_visible(False)


def _draw_sheet(figure: Any, frames: Mapping[str, np.ndarray]) -> None:
    columns = len(next(iter(frames.values())))
    figure.suptitle(f"one episode, {columns} moments from left to right", fontsize="medium")
    heights = [f.shape[1] / f.shape[2] for f in frames.values()]
    grid = figure.subplots(len(frames), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for row, (camera, images) in zip(grid, frames.items(), strict=True):
        for axes, image in zip(row, images, strict=True):
            axes.imshow(image)
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(camera)
    for i, axes in enumerate(grid[-1]):
        axes.set_xlabel(f"{i + 1} of {columns}", fontsize="small")
