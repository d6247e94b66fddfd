"""Copy demos with disturbed images: augmentation for a frozen encoder, whose features are computed once and cached.

python examples/disturbed_demos.py demos/data/xarm7_cube.zarr disturbed.zarr
s2robot run "demos.mix=[{path: demos/data/xarm7_cube.zarr, weight: 1}, {path: disturbed.zarr, weight: 1}]"
"""

import argparse

import numpy as np

from s2robot.core.workers import worker_pool
from s2robot.demos.replay import camera_sizes, episode_frames
from s2robot.demos.store import EpisodeStore
from s2robot.envs.disturb import IMAGES

# axis of `s2robot stress` -> the range of its values, drawn uniformly on a logarithmic scale
RANGES = {
    "exposure": (0.3, 2),
    "contrast": (0.3, 1.5),
    "blur": (0.002, 0.03),
    "noise": (2, 32),
    "compression": (5, 60),
}


def disturbed(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return frames, uint8 (T, H, W, 3), each with other colours and one disturbance."""
    out = []
    for frame in frames:
        axis = rng.choice([*RANGES])
        low, high = np.log(RANGES[axis])
        tinted = np.clip(frame * rng.uniform(0.7, 1.3, 3), 0, 255).astype(np.uint8)
        out.append(IMAGES[axis](tinted, float(np.exp(rng.uniform(low, high))), rng))
    return np.stack(out)


def copied(path: str, episode: int, size: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the arrays of one episode, with images in place of simulator states, and what is stored about it."""
    store, rng = EpisodeStore.open(path), np.random.default_rng(episode)
    frames = episode_frames(path, episode, store.cameras, size)
    arrays = {key: x for key, x in store.episode(episode).items() if key != "state"}
    arrays |= {f"images_{c}": disturbed(x, rng) for c, x in zip(store.cameras, frames, strict=True)}
    return arrays, {key: store.meta(key)[episode] for key in store.meta_keys}


def main(argv: list[str] | None = None) -> EpisodeStore:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", help="the dataset")
    parser.add_argument("out", help="folder to write, such as disturbed.zarr; an existing one is rejected")
    parser.add_argument("--episodes", type=int, help="only the first ones")
    parser.add_argument(
        "--size", type=int, default=256, help="side of rendered frames: the encoder's, in pixels"
    )
    args = parser.parse_args(argv)
    store = EpisodeStore.open(args.path)
    with EpisodeStore.create(args.out, store.attrs | {"kind": "images"}) as out, worker_pool(2) as pool:
        tasks = [(args.path, i, args.size) for i in range(len(store))[: args.episodes]]
        for arrays, meta in pool.in_order(copied, tasks):
            out.append(arrays, meta)
    store = EpisodeStore.open(args.out)
    print(f"{len(store)} episodes, frames of {camera_sizes(store, store.cameras)}: {store.path}")
    return store


if __name__ == "__main__":
    main()
