"""What it costs to train blocks of the encoder (`train.tune`): bytes of a frame in the cache, ms of a gradient step.

    OMP_NUM_THREADS=1 python benchmarks/tuning.py
    OMP_NUM_THREADS=1 python benchmarks/tuning.py --only s2=single train.tune.blocks=1

Each row is a training on 15 of the shipped demos with the default policy on features of the right size that hold noise. A step
is counted in seconds of the process's processors, so that other programs disturb little; the first ones do not count.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from s2robot.common.paths import configs_dir
from s2robot.encoders.build import build_encoder
from s2robot.encoders.tuning import build_entering
from s2robot.pipeline import read_task, train_policy

ROWS = (
    [], ["train.tune.blocks=1"], ["train.tune.blocks=2"], ["train.tune.blocks=2", "train.tune.lora=8"],
    ["s2=single"], ["s2=single", "train.tune.blocks=1"], ["s2=single", "train.tune.blocks=2"],
)  # fmt: skip
WARM, STEPS = 2, 8


class Enough(Exception):
    """The time is known."""


def measure(overrides: list[str]) -> tuple[int, float]:
    """Bytes of a frame of one camera, and seconds of a step."""
    fixed = ["train.loggers=[]", "train.accelerator=cpu", "train.threads=1", "demos.episodes=15"]
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        task = read_task(compose("train", [*overrides, *fixed]))
    store, encoder = task.open_demos(), build_encoder(task.encoder)
    blocks = task.train.tune.blocks
    read = build_entering(task.encoder, blocks) if blocks else encoder
    shape = (store.num_steps, len(task.cameras), read.num_tokens, read.dim)
    seen: list[float] = []

    def watched(self, *args, **kwargs):
        seen.append(time.process_time())
        if len(seen) > WARM + STEPS:
            raise Enough
        return step(self, *args, **kwargs)

    from s2robot.training.loop import Learner

    step = Learner.update
    Learner.update = watched  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        noise = np.random.default_rng(0).standard_normal((64, *shape[1:]), np.float32).astype(np.float16)
        features = np.memmap(Path(folder) / "features", np.float16, "w+", shape=shape)
        for begin in range(0, shape[0], len(noise)):
            features[begin : begin + len(noise)] = noise[: shape[0] - begin]
        try:
            train_policy(task, store, encoder, features, Path(folder) / "run")
        except Enough:
            pass
        finally:
            Learner.update = step  # type: ignore[method-assign]
    return read.num_tokens * read.dim * 2, (seen[-1] - seen[WARM]) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", help="overrides of one row")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| `s2robot train` | bytes a frame | ms a step |\n|---|---|---|")
    for overrides in ROWS if args.only is None else [args.only]:
        size, seconds = measure(overrides)
        print(f"| `{' '.join(overrides) or '(as it is)'}` | {size:,} | {1e3 * seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
