"""What frozen features hold, read out linearly: the cube's x, y, height and yaw; depth and segments of each cell.

    s2robot readout                                       # mvp-tiny at one scale and with S2
    s2robot readout '+readout.encoders.mine={name: mvp-tiny, checkpoint: my.safetensors, scales: [1, 2]}'

    result = readout({"tiny": encoder}, ReadoutConfig(), Path("out"))   # writes readout.json, .csv and .png

Ridge regression from the features of single frames, fitted on some episodes and judged on others. The episodes
are scripted picks of their own seeds: no demo, evaluation or pre-training scene. All encoders see the same
frames, so their differences are paired. Every frame counts, also those in which the gripper hides or holds the
cube; subsets are judged apart, by the same map: `in_view` (at least half of the cube's picture is not hidden, in
some camera of those read), `apart` (the gripper is far from the cube) and `held` (both fingers touch it).

The arm moves towards the cube, so a picture of the arm alone tells much of the cube's place. Two rows show how
much: "gripper pose" reads the cube from the gripper's true pose instead of an image, "mean" reads nothing.

Intervals are 95 % percentile bootstrap over held-out episodes (frames of one are alike); they do not
contain the luck of the training episodes. Yaw counts modulo 90 degrees, for a cube looks the same every quarter
turn: sin and cos of four times the yaw are read, and a guess is 22.5 degrees off on average.

Depth and segments: `s2robot.probing.cell_maps`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.common.paths import cache_dir
from s2robot.common.progress import bar
from s2robot.common.provenance import command, versions
from s2robot.common.settings import plain, read, task_settings
from s2robot.encoders.build import build_encoder
from s2robot.encoders.cache import FeatureCache
from s2robot.encoders.encoder import S2Encoder
from s2robot.envs.cube_config import CubePickConfig
from s2robot.loading import device_of
from s2robot.probing.cell_maps import PLACE, Split, read_cells
from s2robot.probing.cells import CellBank
from s2robot.probing.moments import FIRST_SEED, LAST_SEED, MomentBank
from s2robot.probing.readout_report import CONTROLS, JOINED, NO_POOL, summary_text, write_readout
from s2robot.probing.ridge import METRICS, Fit, interval, kernels, resample, ridge, scores, targets_of


@dataclass(frozen=True)
class ReadoutConfig:
    """All that decides a read-out besides the encoders; configs/readout/default.yaml says what each is."""

    world: CubePickConfig = field(default_factory=CubePickConfig)
    image_size: int | None = None
    train_episodes: int = 100
    test_episodes: int = 60
    frames: int = 6
    train_seed: int = 300_000
    test_seed: int = 400_000
    pools: tuple[str, ...] = ("tokens", "mean")
    in_view: float = 0.5
    apart: float = 0.10
    cells: int | None = 8
    resamples: int = 2000
    seed: int = 0
    cache: str | None = None
    dtype: str = "float16"
    workers: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        least = {"train_episodes": 2, "test_episodes": 2, "frames": 1, "resamples": 100, "seed": 0}
        for key, low in least.items():
            if getattr(self, key) < low:
                raise UserError(f"readout.{key}: found {getattr(self, key)}, expected at least {low}")
        for name in ("train", "test"):
            first = getattr(self, f"{name}_seed")
            last = first + getattr(self, f"{name}_episodes") - 1
            if first < FIRST_SEED or last > LAST_SEED:
                raise UserError(
                    f"readout.{name}_seed: found seeds {first} to {last}, expected them in {FIRST_SEED} to "
                    f"{LAST_SEED}: others belong to demos, evaluations and pre-training"
                )
        if both := set(self.seeds("train")) & set(self.seeds("test")):
            raise UserError(
                f"readout: {len(both)} seeds (first {min(both)}) are in the training and in the held-out "
                "episodes, expected none: move train_seed or test_seed"
            )
        if not self.pools or set(self.pools) - {"tokens", "mean"}:
            raise UserError(f"readout.pools: found {list(self.pools)}, expected some of tokens, mean")

    def seeds(self, part: str) -> range:
        """Seeds of the "train" or "test" episodes."""
        first = getattr(self, f"{part}_seed")
        return range(first, first + getattr(self, f"{part}_episodes"))

    @property
    def split(self) -> Split:
        return Split(self.frames, self.train_episodes, self.resamples, self.seed)


# --- the whole comparison ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What one linear map read on the held-out frames."""

    encoder: str
    pool: str
    cameras: str
    fit: Fit


def readout(encoders: Mapping[str, S2Encoder], cfg: ReadoutConfig, out: Path) -> dict[str, Any]:
    """Compare encoders on the same frames; writes readout.json, readout.csv and readout.png into `out`.

    Returns what readout.json holds: "results", each metric as {"value", "low", "high"} for every encoder, pool,
    camera ("all" = joined) and subset, "differences" of every two encoders (second minus first), and "cells", what
    `read_cells` returns (None where no encoder gives tokens, or cells is null). Frames and features are kept in the
    cache: another run draws and encodes only what is new. Raises UserError for no encoders, a reserved name, and
    what MomentBank and FeatureCache refuse.
    """
    start = time.monotonic()
    if not encoders:
        raise UserError("readout.encoders: found none, expected at least 1")
    for name in set(encoders) & {*CONTROLS, PLACE}:
        raise UserError(f"readout.encoders: '{name}' is the name of a row without images; choose another")
    size = cfg.image_size or max(encoder.image_size for encoder in encoders.values())
    root = Path(cfg.cache) if cfg.cache else cache_dir()
    bank = MomentBank(root / "readout", replace(cfg.world, image_size=size), cfg.frames)
    seeds = [*cfg.seeds("train"), *cfg.seeds("test")]
    truth = _draw(bank, seeds, cfg, any(encoder.pool == "tokens" for encoder in encoders.values()))
    drawn = time.monotonic()
    known, asked = bank.labels(cfg.seeds("train")), bank.labels(cfg.seeds("test"))
    targets, true = targets_of(known["cube_pose"]), targets_of(asked["cube_pose"])
    rows = _controls(known, asked, targets, true)
    dense: dict[str, np.ndarray] = {}
    for name, encoder in encoders.items():
        features = features_of(name, encoder, bank, seeds, cfg, root)
        if encoder.pool == "tokens":
            dense[name] = features
        for pool in cfg.pools:
            rows += _read(name, pool, features, targets, known["episode"], cfg)
    subsets = {c: _subsets(asked, i, cfg) for c, i in _columns(cfg.world.cameras).items()}
    times = resample(cfg.test_episodes, cfg.resamples, cfg.seed)[:, asked["episode"]]  # (1 + B, m)
    results, differences = _judge(rows, list(encoders), true, subsets, times, asked["episode"])
    report = {
        "settings": json.loads(json.dumps({**asdict(cfg), "image_size": size, "cache": None})),
        "frames": {"train": len(targets), "test": len(true), **_shares(subsets, cfg.world.cameras)},
        "encoders": {name: describe(encoder) for name, encoder in encoders.items()},
        "results": results,
        "differences": differences,
        "cells": None if truth is None else read_cells(dense, truth, cfg.world.cameras, cfg.split),
        "seconds": {"frames": round(drawn - start, 1), "all": round(time.monotonic() - start, 1)},
        "versions": versions(),
        "command": command(),
    }
    write_readout(report, out)
    return report


def _draw(bank: MomentBank, seeds: Sequence[int], cfg: ReadoutConfig, tokens: bool) -> np.ndarray | None:
    """Draw what is missing; the cells' truth (T, cameras, cells, 6), None if it is not asked for."""
    workers = cfg.workers or max(1, (os.cpu_count() or 1) // 2)
    with bar("drawing frames") as update:
        bank.fill(seeds, workers, update)
    if cfg.cells is None or not tokens:
        return None
    cells = CellBank(bank, cfg.cells)
    with bar("drawing depth and segments") as update:
        cells.fill(seeds, workers, update)
    return cells.targets(seeds)


def _controls(
    known: Mapping[str, np.ndarray], asked: Mapping[str, np.ndarray], targets: np.ndarray, true: np.ndarray
) -> list[Row]:
    """The rows that see no image: the gripper's true pose, and nothing at all."""
    sources = (known["gripper"], asked["gripper"]), (targets[:, :0], true[:, :0])
    return [
        Row(name, NO_POOL, NO_POOL, ridge(*kernels(*source), targets, known["episode"]))
        for name, source in zip(CONTROLS, sources, strict=True)
    ]


def _shares(
    subsets: Mapping[str, Mapping[str, np.ndarray]], cameras: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Which share of the held-out frames each subset keeps, and in which share each camera sees the cube."""
    joined = subsets[JOINED].items()
    return {
        "shares": {name: round(float(keep.mean()), 4) for name, keep in joined if name != "all"},
        "in_view": {c: round(float(subsets[c]["in_view"].mean()), 4) for c in cameras},
    }


def describe(encoder: S2Encoder) -> dict[str, Any]:
    return {
        "name": encoder.name,
        "sizes": list(encoder.sizes),
        "tokens": encoder.num_tokens,
        "dim": encoder.dim,
        "dtype": encoder.dtype,
        "parameters": encoder.num_parameters,
        "gflops_per_frame": round(encoder.gflops_per_image, 3),
        "fingerprint": encoder.fingerprint,
    }


def features_of(
    name: str, encoder: S2Encoder, bank: MomentBank, seeds: list[int], cfg: ReadoutConfig, root: Path
) -> np.ndarray:
    """Features as a policy would see them, from the cache or newly encoded.  # (T, cameras, N, D)"""
    dataset = hashlib.sha256(json.dumps([bank.key, seeds]).encode()).hexdigest()
    cache = FeatureCache(
        root / "features",
        f"readout {dataset}",
        encoder.fingerprint,
        cfg.world.cameras,
        [cfg.frames] * len(seeds),
        encoder.num_tokens,
        encoder.dim,
        cfg.dtype,
        {"encoder": name, "sizes": list(encoder.sizes)},
    )
    encoder.to(device_of(cfg.device))
    with bar(f"encoding {name}") as update:
        return cache.build(
            lambda missing: ((i, list(bank.images(seeds[i]).swapaxes(0, 1))) for i in missing),
            encoder.encode,
            update,
        )


def _columns(cameras: Sequence[str]) -> dict[str, list[int]]:
    """Which cameras are read: each alone, then all of them joined."""
    return {**{name: [i] for i, name in enumerate(cameras)}, JOINED: list(range(len(cameras)))}


def _read(
    name: str, pool: str, features: np.ndarray, targets: np.ndarray, episodes: np.ndarray, cfg: ReadoutConfig
) -> Iterable[Row]:
    """One map a camera and one for all cameras, whose kernel is the sum of theirs."""
    n = len(targets)
    parts = []
    for i in range(len(cfg.world.cameras)):
        tokens = features[:, i]  # (T, N, D)
        if pool == "mean":
            tokens = tokens.mean(1, dtype=np.float64)
        flat = tokens.reshape(len(tokens), -1)
        parts.append(kernels(flat[:n], flat[n:]))
    for cameras, chosen in _columns(cfg.world.cameras).items():
        own, cross = (np.sum([parts[i][j] for i in chosen], axis=0) for j in (0, 1))
        yield Row(name, pool, cameras, ridge(own, cross, targets, episodes))


def _subsets(
    labels: Mapping[str, np.ndarray], cameras: list[int], cfg: ReadoutConfig
) -> dict[str, np.ndarray]:
    """Which held-out frames each subset keeps.  # name: bool (m,)"""
    return {
        "all": np.ones(len(labels["held"]), bool),
        "in_view": (labels["visible"][:, cameras] >= cfg.in_view).any(1),
        "apart": labels["distance"] > cfg.apart,
        "held": labels["held"].astype(bool),
    }


def _judge(
    rows: Sequence[Row],
    encoders: Sequence[str],
    true: np.ndarray,
    subsets: Mapping[str, Mapping[str, np.ndarray]],
    weights: np.ndarray,
    episodes: np.ndarray,
) -> tuple[list[dict], list[dict]]:
    """Every metric of every row and subset, and the differences of every two encoders on the same frames."""
    results, differences = [], []
    sampled: dict[tuple, dict[str, np.ndarray]] = {}
    for row in rows:
        for subset, keep in subsets[JOINED if row.cameras == NO_POOL else row.cameras].items():
            place = (row.pool, row.cameras, subset)
            facts: dict[str, Any] = dict(zip(("pool", "cameras", "subset"), place, strict=True))
            found = scores(row.fit.read[keep], true[keep], weights[:, keep]) if keep.any() else {}
            facts |= {"frames": int(keep.sum()), "episodes": len(np.unique(episodes[keep]))}
            measured = {m: interval(found.get(m, np.full(2, np.nan))) for m in METRICS}
            results.append(
                {"encoder": row.encoder, **facts, **measured, "penalties": list(row.fit.penalties)}
            )
            for other in encoders:
                if found and (other, *place) in sampled:
                    apart = {m: interval(found[m] - sampled[other, *place][m]) for m in METRICS}
                    differences.append({"encoder": row.encoder, "minus": other, **facts, **apart})
            sampled[row.encoder, *place] = found
    return results, differences


def run_readout(cfg: DictConfig) -> None:
    """`s2robot readout`: build the encoders of the config, compare them, print the main figures."""
    settings = plain(cfg.readout)
    described = settings.pop("encoders")
    # the world last: read as every verb reads it, for its words are part of the frames' key
    config = replace(read(ReadoutConfig, settings, "readout"), world=task_settings(cfg))
    encoders = {name: build_encoder(facts) for name, facts in described.items()}
    out = Path(cfg.run_dir)
    report = readout(encoders, config, out)
    print(summary_text(report))
    print(f"read-out: {out / 'readout.json'}, readout.csv, readout.png")
