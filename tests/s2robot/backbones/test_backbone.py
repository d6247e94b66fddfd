"""Backbones: detected facts, features against each library's own call, and rejected models.

Small models with random weights; every expected feature comes from the library's public interface or a hook.
"""

import copy
from collections.abc import Callable
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torchvision.models as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from s2robot.backbones.backbone import Backbone, find_backbone
from s2robot.backbones.libraries import CLIP, HALF, IMAGENET, features
from s2robot.backbones.vit import MVPViT, ViTSpec
from s2robot.s2 import forward
from tests.errors import refuses


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    facts: tuple  # tile, patch, prefix tokens, dim, (mean, std), depth
    any_size: bool = False
    path: str = ""  # of block k, from k - 1, k, 2 * k - 1, k + 1; "list": the ModuleList of that length
    norm: str = ""  # of a transformer's last block


def timm_(name: str, facts: tuple, *rest: Any, **options: Any) -> Case:
    return Case(partial(timm.create_model, name, **options), facts, *rest)


def hf(kind: str, facts: tuple, any_size: bool, norm: str = "", **options: Any) -> Case:
    def make() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**options))

    return Case(make, facts, any_size, "list", norm)


BLOCKS = ("blocks.{0}", "norm")
HF_VIT = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
          "image_size": 32, "patch_size": 8}  # fmt: skip
CASES = {
    "timm vit": timm_("vit_tiny_patch16_224", ((32, 64), 16, 1, 192, HALF, 3), False, *BLOCKS, img_size=(32, 64), depth=3),
    "timm dinov2": timm_("vit_small_patch14_reg4_dinov2", ((56, 56), 14, 5, 384, IMAGENET, 2), True, *BLOCKS,
                                 img_size=56, depth=2, dynamic_img_size=True),
    "timm siglip": timm_("vit_so400m_patch14_siglip_384", ((384, 384), 14, 0, 32, HALF, 2), False, *BLOCKS,
                         depth=2, embed_dim=32, num_heads=2, mlp_ratio=2),  # 27 patches, 6 pixels over
    "timm deit": timm_("deit_tiny_distilled_patch16_224", ((64, 64), 16, 2, 192, IMAGENET, 2), False, *BLOCKS, img_size=64, depth=2),
    "timm eva": timm_("eva02_tiny_patch14_224", ((56, 56), 14, 1, 192, CLIP, 2), False, *BLOCKS, img_size=56, depth=2),
    "timm mixer": timm_("mixer_s32_224", ((64, 64), 32, 0, 512, HALF, 8), False, *BLOCKS, img_size=64),
    "timm swin": timm_("swin_tiny_patch4_window7_224", ((224, 224), 32, 0, 64, IMAGENET, 4), False, "layers.{0}",
                       embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2)),
    "timm convnext": timm_("convnext_atto", ((224, 224), 32, 0, 32, IMAGENET, 4), True, "stages.{0}", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)),
    "timm resnet": timm_("resnet18", ((224, 224), 32, 0, 512, IMAGENET, 4), True, "layer{1}"),
    "timm regnet": timm_("regnety_002", ((224, 224), 32, 0, 368, IMAGENET, 4), True, "s{1}"),
    "timm efficientnet": timm_("efficientnet_lite0", ((224, 224), 32, 0, 1280, IMAGENET, 7), True, "blocks.{0}"),
    "timm densenet": timm_("densenet121", ((224, 224), 32, 0, 8, IMAGENET, None), True, growth_rate=4, block_config=(1, 1, 1, 1)),
    "mvp": Case(lambda: MVPViT(ViTSpec(img_size=32, patch_size=8, dim=24, depth=3, heads=3)),
                ((32, 32), 8, 1, 24, IMAGENET, 3), False, *BLOCKS),
    "tv vit": Case(lambda: tv.VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=24, mlp_dim=48),
                   ((32, 32), 8, 1, 24, IMAGENET, 3), False, "encoder.layers.encoder_layer_{0}", "encoder.ln"),
    "tv resnet": Case(tv.resnet18, ((224, 224), 32, 0, 512, IMAGENET, 4), True, "layer{1}"),
    "tv convnext": Case(
        lambda: tv.ConvNeXt([tv.convnext.CNBlockConfig(8 * i, 8 * (i + 1) if i < 4 else None, 1) for i in range(1, 5)]),
        ((224, 224), 32, 0, 32, IMAGENET, 4), True, "features.{2}"),
    "tv efficientnet": Case(tv.efficientnet_b0, ((224, 224), 32, 0, 1280, IMAGENET, 7), True, "features.{1}"),
    "tv swin": Case(lambda: tv.SwinTransformer([4, 4], 8, [1, 1, 2, 1], [1, 1, 2, 2], [7, 7]),
                    ((224, 224), 32, 0, 64, IMAGENET, 4), True, "features.{2}"),
    "tv regnet": Case(tv.regnet_y_400mf, ((224, 224), 32, 0, 440, IMAGENET, 4), True, "trunk_output.block{1}"),
    "tv shufflenet": Case(tv.shufflenet_v2_x0_5, ((224, 224), 32, 0, 1024, IMAGENET, 3), True, "stage{3}"),
    "tv densenet": Case(lambda: tv.DenseNet(8, (1, 1, 1, 1), 16), ((224, 224), 32, 0, 17, IMAGENET, None), True),
    "hf vit": hf("ViT", ((32, 32), 8, 1, 24, HALF, 3), False, "layernorm", **HF_VIT),
    "hf dinov2": hf("Dinov2WithRegisters", ((32, 32), 8, 5, 24, IMAGENET, 3), True, "layernorm", num_register_tokens=4, **HF_VIT),
    "hf clip": hf("CLIPVision", ((32, 32), 8, 1, 24, CLIP, 3), False, **HF_VIT),
    "hf siglip": hf("SiglipVision", ((32, 32), 8, 0, 24, HALF, 3), False, "post_layernorm", **HF_VIT),
    "hf resnet": hf("ResNet", ((224, 224), 32, 0, 32, IMAGENET, 4), True, embedding_size=8, layer_type="basic",
                    hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1]),
    "hf swin": hf("Swin", ((64, 64), 8, 0, 16, IMAGENET, 2), True,
                  image_size=64, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4),
}  # fmt: skip


@cache
def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = CASES[name].make().eval()
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():  # no initial zeros and ones: skipping a module changes the features
            tensor.data += 0.05 * torch.rand_like(tensor)
    return model


def an_image(backbone: Backbone, any_size: bool) -> torch.Tensor:
    """Return noise of the tile's size; for CNNs, smaller and wider, so that rows and columns differ."""
    size = (64, 96) if any_size and backbone.tile[0] == 224 else backbone.tile
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def facts_of(b: Backbone) -> tuple:
    return b.tile, b.patch, b.num_prefix_tokens, b.dim, (b.mean, b.std), b.depth


def assert_tokens(tokens, expected, channels_last=False):
    """Assert that tokens equal the library's output, read cell by cell if it is a map."""
    if expected.ndim == 4:
        expected = expected if channels_last else expected.permute(0, 2, 3, 1)
        expected = torch.stack([cell for row in expected.unbind(1) for cell in row.unbind(1)], 1)
    assert torch.equal(tokens, expected)


def hooked(model: nn.Module, block: nn.Module, x: torch.Tensor, before: bool = False) -> torch.Tensor:
    """Return the input or output of a module when the whole model runs."""
    captured = []
    handle = block.register_forward_hook(lambda _, args, out: captured.append(args[0] if before else out))
    getattr(model, "forward_features", model)(x)
    handle.remove()
    return captured[0][0] if isinstance(captured[0], tuple) else captured[0]


def features_by_hand(name: str, model: Any, x: torch.Tensor) -> torch.Tensor:
    if hasattr(model, "forward_features"):
        return model.forward_features(x)
    if name.startswith("hf"):
        return model(pixel_values=x).last_hidden_state
    if name == "tv densenet":
        return F.relu(model.features(x))
    if hasattr(model, "avgpool"):
        return hooked(model, model.avgpool, x, before=True)
    return hooked(model, model.encoder if name == "tv vit" else model.conv5, x)


def size_of(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def rejected(model, words, **options):
    refuses(words, find_backbone, model() if isinstance(model, partial) else model, **options)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_facts_and_features(name):
    model, case = model_of(name), CASES[name]
    b = find_backbone(model)
    assert facts_of(b) == case.facts and (b.model is model or name.startswith("tv"))
    x = an_image(b, case.any_size)
    assert_tokens(b(x), features_by_hand(name, model, x), channels_last=name == "timm swin")


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.path])
def test_blocks(name):
    model, (_, (*_, depth), any_size, path, norm) = model_of(name), CASES[name]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    paths = [path.format(k - 1, k, 2 * k - 1, k + 1) for k in range(1, depth + 1)]
    if path == "list":
        (blocks, *_) = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    else:
        blocks = [model.get_submodule(each) for each in paths]
    for k in (1, depth - 1):
        cut = find_backbone(model, block=k)
        x = an_image(cut, any_size)
        expected = hooked(model, blocks[k - 1], x)
        expected = model.get_submodule(norm)(expected) if norm else expected
        assert_tokens(cut(x), expected, channels_last=name.endswith(" swin") and not name.startswith("hf"))
        assert cut.block == k and size_of(cut) <= size_of(model) - size_of(*blocks[k:])
        assert not {p.data_ptr() for p in cut.parameters()} & {p.data_ptr() for p in model.parameters()}
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@torch.no_grad()
def test_hugging_face_beyond_the_vision_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    text = {k: v for k, v in HF_VIT.items() if k not in ("image_size", "patch_size")}
    clip = transformers.CLIPModel(transformers.CLIPConfig(vision_config=HF_VIT, text_config=text)).eval()
    backbone, x = find_backbone(clip), torch.randn(2, 3, 32, 32)
    assert torch.equal(backbone(x), clip.vision_model(x).last_hidden_state)
    assert size_of(backbone) == size_of(clip.vision_model)
    classifier = transformers.ViTForImageClassification(transformers.ViTConfig(**HF_VIT)).eval()
    assert torch.equal(find_backbone(classifier)(x), classifier.vit(x).last_hidden_state)
    wide, x = find_backbone(classifier, tile=(32, 64)), torch.randn(2, 3, 32, 64)
    assert wide.tile == (32, 64) and wide(x).shape[1] == 1 + 4 * 8  # the position table is interpolated
    assert torch.equal(wide(x), classifier.vit(x, interpolate_pos_encoding=True).last_hidden_state)
    processor = SimpleNamespace(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    for source in (processor, SimpleNamespace(image_processor=processor)):
        backbone = find_backbone(classifier, processor=source, std=(1, 1, 1))
        assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), (1, 1, 1))
    config = transformers.ViTConfig(**HF_VIT, name_or_path="facebook/dino-vits16")
    assert find_backbone(transformers.ViTModel(config)).mean == IMAGENET[0]
    config.name_or_path = str(tmp_path)  # as after from_pretrained(folder)
    transformers.ViTImageProcessor(**vars(processor)).save_pretrained(tmp_path)
    assert find_backbone(transformers.ViTModel(config)).mean == (0.1, 0.2, 0.3)
    config.name_or_path, config.model_type = "", "vitamin"
    rejected(transformers.ViTModel(config), "mean, std: unknown")
    rejected(transformers.ViTMAEModel(transformers.ViTMAEConfig(**HF_VIT)), "masks and shuffles")


@torch.no_grad()
def test_another_tile_resamples_a_copy():
    model = model_of("timm vit")
    backbone = find_backbone(model, tile=48, block=1)
    assert backbone.tile == find_backbone(model, tile=48).tile == (48, 48)
    assert model.patch_embed.img_size == (32, 64) and model.pos_embed.shape[1] == 9
    own = copy.deepcopy(model)
    own.set_input_size(img_size=48)
    own.blocks = own.blocks[:1]
    x = torch.randn(1, 3, 48, 48)
    assert torch.equal(backbone(x), own.forward_features(x))
    assert find_backbone(model_of("timm resnet"), tile=(64, 96))(torch.randn(1, 3, 64, 96)).shape[1] == 2 * 3


def test_default_tile_is_rounded_to_strides_and_dry_runs_leave_no_trace():
    overlay = {"input_size": (3, 240, 300)}
    model = timm.create_model("mobilenetv3_small_050", pretrained_cfg_overlay=overlay).train()
    model.blocks[0].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert find_backbone(model).tile == (256, 288)
    assert find_backbone(model, block=2).tile == (240, 304)
    rejected(model, "tile: expected a whole number of patches of 32 px, got 240 x 240 px", tile=240)
    assert model.training and not model.blocks[0].training and model.blocks[1].training
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


class Patches(nn.Module):
    """Patch means as tokens behind prefix tokens, or as a map."""

    def __init__(self, patch, prefix=0, form="tokens"):
        super().__init__()
        self.patch, self.prefix, self.form = patch, prefix, form

    def forward(self, x):
        cells = F.avg_pool2d(x, self.patch)
        tokens = torch.cat([x.mean((2, 3))[:, None].expand(-1, self.prefix, -1), cells.flatten(2).mT], dim=1)
        out = {"tokens": tokens, "map": cells, "channels last": cells.permute(0, 2, 3, 1)}
        return out[self.form] if self.form in out else tokens.mean(1)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 7), st.integers(1, 7)), st.integers(1, 8), st.integers(0, 5),
    st.sampled_from(["tokens", "map", "channels last"]),
)  # fmt: skip
def test_any_callable(grid, patch, prefix, form):
    prefix = prefix if form == "tokens" else 0
    tile, model = (grid[0] * patch, grid[1] * patch), Patches(patch, prefix, form)
    facts = {"patch": patch} if form == "channels last" else {}
    made = model.forward if grid[0] % 2 else model
    backbone = find_backbone(made, tile=tile, num_prefix_tokens=prefix, **facts)
    if form == "channels last" and grid == (grid[1], backbone.dim):
        return  # also valid as (B, D, rows, columns), which takes precedence
    assert facts_of(backbone) == (tile, patch, prefix, 3, IMAGENET, None)
    x = torch.randn(2, 3, *tile)
    assert torch.equal(backbone(x), Patches(patch, prefix)(x))


def test_model_outputs():
    x, y = torch.rand(2, 3), torch.rand(4)
    hf_ = {"last_hidden_state": x, "pooler_output": y}
    for out in (x, SimpleNamespace(**hf_), hf_, (x, y), [x], {"out": x, "aux": y}, {"layer4": x}):
        assert features(out) is x
    wrong = (None, "NoneType"), ({"a": x, "b": y}, "dict with a, b"), ((), "tuple"), ({}, "nothing")
    for bad, words in wrong:
        with pytest.raises(TypeError, match=words):
            features(bad)


class Dino(nn.Module):
    """DINOv2 as torch.hub returns it: its forward_features returns a mapping."""

    def __init__(self, registers: int, key: str) -> None:
        super().__init__()
        self.patch_embed = SimpleNamespace(img_size=(32, 32), patch_size=(8, 8))
        self.blocks = nn.ModuleList([nn.Linear(3, 3) for _ in range(3)])
        self.front, self.key = 1 + registers, key

    def tokens(self, x: torch.Tensor, depth: int = 3) -> torch.Tensor:
        return nn.Sequential(Patches(8, prefix=self.front), *self.blocks[:depth])(x)

    def forward_features(self, x: torch.Tensor) -> dict[str, torch.Tensor | None]:
        tokens = self.tokens(x)
        return {"x_norm_clstoken": tokens[:, 0], self.key: tokens[:, 1 : self.front],
                "x_norm_patchtokens": tokens[:, self.front :], "masks": None}  # fmt: skip


@pytest.mark.parametrize(("registers", "key"), [(0, "x_norm_regtokens"), (2, "x_norm_regtokens"), (4, "x_storage_tokens")])  # fmt: skip
def test_dinov2_of_torch_hub(registers, key):
    model, x, front = Dino(registers, key), torch.randn(2, 3, 32, 48), 1 + registers
    backbone = find_backbone(model, block=2)
    assert facts_of(backbone) == ((32, 32), 8, front, 3, IMAGENET, 3)
    assert torch.equal(backbone(x), model.tokens(x, 2))
    patches = find_backbone(model.forward_features, tile=32)  # as a function, without prefix tokens
    assert patches.num_prefix_tokens == 0 and torch.equal(patches(x), model.tokens(x)[:, front:])
    expected = forward(model.tokens, x[..., :32], scales=[1, 2], num_prefix_token=front)
    assert torch.equal(forward(model.forward_features, x[..., :32], [1, 2], num_prefix_token=front), expected)
    model.chunked_blocks = True
    rejected(model, "block: expected none", block=2)


@torch.no_grad()
def test_exports_with_a_dynamic_batch():
    backbone = find_backbone(model_of("timm vit"), block=1).eval()
    x, batch = torch.randn(3, 3, *backbone.tile), torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(backbone, (x,), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(exported(x[:2]), backbone(x)[:2])


@pytest.mark.parametrize(
    ("model", "words", "options"),
    [
        (Patches(16, 1), r"197 tokens are 196 \+ 1: num_prefix_tokens=1\?", {"tile": 224}),
        (Patches(16), r"32 x 48 px.* patches of 8 pixels, got \(1, 6, 3\)", {"tile": (32, 48), "patch": 8}),
        (partial(model_of, "timm deit"), r"18 tokens are 16 \+ 2", {"num_prefix_tokens": 1}),
        (partial(model_of, "tv vit"), "made for 32 x 32.* zeros of 64 x 64", {"tile": 64}),
        (Patches(16), "fails on zeros of 8 x 8 px", {"tile": 8}),
        (tv.squeezenet1_1, r"\(1, 512, 13, 13\)", {}),
        ("resnet18", "str: tile: unknown", {}),
        (Patches(16, form="pooled"), r"expected tokens .* got \(1, 3\)", {"tile": 32}),
        (partial(tv.GoogLeNet, aux_logits=False, init_weights=False), "GoogLeNet: unknown features", {}),
        (partial(model_of, "tv swin"), "block: expected 1 to 4, got 5", {"block": 5}),
        (partial(model_of, "timm densenet"), "block: expected none", {"block": 1}),
        (Patches(16), "tile: expected .* got 32.0", {"tile": 32.0}),
        (Patches(16), "num_prefix_tokens=0", {"tile": 32, "num_prefix_tokens": -1}),
    ],
)  # fmt: skip
def test_mismatched_facts_are_one_error_line(model, words, options):
    rejected(model() if model is tv.squeezenet1_1 else model, words, **options)
