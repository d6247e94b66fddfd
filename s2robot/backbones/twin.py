"""A model's copy that shares its memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from s2robot.common.errors import UserError

Module = TypeVar("Module", bound=nn.Module)


def twin(model: Module, convert: Callable[[Tensor], Tensor] = lambda t: t) -> Module:
    """A copy whose parameters have no gradients; the model is left as it is.

    Its tensors lie where the model's do, so that what is learnt in place there is seen here and the copy costs next to
    nothing. `convert` may change their type: those that it does are new. Raises UserError for a model that cannot be
    copied.
    """
    memo: dict[int, Any] = {}  # deepcopy takes what stands in its memo for copied
    for t in (*model.parameters(), *model.buffers()):
        new = convert(t).detach()
        memo[id(t)] = nn.Parameter(new, requires_grad=False) if isinstance(t, nn.Parameter) else new
    try:
        with torch.no_grad():  # scripted modules clone what is not in the memo
            return copy.deepcopy(model, memo)
    except Exception as error:  # what modules hold raises many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        name = getattr(model, "name", None) or type(model).__name__
        raise UserError(f"{name} cannot be copied ({reason})") from error
