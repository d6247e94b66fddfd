"""Copy demos with disturbed images: augmentation for a frozen encoder, whose features are computed once and cached.

python examples/disturbed_demos.py demos/data/xarm7_cube.zarr disturbed.zarr
s2robot run "demos.mix=[{path: demos/data/xarm7_cube.zarr, weight: 1}, {path: disturbed.zarr, weight: 1}]"
"""

import argparse

import numpy as np

from s2robot.core.timing import cores
from s2robot.demos.replay import camera_sizes, render_episodes
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
    chosen = list(range(len(store))[: args.episodes])
    with EpisodeStore.create(args.out, store.attrs | {"kind": "images"}) as out:
        for i, frames in render_episodes(store, chosen, store.cameras, args.size, cores()):
            arrays, rng = store.episode(i), np.random.default_rng(i)
            arrays.pop("state", None)  # the images take its place
            arrays |= {f"images_{c}": disturbed(x, rng) for c, x in zip(store.cameras, frames, strict=True)}
            out.append(arrays, {key: store.meta(key)[i] for key in store.meta_keys})
    store = EpisodeStore.open(args.out)
    print(f"{len(store)} episodes, frames of {camera_sizes(store, store.cameras)}: {store.path}")
    return store


if __name__ == "__main__":
    main()
