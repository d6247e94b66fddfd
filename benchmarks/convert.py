"""Measure conversions: CPU time of reading a dataset, size and loss of images on the way out.

    python benchmarks/convert.py in aloha --pictures h264       # as LeRobot v3.0 with H.264; without: as it is
    python benchmarks/convert.py out aloha                      # every way to store images
CPU time is of all threads. PSNR is of the mean squared error over all frames.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from timeit import timeit

import numpy as np

from s2robot.demos.formats.convert import as_store, convert
from s2robot.demos.formats.export import PICTURES, ExportSettings, export, pieces
from s2robot.demos.store import EpisodeStore

seconds = partial(timeit, timer=time.process_time, number=1)  # of one call


def errors(store: EpisodeStore, back: EpisodeStore) -> np.ndarray:
    """Return the mean squared error of each frame, (frames,)."""
    found, keys = [], [f"images_{name}" for name in store.cameras]
    for i in range(len(store)):
        for ours, theirs in zip(pieces(store, i), pieces(back, i), strict=True):
            away = [np.square(ours[key].astype(np.float32) - theirs[key]) for key in keys]
            found += [each.mean((1, 2, 3), dtype=np.float64) for each in away]
    return np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("way", choices=("in", "out"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--pictures", choices=PICTURES)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def written(store: EpisodeStore, pictures: str) -> float:
            settings = ExportSettings.model_validate({"pictures": pictures})
            return seconds(lambda: export(store, folder / pictures, "lerobot", settings))

        if args.way == "in":
            data = args.data
            if args.pictures:
                written(EpisodeStore.open(as_store(data, folder / "cache")), args.pictures)
                data = folder / args.pictures
            cpu = seconds(lambda: convert(data, folder / "out.zarr"))
            store = EpisodeStore.open(folder / "out.zarr")
            frames = store.num_steps * len(store.cameras)
            print(f"{frames} frames, {cpu:.1f} s CPU: {frames / cpu:.0f} frames per CPU second")
            return
        # once as PNG: demonstrations that hold states are drawn, which takes longest
        written(EpisodeStore.open(as_store(args.data, folder / "cache")), "png")
        convert(folder / "png", folder / "drawn.zarr")
        store = EpisodeStore.open(folder / "drawn.zarr")
        frames = store.num_steps * len(store.cameras)
        (folder / "png").rename(folder / "first")
        for pictures in PICTURES:
            cpu = written(store, pictures)
            convert(folder / pictures, folder / f"{pictures}.zarr")
            squares = errors(store, EpisodeStore.open(folder / f"{pictures}.zarr"))
            ratio = 10 * np.log10(255**2 / squares.mean()) if squares.any() else np.inf
            size = sum(f.stat().st_size for f in (folder / pictures).rglob("*") if f.is_file())
            print(f"{pictures}: {size / frames:.0f} bytes and {1e3 * cpu / frames:.1f} ms of CPU time a frame, "
                  f"PSNR {ratio:.1f} dB", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
