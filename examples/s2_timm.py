"""S² on a timm model: one line instead of the model, for images of any shape.

python examples/s2_timm.py --model vit_base_patch16_224 --pretrained photo.jpg
"""

import argparse

import numpy as np
import timm
import torch
from PIL import Image

from s2robot import S2


def main(argv: list[str] | None = None) -> torch.Tensor:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", nargs="*", help="image files of one size; default: an image of noise")
    parser.add_argument("--model", default="vit_small_patch16_224", help="any of timm.list_models()")
    parser.add_argument("--pretrained", action="store_true", help="download the published weights")
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 2])
    args = parser.parse_args(argv)

    if args.images:
        frames = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in args.images])
    else:
        frames = np.random.default_rng(0).integers(0, 256, (1, 448, 448, 3), dtype=np.uint8)
    frames = torch.from_numpy(frames)  # (B, H, W, 3) uint8, as from a camera

    s2 = S2(timm.create_model(args.model, pretrained=args.pretrained), scales=args.scales)
    layout = s2.layout(*frames.shape[1:3])
    print(s2)  # the detected tile, patch and prefix tokens
    print(f"{layout.tiles} tiles per image, a grid of {layout.grid[0]} x {layout.grid[1]} tokens")
    tokens = s2(frames)  # (B, N, D * scales)
    print(f"tokens {tuple(tokens.shape)}")
    return tokens


if __name__ == "__main__":
    main()
