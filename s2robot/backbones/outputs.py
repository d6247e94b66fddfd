"""Read the output of any vision model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from s2robot.core.errors import UserError


def features(out: Any, num_prefix_tokens: int | None = None) -> Tensor:
    """Return the features in a model's output: a tensor, or the one that an object, mapping or tuple holds.

    In this order: the attribute or key last_hidden_state (Hugging Face), DINOv2's and v3's mapping from torch.hub, the
    keys features and out, a mapping's only tensor, the first item of a tuple.

    num_prefix_tokens: DINO's mapping holds CLS and registers apart from the patches; they come first, or are left out
    if 0 is expected. None accepts any number.
    """
    out = getattr(out, "last_hidden_state", out)
    if isinstance(out, Tensor):
        return out
    found = type(out).__name__
    if isinstance(out, Mapping):
        tensors = {key: value for key, value in out.items() if isinstance(value, Tensor)}
        if "last_hidden_state" in tensors:
            return tensors["last_hidden_state"]
        if "x_norm_patchtokens" in tensors:
            return _dino(tensors, num_prefix_tokens)
        for key in ("features", "out"):
            if key in tensors:
                return tensors[key]
        if len(tensors) == 1:
            return next(iter(tensors.values()))
        found += f" with {', '.join(map(str, out)) or 'nothing'}"
    elif isinstance(out, tuple | list) and out and isinstance(out[0], Tensor):
        return out[0]
    raise UserError(
        f"the model's output: expected a tensor or an object with last_hidden_state, got a {found}; wrap the model in a "
        "function that returns its tokens"
    )


def _dino(parts: Mapping[str, Tensor], wanted: int | None) -> Tensor:
    """Concatenate CLS, registers and patches of a mapping, (B, P + N, D)."""
    patches = parts["x_norm_patchtokens"]
    if wanted == 0:
        return patches
    registers = [parts[key] for key in ("x_norm_regtokens", "x_storage_tokens") if key in parts]
    front = torch.cat([parts["x_norm_clstoken"][:, None], *registers], dim=1)  # (B, P, D)
    if wanted not in (None, front.shape[1]):
        raise UserError(
            f"num_prefix_tokens: expected {front.shape[1]} (CLS and {front.shape[1] - 1} registers), or 0 to leave "
            f"them out, got {wanted}"
        )
    return torch.cat([front, patches], dim=1)


def as_tokens(out: Any, channels_last: bool = False, num_prefix_tokens: int | None = None) -> Tensor:
    """Return tokens (B, P + N, D) from a model's output: tokens, a map, or an object that holds either."""
    out = features(out, num_prefix_tokens)
    if out.ndim == 4:
        return out.flatten(1, 2) if channels_last else out.flatten(2).transpose(1, 2)  # (B, N, D)
    return out
