"""The classes that transformers needs for a vision tower with S2: its config and the tower.

They derive from transformers' own classes, so this module is imported only where transformers is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.modeling_outputs import BaseModelOutputWithPooling

from s2robot.core.errors import UserError
from s2robot.s2.engine import encode, pyramid
from s2robot.s2.tiling import Layout, square


class S2VisionConfig(PreTrainedConfig):
    """The original tower's config under `tower`, and the S2 options of `s2robot.vlm.llava.s2_llava`.

    Llava and its processor count image tokens with hidden_size (channels of all scales), num_hidden_layers (of the
    tower), image_size (pixels at the largest scale) and patch_size (pixels of an image token).
    """

    model_type = "s2_vision_tower"
    base_config_key = "vision_config"
    sub_configs_defaults: ClassVar = {"tower": SubConfigSpec(AutoConfig, model_type="clip_vision_model")}

    tower: dict | PreTrainedConfig | None = None
    scales: list[int] | tuple[int, ...] = (1, 2, 3)
    resize: str = "native"
    pool: int | None = None
    tiles_at_once: int | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    image_size: int | None = None
    patch_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        tower: Any = self.tower
        pool = self.pool or self.scales[-1]
        self.hidden_size = tower.hidden_size * len(self.scales)
        self.num_hidden_layers = tower.num_hidden_layers
        self.image_size, self.patch_size = self.scales[-1] * tower.image_size, pool * tower.patch_size
        side = self.scales[-1] * (tower.image_size // tower.patch_size)  # tokens of the largest scale
        if side % pool or self.image_size // self.patch_size != side // pool:
            raise UserError(f"pool: expected a divisor of {side} tokens and {self.image_size} px, got {pool}")


class S2VisionTower(PreTrainedModel):
    """A CLIP or SigLIP tower at several sizes of an image, with the interface that Llava expects of its tower."""

    config_class = S2VisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True

    def __init__(self, config: S2VisionConfig, tower: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.tower = AutoModel.from_config(config.tower) if tower is None else tower
        self.prefix = int(hasattr(self.tower.embeddings, "class_embedding"))  # tokens before the patches
        if tower is None:
            self.post_init()

    @property
    def layout(self) -> Layout:
        """The tilings of all scales and the grid of image tokens."""
        config: Any = self.config
        tile, patch = config.tower.image_size, config.tower.patch_size
        side = config.image_size // config.patch_size
        return replace(square([s * tile for s in config.scales], tile, patch), grid=(side, side))

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | int | list[int] | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Map normalised images (B, 3, H, W) to S2 features (B, P + N, D * scales), P prefix tokens first.

        `output_hidden_states`: the layers to return, in the form that Llava passes; True for all.
        """
        layers = layer_indices(output_hidden_states, self.config.num_hidden_layers)
        out = self._encode(pixel_values, layers)
        if not layers:
            return BaseModelOutputWithPooling(last_hidden_state=out)
        # channels are ordered by scale, then layer; each state gets its layer's channels of all scales
        each = out.unflatten(-1, (len(self.config.scales), len(layers), -1)).unbind(-2)
        states: list[Tensor | None] = [None] * (self.config.num_hidden_layers + 1)
        for layer, features in zip(layers, each, strict=True):
            states[layer] = features.flatten(-2)
        return BaseModelOutputWithPooling(hidden_states=tuple(states))

    def _encode(self, images: Tensor, layers: list[int]) -> Tensor:
        """Encode images of one size (B, 3, H, W) as (B, P + N, D * layers * scales)."""
        layout = self.layout
        sizes, dtype = [level.frame for level in layout.levels], self.dtype
        if self.config.resize == "reference":
            levels = pyramid(images.to(dtype), sizes, enlarge=True)
        else:
            levels = [level.to(dtype) for level in pyramid(images.to(dtype).float(), sizes)]

        def features(tiles: Tensor) -> Tensor:
            parts = tiles.split(self.config.tiles_at_once or len(tiles))
            return torch.cat([self._features(part, layers) for part in parts])

        return encode(features, levels, layout, self.prefix, prefix=bool(self.prefix))

    def _features(self, tiles: Tensor, layers: list[int]) -> Tensor:
        """Tiles (n, 3, tile, tile) -> the layers' hidden states concatenated (n, P + N, D * layers)."""
        if not layers:
            return self.tower(tiles).last_hidden_state
        states = self.tower(tiles, output_hidden_states=layers).hidden_states
        return torch.cat([states[layer] for layer in layers], dim=-1)


def layer_indices(layers: bool | int | Sequence[int] | None, depth: int) -> list[int]:
    """Return the indices of the requested hidden states, all non-negative; IndexError for a missing layer."""
    if layers is None or isinstance(layers, bool):
        return list(range(depth + 1)) if layers else []
    indices = range(depth + 1)
    return sorted({indices[layer] for layer in ([layers] if isinstance(layers, int) else layers)})
