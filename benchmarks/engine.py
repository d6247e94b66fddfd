"""Two nodes of Ray's, a core each, against two processes: the same small job, the same bytes.

    python -m benchmarks.engine --out /tmp/engine               # rows into docs/results/scale/summary.json

The job is `s2robot run record=true`; its training is not counted, which no engine takes part in. Both engines take turns, each
`--turns` times. Wall seconds, connecting to Ray and the starts of workers among them; and processor seconds of all
processes, which another load on the machine does not change.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

from benchmarks.rows import ROOT, keep
from s2robot.core.ray import ASKED

SUMMARY = ROOT / "docs/results/scale/summary.json"
STAGES = ("record", "encode", "evaluate")
SAME = ("demos.zarr/**/*", "cache/**/features.bin", "checkpoint/policy.safetensors", "actions/*.npy", "episodes.jsonl")  # fmt: skip
NODE = {"num_cpus": 1, "object_store_memory": 300_000_000}


class Meter(Thread):
    """Processor seconds below some processes: looks twice a second, as Ray's workers leave no account of themselves."""

    def __init__(self, roots: set[int]) -> None:
        super().__init__(daemon=True)
        self.roots, self.over = roots, Event()
        self.first = self._look()
        self.last = dict(self.first)

    def _look(self) -> dict[int, int]:
        stats = {}
        for file in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = file.read_text().rpartition(")")[2].split()
            except OSError:  # ended meanwhile
                continue
            stats[int(file.parent.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
        below, grown = set(self.roots), True
        while grown:
            more = {pid for pid, (parent, _) in stats.items() if parent in below} - below
            below |= more
            grown = bool(more)
        return {pid: ticks for pid, (_, ticks) in stats.items() if pid in below}

    def run(self) -> None:
        while not self.over.wait(0.5):
            self.last |= self._look()

    def seconds(self) -> float:
        self.over.set()
        self.join()
        ticks = sum(ticks - self.first.get(pid, 0) for pid, ticks in self.last.items())
        return ticks / os.sysconf("SC_CLK_TCK")


def job(folder: Path, words: list[str], size: list[str], nodes: set[int]) -> tuple[float, float, dict]:
    """Wall and processor seconds of the stages that an engine takes part in, and the files that have to be the same."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [
        sys.executable,
        "-m",
        "s2robot",
        "run",
        "record=true",
        *size,
        *words,
        f"hydra.run.dir={folder}",
    ]
    with (folder / "log.txt").open("w") as log:
        env = os.environ | {"S2ROBOT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=env)
        meter = Meter(nodes | {process.pid})
        meter.start()
        if process.wait():
            raise SystemExit(f"{folder / 'log.txt'} says why the job failed")
    stages = {row["stage"]: row for row in json.loads((folder / "stages.json").read_text())}
    used = meter.seconds() - stages["train"]["processor_s"]
    files = sorted(file for pattern in SAME for file in folder.glob(pattern) if file.is_file())
    found = {str(file.relative_to(folder)): file.read_bytes() for file in files}
    return sum(stages[name]["seconds"] for name in STAGES), used, found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("/tmp/engine"), help="folder for the runs")
    parser.add_argument("--turns", type=int, default=2, help="times that each engine does the job")
    parser.add_argument("--episodes", type=int, default=12, help="demos, and positions of the evaluation")
    parser.add_argument(
        "--together", action="store_true", help="both at once, for a machine that other work loads"
    )
    args = parser.parse_args()
    os.environ.update(ASKED)
    from ray.cluster_utils import Cluster

    n = args.episodes
    size = [f"recording.episodes={n}", "recording.workers=2", f"evaluate.episodes={n}", "evaluate.workers=2",
            "evaluate.videos=0", "features.workers=2", "features.threads=1", "train.steps=20"]  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    cluster.add_node(**NODE)
    try:
        nodes = {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
        engines = {
            "local": ([], set()),
            "ray": (["engine=ray", f"engine.address={cluster.address}"], nodes),
        }
        found: dict[str, list] = {name: [] for name in engines}
        for turn in range(args.turns):
            with ThreadPoolExecutor(len(engines) if args.together else 1) as pool:
                done = {
                    name: pool.submit(job, args.out / f"{name}-{turn}", words, size, below)
                    for name, (words, below) in engines.items()
                }
                for name, result in done.items():
                    found[name].append(result.result())
                    print(name, *(round(x, 1) for x in found[name][-1][:2]), flush=True)
    finally:
        cluster.shutdown()
    alike = all(files == found["local"][0][2] for runs in found.values() for *_, files in runs)
    for place, what in enumerate(("wall", "processor")):
        local, ray = (statistics.median(run[place] for run in found[name]) for name in ("local", "ray"))
        keep(
            SUMMARY,
            "rows",
            {
                "what": f"two Ray nodes of one core against two local workers, {what} seconds",
                "baseline": round(local, 1),
                "ours": round(ray, 1),
                "ratio": round(local / ray, 3),  # of the speeds
                "unit": "s",
                "same_bytes": alike,
                "command": f"python -m benchmarks.engine --turns {args.turns} --episodes {n}"
                + " --together" * args.together,
            },
            by="what",
        )


if __name__ == "__main__":
    main()
