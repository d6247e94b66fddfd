"""S2 at two sizes on one model: the reference algorithm, this project's ways, and what the machine could do.

    python benchmarks/s2.py
    python benchmarks/s2.py --quick --models base --batches 1
    python benchmarks/s2.py --threads 2 --json s2.json

Models: tiny (mvp-tiny's form), small (mvp-small's), base (timm's vit_base_patch16_224), all with random
weights, at once and twice the size that they know. Rows:

* reference: the authors' algorithm on the timm model, one call a scale, float32. All ratios are to it.
* ours fp32, ours default: `s2robot.backbones.inference.prepare` in float32 and in the machine's default type, all tiles
  in one call. pooled: the default with the mean of the map only.
* frames: S2Encoder in the default type from uint8 frames of the larger size, area averaging and normalising
  included. frames 1 2 3 (batch 1 only): the same at three scales.

The arms take turns (A B C A B C ...), so that a disturbance meets all of them; times are medians. GFLOP counts
multiply-adds, as papers do. The last columns set two operations for each against the machine's own rate in the
type that the row multiplies in: the best of several large products, by three ways of torch, measured in this
run before and after. Cosine (least over all tokens) and largest difference are to the reference in float32.
Nothing else should run meanwhile.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from s2robot.backbones.inference import PackedLinear, default_dtype, packs, prepare
from s2robot.backbones.vit import MVPViT, ViTSpec
from s2robot.encoders.encoder import DTYPES, S2Encoder
from s2robot.s2.engine import encode
from s2robot.s2.layout import square
from s2robot.s2.reference import forward

SPECS = {"tiny": ViTSpec(128, 16, 192, 6, 6), "small": ViTSpec(128, 16, 256, 12, 8)}
MODELS = (*SPECS, "base")
SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (985, 768, 3072), (1970, 3072, 768))  # rows, in, out
PREFIX, PATCH = 1, 16  # CLS; pixels


class Plain(nn.Module):
    """The timm model's tokens."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, x: Tensor) -> Tensor:
        return self.vit.forward_features(x)


def build(name: str) -> tuple[nn.Module, int]:
    """A model with random weights, and its tile in pixels."""
    torch.manual_seed(0)
    if name == "base":
        return timm.create_model("vit_base_patch16_224", num_classes=0).eval(), 224
    return MVPViT(SPECS[name]).eval(), SPECS[name].img_size


def clock(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak(dtype: torch.dtype, repeats: int) -> float:
    """Operations a second of the machine's matrix product: the best median over shapes and ways."""
    best = 0.0
    for rows, inner, out in SHAPES:
        layer = nn.Linear(inner, out).to(dtype).requires_grad_(False)
        x, weight = torch.randn(rows, inner).to(dtype), layer.weight.t().contiguous()
        ways: list[Callable[[], Tensor]] = [partial(torch.matmul, x, weight), partial(layer, x)]
        if packs():
            packed = nn.Linear(inner, out).to(dtype).requires_grad_(False)
            PackedLinear.from_linear(packed)
            ways.append(partial(packed, x))
        for way in ways:
            way()
            seconds = statistics.median(clock(way) for _ in range(repeats))
            best = max(best, 2 * rows * inner * out / seconds)
    return best


def multiply_adds(model: nn.Module, tile: int) -> float:
    """Of one tile, as S2Encoder counts them."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.forward_features(torch.zeros(1, 3, tile, tile))
    return counter.get_total_flops() / 2


def arms(vit: nn.Module, tile: int, batch: int) -> dict[str, tuple[Callable[[], Tensor], torch.dtype, int]]:
    """What is compared: a call without arguments, the type that it multiplies in, the tiles a frame."""
    size, default = 2 * tile, default_dtype()
    images = torch.randn(batch, 3, tile, tile)
    frames = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)

    layout = square((tile, size), tile, PATCH)

    def ours(model: Callable[[Tensor], Tensor], output: str = "tokens") -> Callable[[], Tensor]:
        def call() -> Tensor:
            larger = F.interpolate(images, size=(size, size), mode="bicubic")
            return encode(model, [images, larger], layout, PREFIX, output)

        return call

    fast = prepare(Plain(vit), default)
    name = {v: k for k, v in DTYPES.items()}[default]
    encoder = S2Encoder(vit, (tile, size), dtype=name)
    rows: dict[str, tuple[Callable[[], Tensor], torch.dtype, int]] = {
        "reference": (
            lambda: forward(vit.forward_features, images, scales=[1, 2], num_prefix_token=PREFIX),
            torch.float32,
            5,
        ),
        "ours fp32": (ours(prepare(Plain(vit), torch.float32)), torch.float32, 5),
        "ours default": (ours(fast), default, 5),
        "pooled": (ours(fast, "pooled"), default, 5),
        "frames": (lambda: encoder.encode(frames), default, 5),
    }
    if batch == 1:  # at 32 frames of 14 tiles the larger models take too long
        three = S2Encoder(vit, (tile, size, 3 * tile), dtype=name)
        larger = torch.randint(0, 256, (1, 3 * tile, 3 * tile, 3), dtype=torch.uint8)
        rows["frames 1 2 3"] = (lambda: three.encode(larger), default, 14)
    return rows


def measure(name: str, batch: int, args: argparse.Namespace, peaks: dict[torch.dtype, float]) -> list[dict]:
    vit, tile = build(name)
    per_tile = multiply_adds(vit, tile)
    compared = arms(vit, tile, batch)
    outputs = {arm: call() for arm, (call, _, _) in compared.items()}  # warms up, too
    round_s = sum(clock(call) for call, _, _ in compared.values())
    rounds = max(args.least, min(args.most, int(args.budget / round_s)))
    seconds: dict[str, list[float]] = {arm: [] for arm in compared}
    for _ in range(rounds):
        for arm, (call, _, _) in compared.items():
            seconds[arm].append(clock(call))
    truth = outputs["reference"][:, PREFIX:]  # (B, N, 2 * D)
    rows = []
    for arm, (_, dtype, tiles) in compared.items():
        median = statistics.median(seconds[arm])
        row: dict[str, Any] = {
            "model": name,
            "sizes": [tile, 2 * tile],
            "batch": batch,
            "arm": arm,
            "dtype": str(dtype).removeprefix("torch."),
            "repeats": rounds,
            "ms": median * 1e3,
            "ms_least": min(seconds[arm]) * 1e3,
            "frames_per_s": batch / median,
            "gflop_per_frame": per_tile * tiles / 1e9,
            "of_peak": 2 * per_tile * tiles * batch / median / peaks[dtype],
            # round by round: the two were measured next to each other
            "ratio": statistics.median(
                r / s for r, s in zip(seconds["reference"], seconds[arm], strict=True)
            ),
        }
        if not arm.startswith("frames"):  # these take other images
            out = outputs[arm] if arm != "reference" else truth
            against = truth.mean(dim=1) if arm == "pooled" else truth
            row["cosine"] = F.cosine_similarity(out, against, dim=-1).min().item()
            row["largest_difference"] = (out - against).abs().max().item()
        rows.append(row)
    return rows


def show(rows: list[dict]) -> None:
    first = rows[0]
    print(f"\n{first['model']} at {first['sizes']}, batch {first['batch']}, {first['repeats']} repeats each")
    print(
        f"{'':<18}{'type':>9}{'ms':>10}{'frames/s':>10}{'ratio':>8}{'GFLOP':>8}{'of peak':>9}{'cosine':>11}{'diff':>10}"
    )
    for r in rows:
        same = f"{r['cosine']:>11.6f}{r['largest_difference']:>10.1e}" if "cosine" in r else ""
        print(
            f"{r['arm']:<18}{r['dtype']:>9}{r['ms']:>10.1f}{r['frames_per_s']:>10.1f}{r['ratio']:>6.2f} x"
            f"{r['gflop_per_frame']:>8.2f}{r['of_peak']:>8.0%} {same}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", default=",".join(MODELS), help=f"some of {','.join(MODELS)} (default all)"
    )
    parser.add_argument("--batches", default="1,32", help="batch sizes (default 1,32)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds a table, if 5 repeats fit (60)")
    parser.add_argument("--quick", action="store_true", help="3 repeats, batches of at most 4")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    models = args.models.split(",")
    if unknown := [m for m in models if m not in MODELS]:
        parser.error(f"--models: found {unknown[0]}, expected some of {', '.join(MODELS)}")
    batches = [int(b) for b in args.batches.split(",")]
    args.least, args.most = (3, 3) if args.quick else (5, 101)
    if args.quick:
        batches = list(dict.fromkeys(min(b, 4) for b in batches))
    if args.threads:
        torch.set_num_threads(args.threads)

    types = dict.fromkeys((torch.float32, default_dtype()))
    with torch.inference_mode():
        peaks = {dtype: peak(dtype, 5) for dtype in types}
        tables = [measure(name, batch, args, peaks) for name in models for batch in batches]
        after = {dtype: peak(dtype, 5) for dtype in types}
    for rows in tables:  # the better of the two: a disturbed peak would flatter us
        for row in rows:
            dtype = getattr(torch, row["dtype"])
            row["of_peak"] *= peaks[dtype] / max(peaks[dtype], after[dtype])
    machine = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "default": str(default_dtype()).removeprefix("torch."),
        "peak_gflops": {
            str(d).removeprefix("torch."): [round(peaks[d] / 1e9, 1), round(after[d] / 1e9, 1)] for d in types
        },
    }
    print(f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}")
    for dtype, (one, two) in machine["peak_gflops"].items():
        print(f"matrix product in {dtype}: {one} and {two} GFLOP/s (before and after)")
    for rows in tables:
        show(rows)
    if args.json:
        part = args.json.with_name(args.json.name + ".part")
        part.write_text(
            json.dumps({"machine": machine, "rows": [r for rows in tables for r in rows]}, indent=1)
        )
        part.replace(args.json)


if __name__ == "__main__":
    main()
