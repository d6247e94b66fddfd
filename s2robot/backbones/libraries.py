"""Read the facts of a timm, torchvision, Hugging Face or torch.hub vision model without running it.

    source = read_model(timm.create_model("resnet18"), block=3)
    source.run(source.model, images)       # the output of the third stage; the fourth is removed

`s2robot.backbones.backbone.find_backbone` is the interface. transformers is not imported: its models are recognised by
their config.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from operator import index
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from s2robot.backbones.weights import weights_sha256
from s2robot.core.errors import UserError
from s2robot.core.files import read_json

Size = tuple[int, int]  # height and width in pixels

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Mean and std of the published checkpoints of a Hugging Face family, by config.model_type, for models without
# preprocessor_config.json. "vit" is Google's; Facebook's (DINO, MAE) use ImageNet's and are recognised only by name.
HUGGING_FACE = (
    dict.fromkeys(("vit", "beit", "siglip_vision_model", "siglip2_vision_model"), HALF)
    | dict.fromkeys(("clip_vision_model", "metaclip_2_vision_model"), CLIP)
    | dict.fromkeys(("deit", "vit_msn", "ijepa", "dinov2", "dinov2_with_registers", "dinov3_vit"), IMAGENET)
    | dict.fromkeys(("dinov3_convnext", "convnext", "convnextv2", "resnet", "swin"), IMAGENET)
)
STAGES = ("blocks", "stages", "layers")  # the attribute that holds a timm model's blocks
_OF_ALL = vars(nn.Module())  # attributes of every module
# libraries whose source `structure` leaves out
LIBRARIES = ("torch.nn.", "timm.", "torchvision.", "transformers.", "dinov2.", "s2robot.")


class Overrides(TypedDict, total=False):
    """Facts that keywords of `find_backbone`, `S2` and `S2Encoder` can override; None means no override."""

    tile: int | Size | None
    patch: int | None
    num_prefix_tokens: int | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    block: int | None
    processor: Any  # a Hugging Face image processor


class Facts(NamedTuple):
    """The facts of a vision model that S2 needs; None means unknown."""

    name: str = "model"  # for messages
    tile: Size | None = None  # (height, width) in pixels that the model was made for
    patch: int | None = None  # side in pixels of a token's square (the stride)
    num_prefix_tokens: int | None = None  # CLS, distillation and register tokens at the front, P
    dim: int | None = None  # channels of a token, D
    mean: Sequence[float] | None = IMAGENET[0]  # of RGB in 0 to 1, as the model was trained with
    std: Sequence[float] | None = IMAGENET[1]
    depth: int | None = None  # the number of blocks that `block` can select
    block: int | None = None  # the block after which the tokens are taken; None for the model's end
    channels_last: bool | None = None  # of maps, (B, rows, columns, D)

    def corrected(self, overrides: Overrides) -> Facts:
        """Return these facts with the overrides applied."""
        processor = overrides.get("processor")
        processor = getattr(processor, "image_processor", processor)
        new = {} if processor is None else {"mean": processor.image_mean, "std": processor.image_std}
        new |= {k: v for k, v in overrides.items() if v is not None and k != "processor"}
        new |= {k: index(new[k]) for k in ("patch", "num_prefix_tokens", "block") if k in new}
        return self._replace(**new | ({"tile": pair(new["tile"], "tile")} if "tile" in new else {}))


class Source(NamedTuple):
    """A model, a function that runs it, and the facts that its library provides."""

    model: nn.Module
    run: Callable[[nn.Module, Tensor], Any]
    facts: Facts


def pair(size: Any, key: str) -> Size:
    """Return a side or (height, width) as (height, width); UserError about `key` unless both are integers >= 1."""
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(hasattr(side, "__index__") and side >= 1 for side in sides):
        raise UserError(f"{key}: expected pixels >= 1, an integer or (height, width), got {size!r}")
    return int(sides[0]), int(sides[1])


def check_tile(tile: Size, patch: int) -> None:
    """Raise UserError for a tile that is not a whole number of patches."""
    if tile[0] % patch or tile[1] % patch:
        raise UserError(
            f"tile: expected a whole number of patches of {patch} px, got {tile[0]} x {tile[1]} px; use a tile "
            f"(encoder.img_size) of {tile[0] // patch * patch} x {tile[1] // patch * patch}"
        )


def read_model(model: Any, block: int | None = None, size: Size | None = None) -> Source:
    """Read a model, cut after `block` and resampled for images of `size` (in a copy) where possible."""
    if isinstance(model, nn.Module):
        if any(c.__module__.startswith("torchvision.models.") for c in type(model).__mro__):
            reader = _torchvision_vit if hasattr(model, "conv_proj") else _torchvision
            return reader(model, block)
        if hasattr(getattr(model, "config", None), "model_type"):
            return _hugging_face(model, block, size)
        if hasattr(model, "forward_features"):
            return _timm(model, block, size)
    name = getattr(model, "__name__", type(model).__name__)
    if block is not None:
        _check_block(name, block, 0)
    module = model if isinstance(model, nn.Module) else Function(model)
    return Source(module, nn.Module.__call__, Facts(name, num_prefix_tokens=0))


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> Function:
        return Function(self.function)  # a method's deep copy would copy its object


def features(out: Any, num_prefix_tokens: int | None = None) -> Tensor:
    """Return the feature tensor of a model's output, which may be a tensor, object, mapping or tuple.

    Tried in this order: the attribute or key last_hidden_state (Hugging Face), DINOv2's and v3's mapping from torch.hub,
    the keys features and out, a mapping's only tensor, the first item of a tuple.

    num_prefix_tokens: DINO's mapping stores CLS and registers separately from the patches; they are prepended, or
    dropped if this is 0.
    """
    out = getattr(out, "last_hidden_state", out)
    found = type(out).__name__
    if isinstance(out, Mapping):
        tensors = {key: value for key, value in out.items() if isinstance(value, Tensor)}
        if "x_norm_patchtokens" in tensors:
            registers = [tensors[key] for key in ("x_norm_regtokens", "x_storage_tokens") if key in tensors]
            front = [] if num_prefix_tokens == 0 else [tensors["x_norm_clstoken"][:, None], *registers]
            return torch.cat([*front, tensors["x_norm_patchtokens"]], dim=1)
        found += f" with {', '.join(map(str, out)) or 'nothing'}"
        only = list(tensors)[0] if len(tensors) == 1 else None
        out = next((tensors[k] for k in ("last_hidden_state", "features", "out", only) if k in tensors), None)
    elif isinstance(out, tuple | list) and out:
        out = out[0]
    if not isinstance(out, Tensor):
        hint = "wrap the model in a function that returns its tokens"
        raise TypeError(f"expected a tensor or an object with last_hidden_state, got a {found}; {hint}")
    return out


def structure(model: nn.Module) -> str | None:
    """Describe a model's code and settings identically on every machine; None if its source, or a setting, cannot be read.

    Contains the layers' names and numbers (no weight shows the attention heads), without names that depend on the
    library's version or the machine (`fused_attn`, a checkpoint's path). Of classes that come from no known library, it
    contains all plain attributes and tensors that are no weights, and the source, without the functions that they call.
    """
    modules = dict(model.named_modules())
    bases = {base for module in modules.values() for base in type(module).__mro__}
    own = [b for b in bases if issubclass(b, nn.Module) and not f"{b.__module__}.".startswith(LIBRARIES)]
    if any(isinstance(m, Function | torch.jit.ScriptModule | torch.fx.GraphModule) for m in modules.values()):
        return None
    settings = {}
    try:
        code = sorted(inspect.getsource(base) for base in own)
        for name, module in modules.items():
            found = {key: value for key, value in vars(module).items() if key not in _OF_ALL}
            if type(module) in own:  # private containers may be caches
                found = {k: v for k, v in found.items() if k[0] != "_" or type(v) in (int, float, str)}
                settings[name] = {k: _plain(v) for k, v in {**found, **module._buffers}.items()}
            else:
                settings[name] = {k: v for k, v in found.items() if k[0] != "_" and _are_numbers(v)}
    except (OSError, TypeError):  # typed in an interpreter, generated, or an opaque setting
        return None
    config: dict[str, Any] = getattr(getattr(model, "config", None), "to_dict", dict)()  # Hugging Face's
    config = {key: value for key, value in config.items() if key[0] != "_" and key != "transformers_version"}
    return json.dumps([repr(model), settings, config, code], sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    """Return a setting in a form that is the same on every machine, without paths. Raises TypeError if there is none."""
    value = getattr(value, "__qualname__", value)  # of a function or class
    value = value.to_dict() if hasattr(value, "to_dict") else vars(value) if is_dataclass(value) else value
    if isinstance(value, Mapping):  # as for Hugging Face's `config` above
        named = {str(key): each for key, each in value.items()}
        return {k: _plain(v) for k, v in named.items() if k[:1] != "_" and k != "transformers_version"}
    if isinstance(value, list | tuple | set | frozenset):
        return sorted(map(str, value)) if isinstance(value, set | frozenset) else [*map(_plain, value)]
    if isinstance(value, np.ndarray | Tensor):
        return weights_sha256({"": torch.as_tensor(value)})
    if value is not None and not isinstance(value, bool | int | float | str | torch.dtype):
        raise TypeError(type(value))
    return "" if str(value).startswith(("/", "~/", "./", "../")) else value


def _are_numbers(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return all(type(v) in (int, float) for v in values)


def _forward_features(model: Any, x: Tensor) -> Any:
    return model.forward_features(x)


def _timm(model: Any, block: int | None, size: Size | None) -> Source:
    """Read timm models, our MVPViT (a subclass of timm's ViT), and DINOv2 from torch.hub."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    name = str(cfg.get("architecture") or type(model).__name__)
    embed: Any = getattr(model, "patch_embed", None) or getattr(model, "stem", None)  # MLP-Mixer: stem
    tile = tuple(getattr(embed, "img_size", None) or cfg.get("input_size", (3, 224, 224))[1:])
    stages, uniform = _timm_stages(model)
    patch = None
    if uniform and hasattr(embed, "patch_size"):
        patch = _side(embed.feat_ratio(False) if hasattr(embed, "feat_ratio") else embed.patch_size)
    facts = Facts(
        name,
        tile,
        patch,
        num_prefix_tokens=getattr(model, "num_prefix_tokens", None) if uniform else None,
        mean=cfg.get("mean", IMAGENET[0]),
        std=cfg.get("std", IMAGENET[1]),
        depth=len(stages) or None,
        channels_last=True if getattr(model, "output_fmt", None) == "NHWC" else None,
    )
    resample = size not in (None, tile) and hasattr(model, "set_input_size")
    resample = resample and not getattr(model, "dynamic_img_size", False)
    if block is not None:
        model = _up_to(model, stages, block, name, tail=uniform)
    elif resample:
        model = copy.deepcopy(model)
    if resample:
        model.set_input_size(img_size=size)  # the position table is interpolated
    return Source(model, _forward_features, facts)


def _timm_stages(model: Any) -> tuple[list[str], bool]:
    """Return the names of the blocks or stages, and whether all have the same output shape, as in a transformer."""
    lists = nn.Sequential | nn.ModuleList
    container = next((a for a in STAGES if isinstance(getattr(model, a, None), lists)), None)
    if container:
        stages = [f"{container}.{child}" for child, _ in getattr(model, container).named_children()]
    else:  # ResNet and RegNet: direct children
        stages = [child for child, _ in model.named_children() if child[:-1] in ("layer", "s")]
    if getattr(model, "chunked_blocks", False):  # torch.hub's DINOv2: each chunk holds several blocks
        stages = []
    info = getattr(model, "feature_info", None) or []
    return stages, container == "blocks" and len({(i["reduction"], i["num_chs"]) for i in info}) <= 1


def _pixel_values(model: nn.Module, x: Tensor, **options: bool) -> Any:
    return model(pixel_values=x, **options)


def _hugging_face(model: Any, block: int | None, size: Size | None) -> Source:
    """Read the part of the model that returns `last_hidden_state`: before the final norm in CLIP, after it elsewhere."""
    model = getattr(model, "vision_model", model)  # CLIP and SigLIP with a text tower
    if "For" in type(model).__name__:  # ViTForImageClassification and similar: drop the head
        model = model.base_model
    config = model.config
    name = str(getattr(config, "_name_or_path", "") or config.model_type)
    if hasattr(config, "mask_ratio"):
        raise UserError(f"{name}: this model masks and shuffles its tokens; load it as a ViTModel")
    tile = pair(getattr(config, "image_size", None) or 224, "tile")
    depth = len(getattr(config, "depths", ())) or getattr(config, "num_hidden_layers", 0)
    lists = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth > 0]
    stages = [f"{lists[0]}.{i}" for i in range(depth)] if lists else []
    uniform = hasattr(config, "patch_size") and not hasattr(config, "depths")
    if block is not None:
        model = _up_to(model, stages, block, name, tail=uniform)
    option = "interpolate_pos_encoding"
    interpolates = size not in (None, tile) and option in inspect.signature(model.forward).parameters
    mean, std = HUGGING_FACE.get(config.model_type, (None, None))
    if config.model_type == "vit" and name.startswith("facebook/"):
        mean, std = IMAGENET
    if (file := Path(name, "preprocessor_config.json")).is_file():  # of a model loaded from a folder
        mean, std = (read_json(file).get(key) for key in ("image_mean", "image_std"))
    patch = _side(config.patch_size) if uniform else None
    facts = Facts(name, tile, patch, mean=mean, std=std, depth=len(stages) or None)
    return Source(model, partial(_pixel_values, **{option: True}) if interpolates else _pixel_values, facts)


def _vit_tokens(model: Any, x: Tensor) -> Tensor:
    x = model._process_input(x)  # (B, N, D)
    return model.encoder(torch.cat([model.class_token.expand(x.shape[0], -1, -1), x], dim=1))


def _torchvision_vit(model: Any, block: int | None) -> Source:
    name, tile, patch = type(model).__name__, (model.image_size, model.image_size), model.patch_size
    stages = [f"encoder.layers.{child}" for child, _ in model.encoder.layers.named_children()]
    if block is not None:
        model = _up_to(model, stages, block, name, tail=True)
    return Source(model, _vit_tokens, Facts(name, tile, patch, num_prefix_tokens=1, depth=len(stages)))


def _torchvision(model: Any, block: int | None) -> Source:
    """Read a torchvision classifier: the modules before its pooling, in sequence; the tile is 224 px."""
    name = type(model).__name__
    steps: list[nn.Module] = []
    ends: list[int] = []  # for each stage, the number of steps after which it is complete
    for child, module in model.named_children():
        if child in ("avgpool", "classifier", "fc", "permute"):
            break
        if child in ("features", "trunk_output", "blocks"):
            first = len(steps) + 1
            steps += module
            if name in ("ConvNeXt", "SwinTransformer"):  # stem, stage, downsampling, stage, ...
                ends = list(range(2, len(steps) + 1, 2))
            elif name in ("EfficientNet", "MobileNetV2", "MobileNetV3"):  # stem, stages, last convolution
                ends = list(range(2, len(steps)))
            elif child != "features":
                ends = list(range(first, len(steps) + 1))
        else:
            steps.append(module)
            if child[:-1] in ("layer", "stage"):
                ends.append(len(steps))
    if not steps or hasattr(model, "aux_logits"):
        raise UserError(f"{name}: unknown features; pass a callable that returns them")
    if name == "DenseNet":
        steps.append(nn.ReLU())
    if block is not None:
        _check_block(name, block, len(ends))
        steps = copy.deepcopy(steps[: ends[block - 1]])
    channels_last = hasattr(model, "permute")  # Swin
    facts = Facts(name, (224, 224), depth=len(ends) or None, channels_last=channels_last)
    return Source(nn.Sequential(*steps), nn.Module.__call__, facts)


def _check_block(name: str, block: int, depth: int) -> None:
    if not 1 <= block <= depth:
        expected = f"1 to {depth}" if depth else "none, as its blocks are unknown (cut the model yourself)"
        raise UserError(f"{name}: block: expected {expected}, got {block}")


def _up_to(model: nn.Module, stages: Sequence[str], block: int, name: str, tail: bool) -> nn.Module:
    """Copy a model without the stages (dotted names) after the block and, unless `tail`, the modules that follow them."""
    _check_block(name, block, len(stages))
    removed = list(stages[block:])
    if not tail:
        children = [child for child, _ in model.named_children()]
        removed += children[children.index(stages[-1].split(".")[0]) + 1 :]
    needed = {id(model.get_submodule(stage)) for stage in stages[:block]}
    # deepcopy does not copy modules in its memo, so removed modules cost no memory
    dropped = {id(model.get_submodule(name)) for name in removed} - needed
    memo: dict[int, Any] = {number: nn.Identity() for number in dropped}
    cut = copy.deepcopy(model, memo)
    path, in_container, _ = stages[0].rpartition(".")
    if in_container:
        owner, attribute = cut.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
        setattr(owner, attribute, getattr(owner, attribute)[:block])
    return cut


def _side(patch: Any) -> int:
    """Return the height of a patch; the dry run rejects patches that are not square."""
    return patch if isinstance(patch, int) else tuple(patch)[0]
