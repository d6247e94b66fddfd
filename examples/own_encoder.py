"""Your own encoder: any module from images to tokens, with S², a fingerprint and a feature cache.

python examples/own_encoder.py mine.zarr        # a store written by own_demos.py
"""

import argparse

import numpy as np
import torch
from torch import nn

from s2robot.demos.store import EpisodeStore
from s2robot.encoders import S2Encoder


class Patches(nn.Module):
    """Normalised images (B, 3, 64, 64) -> tokens (B, 16, 32): one linear layer per patch of 16 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, 32, kernel_size=16, stride=16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(x).flatten(2).transpose(1, 2)  # (B, N, D)


def main(argv: list[str] | None = None) -> np.ndarray:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", help="a dataset with stored frames")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    encoder = S2Encoder(
        Patches(), sizes=(64, 128), tile=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), name="patches"
    )  # two sizes: the whole frame at 64 px, and its quarters at 128 px
    print(f"{encoder.num_tokens} tokens of {encoder.dim} channels, fingerprint {encoder.fingerprint[:12]}")

    store = EpisodeStore.open(args.path)
    features = []
    for i in range(len(store)):
        steps = store.episode(i)
        cameras = [steps[f"images_{camera}"] for camera in store.cameras]  # each (T, H, H, 3)
        features.append(torch.stack([encoder.encode(frames) for frames in cameras], 1))  # (T, C, N, D)
    result = torch.cat(features).numpy()
    print(f"features {result.shape}: steps, cameras, tokens, channels")
    return result


if __name__ == "__main__":
    main()
