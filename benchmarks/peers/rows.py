"""The rows of docs/results/peers/summary.json, each by its name: peers are installed, demos converted, policies trained once.

    python -m benchmarks.peers.rows <folder>                               # all of them
    python -m benchmarks.peers.rows <folder> act/60 --positions 128
    taskset -c 1 python -m benchmarks.peers.rows <folder> robomimic/10     # success after 10 core-minutes
    python -m benchmarks.peers.rows <folder> loading/robomimic world/ours

Success: `robomimic/<core-minutes>`, `act/<...>`, `diffusion/<...>`, and `ours/<...>`, which is `s2robot run` as it is, with
an empty cache, and fails if start, drawing, encoding and training take longer. What a row was made of stays in the folder.
Everything has one thread: on a busy machine threads wait for each other, which counts as CPU time (a step of ACT took
several times as much with two).
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.evaluate import FIRST, ROOT, evaluate
from benchmarks.peers.setup import python_of
from benchmarks.rows import keep, run

SUMMARY = ROOT / "docs/results/peers/summary.json"
ONE_THREAD = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}
SIZE = 84  # px, of the pictures in all peers' demos
PEERS = {  # algorithm -> peer, what its demos are called, words for its training
    "robomimic": ("robomimic", "robomimic.hdf5", []),
    "act": ("lerobot", "lerobot", ["act"]),
    "diffusion": ("lerobot", "lerobot", ["diffusion"]),
}
COUNTED = ("episodes", "successes", "low", "high", "by_stage")  # of an evaluation's summary
TIMED = {  # what is timed -> peer whose python it is, module, words
    "loading/lerobot": ("lerobot", "lerobot_peer", ["load", "{}/lerobot", "60"]),
    "loading/robomimic": ("robomimic", "robomimic_peer", ["load", "{}/robomimic.hdf5", "60"]),
    "loading/features": (None, "ours", ["features", "{}/labelled.zarr", "60"]),
    "loading/images": (None, "ours", ["images", "{}/images.zarr", "60"]),
    "world/ours": (None, "ours", ["world", "ours", "60"]),
    "world/robosuite": (None, "ours", ["world", "robosuite", "60"]),
}


def words_of(peer: str | None, module: str, *words: str) -> list[str]:
    """A command of one side, in its own environment."""
    python = str(python_of(peer)) if peer else sys.executable
    return [python, "-m", f"benchmarks.peers.{module}", *words]


def demos(folder: Path, name: str) -> None:
    """A form of the demos, unless it is there: `images.zarr` is robomimic's file read back."""
    if (folder / name).exists():
        return
    words = [sys.executable, "-m", "benchmarks.peers.demos", str(folder)]
    words.append("lerobot" if name == "lerobot" else "robomimic")
    if name == "images.zarr":
        demos(folder, "robomimic.hdf5")
        words = [sys.executable, "-m", "s2robot", "convert", f"data={folder}/robomimic.hdf5"]
        words += [f"out={folder}/{name}", f"hydra.run.dir={folder}/convert_images"]
    subprocess.run(words, cwd=ROOT, check=True)


def success(folder: Path, name: str, positions: int) -> dict[str, Any]:
    """Train within the budget, then evaluate."""
    algorithm, minutes = name.split("/")
    peer, data, words = PEERS[algorithm]
    out, module = folder / name.replace("/", "_"), f"{peer}_peer"
    if not (out / "budget.json").exists():
        demos(folder, data)
        out.mkdir(exist_ok=True)
        train = words_of(peer, module, "train", str(folder / data), str(out), minutes, *words)
        subprocess.run(train, cwd=ROOT, env=ONE_THREAD, check=True)
    summary = evaluate(words_of(peer, module, "act", str(out)), out / "world", SIZE, positions)
    spent = summary["spent"]
    made = json.loads((out / "budget.json").read_text())
    act = {"act_cpu_ms": round(1000 * spent["act_cpu_s"] / max(spent["actions"], 1), 1)}
    about = {"peer": peer, "algorithm": algorithm, "minutes": int(minutes)}
    return about | made | {key: summary[key] for key in COUNTED} | act


def ours(folder: Path, name: str, positions: int) -> dict[str, Any]:
    """`s2robot run`; its own table says how much CPU time each stage took, with all processes that had a part in it."""
    minutes, out = int(name.split("/")[1]), folder / name.replace("/", "_")
    if not (out / "done").exists():
        shutil.rmtree(out, ignore_errors=True)  # nobody knows what a run that was cut off had spent
        asked = [f"evaluate.episodes={positions}", f"evaluate.seed={FIRST}", "evaluate.videos=0"]
        run("run", [f"features.cache={out}/features", *asked], out)
    stages = {row["stage"]: row["processor_s"] for row in json.loads((out / "stages.json").read_text())}
    spent = sum(stages[stage] for stage in ("start", "encode", "train"))
    if spent > 60 * minutes:
        raise SystemExit(f"{name}: found {spent} s of CPU time, expected {60 * minutes} at most")
    steps = json.loads((out / "metrics.json").read_text())[-1]["step"]
    summary = json.loads((out / "summary.json").read_text())
    about = {"peer": "s2robot", "algorithm": "regression, S2", "minutes": minutes, "steps": steps}
    return about | {"cpu_s": round(spent, 1)} | {key: summary[key] for key in COUNTED}


def timed(folder: Path, name: str) -> dict[str, Any]:
    """What a loop of one side prints."""
    peer, module, words = TIMED[name]
    for word in words:
        if word.startswith("{}/"):
            demos(folder, word.removeprefix("{}/"))
    command = words_of(peer, module, *(word.format(folder) for word in words))
    done = subprocess.run(command, cwd=ROOT, env=ONE_THREAD, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=[*TIMED, *(f"{name}/10" for name in ("ours", *PEERS))])
    parser.add_argument("--positions", type=int, default=128)
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        if name in TIMED:
            row = timed(folder, name)
        else:
            row = (ours if name.startswith("ours/") else success)(folder, name, args.positions)
        command = shlex.join(["python", "-m", "benchmarks.peers.rows", "<folder>", name])
        keep(SUMMARY, "rows", {"name": name, **row, "command": command})


if __name__ == "__main__":
    main()
