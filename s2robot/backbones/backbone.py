"""Wrap any vision model: normalised images in, tokens out, with the facts that S2 needs.

    backbone = find_backbone(timm.create_model("vit_small_patch14_reg4_dinov2", img_size=224), block=8)
    backbone.tile, backbone.patch, backbone.num_prefix_tokens, backbone.dim    # (224, 224), 14, 5, 384
    backbone(images).shape                 # (B, 5 + 16 * 16, 384), prefix tokens first

timm models, torchvision classifiers, Hugging Face vision models and DINOv2 from torch.hub are recognised. For any
other callable you give the facts; a dry run on zeros finds the rest.

Without `block` the tokens are the library's features: timm's forward_features, torchvision's features before the
pooling, Hugging Face's last_hidden_state; nearly always that is after the final norm. `block=k` is the output of the
k-th block of a transformer or the k-th stage of a CNN or Swin, counted from 1. Later blocks are removed and cost neither
memory nor time. A transformer's final norm still runs; the norms and convolutions after a CNN's last stage do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from s2robot.backbones.facts import Facts, Given, Size
from s2robot.backbones.inference import shared_copy
from s2robot.backbones.libraries import Source, read_model
from s2robot.backbones.outputs import as_tokens, features
from s2robot.core.errors import UserError

PROBE = (256, 384)  # for models that take any size: not square, and a multiple of every usual stride


class Backbone(nn.Module):
    """A vision model whose output is tokens; `find_backbone` makes it.

    Attributes: model, the module that computes, and its facts: name, tile, patch, num_prefix_tokens, dim, mean,
    std, depth, block and any_size, as in `Facts`.
    """

    def __init__(self, source: Source, facts: Facts) -> None:
        super().__init__()
        assert facts.tile and facts.patch and facts.num_prefix_tokens is not None and facts.dim
        self.model, self._run, self._channels_last = source.model, source.run, bool(facts.channels_last)
        self.name, self.depth, self.block = facts.name, facts.depth, facts.block
        self.any_size = facts.any_size
        self.tile, self.patch = facts.tile, facts.patch
        self.num_prefix_tokens, self.dim = facts.num_prefix_tokens, facts.dim
        self.mean, self.std = _three(facts.mean, "mean", facts.name), _three(facts.std, "std", facts.name)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (B, 3, h, w) to tokens (B, P + N, D): prefix first, then row by row."""
        return as_tokens(self._run(self.model, x), self._channels_last, self.num_prefix_tokens)

    def frozen(self) -> Backbone:
        """Return a copy that shares the weights, in evaluation mode and without gradients.

        Raises UserError for a model that cannot be copied.
        """
        try:
            return shared_copy(self).requires_grad_(False).eval()
        except UserError as error:
            raise UserError(f"{error}; freeze it yourself and pass frozen=False") from error

    def extra_repr(self) -> str:
        return (
            f"{self.name}: tile {self.tile[0]} x {self.tile[1]}, patch {self.patch}, "
            f"{self.num_prefix_tokens} prefix tokens, dim {self.dim}, block {self.block or 'last'}"
        )


def find_backbone(model: Any, **given: Unpack[Given]) -> Backbone:
    """Wrap the model as a `Backbone`; a dry run on zeros finds and checks its facts.

    Args:
        model: a timm, torchvision or Hugging Face vision model, DINOv2 from torch.hub, or any callable
            (B, 3, h, w) -> tokens (B, P + N, D), a map (B, D, rows, columns) or (B, rows, columns, D), or an object
            that holds either (`outputs.features`).
        tile: image side, or (height, width), in pixels; required for other callables. Default: the model's own (224
            for torchvision's CNNs; a CNN's is rounded to whole strides). Another tile interpolates a transformer's
            position table, in a copy.
        patch, num_prefix_tokens, mean, std: to correct the facts. Defaults for a callable: no prefix tokens,
            ImageNet's mean and std.
        block: return the tokens after this block, 1 to the model's depth.
        processor: a Hugging Face image processor, for its image_mean and image_std. Default: those of the family's
            published checkpoints.

    The model given is not changed. Without `block` the backbone shares its modules; with `block` it holds a deep copy
    of those that it needs. Raises UserError if a fact is missing or does not fit the model's output.
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
            if (
                found.is_map and asked.tile is None and facts.tile
            ):  # 240 px are 7.5 strides of EfficientNet-B1: 256
                height, width = (max(1, int(side / found.patch + 0.5)) * found.patch for side in facts.tile)
                facts = replace(facts, tile=(height, width))
        facts = _read_at_tile(source, facts, made_for)
    _check_rest(facts, by_hand=asked.tile is not None)
    return Backbone(source, facts)


def _read_at_tile(source: Source, facts: Facts, made_for: Size | None) -> Facts:
    """Add the facts that a dry run at the tile finds; UserError if the model fails there or they do not fit."""
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
    """Reject a given tile whose last rows or columns are in no token (a model's own tile may have a rest)."""
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
    """The facts in the shape of an output."""

    patch: int
    num_prefix_tokens: int
    dim: int
    is_map: bool = False
    channels_last: bool = False

    def added_to(self, facts: Facts) -> Facts:
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "is_map"}
        return replace(facts, **known)


def _try_other_size(source: Source, facts: Facts) -> Found | None:
    """Return what an image of another size and shape gives, or None if the model accepts only its own."""
    other = PROBE
    if (p := facts.patch) is not None:  # a small one is quick
        other = (2 * p, 3 * p) if facts.tile != (2 * p, 3 * p) else (3 * p, 2 * p)
    try:
        return _read(facts, _dry_run(source, facts, other), other)
    except Exception:  # models raise many kinds for a size that they do not take
        return None


def _dry_run(source: Source, facts: Facts, size: Size) -> tuple[int, ...]:
    """Return the shape of the features of one black image."""
    like = next(source.model.parameters(), torch.empty(0))
    zeros = torch.zeros(1, 3, *size, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        return tuple(features(source.run(source.model, zeros), facts.num_prefix_tokens).shape)


def _read(facts: Facts, shape: tuple[int, ...], size: Size) -> Found:
    """Read the facts in an output's shape; UserError if they contradict the known ones."""
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


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, and back to each module's own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _three(values: Any, what: str, name: str) -> tuple[float, ...]:
    """Check a mean or std, given as a sequence or an array."""
    try:
        numbers = tuple(float(v) for v in values)
    except (TypeError, ValueError):  # one number, or no numbers
        raise UserError(f"{name}: {what}: expected 3 numbers (RGB in 0 to 1), got {values!r}") from None
    if len(numbers) != 3 or not all(math.isfinite(v) and (what == "mean" or v > 0) for v in numbers):
        kind = "finite" if what == "mean" else "positive"
        raise UserError(f"{name}: {what}: expected 3 {kind} numbers (RGB in 0 to 1), got {numbers}")
    return numbers
