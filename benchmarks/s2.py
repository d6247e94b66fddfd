"""Time S2 at two sizes on one model: the reference algorithm and our ways.

    python benchmarks/s2.py
    OMP_NUM_THREADS=1 python benchmarks/s2.py --models base --batches 1 --budget 5

Models have random weights: tiny (as mvp-tiny), small (as mvp-small), base (timm's vit_base_patch16_224). Rows:

* reference: the authors' algorithm on the timm model, one call a scale, float32. All ratios are to it.
* ours fp32, ours default: `s2robot.backbones.inference.prepare` in float32 and in the machine's default type, all tiles
  in one call.
The rows take turns; times are medians.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from itertools import product
from timeit import timeit

import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from s2robot.backbones.backbone import Backbone, find_backbone
from s2robot.backbones.inference import default_dtype, prepare
from s2robot.backbones.vit import MVPViT, ViTSpec
from s2robot.s2.engine import encode
from s2robot.s2.reference import forward
from s2robot.s2.tiling import square

SPECS = {"tiny": ViTSpec(128, 16, 192, 6, 6), "small": ViTSpec(128, 16, 256, 12, 8)}
MODELS = (*SPECS, "base")


def build(name: str) -> Backbone:
    """A model with random weights."""
    torch.manual_seed(0)
    vit = MVPViT(SPECS[name]) if name in SPECS else timm.create_model("vit_base_patch16_224", num_classes=0)
    return find_backbone(vit.eval())


def arms(vit: Backbone, batch: int) -> dict[str, tuple[Callable[[], Tensor], torch.dtype]]:
    """Return the calls to compare, and the type that each multiplies in."""
    tile, front, default = vit.tile[0], vit.num_prefix_tokens, default_dtype()
    images = torch.randn(batch, 3, tile, tile)
    layout = square((tile, 2 * tile), tile, vit.patch)

    def ours(dtype: torch.dtype) -> Callable[[], Tensor]:
        model = prepare(vit, dtype)

        def call() -> Tensor:
            larger = F.interpolate(images, scale_factor=2, mode="bicubic")
            return encode(model, [images, larger], layout, front, "tokens")

        return call

    reference = partial(forward, vit, images, scales=[1, 2], num_prefix_token=front)
    return {
        "reference": (reference, torch.float32),
        "ours fp32": (ours(torch.float32), torch.float32),
        "ours default": (ours(default), default),
    }


def measure(name: str, batch: int, budget: float) -> None:
    """Print the rows of a model and a batch."""
    vit = build(name)
    compared, tile = arms(vit, batch), vit.tile[0]
    for call, _ in compared.values():
        call()  # warms up
    round_s = sum(timeit(call, number=1) for call, _ in compared.values())
    rounds = max(5, min(101, int(budget / round_s)))
    turns = [{arm: timeit(call, number=1) for arm, (call, _) in compared.items()} for _ in range(rounds)]
    for arm, (_, dtype) in compared.items():
        ms = 1e3 * statistics.median(turn[arm] for turn in turns)
        ratio = statistics.median(turn["reference"] / turn[arm] for turn in turns)
        print(
            f"{name}, {tile} and {2 * tile} px, batch {batch}, {arm}, {dtype}: {ms:.4g} ms, "
            f"{1e3 * batch / ms:.4g} frames/s, ratio {ratio:.4g}, {rounds} repeats"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--budget", type=float, default=60.0, help="seconds a table, if 5 repeats fit (60)")
    args = parser.parse_args()
    print(torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads, {torch.__version__}")
    with torch.inference_mode():
        for model, batch in product(args.models, args.batches):
            measure(model, batch, args.budget)


if __name__ == "__main__":
    main()
