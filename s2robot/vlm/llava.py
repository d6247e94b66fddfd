"""A Hugging Face Llava with S2 in its vision tower.

    model = s2_llava(LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf"))   # 336, 672, 1008 px
    processor = s2_processor(AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf"), model)
    model.generate(**processor(images=picture, text=prompt, return_tensors="pt"))       # 576 image tokens, as before

transformers (extra `vlm`) is imported inside the functions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from s2robot.common.errors import UserError
from s2robot.common.extras import require
from s2robot.s2.layout import several

TOWERS = ("clip_vision_model", "siglip_vision_model")
WIDEN = ("zero", "init")


def register() -> None:
    """Let transformers know the tower with S2: needed once before a saved model or processor is loaded."""
    require("transformers", "vlm")
    from s2robot.vlm.tower import register as classes

    classes()


def s2_llava(
    model: Any,
    scales: Sequence[int] = (1, 2, 3),
    *,
    layout: str = "square",
    resize: str = "native",
    pool: int | None = None,
    most: int = 12,
    tiles_at_once: int | None = None,
    widen: str = "zero",
    only_projector: bool = False,
) -> Any:
    """Put S2 into a Llava's vision tower and widen its projector; returns the same model, changed in place.

    Args:
        model: a LlavaForConditionalGeneration (or LlavaModel) with a CLIP or SigLIP tower. The layer and the strategy
            that its config selects stay.
        scales, layout, resize, pool, most: `s2robot.vlm.plan.Plan`.
        tiles_at_once: tiles in one call of the tower: less memory. None: all, 14 a picture at scales (1, 2, 3).
        widen: the projector's columns for the first scale keep their weights; those of the others are "zero" (the
            model then says what it said before) or get a linear layer's own initialisation ("init").
        only_projector: the projector alone has gradients. Otherwise `requires_grad` stays as it is.

    Raises UserError for another model or tower, a layer that is not there, and sizes that do not divide.
    """
    require("transformers", "vlm")
    from s2robot.vlm.tower import S2VisionConfig, S2VisionTower

    inner = _inner(model)
    config, tower = model.config, inner.vision_tower
    if widen not in WIDEN:
        raise UserError(f"widen: found {widen!r}, expected one of {', '.join(WIDEN)}")
    if tiles_at_once is not None and (type(tiles_at_once) is not int or tiles_at_once < 1):
        raise UserError(f"tiles_at_once: found {tiles_at_once!r}, expected a whole number of at least 1")
    layers = _check_layers(config)
    _check_prefix(config, layout)
    linear = _first_linear(inner.multi_modal_projector, tower.config.hidden_size * layers)
    vision = S2VisionConfig(
        tower=tower.config, scales=list(several(scales, "scales", "(1, 2, 3)")), layout=layout, resize=resize, pool=pool, most=most,
        tiles_at_once=tiles_at_once, dtype=tower.config.dtype, attn_implementation=tower.config._attn_implementation,
    )  # fmt: skip
    register()
    inner.multi_modal_projector.linear_1 = widened(linear, layers, len(vision.scales), widen)
    inner.vision_tower = S2VisionTower(vision, tower).train(tower.training)
    config.vision_config = vision
    if only_projector:
        model.requires_grad_(False)
        inner.multi_modal_projector.requires_grad_(True)
    return model


def widened(linear: nn.Linear, layers: int, scales: int, widen: str) -> nn.Linear:
    """A linear layer for so many scales: the first one's columns as they were, the others' zero or initialised."""
    like = {"device": linear.weight.device, "dtype": linear.weight.dtype}
    new = nn.Linear(linear.in_features * scales, linear.out_features, linear.bias is not None, **like)
    with torch.no_grad():
        columns = new.weight.view(linear.out_features, layers, scales, -1)  # a layer's scales stand together
        if widen == "zero":
            columns.zero_()
        columns[:, :, 0] = linear.weight.view(linear.out_features, layers, -1)
        if linear.bias is not None:
            new.bias.copy_(linear.bias)
    return new.requires_grad_(linear.weight.requires_grad)


def s2_processor(processor: Any, model: Any) -> Any:
    """A Llava's processor that gives the pictures a model of `s2_llava` takes and counts its image tokens.

    Returns a new processor with the same tokenizer; the one given stays as it is.
    Raises UserError for another processor, and for a model without S2.
    """
    require("transformers", "vlm")
    from s2robot.vlm.tower import S2ImageProcessor, S2LlavaProcessor, S2VisionTower

    tower = getattr(getattr(model, "model", model), "vision_tower", None)
    if not isinstance(tower, S2VisionTower):
        raise UserError(f"expected a model of s2_llava, found a {type(model).__name__} without S2")
    if not hasattr(processor, "image_processor") or not hasattr(processor, "num_additional_image_tokens"):
        raise UserError(f"expected a LlavaProcessor, found a {type(processor).__name__}")
    plan, side = tower.plan, tower.config.image_size
    pictures = copy.deepcopy(processor.image_processor)
    if plan.layout == "dynamic":
        keep = ("resample", "rescale_factor", "image_mean", "image_std", "do_convert_rgb")
        pictures = S2ImageProcessor(
            **{key: getattr(pictures, key) for key in keep},
            size={"height": plan.tile, "width": plan.tile}, patch=plan.patch, scales=list(plan.scales), most=plan.most,
        )  # fmt: skip
    else:
        shorter = "shortest_edge" in pictures.size and pictures.size["shortest_edge"]
        pictures.size = {"shortest_edge": side} if shorter else {"height": side, "width": side}
        if getattr(pictures, "crop_size", None):
            pictures.crop_size = {"height": side, "width": side}
    kind = S2LlavaProcessor if plan.layout == "dynamic" else type(processor)
    return kind(
        image_processor=pictures,
        tokenizer=processor.tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        chat_template=processor.chat_template,
        image_token=processor.image_token,
        num_additional_image_tokens=tower.prefix,
    )


def _inner(model: Any) -> Any:
    """The LlavaModel inside; UserError for another model or tower."""
    inner = getattr(model, "model", model)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind != "llava" or not hasattr(inner, "multi_modal_projector"):
        raise UserError(f"expected a Llava, found a {type(model).__name__} ({kind or 'not of transformers'})")
    tower = inner.vision_tower
    if tower.config.model_type not in TOWERS:
        raise UserError(
            f"the Llava's vision tower is a {type(tower).__name__} ({tower.config.model_type}), expected one of "
            f"{', '.join(TOWERS)}"
        )
    return inner


def _check_layers(config: Any) -> int:
    """How many of the tower's layers Llava selects; UserError for one that is not there."""
    layers = config.vision_feature_layer
    layers = [layers] if isinstance(layers, int) else list(layers)
    count = config.vision_config.num_hidden_layers + 1
    for layer in layers:
        if not -count <= layer < count:
            raise UserError(
                f"vision_feature_layer: found {layer}, expected {-count} to {count - 1} for a tower of {count - 1} layers"
            )
    return len(layers)


def _check_prefix(config: Any, layout: str) -> None:
    """UserError where Llava could not tell the tokens of pictures of different shape apart."""
    wanted = "default" if config.vision_config.model_type == "clip_vision_model" else "full"
    if layout == "dynamic" and config.vision_feature_select_strategy != wanted:
        raise UserError(
            f"layout='dynamic' with vision_feature_select_strategy {config.vision_feature_select_strategy!r}: expected "
            f"{wanted!r} for a {config.vision_config.model_type}, whose tokens are then all patches"
        )


def _first_linear(projector: nn.Module, width: int) -> nn.Linear:
    """The projector's first layer; UserError unless it is a plain one that takes the tower's channels."""
    linear: Any = getattr(projector, "linear_1", None)
    if type(linear) is not nn.Linear or linear.in_features != width:
        found = f"{type(linear).__name__} of {getattr(linear, 'in_features', '?')} channels"
        raise UserError(f"the projector's linear_1 is a {found}, expected a plain Linear of {width}")
    return linear
