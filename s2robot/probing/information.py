"""How much of one encoder's features a linear map finds in another's: Section 4.2 and Table 2 of the S2 paper.

    s2robot information                          # mvp-small at one scale, from mvp-tiny with and without S2
    s2robot information information.target.name=mvp-tiny-s2
    result = information(large, {"base": base, "base-s2": base_s2}, InformationConfig(), Path("out"))

One linear map with bias turns each source token into the target's token of the same place, the same map for all
places, cameras and frames. Its loss l is the squared error, averaged over tokens and channels; l0 is that of the
best constant vector. The information is I = -log(l / l0), in nats or bits, the ratio I / I* with I* that of a
source chosen as upper bound, or of all sources side by side ("all"). Map and constant are those of the training episodes, also on held-out ones.

What the paper leaves open, and what is done here:
- It names no normalisation of the target, and the l0 that its Table 2 implies (0.15 ViT, 0.23 MAE, 1.04 OpenCLIP)
  are not the 1 of unit variance. So none is the default, and channels that vary most weigh most; `normalise:
  channel` divides each by its standard deviation on the training frames.
- It writes "log"; its figures are bits: 0.1100 -> 0.1040 adds 0.081 = log2(0.1100 / 0.1040).
- It trains the map by gradient descent. Here it is the exact ridge regression (float64, standardised sources), its
  penalty chosen by leaving out folds of whole training episodes; the smallest is least squares in all but name.
- Its upper bound is a model larger than the target. Where there is none, "all" is: what one linear map finds in all
  sources together, which none of them alone can exceed on the training frames. The paper's is a bound from without,
  this one only says what each source lacks of what the others hold.
- The row "no image" answers with the target's mean at that token of that camera: what all frames share.

Intervals are 95 % percentile bootstrap
over held-out episodes, paired between sources; they do not contain the luck of the training episodes.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.common.files import write_json, write_text
from s2robot.common.paths import cache_dir
from s2robot.common.progress import bar
from s2robot.common.provenance import command, versions
from s2robot.common.settings import plain, read, task_settings
from s2robot.encoders.build import build_encoder
from s2robot.encoders.encoder import S2Encoder
from s2robot.probing.moments import MomentBank
from s2robot.probing.readout import ReadoutConfig, describe, features_of
from s2robot.probing.ridge import interval, resample
from s2robot.probing.token_maps import Blocks, Sums, linear_map, regrid, sum_up, token_pairs
from s2robot.reporting.style import BLUE, ORANGE, save_figure, styled

PLACE, ZERO = "no image", "l0"  # what answers without a source
ALL = "all"  # all sources side by side
UNUSED = ("pools", "in_view", "apart", "cells", "data")  # not settings of this command
METRICS = ("loss", "info", "ratio")
UNITS = {"nats": 1.0, "bits": math.log(2)}
FLOOR = 1e-12  # of l / l0: features that are the same would otherwise hold infinite information
Read = Callable[[np.ndarray], np.ndarray]  # (n, D) -> (n, K), or (K,) for a constant


@dataclass(frozen=True)
class InformationConfig:
    """All that decides the figures besides the encoders, `data` as for a read-out; see configs/information."""

    data: ReadoutConfig = field(default_factory=ReadoutConfig)
    upper: str | None = None
    normalise: str = "none"
    unit: str = "nats"
    folds: int = 5

    def __post_init__(self) -> None:
        for key, known in (("normalise", ("none", "channel")), ("unit", tuple(UNITS))):
            if (found := getattr(self, key)) not in known:
                raise UserError(f"information.{key}: found {found!r}, expected one of {', '.join(known)}")
        if not 2 <= self.folds <= (most := self.data.train_episodes):
            raise UserError(f"information.folds: found {self.folds}, expected 2 to train_episodes = {most}")


def channel_weights(sums: Sums, normalise: str) -> np.ndarray:
    """What a squared error of each target channel counts: 1 / K, or over its variance too.  # (K,)

    Raises UserError for a target that does not vary.
    """
    total = sums.folds.sum(0)
    variance = np.maximum(sums.about(total, total)[2], 0) / total[0, 0]
    varies = variance > 1e-12 * total.diagonal()[1 + sums.dim :] / total[0, 0]  # above rounding
    if not varies.any():
        raise UserError("information.target: found tokens that are all the same, expected some spread")
    if normalise == "none":
        return np.full(len(variance), 1 / len(variance))
    return np.where(varies, 1 / np.where(varies, variance, 1), 0) / varies.sum()


def episode_losses(blocks: Blocks, read: Read, weights: np.ndarray) -> np.ndarray:
    """The mean over an episode's tokens of the weighted squared error, in the order of episodes.  # (E,)"""
    sums: dict[int, np.ndarray] = {}
    for episode, x, y in blocks:
        sums[episode] = sums.get(episode, 0) + np.array([((read(x) - y) ** 2 @ weights).sum(), len(y)])
    return np.array([error / count for error, count in sums.values()])


# --- the whole comparison ----------------------------------------------------------------------------------


def information(
    target: S2Encoder, sources: Mapping[str, S2Encoder], cfg: InformationConfig, out: Path
) -> dict[str, Any]:
    """Reconstruct the target from each source; writes information.json, .csv and .png into `out`.

    Returns what information.json holds: "l0", "results" (loss, info and ratio of every source on the training
    and the held-out frames, each {"value", "low", "high"}; intervals on held-out frames only) and "differences"
    of two sources. A ratio is null where the upper bound's own information is not clearly above 0. Frames and
    features are cached, shared with `s2robot readout`. Raises UserError for no sources, a reserved or unknown
    label, pooled encoders, and what MomentBank and FeatureCache refuse.
    """
    start = time.monotonic()
    _refuse(target, sources, cfg.upper)
    data = cfg.data
    size = data.image_size or max(encoder.image_size for encoder in (target, *sources.values()))
    root = Path(data.cache) if data.cache else cache_dir()
    bank = MomentBank(root / "readout", replace(data.world, image_size=size), data.frames)
    seeds = [*data.seeds("train"), *data.seeds("test")]
    with bar("drawing frames") as update:
        bank.fill(seeds, data.workers or max(1, (os.cpu_count() or 1) // 2), update)
    wanted = features_of("target", target, bank, seeds, data, root)
    found = {name: features_of(name, encoder, bank, seeds, data, root) for name, encoder in sources.items()}
    if cfg.upper == ALL:
        found[ALL] = side_by_side(list(found.values()), wanted.shape[2])
    losses, penalties = compare_sources(wanted, found, cfg)
    settings = asdict(data) | {"image_size": size, "cache": None} | asdict(cfg)
    report = {
        "settings": json.loads(json.dumps({k: v for k, v in settings.items() if k not in UNUSED})),
        "target": describe(target),
        "sources": {
            k: {**(describe(sources[k]) if k in sources else {"of": [*sources]}), "penalty": penalties[k]}
            for k in found
        },
        **judge(losses, cfg),
        "seconds": round(time.monotonic() - start, 1),
        "versions": versions(),
        "command": command(),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "information.json", report)
    write_text(out / "information.csv", _csv(report))
    save_figure(information_plot(report), out / "information.png")
    return report


def _refuse(target: S2Encoder, sources: Mapping[str, S2Encoder], upper: str | None) -> None:
    """UserError for no sources, a reserved or unknown label, or a pooled encoder."""
    if not sources:
        raise UserError("information.sources: found none, expected at least 1")
    if reserved := {PLACE, ZERO, ALL} & set(sources):
        raise UserError(f"information.sources: '{reserved.pop()}' is the name of another row; choose another")
    if upper not in (None, ALL, *sources):
        raise UserError(f"information.upper: found '{upper}', expected null, {ALL} or one of {[*sources]}")
    for label, encoder in {"target": target, **{f"sources.{k}": v for k, v in sources.items()}}.items():
        if encoder.pool != "tokens":
            raise UserError(f"information.{label}.pool: found {encoder.pool}, expected tokens")


def side_by_side(sources: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Sources (T, C, N, D) of any grids and widths as one on the grid of `count` tokens (T, C, count, D + ...)."""
    return np.concatenate(
        [s if s.shape[2] == count else regrid(s, count).astype(s.dtype) for s in sources], axis=-1
    )


def compare_sources(
    target: np.ndarray, sources: Mapping[str, np.ndarray], cfg: InformationConfig
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, float]]:
    """Fit a map from each source and judge it: target (T, C, M, K), sources (T, C, N, D) of the same frames.

    Training episodes come first. Returns the losses of "l0", "no image" and every source as {"train": (E,),
    "test": (E',)}, and the penalties.
    """
    frames, train = cfg.data.frames, range(cfg.data.train_episodes)
    parts = {"train": train, "test": range(train.stop, train.stop + cfg.data.test_episodes)}
    count = target.shape[1] * target.shape[2]  # tokens of a frame
    place = np.broadcast_to(np.arange(count).reshape(1, *target.shape[1:3], 1), (*target.shape[:3], 1))
    means = np.zeros((count, target.shape[3]))
    for _, _, y in token_pairs(place, target, frames, train):
        means += y.reshape(-1, *means.shape).sum(0) / (len(train) * frames)
    reads: dict[str, tuple[np.ndarray, Read]] = {ZERO: (place, lambda x: means.mean(0))}
    reads[PLACE] = place, lambda x: means[x[:, 0].astype(int)]
    penalties = {}
    for name, source in sources.items():
        sums = sum_up(source, target, frames, train, cfg.folds)
        weights = channel_weights(sums, cfg.normalise)  # of the target, so the same for every source
        fit = linear_map(sums, weights)
        reads[name], penalties[name] = (source, fit), fit.penalty
    losses: dict[str, dict[str, np.ndarray]] = {name: {} for name in reads}
    for (name, (source, answer)), (part, episodes) in product(reads.items(), parts.items()):
        losses[name][part] = episode_losses(token_pairs(source, target, frames, episodes), answer, weights)
    return losses, penalties


def judge(losses: Mapping[str, Mapping[str, np.ndarray]], cfg: InformationConfig) -> dict[str, Any]:
    """Loss, information and ratio with their intervals: "l0", "results", "differences" of every two sources."""
    drawn: dict[str, dict[str, dict[str, np.ndarray]]] = {name: {} for name in losses}
    times = resample(cfg.data.test_episodes, cfg.data.resamples, cfg.data.seed)  # (1 + B, E')
    for part, weights in {"train": np.ones((1, cfg.data.train_episodes)), "test": times}.items():
        for name, by_part in losses.items():  # l0 comes first
            loss = weights @ by_part[part] / weights.sum(1)  # (1 + B,)
            l0 = drawn[ZERO][part]["loss"] if name != ZERO else loss
            info = -np.log(np.maximum(loss / l0, FLOOR)) / UNITS[cfg.unit]
            drawn[name][part] = {"loss": loss, "info": info}
        best = drawn[cfg.upper][part]["info"] if cfg.upper else np.full(len(weights), np.nan)
        low = interval(best)["low"]
        clear = (best[0] if low is None else low) > 0  # else a draw of the denominator may be 0
        for found in drawn.values():
            found[part]["ratio"] = found[part]["info"] / best if clear else np.full(len(best), np.nan)

    def row(name: str, minus: str | None = None) -> dict[str, Any]:
        facts: dict[str, Any] = {"source": name} | ({"minus": minus} if minus else {})
        for part, found in drawn[name].items():
            less = drawn[minus][part] if minus else dict.fromkeys(METRICS, 0)
            facts[part] = {m: interval(found[m] - less[m]) for m in METRICS}
        return facts

    rows = [name for name in losses if name != ZERO]
    l0s = {part: interval(found["loss"]) for part, found in drawn[ZERO].items()}
    differences = [row(b, a) for i, b in enumerate(rows) for a in rows[:i]]
    return {"l0": l0s, "results": [row(name) for name in rows], "differences": differences}


def _csv(report: Mapping[str, Any]) -> str:
    """One line a number: a result, or where `minus` names another source, a difference."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["source", "minus", "part", "metric", "value", "low", "high"])
    for row in [*report["results"], *report["differences"]]:
        for part, m in product(("train", "test"), METRICS):
            writer.writerow([row["source"], row.get("minus", ""), part, m, *row[part][m].values()])
    return text.getvalue()


@styled
def information_plot(report: Mapping[str, Any]) -> Figure:
    """Information of every source and, with an upper bound, its ratio: held-out with interval, training beside."""
    upper, unit = report["settings"]["upper"], report["settings"]["unit"]
    titles = {"info": f"information ({unit})"}
    titles |= {"ratio": f"ratio to the information from {upper}"} if upper else {}
    names = [row["source"] for row in report["results"]]
    styles = {"test": (BLUE, "o", "held-out frames"), "train": (ORANGE, "D", "training frames")}
    figure = Figure(figsize=(4.8 * len(titles) + 1.2, 0.5 * len(names) + 1.7), layout="constrained")
    panels = figure.subplots(1, len(titles), squeeze=False, sharey=True)[0]
    for axes, (metric, title) in zip(panels, titles.items(), strict=True):
        for (i, row), (part, style) in product(enumerate(report["results"]), styles.items()):
            found, y = row[part][metric], i + (0.12 if part == "train" else -0.12)
            axes.plot([found["low"], found["high"]], [y, y], color=style[0], lw=1.6)  # None draws nothing
            axes.plot([found["value"]], [y], style[1], color=style[0], ms=6)
        axes.grid(axis="x", lw=0.4, alpha=0.5)
        axes.set(xlabel=title, yticks=range(len(names)), yticklabels=names)
        axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    panels[0].invert_yaxis()
    panels[0].set_title(f"Features of {report['target']['name']}, found by a linear map", fontsize=10)
    handles = [Line2D([], [], color=c, marker=m, ls="none", label=t) for c, m, t in styles.values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def run_information(cfg: DictConfig) -> None:
    """`s2robot information`: build the encoders of the config, reconstruct one from the others, print Table 2."""
    settings = plain(cfg.information)
    target, sources = settings.pop("target"), settings.pop("sources")
    own = {key: settings.pop(key) for key in ("upper", "normalise", "unit", "folds") if key in settings}
    known = set(ReadoutConfig.__dataclass_fields__) - {*UNUSED, "world"}
    if unknown := sorted(set(settings) - known):
        raise UserError(f"information.{unknown[0]}: unknown key, expected one of {', '.join(sorted(known))}")
    out = Path(cfg.run_dir)
    try:
        config = read(InformationConfig, {**own, "data": settings}, "information")
        # the world last: read as every verb reads it, for its words are part of the frames' key
        config = replace(config, data=replace(config.data, world=task_settings(cfg)))
        encoders = {name: build_encoder(facts) for name, facts in sources.items()}
        report = information(build_encoder(target), encoders, config, out)
    except UserError as error:  # the read-out's complaints about frames, under this command's name
        raise UserError(re.sub(r"^(readout|information\.data)", "information", str(error))) from error
    print(summary_text(report))
    print(f"information: {out / 'information.json'}, information.csv, information.png")


def table_of(report: Mapping[str, Any]) -> list[list[str]]:
    """Table 2's columns, with the held-out intervals, a row a source; then a row a paired difference."""
    unit = report["settings"]["unit"]
    shown = {"loss": ("loss", "#.3g"), "info": (f"info ({unit})", ".3f"), "ratio": ("ratio", ".1%")}

    def text(found: Mapping[str, float | None], form: str) -> str:
        value, low, high = ("-" if x is None else format(x, form) for x in found.values())
        return value if found["low"] is None else f"{value} [{low}, {high}]"

    cells = list(product(("train", "test"), METRICS))
    rows = [["source", *(f"{part} {shown[m][0]}" for part, m in cells)]]
    for row in [*report["results"], *report["differences"]]:
        name = row["source"] + (f" - {row['minus']}" if "minus" in row else "")
        rows.append([name, *(text(row[part][m], shown[m][1]) for part, m in cells)])
    return rows


def summary_text(report: Mapping[str, Any]) -> str:
    """The table for a terminal."""
    rows = table_of(report)
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    return "\n".join("".join(map(str.ljust, row, widths)).rstrip() for row in rows)
