"""How fast a data set of another format becomes an episode store, and in how much memory.

    python benchmarks/convert.py aloha
    python benchmarks/convert.py aloha --pictures h264 --times 4

With `--pictures` the data set is first written as LeRobot v3.0 with pictures of that codec, so many times end to end, and
that is what is read. CPU time is of all threads; frames a second are by the clock, and by CPU time on two cores.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from s2robot.demos.formats.convert import as_store, convert
from s2robot.demos.formats.export import ExportSettings, export
from s2robot.demos.store import EpisodeStore


def measured(path: Path, out: Path) -> None:
    """Convert, and print what it took."""
    clock, cpu = time.monotonic(), time.process_time()
    convert(path, out)
    clock, cpu = time.monotonic() - clock, time.process_time() - cpu
    store = EpisodeStore.open(out)
    frames = store.num_steps * len(store.cameras)
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    status = Path("/proc/self/status").read_text()  # ru_maxrss would be the parent's where that is larger
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
    print(
        f"{frames} frames, {clock:.1f} s, {cpu:.1f} s CPU: {frames / clock:.0f} frames/s by the clock, "
        f"{2 * frames / cpu:.0f} by CPU time on two cores; {peak:.0f} MB of memory, {size / 1e6:.0f} MB on disk"
    )


def repeated(path: Path, times: int, pictures: str, folder: Path) -> Path:
    """The data set as LeRobot v3.0, `times` end to end."""
    one = EpisodeStore.open(as_store(path, folder / "cache"))
    with EpisodeStore.create(folder / "many.zarr", one.attrs) as many:
        for _ in range(times):
            many.append_all(one)
    export(many, folder / "many", "lerobot", ExportSettings(pictures=pictures))
    return folder / "many"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--pictures", choices=("h264", "av1", "png"))
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.out:
        return measured(chosen.data, chosen.out)
    with tempfile.TemporaryDirectory() as folder:
        data = chosen.data
        if chosen.pictures:
            data = repeated(data, chosen.times, chosen.pictures, Path(folder))
        # a process of its own: its memory is what the import takes
        subprocess.run([sys.executable, __file__, data, "--out", Path(folder, "out.zarr")], check=True)


if __name__ == "__main__":
    main()
