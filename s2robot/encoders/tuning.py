"""The last blocks of a vision transformer, trained with a policy: what enters them is cached, they run in every step.

    encoder = build_entering(settings, blocks=2)                # its features are what enters the last two blocks
    tail = Tail(settings, [(256, 256)] * 3, blocks=2)           # these blocks, the final norm and S2's merge
    tail(encoder's features)                                    # (F, C, tiles * (P + n), D) -> (F, C, N, dim), with gradients
    build_encoder(settings, tail.tuned())                       # the encoder that a policy trained so acts with

The tail computes in the encoder's own number format, with weights that are kept and changed in float32. LoRA (arXiv
2106.09685) by hand: products are added to weights where they are used, so that what is saved is weights like any others.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

from s2robot.backbones.backbone import Backbone
from s2robot.common.errors import UserError
from s2robot.encoders.build import EncoderSettings, arguments, backbone_of
from s2robot.encoders.cameras import stack_padded
from s2robot.encoders.encoder import DTYPES, S2Encoder
from s2robot.policies.settings import read_settings
from s2robot.s2.engine import Model, assemble
from s2robot.s2.layout import Layout

_TILES = 128  # that go through the blocks at once: their activations stay in the processor's cache


class Entering(S2Encoder):
    """An encoder whose features are what enters a block: all tokens of all tiles, prefix tokens too, (B, tiles * (P + n), D)."""

    def __init__(self, backbone: Backbone, **how: Any) -> None:
        super().__init__(backbone, **how)
        self.dim = backbone.dim
        self._each = self.num_prefix_tokens + math.prod(self.layout.cells)  # tokens of a tile

    def map_of(self, height: int, width: int) -> tuple[int, int]:
        return self.layout_of(height, width).tiles, self._each

    @property
    def num_tokens(self) -> int:
        return self.layout.tiles * self._each

    def _features(self, model: Model, levels: Sequence[Tensor], layout: Layout) -> Tensor:
        tiles = torch.cat([plan.split(x) for plan, x in zip(layout.levels, levels, strict=True)])
        return model(tiles).unflatten(0, (layout.tiles, -1)).transpose(0, 1).flatten(1, 2)


def build_entering(cfg: Mapping[str, Any], blocks: int) -> Entering:
    """Of the encoder that a config describes, as `build_encoder` takes it, the part before its last `blocks` blocks.

    Raises UserError for an encoder that is no plain vision transformer of ours or timm's, or has no more blocks.
    """
    settings, whole = _read(cfg, blocks)
    depth = len(whole.model.blocks)  # type: ignore[arg-type]
    backbone = backbone_of(replace(settings, block=depth - blocks))  # a copy of its own
    backbone.model.norm = nn.Identity()
    how = arguments(replace(settings, pool="tokens"), backbone)
    return Entering(backbone, **how | {"describe": {**how["describe"], "enters": depth - blocks + 1}})


def _read(cfg: Mapping[str, Any], blocks: int) -> tuple[EncoderSettings, Backbone]:
    settings = read_settings(EncoderSettings, cfg, "encoder", UserError)
    backbone = backbone_of(settings)
    model = backbone.model
    plain = isinstance(model, VisionTransformer)
    if not plain or type(model).forward_features is not VisionTransformer.forward_features:
        raise UserError(
            f"train.tune.blocks: found {blocks}, expected 0: encoder {settings.name} is a {type(model).__name__}, and only "
            "the blocks of MVP's and timm's VisionTransformer can be trained"
        )
    if not blocks < (depth := len(model.blocks)):
        raise UserError(
            f"train.tune.blocks: found {blocks}, expected 0 to {depth - 1}: of {depth} blocks one is frozen"
        )
    return settings, backbone


class Last(nn.Module):
    """The last blocks of a transformer and its final norm; parameters have the names that they have in it."""

    def __init__(self, model: VisionTransformer, blocks: int) -> None:
        super().__init__()
        numbered = list(model.blocks.named_children())[-blocks:]
        self.blocks = nn.ModuleDict({number: copy.deepcopy(block) for number, block in numbered})
        self.norm = copy.deepcopy(model.norm)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks.values():
            # the processor's fused kernel in bfloat16 is slower than the plain products
            block.attn.fused_attn = x.device.type != "cpu"  # type: ignore[union-attr, assignment]
            x = block(x)
        return self.norm(x)


class Tail(nn.Module):
    """What comes behind `Entering`, with gradients: from its features to those of the whole encoder.

    Args:
        cfg: as `build_encoder` takes it.
        frames: (H, W) of each camera's frames.
        blocks: how many are trained, with the final norm.
        lora: rank of what is added to the weights of their linear layers, which alone is trained then; 0: all is trained.
        seed: of the first values.

    Stays in evaluation mode: nothing is dropped. Raises UserError as `build_entering`.
    """

    def __init__(
        self,
        cfg: Mapping[str, Any],
        frames: Sequence[tuple[int, int]],
        blocks: int,
        lora: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        settings, backbone = _read(cfg, blocks)
        encoder = S2Encoder(backbone, **arguments(settings, backbone))
        self.layouts = [encoder.layout_of(*size) for size in frames]
        self.front, self.dtype = encoder.num_prefix_tokens, DTYPES[encoder.dtype]
        self.output = "pooled" if encoder.pool == "mean" else "tokens"
        self.last = Last(backbone.model, blocks)  # type: ignore[arg-type]
        self.last.requires_grad_(not lora)
        layers = {f"{name}.weight": m for name, m in self.last.named_modules() if isinstance(m, nn.Linear)}
        self.layers = list(layers) if lora else []
        draw = torch.Generator().manual_seed(seed)
        sizes = [layers[name].weight.shape for name in self.layers]  # (out, in) each
        self.into = nn.ParameterList(
            (torch.rand(lora, i, generator=draw) * 2 - 1) * i**-0.5 for _, i in sizes
        )
        self.out_of = nn.ParameterList(torch.zeros(o, lora) for o, _ in sizes)
        self.eval()

    def train(self, mode: bool = True) -> Tail:
        return super().train(False)

    def weights(self) -> dict[str, Tensor]:
        """All weights of the blocks and the norm, by the model's names, as they are used."""
        weights: dict[str, Tensor] = dict(self.last.named_parameters())
        for name, into, out_of in zip(self.layers, self.into, self.out_of, strict=True):
            weights[name] = weights[name] + out_of @ into
        return weights

    @torch.no_grad()
    def tuned(self) -> dict[str, Tensor]:
        """Those of them that a training changes: what a checkpoint keeps."""
        weights = self.weights()
        return {name: weights[name].detach().cpu().contiguous() for name in self.layers or weights}

    def forward(self, entering: Tensor) -> Tensor:
        """What `Entering` gave of each camera, zeros behind the fewer ones, as the encoder's float32 features."""
        each = self.front + math.prod(self.layouts[0].cells)
        tiles = [
            entering[:, i, : layout.tiles * each].unflatten(1, (layout.tiles, each)).transpose(0, 1)
            for i, layout in enumerate(self.layouts)
        ]  # (tiles, F, P + n, D) each
        x = torch.cat([t.flatten(0, 1) for t in tiles]).to(self.dtype)
        weights = {name: value.to(self.dtype) for name, value in self.weights().items()}
        out = torch.cat([functional_call(self.last, weights, (part,)) for part in x.split(_TILES)]).float()
        features = []
        for of, layout in zip(out.split([len(t) * t.shape[1] for t in tiles]), self.layouts, strict=True):
            parts = of.unflatten(0, (layout.tiles, -1)).split([level.count for level in layout.levels])
            found = assemble(parts, layout, self.front, self.output)
            features.append(found[:, None] if self.output == "pooled" else found)
        return stack_padded(features)  # (F, C, N, dim)
