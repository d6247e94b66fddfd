"""Wrap any vision model: normalised images in, tokens out, with the facts that S2 needs.

    backbone = find_backbone(timm.create_model("vit_small_patch14_reg4_dinov2", img_size=224), block=8)
    backbone.tile, backbone.patch, backbone.num_prefix_tokens, backbone.dim    # (224, 224), 14, 5, 384
    backbone(images).shape                 # (B, 5 + 16 * 16, 384), prefix tokens first

timm models, torchvision classifiers, Hugging Face vision models and DINOv2 from torch.hub are recognised. For any
other callable, pass the facts as arguments; a dry run on zeros determines the others.

Without `block` the tokens are the library's features: timm's forward_features, torchvision's features before the
pooling, Hugging Face's last_hidden_state, nearly always after the final norm. `block=k` is the output of the
k-th block of a transformer or the k-th stage of a CNN or Swin, counted from 1. Later blocks are removed and cost neither
memory nor time. A transformer's final norm still runs; the norms and convolutions after a CNN's last stage do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from s2robot.backbones.libraries import Facts, Overrides, Size, Source, check_tile, features, read_model
from s2robot.core.errors import UserError, reported

PROBE = (256, 384)  # for models that accept any size; not square, and a multiple of every common stride


class Backbone(nn.Module):
    """A vision model that returns tokens; create it with `find_backbone`.

    Attributes: model (the wrapped module) and its facts, as in `Facts`: name, tile, patch, num_prefix_tokens, dim,
    mean, std, depth and block.
    """

    def __init__(self, source: Source, facts: Facts) -> None:
        super().__init__()
        assert facts.tile and facts.patch and facts.num_prefix_tokens is not None and facts.dim
        self.model, self._run, self._channels_last = source.model, source.run, bool(facts.channels_last)
        self.name, self.depth, self.block = facts.name, facts.depth, facts.block
        self.tile, self.patch = facts.tile, facts.patch
        self.num_prefix_tokens, self.dim = facts.num_prefix_tokens, facts.dim
        assert facts.mean is not None and facts.std is not None
        self.mean, self.std = (tuple(map(float, values)) for values in (facts.mean, facts.std))

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (B, 3, h, w) to tokens (B, P + N, D): prefix first, then row by row."""
        out = features(self._run(self.model, x), self.num_prefix_tokens)
        if out.ndim == 4:
            return out.flatten(1, 2) if self._channels_last else out.flatten(2).transpose(1, 2)  # (B, N, D)
        return out

    def extra_repr(self) -> str:
        return (
            f"{self.name}: tile {self.tile[0]} x {self.tile[1]}, patch {self.patch}, "
            f"{self.num_prefix_tokens} prefix tokens, dim {self.dim}, block {self.block or 'last'}"
        )


def find_backbone(model: Any, **overrides: Unpack[Overrides]) -> Backbone:
    """Wrap the model as a `Backbone`; a dry run on zeros determines and checks its facts.

    Args:
        model: a timm, torchvision or Hugging Face vision model, DINOv2 from torch.hub, or any callable
            (B, 3, h, w) -> tokens (B, P + N, D), a map (B, D, rows, columns) or (B, rows, columns, D), or an object
            that contains either (`libraries.features`).
        tile: image side, or (height, width), in pixels; required for other callables. Default: the model's own (224
            for torchvision's CNNs; a CNN's is rounded to whole strides). Another tile interpolates a transformer's
            position table, in a copy.
        patch, num_prefix_tokens, mean, std: override the facts. Defaults for a callable: no prefix tokens,
            ImageNet's mean and std.
        block: return the tokens after this block, 1 to the model's depth.
        processor: a Hugging Face image processor, for its image_mean and image_std. Default: those of the family's
            published checkpoints.

    The model is not changed. Without `block` the backbone shares its modules; with `block` it holds a deep copy of
    those that it needs. Raises UserError if a fact is missing or contradicts the model's output.
    """
    if isinstance(model, Backbone):
        for key, value in overrides.items():
            if value is not None:
                raise UserError(f"{key}: expected no value with a Backbone, got {value!r}")
        return model
    requested = Facts().corrected(overrides)
    source = read_model(model, requested.block, requested.tile)
    facts, made_for = source.facts.corrected(overrides), source.facts.tile
    if unknown := [key for key in ("tile", "mean", "std") if getattr(facts, key) is None]:
        raise UserError(f"{facts.name}: {', '.join(unknown)}: unknown; pass {'=, '.join(unknown)}=")
    with _evaluation(source.model):
        if made_for and facts.patch is None:
            with suppress(Exception):  # models raise many exception types for an unsupported size
                shape = _dry_run(source, facts, PROBE)
                facts = _read(facts, shape, PROBE)
                if len(shape) == 4 and requested.tile is None:  # EfficientNet-B1: 240 to 256 px
                    height, width = (max(1, int(n / facts.patch + 0.5)) * facts.patch for n in made_for)  # type: ignore[operator]
                    facts = facts._replace(tile=(height, width))
        if requested.tile is not None:  # a model's own tile may leave a remainder
            check_tile(requested.tile, facts.patch or 1)
        height, width = facts.tile or (0, 0)
        made = f" (made for {made_for[0]} x {made_for[1]})" if made_for else ""
        with reported(f"{facts.name}{made} fails on zeros of {height} x {width} px"):
            facts = _read(facts, _dry_run(source, facts, (height, width)), (height, width))
    return Backbone(source, facts)


def _dry_run(source: Source, facts: Facts, size: Size) -> Sequence[int]:
    """Return the shape of the features of one black image."""
    like = next(source.model.parameters(), torch.empty(0))
    zeros = torch.zeros(1, 3, *size, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        return features(source.run(source.model, zeros), facts.num_prefix_tokens).shape


def _read(facts: Facts, shape: Sequence[int], size: Size) -> Facts:
    """Add the facts that an output's shape shows; ValueError if they contradict the known ones."""
    (height, width), prefix, patch = size, facts.num_prefix_tokens, facts.patch
    patches = [patch] if patch else [p for p in range(1, min(size) + 1) if height % p == 0 and width % p == 0]
    hint = ""
    if len(shape) == 4 and not prefix:
        for last in (False, True) if facts.channels_last is None else (facts.channels_last,):
            rows, columns = shape[1:3] if last else shape[2:]
            side = patch or max(1, height // rows)
            if (rows * side, columns * side) == size:
                dim = shape[3] if last else shape[1]
                return facts._replace(patch=side, num_prefix_tokens=0, dim=dim, channels_last=last)
    elif len(shape) == 3:
        cells = {p: (height // p) * (width // p) for p in patches}
        if prefix is None:
            prefix = max(0, shape[1] - cells[patch]) if patch else 0
        for p, count in cells.items():
            if count + prefix == shape[1]:
                return facts._replace(patch=p, num_prefix_tokens=prefix, dim=shape[2])
        candidates = sorted((shape[1] - n, n) for n in cells.values() if 0 <= shape[1] - n <= 16)
        for extra, count in candidates[:1]:
            hint = f" ({shape[1]} tokens are {count} + {extra}: num_prefix_tokens={extra}?)"
    kind = f"whole square patches of {patch or 'any number of'} pixels"
    raise ValueError(
        f"expected tokens (1, {prefix or 0} + N, D) or a map of {kind}, got {tuple(shape)}{hint}"
    )


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, then restore each module's own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
