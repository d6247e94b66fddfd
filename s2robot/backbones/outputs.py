"""What vision models return, read in one way for all users of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from s2robot.common.errors import UserError


def features(out: Any, num_prefix_tokens: int | None = None) -> Tensor:
    """The features in what a model returned: a tensor, or the one that an object, mapping or tuple holds.

    Taken in this order: the attribute or key last_hidden_state (Hugging Face), DINOv2's and v3's mapping from
    torch.hub, the keys features and out, a mapping's only tensor, the first of a tuple.

    num_prefix_tokens: only DINO's mapping holds CLS and registers apart from the patches. They are put in front,
    or left out if 0 is expected; None takes what there is.

    Raises UserError that says what was found.
    """
    if isinstance(out, Tensor):
        return out
    hidden = getattr(out, "last_hidden_state", None)
    if isinstance(hidden, Tensor):
        return hidden
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
        f"the model gives a {found}, expected a tensor or one as last_hidden_state; "
        "wrap it in a function that returns its tokens"
    )


def _dino(parts: Mapping[str, Tensor], wanted: int | None) -> Tensor:
    """CLS, registers and patches of one mapping in a row, (B, P + N, D)."""
    patches = parts["x_norm_patchtokens"]
    if wanted == 0:
        return patches
    registers = [parts[key] for key in ("x_norm_regtokens", "x_storage_tokens") if key in parts]
    front = torch.cat([parts["x_norm_clstoken"][:, None], *registers], dim=1)  # (B, P, D)
    if wanted not in (None, front.shape[1]):
        raise UserError(
            f"num_prefix_tokens: found {wanted}, the model gives {front.shape[1]} (CLS and "
            f"{front.shape[1] - 1} registers); expected {front.shape[1]}, or 0 to leave them out"
        )
    return torch.cat([front, patches], dim=1)


def as_tokens(out: Any, channels_last: bool = False, num_prefix_tokens: int | None = None) -> Tensor:
    """Tokens (B, P + N, D) from what a model returned: tokens, a map (4 dimensions), or what holds either."""
    out = features(out, num_prefix_tokens)
    if out.ndim == 4:
        return out.flatten(1, 2) if channels_last else out.flatten(2).transpose(1, 2)  # (B, N, D)
    return out
