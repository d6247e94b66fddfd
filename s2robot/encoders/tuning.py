"""Train an encoder with a policy: all of it, from cached frames, or a vision transformer's last blocks.

    full = FullEncoder(settings, [(107, 107)] * 3)              # for an encoder with `trained`
    full(frames of `Pixels`)                                    # (F, C, h * w, 3) -> (F, C, N, dim), with gradients
    build_encoder(settings, full.tuned())

For the last blocks, their input is cached, and the blocks run in every step:

    encoder = build_early_blocks(settings, blocks=2)            # its features are the input of the last two blocks
    tail = Tail(settings, [(256, 256)] * 3, blocks=2)           # these blocks, the final norm and S2's merge
    tail(encoder's features)                                    # (F, C, tiles * (P + n), D) -> (F, C, N, dim), with gradients
    build_encoder(settings, tail.tuned())                       # the encoder of the trained policy

The tail computes in the encoder's dtype, with master weights in float32. LoRA (arXiv 2106.09685) adds its products to
the weights, so a checkpoint stores plain weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from s2robot.backbones.backbone import Backbone
from s2robot.backbones.inference import default_dtype
from s2robot.core.errors import UserError
from s2robot.core.settings import read
from s2robot.encoders.build import EncoderSettings, arguments, backbone_of
from s2robot.encoders.encoder import S2Encoder, stack_padded
from s2robot.encoders.trained import TrainedEncoder, center_crop, random_crop
from s2robot.s2.engine import Model, assemble
from s2robot.s2.tiling import Layout, Size

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

_TILES = 128  # per call of the blocks, so that their activations stay in the processor's cache


class EarlyBlocks(S2Encoder):
    """An encoder whose features are a block's input: all tokens of all tiles with prefix, (B, tiles * (P + n), D)."""

    def __init__(self, backbone: Backbone, **args: Any) -> None:
        super().__init__(backbone, **args)
        self.dim = backbone.dim
        self._tile_tokens = self.num_prefix_tokens + math.prod(self.layout.cells)  # tokens per tile

    def map_of(self, height: int, width: int) -> tuple[int, int]:
        return self.layout_of(height, width).tiles, self._tile_tokens

    def _features(self, model: Model, levels: Sequence[Tensor], layout: Layout) -> Tensor:
        tiles = torch.cat([plan.split(x) for plan, x in zip(layout.levels, levels, strict=True)])
        return model(tiles).unflatten(0, (layout.tiles, -1)).transpose(0, 1).flatten(1, 2)


def build_early_blocks(cfg: Mapping[str, Any], blocks: int) -> EarlyBlocks:
    """Build the part of a config's encoder before its last `blocks` blocks.

    Raises UserError for an encoder that is not MVP's or timm's plain vision transformer, or has too few blocks.
    """
    settings, backbone = _read(cfg, blocks)
    depth = len(backbone.model.blocks)  # type: ignore[arg-type]
    backbone = backbone_of(settings.replace(block=depth - blocks))  # a separate copy
    backbone.model.norm = nn.Identity()
    args = arguments(settings.replace(pool="tokens", grid=None), backbone)
    return EarlyBlocks(backbone, **args | {"describe": {**args["describe"], "enters": depth - blocks + 1}})


def _read(cfg: Mapping[str, Any], blocks: int) -> tuple[EncoderSettings, Backbone]:
    from timm.models.vision_transformer import VisionTransformer  # takes longer than torch

    settings = read(EncoderSettings, cfg)
    backbone = backbone_of(settings)
    model = backbone.model
    plain = isinstance(model, VisionTransformer)
    plain = plain and type(model).forward_features is VisionTransformer.forward_features
    limit = len(model.blocks) - 1 if plain else 0  # type: ignore[arg-type]
    if blocks > limit:
        raise UserError(
            f"train.tune.blocks: expected 0 to {limit} for encoder {settings.name}, got {blocks} (the first block is never "
            f"tuned, and only blocks of MVP's or timm's VisionTransformer are; this is a {type(model).__name__})"
        )
    return settings, backbone


class FullEncoder(nn.Module):
    """Compute an encoder's features from the frames of `Pixels`, with gradients.

    In training mode each frame of each camera gets a random crop in every call, otherwise its centre crop.

    Args:
        cfg: as for `build_encoder`, with `trained`.
        frames: (h, w) of each camera's frames, as `Pixels` returns them.
        seed: of the initial weights, if they are random; they are the same for all cameras.
    """

    def __init__(self, cfg: Mapping[str, Any], frames: Sequence[Size], seed: int = 0) -> None:
        super().__init__()
        settings = read(EncoderSettings, cfg)
        backbone = backbone_of(settings, seed)
        args = {**arguments(settings, backbone), "dtype": "float32"}
        self.encoder = TrainedEncoder(backbone, **args, crop=settings.crop)
        self.encoder.model = nn.Identity()  # only plans and normalises; the copies compute
        self.frames, self.rate = list(frames), settings.rate
        count = len(self.frames) if settings.per_camera else 1
        self.copies = nn.ModuleList(copy.deepcopy(backbone) for _ in range(count))
        if not backbone.num_prefix_tokens:
            self.copies.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster convolutions

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights that `tuned` of the same encoder returned."""
        self._models.load_state_dict(weights)

    def tuned(self) -> dict[str, Tensor]:
        """Return all weights for a checkpoint, by camera number and the model's parameter name."""
        return {name: x.detach().cpu().contiguous() for name, x in self._models.state_dict().items()}

    @property
    def _models(self) -> nn.ModuleList:
        return nn.ModuleList(each.model for each in self.copies)  # type: ignore[misc]

    def forward(self, frames: Tensor) -> Tensor:
        """Map uint8 frames (F, C, N', 3), padded to the largest camera's N', to float32 features (F, C, N, dim)."""
        features, crop = [], random_crop if self.training else center_crop
        for i, (height, width) in enumerate(self.frames):
            images = frames[:, i, : height * width].unflatten(1, (height, width))
            images = crop(images, self.encoder.window(height, width))
            layout = self.encoder.layout_of(height, width)
            levels = self.encoder.levels_of_crop(images, layout)
            tokens = self.encoder._features(self.copies[i % len(self.copies)], levels, layout).float()
            features.append(tokens[:, None] if self.encoder.pool == "mean" else tokens)
        return stack_padded(features)


class Last(nn.Module):
    """The last blocks of a transformer and its final norm, with the same parameter names."""

    def __init__(self, model: VisionTransformer, blocks: int) -> None:
        super().__init__()
        numbered = list(model.blocks.named_children())[-blocks:]
        self.blocks = nn.ModuleDict({number: copy.deepcopy(block) for number, block in numbered})
        self.norm = copy.deepcopy(model.norm)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks.values():
            # the CPU's fused kernel in bfloat16 is slower than the plain products
            block.attn.fused_attn = x.device.type != "cpu"  # type: ignore[union-attr, assignment]
            x = block(x)
        return self.norm(x)


class Tail(nn.Module):
    """Compute the whole encoder's features from those of `EarlyBlocks`, with gradients.

    Args:
        cfg: as for `build_encoder`.
        frames: (H, W) of each camera's frames.
        blocks: number of trained blocks; the final norm is trained too.
        lora: rank of the LoRA of their linear layers; only the LoRA is then trained. 0 trains all weights.
        seed: of the LoRA's initial values.

    Stays in evaluation mode (no dropout). Raises UserError like `build_early_blocks`.
    """

    def __init__(
        self, cfg: Mapping[str, Any], frames: Sequence[Size], blocks: int, lora: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        settings, backbone = _read(cfg, blocks)
        encoder = S2Encoder(backbone, **arguments(settings, backbone))
        self.layouts = [encoder.layout_of(*size) for size in frames]
        self.front, self.dtype = encoder.num_prefix_tokens, encoder.dtype
        self.output = "pooled" if encoder.pool == "mean" else "tokens"
        self.last = Last(backbone.model, blocks)  # type: ignore[arg-type]
        self.last.requires_grad_(not lora)
        layers = {f"{name}.weight": m for name, m in self.last.named_modules() if isinstance(m, nn.Linear)}
        self.layers = list(layers) if lora else []
        draw = torch.Generator().manual_seed(seed)
        sizes = [layers[name].weight.shape for name in self.layers]  # (out, in) each
        drawn = (torch.rand(lora, i, generator=draw) * 2 - 1 for _, i in sizes)
        self.into = nn.ParameterList(x * x.shape[1] ** -0.5 for x in drawn)
        self.out_of = nn.ParameterList(torch.zeros(o, lora) for o, _ in sizes)
        self.eval()

    def train(self, mode: bool = True) -> Tail:
        return super().train(False)

    def weights(self) -> dict[str, Tensor]:
        """Return the effective weights of the blocks and the norm, by the model's parameter names."""
        weights: dict[str, Tensor] = dict(self.last.named_parameters())
        for name, into, out_of in zip(self.layers, self.into, self.out_of, strict=True):
            weights[name] = weights[name] + out_of @ into
        return weights

    @torch.no_grad()
    def tuned(self) -> dict[str, Tensor]:
        """Return the trained weights, for a checkpoint."""
        weights = self.weights()
        return {name: weights[name].detach().cpu().contiguous() for name in self.layers or weights}

    def forward(self, entering: Tensor) -> Tensor:
        """Map the padded features of `EarlyBlocks` to the encoder's float32 features."""
        each = self.front + math.prod(self.layouts[0].cells)
        tiles = [
            entering[:, i, : layout.tiles * each].unflatten(1, (layout.tiles, each)).transpose(0, 1)
            for i, layout in enumerate(self.layouts)
        ]  # (tiles, F, P + n, D) each
        dtype = default_dtype(entering.device, self.dtype)
        x = torch.cat([t.flatten(0, 1) for t in tiles]).to(dtype)
        weights = {name: value.to(dtype) for name, value in self.weights().items()}
        out = torch.cat([functional_call(self.last, weights, (part,)) for part in x.split(_TILES)]).float()
        features = []
        sizes = [len(t) * t.shape[1] for t in tiles]
        for tokens, layout in zip(out.split(sizes), self.layouts, strict=True):
            merged = assemble(tokens.unflatten(0, (layout.tiles, -1)), layout, self.front, self.output)
            features.append(merged[:, None] if self.output == "pooled" else merged)
        return stack_padded(features)  # (F, C, N, dim)
