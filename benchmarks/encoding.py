"""Processor time of `s2robot encode` a frame, against what drawing and multiplying alone would take.

    python benchmarks/encoding.py
    python benchmarks/encoding.py --episodes 8 --rounds 5

The frames of the first demos are drawn, and encoded with and without its repeats computed once, in turns, by one thread;
medians over the rounds, and whether the features are the same bytes. The bound is what OpenGL takes to draw and hand over a
frame, and the encoder's products at the rate that a large product of matrices reaches here. Writing is left out: it costs next
to nothing. Processor time, so that other programs disturb little.
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
from s2robot.encoders import encoder as module
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


def shares(encoder: module.S2Encoder, frames: np.ndarray) -> tuple[int, int]:
    """Tiles of the frames, and how many of them are computed."""
    counts = [0, 0]

    class Counting(module.Once):  # type: ignore[name-defined, misc]
        def __init__(self, model: Callable) -> None:
            super().__init__(self.count)
            self.inner = model

        def count(self, x: torch.Tensor) -> torch.Tensor:
            counts[1] += len(x)
            return self.inner(x)

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            counts[0] += len(x)
            return super().__call__(x)

    stock, module.Once = module.Once, Counting  # type: ignore[misc]
    encoder.encode(frames)
    module.Once = stock  # type: ignore[misc]
    return counts[0], counts[1]


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
    ways: dict[str, Any] = {"every tile": lambda model: model, "repeats once": module.Once}
    encoder.encode(frames[:8])
    times: dict[str, list[float]] = {name: [] for name in ways}
    features = {}
    tiles, computed = shares(encoder, frames)
    for _ in range(args.rounds):
        for name, once in ways.items():
            module.Once = once  # type: ignore[misc]
            took, features[name] = seconds(lambda: encoder.encode(frames))
            times[name].append(took / len(frames))
    before, now = (statistics.median(times[name]) for name in ways)
    products = encoder.gflops_per_image * 1e9 / peak(DTYPES[encoder.dtype])
    print(f"ms a frame, {len(frames)} frames: drawing {1e3 * drawn:.2f}, OpenGL's part {1e3 * bare:.2f}")
    print(f"tiles: {tiles}, computed {computed} ({computed / tiles:.0%})")
    print(f"encoder: every tile {1e3 * before:.2f}, repeats once {1e3 * now:.2f}, ratio {before / now:.2f}")
    print(f"same bytes: {torch.equal(*features.values())}")
    share = (bare + products) / (drawn + now)
    print(f"products alone {1e3 * products:.2f}; together {share:.0%} of the bound by drawing and products")


if __name__ == "__main__":
    main()
