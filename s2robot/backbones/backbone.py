"""Any vision model as one kind of thing: normalised images in, tokens out, and the facts S2 needs.

    backbone = find_backbone(timm.create_model("vit_small_patch14_reg4_dinov2", img_size=224), block=8)
    backbone.tile, backbone.patch, backbone.num_prefix_tokens, backbone.dim    # (224, 224), 14, 5, 384
    backbone(images).shape                 # (B, 5 + 16 * 16, 384), prefix tokens first

Known are timm models, torchvision classifiers, Hugging Face vision models and DINOv2 from torch.hub; of any
other callable the facts are given by hand, and what is not given is found by a dry run on zeros.

Without `block` the tokens are what the library returns as its features: timm's forward_features, torchvision's
features before the pooling, Hugging Face's last_hidden_state. Nearly always that is after the final norm.
`block=k` is the output after the k-th block of a transformer or the k-th stage of a CNN or Swin, counted from
1. The later blocks are not in the backbone: they cost neither memory nor time. A transformer's final norm still
follows; a stage comes as it is, without the norms and convolutions that follow the last stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from s2robot.backbones.libraries import Size, Source, pair, read_model
from s2robot.common.errors import UserError

PROBE = (256, 384)  # for models that take any size: not square, and a multiple of every usual stride


class Backbone(nn.Module):
    """A vision model whose output is tokens; `find_backbone` makes it.

    Attributes:
        model: the module that computes.
        tile: (height, width) in pixels that the model was made for.
        patch: side in pixels of the square that a token stands for (the stride).
        num_prefix_tokens: CLS, distillation and register tokens at the front, P.
        dim: channels of a token, D.
        mean, std: of RGB in 0 to 1, as the model was trained with.
        name: for people.
        depth: how many blocks `block` can count in the model as it came; None if they are not known.
        block: the block after which the tokens are taken; None for the model's own end.
        any_size: True if images of other sizes, whole multiples of the patch, are taken too.
    """

    tile: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(self, source: Source, found: Found, tile: Size, block: int | None, any_size: bool) -> None:
        super().__init__()
        self.model, self._run, self._channels_last = source.model, source.run, found.channels_last
        self.name, self.depth, self.block, self.any_size = source.name, source.depth, block, any_size
        self.tile, self.patch = tile, found.patch
        self.num_prefix_tokens, self.dim = found.num_prefix_tokens, found.dim
        self.mean, self.std = (_three(v, source.name) for v in (source.mean, source.std))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, h, w) to tokens (B, P + N, D): prefix first, then row by row."""
        return as_tokens(self._run(self.model, x), self._channels_last)

    def grid(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Rows and columns of tokens of an image of that many pixels; of the tile if not given."""
        return (height or self.tile[0]) // self.patch, (width or self.tile[1]) // self.patch

    def extra_repr(self) -> str:
        return (
            f"{self.name}: tile {self.tile[0]} x {self.tile[1]}, patch {self.patch}, "
            f"{self.num_prefix_tokens} prefix tokens, dim {self.dim}, block {self.block or 'last'}"
        )


def find_backbone(
    model: Any,
    *,
    tile: int | Size | None = None,
    patch: int | None = None,
    num_prefix_tokens: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    block: int | None = None,
    processor: Any = None,
) -> Backbone:
    """The model as a `Backbone`, with its facts found and checked by a dry run on zeros.

    Args:
        model: a timm, torchvision or Hugging Face vision model, DINOv2 from torch.hub, or any callable
            (B, 3, h, w) -> tokens (B, P + N, D), a map (B, D, rows, columns) or (B, rows, columns, D), or an
            object or mapping that holds either as `last_hidden_state`.
        tile: image side, or (height, width), in pixels. Needed for other callables. For the rest it is the
            model's own (torchvision's CNNs do not tell: 224; a CNN's is rounded to whole strides), and another
            one makes transformers that can interpolate their position table, in a copy where that is stored.
        patch, num_prefix_tokens, mean, std: where they are not found or not right. A callable has no prefix
            tokens and ImageNet's mean and std unless told otherwise.
        block: take the tokens after this block, 1 to the model's depth; see the head of this file.
        processor: a Hugging Face image processor; its image_mean and image_std are used. Without one they are
            those of the family's published checkpoints.

    The model given is not changed. Without `block` the backbone shares its modules; with `block` it holds a
    deep copy of those that it needs. Dry runs are made in evaluation mode, which is then set back.

    Raises UserError if a fact can neither be found nor is given, or does not fit what the model returns.
    """
    size = None if tile is None else pair(tile)
    source = read_model(model, block, size)
    if processor is not None:
        processor = getattr(processor, "image_processor", processor)
        source.mean, source.std = processor.image_mean, processor.image_std
    source.mean = source.mean if mean is None else mean
    source.std = source.std if std is None else std
    if source.mean is None or source.std is None:
        raise UserError(f"{source.name}: mean and std are not known; give mean= and std=, or processor=")
    own = size or source.tile
    if own is None:
        raise UserError(f"{source.name}: tile (the image side in pixels that the model takes) is not given")
    if patch is not None:
        source.patch = patch
    if num_prefix_tokens is not None:
        source.num_prefix_tokens = num_prefix_tokens
    with evaluation(source.model):
        found = _try_other_size(source, own) if source.try_sizes else None
        any_size = found is not None
        if found is not None:
            source.patch, source.num_prefix_tokens = found.patch, found.num_prefix_tokens
            source.channels_last = found.channels_last
            if found.is_map and size is None:
                own = _whole_strides(own[0], found.patch), _whole_strides(own[1], found.patch)
        try:
            shape = _dry_run(source, own)
        except UserError:
            raise
        except Exception as error:  # models raise many kinds for a size that they do not take
            made = f" (made for {source.tile[0]} x {source.tile[1]})" if source.tile else ""
            reason = (str(error).strip().splitlines() or [""])[0]
            raise UserError(
                f"{source.name}{made} fails on zeros of {own[0]} x {own[1]} pixels: {type(error).__name__}: {reason}"
            ) from error
    return Backbone(source, _read(source, shape, own), own, block, any_size)


def as_tokens(out: Any, channels_last: bool = False) -> Tensor:
    """Tokens (B, P + N, D) from what a model returned: tokens, a map (4 dimensions), or what holds either."""
    out = features(out)
    if out.ndim == 4:
        return out.flatten(1, 2) if channels_last else out.flatten(2).transpose(1, 2)  # (B, N, D)
    return out


def features(out: Any) -> Tensor:
    """The tensor in what a model returned; UserError if it is not clear which."""
    if isinstance(out, Tensor):
        return out
    if (hidden := getattr(out, "last_hidden_state", None)) is not None:
        return hidden
    if isinstance(out, Mapping) and "last_hidden_state" in out:
        return out["last_hidden_state"]
    if isinstance(out, Mapping) and "x_norm_patchtokens" in out:  # DINOv2 and DINOv3 from torch.hub
        registers = out["x_norm_regtokens"] if "x_norm_regtokens" in out else out["x_storage_tokens"]
        return torch.cat([out["x_norm_clstoken"][:, None], registers, out["x_norm_patchtokens"]], dim=1)
    raise UserError(f"the model gives a {type(out).__name__}, expected a tensor or one as last_hidden_state")


@dataclass(frozen=True)
class Found:
    """What the shape of an output tells."""

    patch: int
    num_prefix_tokens: int
    dim: int
    is_map: bool = False
    channels_last: bool = False


def _try_other_size(source: Source, own: Size) -> Found | None:
    """What an image of another size and shape gives, or None if the model takes its own only."""
    other = PROBE
    if (p := source.patch) is not None:  # a small one is quick
        other = (2 * p, 3 * p) if own != (2 * p, 3 * p) else (3 * p, 2 * p)
    try:
        return _read(source, _dry_run(source, other), other)
    except Exception:  # models raise many kinds for a size that they do not take
        return None


def _dry_run(source: Source, size: Size) -> tuple[int, ...]:
    """Shape of the features of one black image."""
    like = next(source.model.parameters(), torch.empty(0))
    zeros = torch.zeros(1, 3, *size, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        return tuple(features(source.run(source.model, zeros)).shape)


def _read(source: Source, shape: tuple[int, ...], size: Size) -> Found:
    """What an output's shape says beside what is known; UserError if it does not fit."""
    if len(shape) == 3:
        return _read_tokens(source, shape, size)
    if len(shape) == 4:
        return _read_map(source, shape, size)
    raise UserError(
        f"{source.name}: gives {shape}, expected tokens (B, P + N, D) or a map (B, D, rows, columns)"
    )


def _read_map(source: Source, shape: tuple[int, ...], size: Size) -> Found:
    if source.num_prefix_tokens:
        raise UserError(
            f"{source.name}: gives a map {shape}, which has no {source.num_prefix_tokens} prefix tokens"
        )
    for last in (False, True) if source.channels_last is None else (source.channels_last,):
        rows, columns = shape[1:3] if last else shape[2:]
        patch = source.patch or max(1, size[0] // rows)
        if (rows * patch, columns * patch) == size:
            return Found(patch, 0, shape[3] if last else shape[1], True, last)
    rows, columns = shape[1:3] if source.channels_last else shape[2:]
    expected = f"whole strides of {source.patch} pixels" if source.patch else "whole square strides"
    raise UserError(
        f"{source.name}: gives a map of {rows} x {columns} for {size[0]} x {size[1]} pixels, expected {expected}"
    )


def _read_tokens(source: Source, shape: tuple[int, ...], size: Size) -> Found:
    (_, count, dim), (height, width), patch, prefix = shape, size, source.patch, source.num_prefix_tokens
    patches = [patch] if patch else [p for p in range(1, min(size) + 1) if height % p == 0 and width % p == 0]
    cells = {p: (height // p) * (width // p) for p in patches}
    if prefix is None:
        prefix = max(0, count - cells[patch]) if patch else 0
    for p in patches:
        if cells[p] == count - prefix:
            return Found(p, prefix, dim)
    left = sorted((count - n, n) for n in cells.values() if 0 <= count - n <= (count if patch else 16))
    hint = f"; {left[0][1]} + {left[0][0]}: num_prefix_tokens={left[0][0]}?" if left else ""
    grid = (
        f"{height // patch} x {width // patch} patches of {patch} pixels"
        if patch
        else "grid of square patches"
    )
    raise UserError(
        f"{source.name}: gives {count} tokens for {height} x {width} pixels, without {prefix} prefix tokens "
        f"{count - prefix}, which is no {grid}{hint}"
    )


def _whole_strides(side: int, stride: int) -> int:
    """The nearest multiple: 240 px are 7.5 strides of EfficientNet-B1, which becomes 256."""
    return max(1, int(side / stride + 0.5)) * stride


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; each module's own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _three(values: Sequence[float] | None, name: str) -> tuple[float, ...]:
    numbers = tuple(float(v) for v in values or ())
    if len(numbers) != 3:
        raise UserError(f"{name}: found {len(numbers)} numbers as mean or std, expected 3 (RGB in 0 to 1)")
    return numbers
