"""What a conversion takes: time and memory of the way in, size and loss of pictures on the way out.

    python benchmarks/convert.py in aloha                                # as it is
    python benchmarks/convert.py in aloha --pictures h264 --times 4      # as LeRobot v3.0 with H.264, four times end to end
    python benchmarks/convert.py out aloha --episodes 8                  # each way to keep pictures

CPU time is of all threads; frames a second are by the clock, and by CPU time on two cores. PSNR is of the mean squared error
over all frames, and of the worst frame.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from s2robot.demos.formats.convert import as_store, convert
from s2robot.demos.formats.export import PICTURES, ExportSettings, export, pieces
from s2robot.demos.store import EpisodeStore


def size_of(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def taken_in(path: Path, out: Path) -> None:
    """Convert, and print what it took."""
    clock, cpu = time.monotonic(), time.process_time()
    convert(path, out)
    clock, cpu = time.monotonic() - clock, time.process_time() - cpu
    store = EpisodeStore.open(out)
    frames = store.num_steps * len(store.cameras)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would be the parent's where that is larger
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
    print(
        f"{frames} frames, {clock:.1f} s, {cpu:.1f} s CPU: {frames / clock:.0f} frames/s by the clock, "
        f"{2 * frames / cpu:.0f} by CPU time on two cores; {peak:.0f} MB of memory, {size_of(out) / 1e6:.0f} MB on disk"
    )


def taken_out(store: EpisodeStore, folder: Path) -> None:
    """Print size, loss and CPU time of each way to keep pictures."""
    drawn = folder / "drawn"  # once: of demos that hold states, drawing takes longest
    export(store, drawn, "lerobot", ExportSettings(pictures="png"))
    convert(drawn, folder / "drawn.zarr")
    store = EpisodeStore.open(folder / "drawn.zarr")
    frames = store.num_steps * len(store.cameras)
    for name in PICTURES:
        cpu = time.process_time()
        export(store, folder / name, "lerobot", ExportSettings(pictures=name))
        cpu = time.process_time() - cpu
        convert(folder / name, folder / f"{name}.zarr")
        back = EpisodeStore.open(folder / f"{name}.zarr")
        errors = np.concatenate([_errors(store, back, i) for i in range(len(store))])
        mean, worst = (10 * np.log10(255**2 / e) if e else np.inf for e in (errors.mean(), errors.max()))
        print(
            f"{name}: {size_of(folder / name) / frames:.0f} bytes and {1e3 * cpu / frames:.1f} ms of CPU time a frame, "
            f"PSNR {mean:.1f} dB, worst frame {worst:.1f} dB",
            flush=True,
        )


def _errors(store: EpisodeStore, back: EpisodeStore, i: int) -> np.ndarray:
    """Mean squared error of each frame of an episode.  # (frames,)"""
    found = []
    for ours, theirs in zip(pieces(store, i), pieces(back, i), strict=True):
        for key in (f"images_{name}" for name in store.cameras):
            away = np.square(ours[key].astype(np.float32) - theirs[key])
            found.append(away.mean((1, 2, 3), dtype=np.float64))
    return np.concatenate(found)


def first(path: Path, folder: Path, episodes: int | None, times: int) -> EpisodeStore:
    """The first episodes of a data set, `times` end to end."""
    one = EpisodeStore.open(as_store(path, folder / "cache"))
    if episodes is None and times == 1:
        return one
    with EpisodeStore.create(folder / "some.zarr", one.attrs) as some:
        for _ in range(times):
            some.append_all(one, episodes)
    return some


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("way", choices=("in", "out"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--pictures", choices=PICTURES)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--episodes", type=int)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.into:
        return taken_in(chosen.data, chosen.into)
    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), chosen.data
        if chosen.way == "out":
            return taken_out(first(data, folder, chosen.episodes, chosen.times), folder)
        if chosen.pictures:
            store = first(data, folder, chosen.episodes, chosen.times)
            data = folder / "lerobot"
            export(store, data, "lerobot", ExportSettings(pictures=chosen.pictures))
        # a process of its own: its memory is what the import takes
        subprocess.run([sys.executable, __file__, "in", data, "--into", folder / "out.zarr"], check=True)


if __name__ == "__main__":
    main()
