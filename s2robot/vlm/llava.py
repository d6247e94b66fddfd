"""Put S2 into the vision tower of a Hugging Face Llava.

    model = s2_llava(LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf"))   # 336, 672, 1008 px
    processor = s2_processor(AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf"), model)
    model.generate(**processor(images=image, text=prompt, return_tensors="pt"))       # 576 image tokens, as before

The functions import transformers (extra `vlm`) when they are called.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from s2robot.core.errors import UserError, one_of, require

TOWERS = ("clip_vision_model", "siglip_vision_model")


def register() -> None:
    """Register the tower with transformers, once before a saved model is loaded."""
    require("transformers", extra="vlm")
    from transformers import AutoConfig, AutoModel

    from s2robot.vlm.tower import S2VisionConfig, S2VisionTower

    AutoConfig.register(S2VisionConfig.model_type, S2VisionConfig, exist_ok=True)
    AutoModel.register(S2VisionConfig, S2VisionTower, exist_ok=True)


def s2_llava(
    model: Any,
    scales: Sequence[int] = (1, 2, 3),
    *,
    resize: str = "native",
    pool: int | None = None,
    tiles_at_once: int | None = None,
    only_projector: bool = False,
) -> Any:
    """Put S2 into a Llava's vision tower and widen its projector; returns the same model, changed in place.

    The projector's columns of the first scale keep their weights and the others are zero, so outputs are unchanged.

    Args:
        model: a LlavaForConditionalGeneration (or LlavaModel) with a CLIP or SigLIP tower. The feature layer and
            strategy that its config selects do not change.
        scales: multiples of the tower's image size, 1 first, smallest first.
        resize: how the scales are made: "native" (exact area mean, else antialiased) or "reference" (the authors'
            bicubic without antialiasing).
        pool: an image token averages pool x pool tokens of the largest scale. None: the largest scale, which keeps
            the number of image tokens.
        tiles_at_once: tiles per call of the tower, to save memory. None: all, 14 per image at scales (1, 2, 3).
        only_projector: only the projector has gradients. Otherwise `requires_grad` does not change.

    Raises UserError for another model or tower, a quantised projector or sizes that do not divide.
    """
    require("transformers", extra="vlm")
    from s2robot.vlm.tower import S2VisionConfig, S2VisionTower, layer_indices

    inner, scales = _inner(model), tuple(scales)
    config, tower = model.config, inner.vision_tower
    one_of("resize", resize, ("native", "reference"))
    integers = all(type(scale) is int for scale in scales)
    if not integers or scales[:1] != (1,) or list(scales) != sorted(set(scales)):
        raise UserError(f"scales: expected increasing integers from 1, such as (1, 2, 3), got {scales}")
    layers = config.vision_feature_layer
    layer_indices(layers, config.vision_config.num_hidden_layers)  # fails for a missing layer
    layers = 1 if isinstance(layers, int) else len(layers)
    linear = _first_linear(inner.multi_modal_projector, tower.config.hidden_size * layers)
    vision = S2VisionConfig(
        tower=tower.config, scales=list(scales), resize=resize, pool=pool, tiles_at_once=tiles_at_once,
        dtype=tower.config.dtype, attn_implementation=tower.config._attn_implementation,
    )  # fmt: skip
    register()
    inner.multi_modal_projector.linear_1 = widened(linear, layers, len(scales))
    inner.vision_tower = S2VisionTower(vision, tower).train(tower.training)
    config.vision_config = vision
    if only_projector:
        model.requires_grad_(False)
        inner.multi_modal_projector.requires_grad_(True)
    return model


def widened(linear: nn.Linear, layers: int, scales: int) -> nn.Linear:
    """Return a linear layer for more scales: the first scale's columns are kept, the others are zero."""
    like = {"device": linear.weight.device, "dtype": linear.weight.dtype}
    new = nn.Linear(linear.in_features * scales, linear.out_features, linear.bias is not None, **like)
    with torch.no_grad():
        # ordered by layer, then scale
        columns = new.weight.zero_().view(linear.out_features, layers, scales, -1)
        columns[:, :, 0] = linear.weight.view(linear.out_features, layers, -1)
        if linear.bias is not None:
            new.bias.copy_(linear.bias)
    return new.requires_grad_(linear.weight.requires_grad)


def s2_processor(processor: Any, model: Any) -> Any:
    """Return a copy of a LlavaProcessor with the image size and token count of a model from `s2_llava`."""
    tower = getattr(model, "model", model).vision_tower
    images, side = copy.deepcopy(processor.image_processor), tower.config.image_size
    shorter = "shortest_edge" in images.size and images.size["shortest_edge"]
    images.size = {"shortest_edge": side} if shorter else {"height": side, "width": side}
    if getattr(images, "crop_size", None):
        images.crop_size = {"height": side, "width": side}
    return type(processor)(
        image_processor=images,
        tokenizer=processor.tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        chat_template=processor.chat_template,
        image_token=processor.image_token,
        num_additional_image_tokens=tower.prefix,
    )


def _inner(model: Any) -> Any:
    """Return the inner LlavaModel; UserError for another model or tower."""
    inner = getattr(model, "model", model)
    both = (model, getattr(inner, "vision_tower", None))
    kinds = (getattr(getattr(m, "config", None), "model_type", None) for m in both)
    if (found := tuple(kinds))[0] != "llava" or found[1] not in TOWERS:
        got = f"{type(model).__name__} {found}"
        raise UserError(f"model: expected a llava with one of {', '.join(TOWERS)}, got {got}")
    return inner


def _first_linear(projector: nn.Module, width: int) -> nn.Linear:
    """Return the projector's first layer; UserError unless it is a plain Linear for the tower's channels."""
    linear: Any = getattr(projector, "linear_1", None)
    if type(linear) is not nn.Linear or linear.in_features != width:
        found = f"{type(linear).__name__} of {getattr(linear, 'in_features', '?')} channels"
        raise UserError(f"projector.linear_1: expected a plain Linear of {width} channels, got a {found}")
    return linear
