"""Processor time of `s2robot encode` a frame, against what drawing and multiplying alone would take.

    python benchmarks/encoding.py
    python benchmarks/encoding.py --episodes 8 --rounds 5

The frames of the first demos are drawn, and encoded, by one thread; the median over the rounds. The bound is what OpenGL
takes to draw and hand over a frame, and the encoder's products at the rate that a large product of matrices reaches here;
those of tiles that repeat, which are not computed, count among them.
Writing is left out: it costs next to nothing. Processor time, so that other programs disturb little.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from s2robot.common.paths import shipped_demos
from s2robot.demos.replay import episode_frames
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.build import build_encoder
from s2robot.encoders.encoder import DTYPES
from s2robot.envs.gl import choose_gl

CAMERAS = ("hand", "left", "right")


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of a call, and its result."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def peak(dtype: torch.dtype, side: int = 2048, rounds: int = 5) -> float:
    """Multiply-adds a processor second of one large product, the best of some."""
    a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    return side**3 / min(seconds(lambda: a @ b)[0] for _ in range(rounds))


def drawing(store: EpisodeStore, episodes: int) -> tuple[np.ndarray, float, float]:
    """The frames, (n, H, W, 3) step by step, and a frame's seconds: of all that draws, and of OpenGL alone."""
    choose_gl()
    import mujoco

    spent = [0.0]

    def timed(function: Callable) -> Callable:
        def call(*given: Any) -> Any:
            took, result = seconds(lambda: function(*given))
            spent[0] += took
            return result

        return call

    episode_frames(store.path, 0, CAMERAS, 256)  # the world, the context and what stands still
    stock = mujoco.mjr_render, mujoco.mjr_readPixels
    mujoco.mjr_render, mujoco.mjr_readPixels = map(timed, stock)
    try:
        whole, found = seconds(
            lambda: [episode_frames(store.path, i + 1, CAMERAS, 256) for i in range(episodes)]
        )
    finally:
        mujoco.mjr_render, mujoco.mjr_readPixels = stock
    frames = np.concatenate([np.stack(each, 1).reshape(-1, 256, 256, 3) for each in found])
    return frames, whole / len(frames), spent[0] / len(frames)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    frames, drawn, bare = drawing(EpisodeStore.open(shipped_demos("xarm7_cube")), args.episodes)
    encoder = build_encoder({"name": "mvp-tiny", "sizes": [128, 256], "dtype": "bfloat16"})
    encoder.encode(frames[:8])
    took = statistics.median(seconds(lambda: encoder.encode(frames))[0] for _ in range(args.rounds))
    encoded = took / len(frames)
    products = encoder.gflops_per_image * 1e9 / peak(DTYPES[encoder.dtype])
    print(f"ms a frame, {len(frames)} frames: drawing {1e3 * drawn:.2f}, OpenGL's part {1e3 * bare:.2f}")
    share = (bare + products) / (drawn + encoded)
    print(f"encoder: {1e3 * encoded:.2f}, products alone {1e3 * products:.2f}")
    print(f"{share:.0%} of the bound by drawing and products")


if __name__ == "__main__":
    main()
