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
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from s2robot.core.errors import one_of

PIXELS_PER_CALL = 10 * 224 * 224  # on a CPU; ViT-B is fastest with 4 to 10 tiles
SCORES_PER_CALL = 2**21  # attention scores: 4 MiB in bfloat16 stay in the cache
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Module = TypeVar("Module", bound=nn.Module)


def default_dtype(device: torch.device | str = "cpu", wanted: str = "bfloat16") -> torch.dtype:
    """Return bfloat16 if it is wanted and the device has it (CPU with avx512_bf16 or AMX, NVIDIA since Ampere), else float32."""
    device = torch.device(device)
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:  # every processor with AMX has avx512_bf16 too
        fast = device.type == "cpu" and torch.backends.mkldnn.is_available()
        fast = fast and bool(torch.cpu._is_avx512_bf16_supported())
    return torch.bfloat16 if fast and wanted == "bfloat16" else torch.float32


def can_pack(dtype: torch.dtype = torch.float32) -> bool:
    """Whether linear layers of this dtype can be packed, which requires torch with oneDNN and an x86 CPU with AVX2 (AVX-512
    for bfloat16). Elsewhere, and in float16, they run as plain layers."""
    capability = torch.backends.cpu.get_cpu_capability()
    if not torch.backends.mkldnn.is_available() or capability not in ("AVX2", "AVX512"):
        return False
    half = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or bool(half)


def prepare(model: Module, dtype: Any = "auto") -> Module:
    """Copy a model for inference into the fastest form that keeps its features.

    Args:
        model: on the device where it will run. It is not changed; the copy has its class and attributes.
        dtype: "auto" for `default_dtype` of that device, or torch.float32, torch.bfloat16, torch.float16.

    The copy is in evaluation mode without gradients. It accepts floating point images of any dtype and returns that
    dtype. Features in float32 differ by up to 1e-5, those in bfloat16 have a cosine of at least 0.999. The copy shares
    no memory with the model, because packed weights could not follow later changes. Packing doubles the memory of the
    weights. Raises UserError for another dtype.
    """
    first = next((t for t in (*model.parameters(), *model.buffers())), torch.empty(0))
    if dtype == "auto":
        dtype = default_dtype(first.device)
    one_of("dtype", dtype, DTYPES, " or 'auto'")
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    # rounding the statistics of batch norms would shift whole channels
    exact = {id(t) for m in norms for t in (*m.parameters(), *m.buffers())}

    def converted(t: Tensor) -> Tensor:
        return t.to(dtype if t.is_floating_point() and id(t) not in exact else t.dtype, copy=True)

    fast = shared_copy(model, converted).eval()
    layout = torch.contiguous_format
    if sum(isinstance(m, nn.Conv2d) for m in fast.modules()) > 1:  # one is a transformer's patch embedding
        layout = torch.channels_last
        fast.to(memory_format=layout)
    if first.device.type == "cpu" and can_pack(dtype):
        timm = sys.modules.get("timm.models.vision_transformer")  # slower to import than torch
        _pack(fast, getattr(timm, "Mlp", None))
        for module in fast.modules():
            if timm and dtype == torch.bfloat16 and type(module) is timm.Attention and _is_plain(module):
                module.forward = partial(_split_attention, module)
    run = partial(type(model).forward, fast)
    fast.forward = partial(_forward, run, dtype, layout)
    return fast


def shared_copy(model: Module, convert: Callable[[Tensor], Tensor] = lambda t: t) -> Module:
    """Copy a model without gradients; its tensors share the model's memory unless `convert` returns new ones."""
    memo: dict[int, Any] = {}  # deepcopy reuses the objects in its memo
    for t in (*model.parameters(), *model.buffers()):
        new = convert(t).detach()
        memo[id(t)] = nn.Parameter(new, requires_grad=False) if isinstance(t, nn.Parameter) else new
    try:
        with torch.no_grad():  # scripted modules clone tensors that are not in the memo
            return copy.deepcopy(model, memo)
    except Exception as error:  # modules may hold objects that cannot be copied
        error.add_note("The model cannot be copied; freeze it yourself and use S2(..., frozen=False).")
        raise


def _forward(
    run: Callable[..., Any], dtype: torch.dtype, layout: torch.memory_format, *args: Any, **kwargs: Any
) -> Any:
    """Run the model on images (B, 3, h, w) of any floating dtype, on a CPU in parts of `PIXELS_PER_CALL`."""
    input_dtype = next(a.dtype for a in (*args, *kwargs.values(), torch.empty(0)) if _is_float(a))

    def cast(x: Any) -> Any:
        if not _is_float(x):
            return x
        return x.to(dtype, memory_format=layout) if x.ndim == 4 else x.to(dtype)

    args, kwargs = tuple(map(cast, args)), {key: cast(value) for key, value in kwargs.items()}
    single = len(args) == 1 and not kwargs
    if single and _is_float(args[0]) and args[0].ndim == 4 and args[0].device.type == "cpu":
        b, _, height, width = args[0].shape
        parts = -(-b // max(1, PIXELS_PER_CALL // max(1, height * width)))
        outputs = [run(part) for part in args[0].chunk(max(1, parts))]
    else:
        outputs = [run(*args, **kwargs)]

    def join(*leaves: Any) -> Any:
        if not _is_float(leaves[0]):
            return leaves[0]
        return (torch.cat(leaves) if len(leaves) > 1 else leaves[0]).to(input_dtype)

    return tree_map(join, *outputs)


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _is_plain(attention: Any) -> bool:
    """Whether timm's attention is only qkv, softmax and proj, without options of newer versions."""
    parts = (attention.q_norm, attention.k_norm, getattr(attention, "norm", None))
    return getattr(attention, "gate", None) is None and all(
        part is None or isinstance(part, nn.Identity) for part in parts
    )


def _split_attention(attention: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Compute timm's attention without a mask on a CPU, with products of a few images at a time."""
    masked = any(a is not None and a is not False for a in (*args, *kwargs.values()))
    grad = torch.is_grad_enabled() and x.requires_grad
    if masked or grad or x.device.type != "cpu" or torch.compiler.is_compiling():
        return type(attention).forward(attention, x, *args, **kwargs)
    b, n, _ = x.shape
    h, d = attention.num_heads, attention.head_dim
    outputs = []
    for qkv in attention.qkv(x).view(b, n, 3, h, d).split(max(1, SCORES_PER_CALL // (h * n * n))):
        # contiguous before the transposition below, which then needs no copy
        q, k, v = qkv.permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2).unbind(0)  # (b * h, N, d)
        scores = torch.bmm(q * attention.scale, k.transpose(1, 2)).softmax(dim=-1)  # (b * h, N, N)
        out = torch.bmm(scores, v).view(-1, h, n, d).transpose(1, 2)  # (b, N, h, d)
        outputs.append(out.reshape(-1, n, h * d))
    return attention.proj(torch.cat(outputs) if len(outputs) > 1 else outputs[0])


class PackedLinear(nn.Linear):
    """A linear layer with a packed weight and an optional GELU. Runs as a plain layer on another device, in another
    dtype, under compilation and with gradients."""

    _packed: Tensor | None
    gelu: str | None  # "none" (exact) or "tanh"

    @staticmethod
    def from_linear(layer: nn.Linear, gelu: str | None = None) -> None:
        """Turn a linear layer into a packed one, in place."""
        layer.__class__ = PackedLinear
        assert isinstance(layer, PackedLinear)  # for the type checker
        layer.gelu, layer._packed = gelu, None
        if layer.weight.device.type == "cpu" and can_pack(layer.weight.dtype):
            layer._packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)

    def forward(self, x: Tensor) -> Tensor:
        plain = (
            self._packed is None
            or torch.compiler.is_compiling()
            or {x.device.type, self.weight.device.type} != {"cpu"}
            or {x.dtype, self.weight.dtype} != {self._packed.dtype}
            or (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
        )
        if plain:
            out = F.linear(x, self.weight, self.bias)
            return out if self.gelu is None else F.gelu(out, approximate=self.gelu)
        post = "none" if self.gelu is None else "gelu"
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, post, [], self.gelu)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        PackedLinear.from_linear(self, self.gelu)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_packed"}  # it cannot be serialised

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        PackedLinear.from_linear(self, self.gelu)


def _pack(model: nn.Module, mlp: Any) -> None:
    """Pack every plain linear layer in place, fused with a GELU that directly follows it.

    mlp: timm's class for layers fc1 and act in this order.
    """
    for module in list(model.modules()):
        names = ["fc1", "act"] if type(module) is mlp else []
        if getattr(type(module), "forward", None) is nn.Sequential.forward:  # scripted modules have none
            names = [name for name, _ in module.named_children()]
        for name, after in zip(names, names[1:], strict=False):
            layer, act = module.get_submodule(name), module.get_submodule(after)
            if type(layer) is nn.Linear and type(act) is nn.GELU:
                PackedLinear.from_linear(layer, act.approximate)
                setattr(module, after, nn.Identity())
    for module in model.modules():
        if type(module) is nn.Linear:
            PackedLinear.from_linear(module)
