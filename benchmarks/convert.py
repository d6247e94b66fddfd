"""Measure export to LeRobot: CPU time of all threads, size and loss (PSNR over all frames) of images, for each way to store them.

python benchmarks/convert.py aloha
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from timeit import timeit

import numpy as np

from s2robot.demos.formats.convert import as_store, convert
from s2robot.demos.formats.export import ExportSettings, all_pieces, export
from s2robot.demos.store import EpisodeStore

seconds = partial(timeit, timer=time.process_time, number=1)  # of one call


def errors(store: EpisodeStore, back: EpisodeStore) -> np.ndarray:
    """Return the mean squared error of each frame, (frames,)."""
    found, keys = [], [f"images_{name}" for name in store.cameras]
    for (_, _, ours), (_, _, theirs) in zip(all_pieces(store), all_pieces(back), strict=True):
        away = [np.square(ours[key].astype(np.float32) - theirs[key]) for key in keys]
        found += [each.mean((1, 2, 3), dtype=np.float64) for each in away]
    return np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # once as PNG: demonstrations that hold states are drawn, which takes longest
        first = ExportSettings.model_validate({"image_codec": "png"})
        export(EpisodeStore.open(as_store(args.data, folder / "cache")), folder / "first", "lerobot", first)
        convert(folder / "first", folder / "drawn.zarr")
        store = EpisodeStore.open(folder / "drawn.zarr")
        frames = store.num_steps * len(store.cameras)
        for pictures in ("h264", "png"):
            settings = ExportSettings.model_validate({"image_codec": pictures})
            cpu = seconds(partial(export, store, folder / pictures, "lerobot", settings))
            convert(folder / pictures, folder / f"{pictures}.zarr")
            squares = errors(store, EpisodeStore.open(folder / f"{pictures}.zarr"))
            ratio = 10 * np.log10(255**2 / squares.mean()) if squares.any() else np.inf
            size = sum(f.stat().st_size for f in (folder / pictures).rglob("*") if f.is_file())
            print(f"{pictures}: {size / frames:.0f} bytes and {1e3 * cpu / frames:.1f} ms of CPU time a frame, "
                  f"PSNR {ratio:.1f} dB", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
