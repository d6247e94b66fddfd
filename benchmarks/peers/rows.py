"""Measure loading of each side in one thread, as rows of docs/results/peers/summary.json.

    python -m benchmarks.peers.rows <folder> [loading/robomimic loading/images]

Peers are installed once, into $S2ROBOT_CACHE/peers (LeRobot's torch brings 7 GB of CUDA libraries). The shipped
demonstrations are converted once, into the folder.
"""

import argparse
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.success import ROOT, keep
from s2robot.core.files import cache_dir, shipped_demos

ONE_THREAD = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}
ROWS = {  # row -> peer whose interpreter runs it, data
    "loading/lerobot": ("lerobot", "lerobot"),
    "loading/robomimic": ("robomimic", "robomimic.hdf5"),
    "loading/images": (None, "images.zarr"),
}
BASE = "loading/robomimic"  # the ratios are to it, so it is measured first
PACKAGES = {  # robomimic does not declare six, and was written for numpy 1
    "lerobot": ["lerobot==0.6.1" if sys.version_info >= (3, 12) else "lerobot==0.4.4"],
    "robomimic": ["robomimic==0.3.0", "six", "numpy<2"],
}
CONVERT = {  # file -> what it is converted from (None: the shipped store), other settings
    "lerobot": (None, ["to=lerobot", "image_size=84"]),
    "robomimic.hdf5": (None, ["image_size=84", "action_range=data"]),
    "images.zarr": ("robomimic.hdf5", []),
}


def python_of(peer: str) -> Path:
    """Return the interpreter of a peer's environment, which is created once."""
    home = cache_dir("peers") / peer
    python, done = home / "bin/python", home / "done"
    if not done.exists():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES[peer]], check=True)
        done.touch()
    return python


def demos(folder: Path, name: str) -> Path:
    """Return a form of the demonstrations, which is made once."""
    if not (folder / name).exists():
        source, words = CONVERT[name]
        data = demos(folder, source) if source else shipped_demos("xarm7_cube")
        paths = [f"data={data}", f"out={folder / name}", f"hydra.run.dir={folder}/convert"]
        subprocess.run([sys.executable, "-m", "s2robot", "convert", *paths, *words], cwd=ROOT, check=True)
    return folder / name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=[*ROWS], help=f"of {', '.join(ROWS)}")
    args = parser.parse_args()
    summary, base, folder = ROOT / "docs/results/peers/summary.json", None, args.folder.resolve()
    for name in sorted(args.names, key=lambda name: name != BASE):
        peer, data = ROWS[name]
        python = python_of(peer) if peer else sys.executable
        words = [python, "-m", "benchmarks.peers.sides", name.partition("/")[2], demos(folder, data), "60"]
        done = subprocess.run(words, cwd=ROOT, env=ONE_THREAD, stdout=subprocess.PIPE, text=True, check=True)
        command = f"python -m benchmarks.peers.rows <folder> {name}"
        row = {"name": name, **json.loads(done.stdout.splitlines()[-1]), "command": command}
        base = row["per_cpu_s"] if name == BASE else base
        keep(summary, row)
        if base:
            print(f"{name}: {row['per_cpu_s'] / base:.2f} x {BASE}", flush=True)


if __name__ == "__main__":
    main()
