"""Frozen models in the form that is fastest on this device, with the same features.

    fast = prepare(vit)                            # the default mode: bfloat16 where the device multiplies in it
    fast = prepare(vit, dtype=torch.float32)       # features equal to 1e-5
    fast(images)                                   # same call, same type of result as vit(images)

What is done on a CPU, and why (figures in docs/s2.md, from benchmarks/s2.py):

* Weights of linear layers are packed once for oneDNN. In float32 torch calls MKL otherwise, which keeps to AVX2 on
  AMD processors and so to half the rate. A GELU behind a linear layer is computed as its results are stored.
* Attention of timm's transformers in bfloat16 is two batched products with a softmax between, a few images at
  a time: the fused kernel of the CPU multiplies at a seventh of the machine's rate.
* Convolutional networks run in channels-last order.
* Large batches are computed in parts whose activations stay in the cache.

By hand, since torch's own packing (torch.utils.mkldnn, inductor's freezing) changes a model in place or compiles it.
Nothing is compiled: torch.compile with frozen weights was no faster on ViT-B and takes 10 s and a C++ compiler.
A prepared model may be compiled all the same; then its layers are the plain ones. Nothing is timed either, so
that one machine always computes the same features.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from s2robot.backbones.twin import Module, twin
from s2robot.common.errors import UserError

PIXELS_PER_CALL = 10 * 224 * 224  # on a CPU; ViT-B is at its best from 4 to 10 tiles
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def default_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 where the device multiplies matrices in it (CPU with avx512_bf16 or AMX, NVIDIA from Ampere on),
    else float32."""
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
    """A copy of a model for inference in the fastest form that keeps its features.

    Args:
        model: on the device where it is to run. It is left as it is; the copy has its class and attributes.
        dtype: "auto" for `default_dtype` of that device, or torch.float32, torch.bfloat16, torch.float16.

    The copy is in evaluation mode and no parameter has a gradient. It takes floating point images of any type
    and gives the type that it was given. Features in float32 differ by up to 1e-5, those in bfloat16 have a
    cosine of 0.999 or more to them. It shares no memory with the model, so what the model learns later is not in it:
    packed, reordered and converted weights could not follow, and those of one moment belong together. Packed weights
    take as much memory again. Raises UserError for another dtype, for what is no module and for a model that cannot be
    copied.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"prepare: found a {type(model).__name__}, expected an nn.Module")
    first = next((t for t in (*model.parameters(), *model.buffers())), torch.empty(0))
    if dtype == "auto":
        dtype = default_dtype(first.device)
    if dtype not in DTYPES:
        known = ", ".join(str(d) for d in DTYPES)
        raise UserError(f"inference dtype: found {dtype!r}, expected 'auto' or one of {known}")
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
    """Our module on timm's layers; None if timm is not loaded, when no model can be of its kind."""
    if "timm.models.vision_transformer" not in sys.modules:
        return None  # importing it takes longer than torch
    from s2robot.backbones import timm_layers

    return timm_layers


def _converted(model: Module, dtype: torch.dtype) -> Module:
    """A copy whose tensors are of a type, all of them new. Batch statistics keep theirs: rounding them would shift whole
    channels."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    kept = {id(t) for m in norms for t in (*m.parameters(), *m.buffers())}

    def converted(t: Tensor) -> Tensor:
        return t.to(dtype if t.is_floating_point() and id(t) not in kept else t.dtype, copy=True)

    return twin(model, converted)


def _forward(
    run: Callable[..., Any],
    dtype: torch.dtype,
    layout: torch.memory_format,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """The model's forward on images (B, 3, h, w) of any floating type, on a CPU in parts of `PIXELS_PER_CALL`.

    Where they are counts, not where the model was prepared: it may have been moved to a GPU since.
    """
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
    if isinstance(outputs[0], Tensor):
        return (torch.cat(outputs) if len(outputs) > 1 else outputs[0]).to(given)

    def join(*leaves: Any) -> Any:
        if not _is_float(leaves[0]):
            return leaves[0]
        return (torch.cat(leaves) if len(leaves) > 1 else leaves[0]).to(given)

    return tree_map(join, *outputs)


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


class PackedLinear(nn.Linear):
    """A linear layer, with a GELU behind it if so asked, whose weight oneDNN has packed. Plain on another device,
    in another type, while compiling and where a gradient is wanted."""

    _packed: Tensor | None
    gelu: str | None  # "none" (exact) or "tanh"

    @staticmethod
    def from_linear(layer: nn.Linear, gelu: str | None = None) -> None:
        """Turn a linear layer into a packed one, in place: whoever holds it keeps it."""
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
    """Pack every plain linear layer, in place; a GELU that takes its output directly becomes part of it."""
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
