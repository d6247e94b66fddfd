"""How the cost of recording, encoding, training and evaluating grows, and what that makes of a million episodes.

    python benchmarks/scale.py                       # all axes, about 6 CPU minutes; what is in --out is not measured again
    python benchmarks/scale.py --only cameras workers
    python benchmarks/scale.py --figures             # plot and summary from --out alone

An axis changes one thing and leaves the rest at: one camera, one scale, two demos, one process with one thread. A point is a
fork of a process that has imported everything, and does in itself what workers would do, so that no start of a process counts;
on the axis of workers they are real, with their starts. It tells the processor seconds of each stage, which other work on the
machine changes little, and how much more memory of its own (anonymous pages, not those of the mapped feature cache, which the
system takes back) it had at most than before.

The demos of the cached axis are the recorded ones again and again, with features that hold noise. A policy of some steps fails
every episode, so each takes all its 80 steps. Slopes are those of log(cost) over log(value) by least squares, with their
standard error; the fixed cost of a stage makes them smaller than what they tend to.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SUMMARY = ROOT / "docs/results/scale/summary.json"
PICTURE = ROOT / "docs/images/scale.png"
STEPS = 24  # gradient steps of a point; the last two thirds count
CAMERAS = ("hand", "left", "right", "top")
TOP = "+env.side_cameras.top=[[0.4,0.0,0.8],[0.0,0.0,0.0],45]"
AXES: dict[str, tuple[str, str, Sequence[int]]] = {  # key of a point, what it is in words, its values
    "demos": ("demos", "demos", (2, 4, 8, 16)),
    "cached": ("cached", "demos in the cache", (30, 120, 480, 1920)),
    "cameras": ("cameras", "cameras", (1, 2, 3, 4)),
    "picture": ("picture", "picture, px", (128, 256, 384, 512)),
    "scales": ("scales", "scales of S²", (1, 2, 3)),
    "workers": ("workers", "processes (two cores)", (1, 2, 4, 8)),
}
STAGES = ("record", "encode", "train: start", "train: step", "evaluate")
NAMES = {"record": "recording", "encode": "encoding the demos", "train: start": "normalisation of a training",
         "train: step": "gradient step of 64 windows", "evaluate": "evaluating an episode"}  # fmt: skip


class Watch:
    """Processor seconds, and the largest memory of the process and those below it, stage by stage."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}
        self.base = anonymous(os.getpid())

    @contextmanager
    def __call__(self, stage: str, count: int) -> Iterator[None]:
        """count: of what the seconds are told for one."""
        peak, over = [0], threading.Event()

        def look() -> None:
            while not over.wait(0.2):
                peak[0] = max(peak[0], sum(map(anonymous, tree(os.getpid()))))

        thread = threading.Thread(target=look, daemon=True)
        before, clock = cpu_seconds(), time.monotonic()
        thread.start()
        yield
        over.set()
        thread.join()
        wall = time.monotonic() - clock
        last = max(peak[0], anonymous(os.getpid()))
        self.rows[stage] = {"cpu_s": (cpu_seconds() - before) / count, "wall_s": wall / count, "count": count,
                            "mb": (last - self.base) / 1024}  # fmt: skip


def cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def tree(root: int) -> list[int]:
    """The process and all below it."""
    found = [root]
    for pid in found:
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found += [int(word) for word in file.read_text().split()]
            except OSError:
                pass  # ended meanwhile
    return found


def anonymous(pid: int) -> int:
    """kB of a process's own memory."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Anonymous:")), 0)


# ---------------------------------------------------------------- one point, in a process of its own


def point(place: Path, axis: str, value: int) -> dict[str, Any]:
    """The stages of one point; `place` holds the demos that the first point of all has recorded."""
    if axis != "workers":
        alone()
    if axis == "cached":
        return train_on_noise(place, value)
    watch, count = Watch(), value if axis == "demos" else 2
    cameras = CAMERAS[: value if axis == "cameras" else 1]
    scales = [value // 128] if axis == "picture" else list(range(1, value + 1)) if axis == "scales" else [1]
    workers = value if axis == "workers" else 1
    demos = place / f"demos{count}.zarr"
    if axis in ("demos", "workers") or not demos.exists():
        demos = Path(tempfile.mkdtemp(dir=place)) / "demos.zarr" if axis == "workers" else demos
        many = 4 if axis == "workers" else count
        words = [
            f"episodes={many}",
            "seed=900000",
            f"workers={workers}",
            f"env.cameras=[{','.join(CAMERAS)}]",
            TOP,
        ]
        with watch("record", many):
            record(words, demos)
    if axis == "workers":
        return watch.rows
    checkpoint = learn(watch, place, f"{axis}{value}", demos, cameras, scales)
    if axis == "scales":
        evaluate(watch, checkpoint, cameras)
    return watch.rows


def alone() -> None:
    """Workers' work is done in this process."""
    import pytest

    from tests.inline import do_inline

    do_inline(pytest.MonkeyPatch())  # to the end of this process


def forked(place: Path, axis: str, value: int) -> dict[str, Any]:
    """`point` in a fork of this process."""
    file = place / "point.json"
    file.unlink(missing_ok=True)
    if not (pid := os.fork()):
        try:
            file.write_text(json.dumps(point(place, axis, value)))
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.waitpid(pid, 0)
    return json.loads(file.read_text())


def composed(verb: str, words: Sequence[str], run_dir: Path) -> Any:
    """A verb's config, as the command line makes it."""
    from hydra import compose, initialize_config_dir

    from s2robot.common.paths import configs_dir

    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        return compose(verb, [*words, f"run_dir={run_dir}"])


def record(words: Sequence[str], demos: Path) -> None:
    from s2robot.pipeline import record_demos

    cfg = composed("record", words, demos.parent)
    record_demos(cfg, cfg, demos)


def learn(
    watch: Watch, place: Path, name: str, demos: Path, cameras: Sequence[str], scales: Sequence[int]
) -> Path:
    """Encode the demos and train a few steps; the checkpoint."""
    from s2robot.encoders.build import build_encoder
    from s2robot.features import encode_demos
    from s2robot.pipeline import contract_of, parts_of, read_task
    from s2robot.policies import PolicySpec

    out = Path(tempfile.mkdtemp(prefix=name, dir=place))
    words = [f"demos.path={demos}", f"env.cameras=[{','.join(cameras)}]", f"s2.scales={list(scales)}", TOP,
             f"features.cache={out}", "features.workers=1", "features.threads=1"]  # fmt: skip
    task = read_task(composed("train", words, out))
    store, encoder = task.open_demos(), build_encoder(task.encoder)
    with watch("encode", store.num_steps * len(cameras)):
        features, _ = encode_demos(store, encoder, cameras, task.features)
    sizes = {"cameras": list(cameras), "dim": encoder.dim, "tokens": encoder.num_tokens, **parts_of(store)}
    spec = PolicySpec.from_dict({**task.policy.model_dump(), **sizes})
    return timed_training(watch, spec, store, features, contract_of(task, store, encoder), out)


def timed_training(watch: Watch, spec: Any, store: Any, features: Any, contract: Any, out: Path) -> Path:
    from s2robot.training.settings import TrainSettings
    from s2robot.training.train import train

    settings = TrainSettings(steps=STEPS, log_every=STEPS // 3, checkpoint_every=10**6, accelerator="cpu",
                             threads=1, loggers=())  # fmt: skip
    marks = [cpu_seconds()]
    with watch("train", 1):
        checkpoint = train(
            settings, spec, store, features, contract, out, progress=lambda *row: marks.append(cpu_seconds())
        )
    whole, step = watch.rows.pop("train"), (marks[3] - marks[1]) / (STEPS - STEPS // 3)
    start = marks[1] - marks[0] - step * (STEPS // 3)
    watch.rows["train: start"] = whole | {"cpu_s": max(start, 1e-3)}
    watch.rows["train: step"] = whole | {"cpu_s": step}
    return checkpoint


def train_on_noise(place: Path, demos: int) -> dict[str, Any]:
    """The training alone, on so many demos: the recorded ones again and again, and features that are holes in a file."""
    from s2robot.common.settings import plain
    from s2robot.demos.store import EpisodeStore
    from s2robot.policies import PolicySpec

    with tempfile.TemporaryDirectory(dir=place) as folder:
        source = EpisodeStore.open(place / "demos2.zarr")
        with EpisodeStore.create(Path(folder) / "d.zarr", source.attrs) as store:
            ten = [source.episode(i % len(source)) for i in range(10)]
            ten = {key: np.concatenate([one[key] for one in ten]) for key in ten[0]}
            for i in range(demos // 10):  # ten in one: to append is not what is measured
                store.append(ten, {"seed": i, "success": True})
        store, watch = EpisodeStore.open(Path(folder) / "d.zarr"), Watch()
        task = composed("train", [], Path(folder))
        sizes = {"cameras": ["hand"], "dim": 192, "tokens": 64}
        spec = PolicySpec.from_dict({**plain(task.policy), **sizes})
        features = np.memmap(Path(folder) / "f", np.float16, "w+", shape=(store.num_steps, 1, 64, 192))
        features[::16] = np.random.default_rng(0).standard_normal((64, 192)).astype(np.float16)
        contract = {"encoder": {"name": "noise", "fingerprint": "n"}, "cameras": ["hand"], "robot": store.robot,
                    "joint_names": [], "action_frame": store.attrs["action_frame"], "rate_hz": 10,
                    "dataset": {"fingerprint": "d"}}  # fmt: skip
        timed_training(watch, spec, store, features, contract, Path(folder) / "run")
    return watch.rows


def evaluate(watch: Watch, checkpoint: Path, cameras: Sequence[str]) -> None:
    from s2robot.evaluation.evaluate import evaluate_policy

    out = Path(tempfile.mkdtemp(dir=checkpoint.parent))
    words = ["evaluate.episodes=1", "evaluate.workers=1", "evaluate.videos=0", TOP,
             f"env.cameras=[{','.join(cameras)}]", f"checkpoint={checkpoint}"]  # fmt: skip
    with watch("evaluate", 1):
        evaluate_policy(composed("evaluate", words, out), checkpoint, out)


# ---------------------------------------------------------------- slopes, plot, summary


def slope(values: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """Of log(cost) over log(value), and its standard error."""
    x, y = np.log(values), np.log(costs)
    x = x - x.mean()
    b = float((x * y).sum() / (x * x).sum())
    rest = y - y.mean() - b * x
    return b, float(np.sqrt((rest @ rest) / max(1, len(x) - 2) / (x @ x)))


def curves(
    points: Sequence[dict[str, Any]],
) -> Iterator[tuple[str, str, list[int], list[float], list[float]]]:
    """(axis, stage, values, cpu_s, mb) of what was measured at three values or more."""
    for axis in AXES:
        mine = sorted((p for p in points if p["axis"] == axis), key=lambda p: p["value"])
        for stage in STAGES:
            found = [(p["value"], p["stages"][stage]) for p in mine if stage in p["stages"]]
            small = (
                stage.startswith("train") and axis == "demos" or stage == "train: start" and axis != "cached"
            )
            if len(found) > 2 and not small:  # of two demos that is too short to be told
                rows = [row for _, row in found]
                yield (
                    axis,
                    stage,
                    [v for v, _ in found],
                    [r["cpu_s"] * r["count"] for r in rows],
                    [r["mb"] for r in rows],
                )


def draw(points: Sequence[dict[str, Any]]) -> None:
    from matplotlib.figure import Figure

    from s2robot.reporting.style import BLUE, GRID, VERMILLION, save_figure, styled

    colours = dict(zip(STAGES, (BLUE, VERMILLION, "#009E73", "#CC79A7", "#7A5195"), strict=True))

    @styled
    def figure() -> Figure:
        known = [axis for axis in AXES if any(name == axis for name, *_ in curves(points))]
        sheet = Figure(figsize=(3.5 * min(3, len(known)), 3.4 * -(-len(known) // 3)), layout="constrained")
        panels = list(sheet.subplots(-(-len(known) // 3), min(3, len(known)), squeeze=False).flat)
        for axes in panels[len(known) :]:
            axes.remove()
        for axes, axis in zip(panels, known, strict=False):
            for name, stage, values, costs, _ in curves(points):
                if name == axis:
                    b, error = slope(values, costs)
                    label = f"{NAMES[stage]}: {b:.2f} ± {error:.2f}"
                    axes.plot(values, costs, marker="o", ms=4, color=colours[stage], label=label)
            axes.set(xscale="log", yscale="log", xlabel=AXES[axis][1], ylabel="processor seconds")
            axes.set_xticks(AXES[axis][2], [str(v) for v in AXES[axis][2]])
            axes.minorticks_off()
            low, high = axes.get_ylim()
            axes.set_ylim(low / 1.3, high * 12)  # room for the legend
            axes.legend(fontsize=6.5, loc="upper left", title="slope", title_fontsize=6.5)
            axes.grid(**GRID)
        return sheet

    save_figure(figure(), PICTURE)


def tell(points: Sequence[dict[str, Any]]) -> None:
    """The table for docs/scale.md, and the rows of the summary."""
    from s2robot.common.files import write_json

    summary = json.loads(SUMMARY.read_text()) if SUMMARY.exists() else {"rows": []}
    rows = {row["what"]: row for row in summary["rows"]}
    for axis, stage, values, costs, mb in curves(points):
        (b, error), (m, wrong) = slope(values, costs), slope(values, mb)
        print(f"| {AXES[axis][1]} {values[0]} → {values[-1]} | {NAMES[stage]} | {costs[0]:.3g} | {costs[-1]:.3g} | "
              f"{b:.2f} ± {error:.2f} | {mb[0]:.0f} | {mb[-1]:.0f} | {m:.2f} ± {wrong:.2f} |")  # fmt: skip
        for unit, first, last, exponent, off in (
            ("CPU s", costs[0], costs[-1], b, error),
            ("MB", mb[0], mb[-1], m, wrong),
        ):
            what = f"{NAMES[stage]}, {AXES[axis][1]} {values[0]} to {values[-1]}, {unit}"
            rows[what] = {"what": what, "baseline": round(first, 4), "ours": round(last, 4), "ratio": round(last / first, 3),
                          "unit": unit, "exponent": round(exponent, 3), "error": round(off, 3),
                          "command": "python benchmarks/scale.py"}  # fmt: skip
    SUMMARY.parent.mkdir(parents=True, exist_ok=True)
    write_json(SUMMARY, summary | {"rows": list(rows.values())})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "runs/scale", help="demos, checkpoints, points.jsonl"
    )
    parser.add_argument("--only", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--figures", action="store_true")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(ROOT))
    for room in ("demos.record", "evaluation.evaluate", "pipeline"):
        importlib.import_module(f"s2robot.{room}")
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "points.jsonl"
    points = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = {(p["axis"], p["value"]) for p in points}
    for axis in [] if args.figures else args.only:
        for value in AXES[axis][2]:
            if (axis, value) in known:
                continue
            points.append({"axis": axis, "value": value, "stages": forked(args.out, axis, value)})
            with file.open("a") as log:
                log.write(json.dumps(points[-1]) + "\n")
            print(json.dumps(points[-1]), flush=True)
    draw(points)
    tell(points)


if __name__ == "__main__":
    main()
