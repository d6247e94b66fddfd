"""Read, check and hash the weights of any model; timm, which takes longer to import than torch, is not needed."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from s2robot.core.errors import UserError, reported


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash the names, dtypes, shapes and values of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_strict(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights; a missing, unexpected or differently shaped tensor is a UserError that names it."""
    own, found = ({k: tuple(v.shape) for k, v in tensors.items()} for tensors in (model.state_dict(), state))
    problems = [f"missing {key}" for key in sorted(own.keys() - found)]
    problems += [f"unexpected {key}" for key in sorted(found.keys() - own)]
    wrong = [key for key in own if own[key] != found.get(key, own[key])]
    problems += [f"shape of {key} {found[key]}, expected {own[key]}" for key in wrong]
    problems += [f"{key} is not finite" for key, value in state.items() if not value.isfinite().all()]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        listed = "; ".join(problems[:4]) + more
        raise UserError(f"{source}: weights do not fit {type(model).__name__}: {listed}")
    model.load_state_dict(state)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict in a .safetensors or .pth file, bare or under "model" or "state_dict"; no pickled code runs."""
    path = Path(path)
    with reported(f"{path}: not a readable weights file"):
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(state, dict):
            state = next((state[k] for k in ("model", "state_dict") if isinstance(state.get(k), dict)), state)
        if not state or not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
            raise ValueError('expected a state dict, bare or under "model" or "state_dict"')
        return {k.removeprefix("module."): v for k, v in state.items()}  # of a parallel wrapper
