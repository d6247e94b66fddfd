"""Peak memory of `s2robot probe probe=scaling` on folders of 1,000 and of 50,000 pictures.

    python benchmarks/scaling_memory.py                 # prints a line a folder
    python benchmarks/scaling_memory.py 1000 200000     # other sizes

Pictures are generated, 32 px along a side, of ten classes; the model is timm's smallest with random weights, so that
reading and book-keeping are what is measured. Each folder is encoded and judged by a process of its own, and the peak
resident set is what the system says of that process.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
from PIL import Image
from safetensors.torch import save_file

MODEL = "test_vit"
CLASSES = 10


def write_pictures(folder: Path, count: int) -> None:
    """Noise tinted by class."""
    rng = np.random.default_rng(0)
    for name in range(CLASSES):
        (folder / f"class{name}").mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(0, 100, (32, 32, 3)).astype(np.uint8)
        pixels[..., i % 3] += np.uint8(15 * (i % CLASSES))
        Image.fromarray(pixels).save(folder / f"class{i % CLASSES}" / f"{i:07d}.png", compress_level=1)


def peak_mb(folder: Path, weights: Path, out: Path) -> tuple[float, float]:
    """Peak resident set in MB and CPU seconds of one comparison."""
    words = [
        f"probe.data={folder}", "probe.tasks=[classify]", "~probe.models.tiny", "~probe.models.small",
        f"+probe.models.test={{name: timm:{MODEL}, checkpoint: {weights}}}", "probe.families=[]",
        "probe.scales=[[1]]", "probe.resize=[native]", "probe.seeds=[0]", "probe.head.steps=200",
        f"probe.cache={out / 'cache'}", "probe.resamples=100", f"hydra.run.dir={out / 'run'}",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "s2robot", "probe", "probe=scaling", *words], stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"s2robot probe ended with {process.returncode}")
    return used.ru_maxrss / 1024, used.ru_utime + used.ru_stime


def main() -> None:
    for count in [int(word) for word in sys.argv[1:]] or [1_000, 50_000]:
        with tempfile.TemporaryDirectory() as place:
            root, start = Path(place), time.monotonic()
            write_pictures(root / "pictures", count)
            weights = root / "weights.safetensors"
            save_file(timm.create_model(MODEL, num_classes=0).state_dict(), weights)
            peak, cpu = peak_mb(root / "pictures", weights, root)
            print(
                f"{count:>9,} pictures  peak {peak:.0f} MB  {cpu:.0f} CPU s  ({time.monotonic() - start:.0f} s in all)",
                flush=True,
            )


if __name__ == "__main__":
    main()
