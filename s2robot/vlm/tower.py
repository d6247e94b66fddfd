"""The classes by which transformers knows a tower with S2: its config, the tower, and the pictures of `layout="dynamic"`.

They derive from transformers' own, so this room is imported where that package is there, behind `s2robot.vlm.llava`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import SizeDict
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.processing_utils import ImagesKwargs

from s2robot.common.errors import UserError
from s2robot.s2.engine import encode
from s2robot.vlm.plan import Plan, plan_of

NAME = "s2_vision_tower"


class S2VisionConfig(PreTrainedConfig):
    """A tower's own config under `tower`, and how S2 puts it to use: `s2robot.vlm.plan.Plan`.

    hidden_size, num_hidden_layers, image_size and patch_size are what Llava and its processor count with: channels of
    all scales, the tower's depth, pixels at the largest scale, pixels that an image token stands for.
    """

    model_type = NAME
    base_config_key = "vision_config"
    sub_configs_defaults: ClassVar = {"tower": SubConfigSpec(AutoConfig, model_type="clip_vision_model")}

    tower: dict | PreTrainedConfig | None = None
    scales: list[int] | tuple[int, ...] = (1, 2, 3)
    layout: str = "square"
    resize: str = "native"
    pool: int | None = None
    most: int = 12
    tiles_at_once: int | None = None  # tiles in one call of the tower; None: all
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    image_size: int | None = None
    patch_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        plan = plan_of(self)
        tower: Any = self.tower
        self.hidden_size = tower.hidden_size * len(plan.scales)
        self.num_hidden_layers = tower.num_hidden_layers
        self.image_size, self.patch_size = plan.largest * plan.tile, plan.patch * plan.step


class S2VisionTower(PreTrainedModel):
    """A CLIP or SigLIP tower at several sizes of a picture, in the form in which Llava calls its tower."""

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
        self.patch_size = config.patch_size  # Llava counts the tokens of `image_sizes` with it
        self.prefix = int(hasattr(self.tower.embeddings, "class_embedding"))  # tokens ahead of the patches'
        if tower is None:
            self.post_init()

    @property
    def plan(self) -> Plan:
        """Which sizes the tower looks at."""
        return plan_of(self.config)

    def forward(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Normalised pictures (B, 3, H, W) to S2 features (B, P + N, D * scales), P prefix tokens first.

        Args:
            image_sizes: (B, 2), of pictures in one batch that differ in shape and are padded: rows and columns of
                their tiles times `Plan.unit`. The result is then (1, P + tokens of all pictures, D * scales).
            output_hidden_states: which of the tower's hidden states are wanted, as Llava asks for them. They are
                where the tower's own would be, None in place of others. Without: the last hidden state alone.

        Raises UserError for a picture that is no whole number of tiles, and for a layer that is not there.
        """
        layers = self._layers(output_hidden_states)
        if image_sizes is None:
            out = self._encode(pixel_values, layers)
        else:
            tile, unit = self.plan.tile, self.plan.unit
            sizes = [(int(h) // unit * tile, int(w) // unit * tile) for h, w in image_sizes]
            parts = [
                self._encode(x[None, :, :h, :w], layers)
                for x, (h, w) in zip(pixel_values, sizes, strict=True)
            ]
            out = torch.cat([parts[0][:, : self.prefix], *(part[:, self.prefix :] for part in parts)], dim=1)
        if not layers:
            return BaseModelOutputWithPooling(last_hidden_state=out)
        # of all scales: first the channels of all layers at the first, and so on; a layer's own stand together
        each = out.unflatten(-1, (len(self.config.scales), len(layers), -1)).unbind(-2)
        states: list[Tensor | None] = [None] * (self.config.num_hidden_layers + 1)
        for layer, features in zip(layers, each, strict=True):
            states[layer] = features.flatten(-2)
        return BaseModelOutputWithPooling(hidden_states=tuple(states))

    def _layers(self, asked: bool | int | list[int] | None) -> list[int]:
        """Indices of the hidden states asked for, none of them negative."""
        count = self.config.num_hidden_layers + 1
        if asked is None or isinstance(asked, bool):
            return list(range(count)) if asked else []
        chosen = [asked] if isinstance(asked, int) else list(asked)
        if missing := [layer for layer in chosen if not -count <= layer < count]:
            raise UserError(f"vision_feature_layer: found {missing[0]}, expected {-count} to {count - 1}")
        return sorted({layer % count for layer in chosen})

    def _encode(self, pixels: Tensor, layers: list[int]) -> Tensor:
        """Pictures of one size (B, 3, H, W) -> (B, P + N, D * layers * scales)."""
        plan = self.plan
        layout = plan.layout_of(*pixels.shape[-2:])
        levels = plan.levels(pixels.to(self.dtype), layout)

        def features(tiles: Tensor) -> Tensor:
            parts = tiles.split(self.config.tiles_at_once or len(tiles))
            return torch.cat([self._features(part, layers) for part in parts])

        return encode(features, levels, layout, self.prefix, prefix=bool(self.prefix))

    def _features(self, tiles: Tensor, layers: list[int]) -> Tensor:
        """Tiles (n, 3, tile, tile) -> the layers' hidden states side by side (n, P + N, D * layers)."""
        if not layers:
            return self.tower(tiles).last_hidden_state
        states = self.tower(tiles, output_hidden_states=layers).hidden_states
        return torch.cat([states[layer] for layer in layers], dim=-1)


class S2ImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    patch: int
    scales: list[int]
    most: int


class S2ImageProcessor(TorchvisionBackend):
    """Pictures for `layout="dynamic"`: each resized to the tiles that suit its shape, padded to the batch's largest.

    `size` is that of a tile. `image_sizes` (B, 2) tells what is not padding, in whole patches (`Plan.unit` a tile).
    """

    valid_kwargs = S2ImagesKwargs
    model_input_names: ClassVar = ["pixel_values", "image_sizes"]
    do_resize = do_rescale = do_normalize = do_convert_rgb = True
    size: ClassVar = {"height": 336, "width": 336}
    patch, scales, most = 14, [1, 2, 3], 12

    def _preprocess(
        self,
        images: list[Tensor],
        size: Any,
        resample: Any,
        patch: int,
        scales: list[int],
        most: int,
        **kwargs: Any,
    ) -> BatchFeature:
        tile = size.height
        plan = Plan(tile, patch, tuple(scales), "dynamic", most=most, pool=1)
        grids = [plan.shape(*image.shape[-2:]) for image in images]
        most_rows, most_columns = (max(sides) for sides in zip(*grids, strict=True))
        steps = [
            kwargs[k] for k in ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        ]
        pictures = []
        for image, (rows, columns) in zip(images, grids, strict=True):
            x = self.resize(image, SizeDict(height=rows * tile, width=columns * tile), resample)
            x = self.rescale_and_normalize(x, *steps)
            pictures.append(F.pad(x, (0, (most_columns - columns) * tile, 0, (most_rows - rows) * tile)))
        sizes = [[rows * plan.unit, columns * plan.unit] for rows, columns in grids]
        return BatchFeature(
            {"pixel_values": pictures, "image_sizes": sizes}, tensor_type=kwargs["return_tensors"]
        )


class S2LlavaProcessor(LlavaProcessor):
    """Llava's processor, which counts a picture's tokens by its own size where the batch is padded."""

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        height, width = (int(side) for side in image_inputs["image_sizes"][image_idx])
        return self.image_token * ((height // self.patch_size) * (width // self.patch_size))


def register() -> None:
    """Make the classes known to transformers' Auto classes."""
    AutoConfig.register(NAME, S2VisionConfig, exist_ok=True)
    AutoModel.register(S2VisionConfig, S2VisionTower, exist_ok=True)
    AutoImageProcessor.register(
        S2VisionConfig, image_processor_classes={"torchvision": S2ImageProcessor}, exist_ok=True
    )
    AutoProcessor.register(S2VisionConfig, S2LlavaProcessor, exist_ok=True)
