"""Copy a frozen model into the fastest form for its device, with the same features.

    fast = prepare(vit)                            # bfloat16 where the device supports it in hardware
    fast = prepare(vit, dtype=torch.float32)       # features equal to 1e-5
    fast(images)                                   # same call, same dtype of the result as vit(images)

On a CPU (figures from benchmarks/s2.py):

* Weights of linear layers are packed once for oneDNN. In float32 torch would call MKL, which uses only AVX2 on AMD
  processors, at half the speed. A GELU after a linear layer is fused into it.
* Attention of timm's transformers in bfloat16 is two batched products and a softmax, a few images at a time: the
  fused CPU kernel runs at a seventh of the machine's speed.
* Convolutional networks run in channels-last order.
* Large batches are split into parts whose activations stay in the cache.

Nothing is compiled (torch.compile with frozen weights was no faster on ViT-B) and nothing is timed, so a machine always
computes the same features. A compiled prepared model uses plain layers.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from s2robot.core.errors import UserError

PIXELS_PER_CALL = 10 * 224 * 224  # on a CPU; ViT-B is at its best from 4 to 10 tiles
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Module = TypeVar("Module", bound=nn.Module)


def default_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """Return bfloat16 if the device multiplies in it (CPU with avx512_bf16 or AMX, NVIDIA since Ampere), else float32."""
    device = torch.device(device)
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = device.type == "cpu" and torch.backends.mkldnn.is_available() and _cpu_has_bfloat16()
    return torch.bfloat16 if fast else torch.float32


def _cpu_has_bfloat16() -> bool:
    # every processor with AMX has avx512_bf16 too
    return bool(torch.cpu._is_avx512_bf16_supported())


def packs() -> bool:
    """Whether linear layers can be packed: an x86 CPU with AVX2 or AVX-512, and a torch with oneDNN."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def prepare(model: Module, dtype: Any = "auto") -> Module:
    """Copy a model for inference into the fastest form that keeps its features.

    Args:
        model: on the device where it will run. It is not changed; the copy has its class and attributes.
        dtype: "auto" for `default_dtype` of that device, or torch.float32, torch.bfloat16, torch.float16.

    The copy is in evaluation mode without gradients. It accepts floating point images of any dtype and returns that
    dtype. Features in float32 differ by up to 1e-5, those in bfloat16 have a cosine of at least 0.999. The copy shares
    no memory with the model, because packed weights could not follow later changes. Packed weights take as much memory
    again. Raises UserError for another dtype and for a model that cannot be copied.
    """
    first = next((t for t in (*model.parameters(), *model.buffers())), torch.empty(0))
    if dtype == "auto":
        dtype = default_dtype(first.device)
    if dtype not in DTYPES:
        known = ", ".join(str(d) for d in DTYPES)
        raise UserError(f"dtype: expected 'auto' or one of {known}, got {dtype!r}")
    fast = _converted(model, dtype).eval()
    on_cpu = first.device.type == "cpu"
    layout = torch.contiguous_format
    if sum(isinstance(m, nn.Conv2d) for m in fast.modules()) > 1:  # one is a transformer's patch embedding
        layout = torch.channels_last
        fast.to(memory_format=layout)
    if on_cpu and dtype in (torch.float32, torch.bfloat16) and packs():
        _pack(fast)
        if dtype == torch.bfloat16 and (timm_layers := _timm_layers()):
            timm_layers.split_attention(fast)
    run = functools.partial(type(model).forward, fast)
    fast.forward = functools.partial(_forward, run, dtype, layout)
    return fast


def _timm_layers() -> Any:
    """Import `timm_layers`, or return None if timm is not loaded and so no model can use it."""
    if "timm.models.vision_transformer" not in sys.modules:
        return None  # importing it takes longer than torch
    from s2robot.backbones import timm_layers

    return timm_layers


def _converted(model: Module, dtype: torch.dtype) -> Module:
    """Copy all tensors to a dtype, except batch norms: rounding their statistics would shift whole channels."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    exact = {id(t) for m in norms for t in (*m.parameters(), *m.buffers())}

    def converted(t: Tensor) -> Tensor:
        return t.to(dtype if t.is_floating_point() and id(t) not in exact else t.dtype, copy=True)

    return shared_copy(model, converted)


def shared_copy(model: Module, convert: Callable[[Tensor], Tensor] = lambda t: t) -> Module:
    """Copy a model without gradients; its tensors share the model's memory unless `convert` returns new ones.

    Raises UserError for a model that cannot be copied.
    """
    memo: dict[int, Any] = {}  # deepcopy does not copy what is in its memo
    for t in (*model.parameters(), *model.buffers()):
        new = convert(t).detach()
        memo[id(t)] = nn.Parameter(new, requires_grad=False) if isinstance(t, nn.Parameter) else new
    try:
        with torch.no_grad():  # scripted modules clone what is not in the memo
            return copy.deepcopy(model, memo)
    except Exception as error:  # modules may hold anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        name = getattr(model, "name", None) or type(model).__name__
        raise UserError(f"{name} cannot be copied ({reason})") from error


def _forward(
    run: Callable[..., Any],
    dtype: torch.dtype,
    layout: torch.memory_format,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Run the model on images (B, 3, h, w) of any floating dtype, on a CPU in parts of `PIXELS_PER_CALL`."""
    given = next(a.dtype for a in (*args, *kwargs.values(), torch.empty(0)) if _is_float(a))

    def cast(x: Any) -> Any:
        if not _is_float(x):
            return x
        return x.to(dtype, memory_format=layout) if x.ndim == 4 else x.to(dtype)

    args, kwargs = tuple(map(cast, args)), {key: cast(value) for key, value in kwargs.items()}
    alone = len(args) == 1 and not kwargs
    if alone and _is_float(args[0]) and args[0].ndim == 4 and args[0].device.type == "cpu":
        b, _, height, width = args[0].shape
        parts = -(-b // max(1, PIXELS_PER_CALL // max(1, height * width)))
        outputs = [run(part) for part in args[0].chunk(max(1, parts))]
    else:
        outputs = [run(*args, **kwargs)]

    def join(*leaves: Any) -> Any:
        if not _is_float(leaves[0]):
            return leaves[0]
        return (torch.cat(leaves) if len(leaves) > 1 else leaves[0]).to(given)

    return tree_map(join, *outputs)


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


class PackedLinear(nn.Linear):
    """A linear layer with a packed weight and an optional GELU. Runs as a plain layer on another device, in another
    dtype, while compiling and with gradients."""

    _packed: Tensor | None
    gelu: str | None  # "none" (exact) or "tanh"

    @staticmethod
    def from_linear(layer: nn.Linear, gelu: str | None = None) -> None:
        """Turn a linear layer into a packed one, in place."""
        layer.__class__ = PackedLinear
        assert isinstance(layer, PackedLinear)  # for the type checker
        layer.gelu = gelu
        pack = torch.ops.mkldnn._reorder_linear_weight if packs() else None
        layer._packed = pack and pack(layer.weight.detach(), None)

    def forward(self, x: Tensor) -> Tensor:
        plain = (
            self._packed is None
            or torch.compiler.is_compiling()
            or x.device.type != "cpu"
            or x.dtype != self._packed.dtype
            or self.weight.dtype != self._packed.dtype
            or self.weight.device.type != "cpu"
            or (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
        )
        if plain:
            out = F.linear(x, self.weight, self.bias)
            return out if self.gelu is None else F.gelu(out, approximate=self.gelu)
        post = "none" if self.gelu is None else "gelu"
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, post, [], self.gelu)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_packed"]  # its memory cannot be read
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        PackedLinear.from_linear(self, self.gelu)

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", gelu={self.gelu!r}" if self.gelu else "")


def _pack(model: nn.Module) -> None:
    """Pack every plain linear layer, in place, together with a GELU that takes its output directly."""
    timm_layers = _timm_layers()
    for module in list(model.modules()):
        pairs: list[tuple[nn.Module, str]] = []
        if getattr(type(module), "forward", None) is nn.Sequential.forward:  # a scripted one has none
            children = list(module.named_children())
            pairs = [(a, name) for (_, a), (name, _) in zip(children, children[1:], strict=False)]
        elif timm_layers and (pair := timm_layers.gelu_behind(module)):
            pairs = [pair]
        for layer, name in pairs:
            act = module.get_submodule(name)
            if type(layer) is nn.Linear and type(act) is nn.GELU:
                PackedLinear.from_linear(layer, act.approximate)
                setattr(module, name, nn.Identity())
    for module in model.modules():
        if type(module) is nn.Linear:
            PackedLinear.from_linear(module)
