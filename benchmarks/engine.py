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
import time
from pathlib import Path

from benchmarks.rows import ROOT
from s2robot.common.files import write_json
from s2robot.common.on_ray import ASKED

SUMMARY = ROOT / "docs/results/scale/summary.json"
STAGES = ("record", "encode", "evaluate")
SAME = ("demos.zarr/**/*", "cache/**/features.bin", "checkpoint/policy.safetensors", "actions/*.npy", "episodes.jsonl")  # fmt: skip
NODE = {"num_cpus": 1, "object_store_memory": 300_000_000}


def processor_s() -> float:
    """Processor seconds of this process and of all below it, also of those that have ended."""
    stats = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        stats[int(file.parent.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    ours, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, (parent, _) in stats.items() if parent in ours} - ours
        ours |= more
        grown = bool(more)
    return sum(ticks for pid, (_, ticks) in stats.items() if pid in ours) / os.sysconf("SC_CLK_TCK")


def job(folder: Path, words: list[str], size: list[str]) -> tuple[float, float, dict[str, bytes]]:
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
    before = processor_s()
    with (folder / "log.txt").open("w") as log:
        env = os.environ | {"S2ROBOT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=True, env=env)
    time.sleep(2)  # for Ray to end its workers
    used = processor_s() - before
    stages = {row["stage"]: row for row in json.loads((folder / "stages.json").read_text())}
    used -= stages["train"]["processor_s"]
    files = sorted(file for pattern in SAME for file in folder.glob(pattern) if file.is_file())
    found = {str(file.relative_to(folder)): file.read_bytes() for file in files}
    return sum(stages[name]["seconds"] for name in STAGES), used, found


def keep(rows: list[dict]) -> None:
    """Rows of the summary, each in the place of the one of its `what`."""
    summary = json.loads(SUMMARY.read_text()) if SUMMARY.exists() else {"rows": []}
    found = {row["what"]: row for row in summary["rows"]} | {row["what"]: row for row in rows}
    SUMMARY.parent.mkdir(parents=True, exist_ok=True)
    write_json(SUMMARY, summary | {"rows": list(found.values())})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("/tmp/engine"), help="folder for the runs")
    parser.add_argument("--turns", type=int, default=2, help="times that each engine does the job")
    parser.add_argument("--episodes", type=int, default=12, help="demos, and positions of the evaluation")
    args = parser.parse_args()
    os.environ.update(ASKED)
    from ray.cluster_utils import Cluster

    n = args.episodes
    size = [f"recording.episodes={n}", "recording.workers=2", f"evaluate.episodes={n}", "evaluate.workers=2",
            "evaluate.videos=0", "features.workers=2", "features.threads=1", "train.steps=20"]  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    cluster.add_node(**NODE)
    try:
        engines = {"local": [], "ray": ["engine=ray", f"engine.address={cluster.address}"]}
        found: dict[str, list] = {name: [] for name in engines}
        for turn in range(args.turns):
            for name, words in engines.items():
                found[name].append(job(args.out / f"{name}-{turn}", words, size))
                print(name, *(round(x, 1) for x in found[name][-1][:2]), flush=True)
    finally:
        cluster.shutdown()
    alike = all(files == found["local"][0][2] for runs in found.values() for *_, files in runs)
    rows = []
    for place, what in enumerate(("wall", "processor")):
        local, ray = (statistics.median(run[place] for run in found[name]) for name in ("local", "ray"))
        rows.append(
            {
                "what": f"two Ray nodes of one core against two local workers, {what} seconds",
                "baseline": round(local, 1),
                "ours": round(ray, 1),
                "ratio": round(local / ray, 3),  # of the speeds
                "unit": "s",
                "same_bytes": alike,
                "command": f"python -m benchmarks.engine --turns {args.turns} --episodes {n}",
            }
        )
        print(json.dumps(rows[-1]))
    keep(rows)


if __name__ == "__main__":
    main()
