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

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from s2robot.backbones.facts import Facts, Given, Size
from s2robot.backbones.libraries import Source, read_model
from s2robot.backbones.outputs import as_tokens, features
from s2robot.backbones.twin import twin
from s2robot.common.errors import UserError

PROBE = (256, 384)  # for models that take any size: not square, and a multiple of every usual stride


class Backbone(nn.Module):
    """A vision model whose output is tokens; `find_backbone` makes it.

    Attributes: model, the module that computes, and its facts: name, tile, patch, num_prefix_tokens, dim, mean,
    std, depth, block and any_size, as in `Facts`.
    """

    def __init__(self, source: Source, facts: Facts) -> None:
        super().__init__()
        if facts.tile is None or facts.patch is None or facts.num_prefix_tokens is None or facts.dim is None:
            raise UserError(f"{facts.name}: tile, patch, prefix tokens or dim are not known: {facts}")
        self.model, self._run, self._channels_last = source.model, source.run, bool(facts.channels_last)
        self.name, self.depth, self.block = facts.name, facts.depth, facts.block
        self.any_size = facts.any_size
        self.tile, self.patch = facts.tile, facts.patch
        self.num_prefix_tokens, self.dim = facts.num_prefix_tokens, facts.dim
        self.mean, self.std = _three(facts.mean, "mean", facts.name), _three(facts.std, "std", facts.name)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, h, w) to tokens (B, P + N, D): prefix first, then row by row."""
        return as_tokens(self._run(self.model, x), self._channels_last, self.num_prefix_tokens)

    def frozen(self) -> Backbone:
        """The same weights in modules of their own: in evaluation mode, without gradients, the model left as it is.

        Raises UserError for a model that cannot be copied.
        """
        try:
            return twin(self).requires_grad_(False).eval()
        except UserError as error:
            raise UserError(f"{error}; freeze it yourself and say frozen=False") from error

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Backbone:
        """As in any module; a GPU that is not there is a UserError instead of torch's assertion."""
        try:
            return super()._apply(fn, recurse)
        except (AssertionError, RuntimeError) as error:
            if torch.cuda.is_available() or "CUDA" not in str(error) and "NVIDIA" not in str(error):
                raise
            raise UserError(
                f"{self.name} cannot move to a GPU: torch {torch.__version__} finds none; stay on 'cpu'"
            ) from error

    def extra_repr(self) -> str:
        return (
            f"{self.name}: tile {self.tile[0]} x {self.tile[1]}, patch {self.patch}, "
            f"{self.num_prefix_tokens} prefix tokens, dim {self.dim}, block {self.block or 'last'}"
        )


def find_backbone(model: Any, **given: Unpack[Given]) -> Backbone:
    """The model as a `Backbone`, with its facts found and checked by a dry run on zeros.

    Args:
        model: a timm, torchvision or Hugging Face vision model, DINOv2 from torch.hub, or any callable
            (B, 3, h, w) -> tokens (B, P + N, D), a map (B, D, rows, columns) or (B, rows, columns, D), or what
            holds either (`outputs.features`).
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
    asked = Facts().corrected(given)
    source = read_model(model, asked.block, asked.tile)
    made_for, facts = source.facts.tile, source.facts.corrected(given)
    if facts.mean is None or facts.std is None:
        raise UserError(f"{facts.name}: mean and std are not known; give mean= and std=, or processor=")
    if facts.tile is None:
        raise UserError(f"{facts.name}: tile (the image side in pixels that the model takes) is not given")
    with evaluation(source.model):
        if source.try_sizes and (found := _try_other_size(source, facts)):
            facts = replace(found.added_to(facts), any_size=True)
            if found.is_map and asked.tile is None and facts.tile is not None:
                height, width = facts.tile
                facts = replace(
                    facts, tile=(_whole_strides(height, found.patch), _whole_strides(width, found.patch))
                )
        facts = _read_at_tile(source, facts, made_for)
    _check_rest(facts, by_hand=asked.tile is not None)
    return Backbone(source, facts)


def _read_at_tile(source: Source, facts: Facts, made_for: Size | None) -> Facts:
    """The facts that a dry run at the tile adds; UserError if the model fails there or they do not fit."""
    size = facts.tile or (0, 0)
    try:
        shape = _dry_run(source, facts, size)
    except UserError:
        raise
    except Exception as error:  # models raise many kinds for a size that they do not take
        made = f" (made for {made_for[0]} x {made_for[1]})" if made_for else ""
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"{facts.name}{made} fails on zeros of {size[0]} x {size[1]} pixels: {type(error).__name__}: {reason}"
        ) from error
    return _read(facts, shape, size).added_to(facts)


def _check_rest(facts: Facts, by_hand: bool) -> None:
    """UserError for a tile by hand whose last rows or columns are in no token (a model's own may have a rest)."""
    (height, width), patch = facts.tile or (0, 0), facts.patch or 1
    if by_hand and (height % patch or width % patch):
        less, more = (
            tuple(side // patch * patch + extra for side in (height, width)) for extra in (0, patch)
        )
        raise UserError(
            f"{facts.name}: tile {height} x {width} px is no whole number of patches of {patch} px, whose rest "
            f"would be in no token; nearest are {less[0]} x {less[1]} and {more[0]} x {more[1]}"
        )


@dataclass(frozen=True)
class Found:
    """What the shape of an output tells."""

    patch: int
    num_prefix_tokens: int
    dim: int
    is_map: bool = False
    channels_last: bool = False

    def added_to(self, facts: Facts) -> Facts:
        return replace(
            facts,
            patch=self.patch,
            num_prefix_tokens=self.num_prefix_tokens,
            dim=self.dim,
            channels_last=self.channels_last,
        )


def _try_other_size(source: Source, facts: Facts) -> Found | None:
    """What an image of another size and shape gives, or None if the model takes its own only."""
    other = PROBE
    if (p := facts.patch) is not None:  # a small one is quick
        other = (2 * p, 3 * p) if facts.tile != (2 * p, 3 * p) else (3 * p, 2 * p)
    try:
        return _read(facts, _dry_run(source, facts, other), other)
    except Exception:  # models raise many kinds for a size that they do not take
        return None


def _dry_run(source: Source, facts: Facts, size: Size) -> tuple[int, ...]:
    """Shape of the features of one black image."""
    like = next(source.model.parameters(), torch.empty(0))
    zeros = torch.zeros(1, 3, *size, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        return tuple(features(source.run(source.model, zeros), facts.num_prefix_tokens).shape)


def _read(facts: Facts, shape: tuple[int, ...], size: Size) -> Found:
    """What an output's shape says beside what is known; UserError if it does not fit."""
    if len(shape) == 3:
        return _read_tokens(facts, shape, size)
    if len(shape) == 4:
        return _read_map(facts, shape, size)
    raise UserError(
        f"{facts.name}: gives {shape}, expected tokens (B, P + N, D) or a map (B, D, rows, columns)"
    )


def _read_map(facts: Facts, shape: tuple[int, ...], size: Size) -> Found:
    if facts.num_prefix_tokens:
        raise UserError(
            f"{facts.name}: gives a map {shape}, which has no {facts.num_prefix_tokens} prefix tokens"
        )
    for last in (False, True) if facts.channels_last is None else (facts.channels_last,):
        rows, columns = shape[1:3] if last else shape[2:]
        patch = facts.patch or max(1, size[0] // rows)
        if (rows * patch, columns * patch) == size:
            return Found(patch, 0, shape[3] if last else shape[1], True, last)
    rows, columns = shape[1:3] if facts.channels_last else shape[2:]
    expected = f"whole strides of {facts.patch} pixels" if facts.patch else "whole square strides"
    raise UserError(
        f"{facts.name}: gives a map of {rows} x {columns} for {size[0]} x {size[1]} pixels, expected {expected}"
    )


def _read_tokens(facts: Facts, shape: tuple[int, ...], size: Size) -> Found:
    (_, count, dim), (height, width), patch, prefix = shape, size, facts.patch, facts.num_prefix_tokens
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
        f"{facts.name}: gives {count} tokens for {height} x {width} pixels, without {prefix} prefix tokens "
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


def _three(values: Any, what: str, name: str) -> tuple[float, ...]:
    """A mean or a std, as a sequence or an array; UserError for what images cannot be normalised with."""
    try:
        numbers = tuple(float(v) for v in values)
    except (TypeError, ValueError):  # one number, or no numbers
        raise UserError(f"{name}: {what}: found {values!r}, expected 3 numbers (RGB in 0 to 1)") from None
    if len(numbers) != 3:
        raise UserError(f"{name}: found {len(numbers)} numbers as {what}, expected 3 (RGB in 0 to 1)")
    if not all(math.isfinite(v) and (what == "mean" or v > 0) for v in numbers):
        kind = "finite" if what == "mean" else "positive"
        raise UserError(f"{name}: {what}: found {numbers}, expected 3 {kind} numbers (RGB in 0 to 1)")
    return numbers
