"""Backbones: the facts found, the features against each library's own call, and what is refused.

Small models with random weights; every expected feature comes from the library's public interface or a hook.
"""

import copy
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torchvision.models as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from s2robot.backbones.backbone import Backbone, find_backbone
from s2robot.backbones.libraries import CLIP, HALF, IMAGENET
from s2robot.backbones.vit import MVPViT, ViTSpec
from s2robot.core.errors import UserError

torch.set_num_threads(1)


def shaken(model: nn.Module) -> nn.Module:
    """No parameter and no statistic at its initial zero or one, so that leaving a module out shows."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data += 0.05 * torch.rand_like(tensor)
    return model.eval()


# timm's name, how it is made small; tile, patch, prefix tokens, dim, (mean, std), depth, any size
_TIMM = {
    "vit": ("vit_tiny_patch16_224", {"img_size": (32, 64), "depth": 3}, ((32, 64), 16, 1, 192, HALF, 3, False)),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "depth": 3}, ((56, 56), 14, 5, 384, IMAGENET, 3, False)),
    "dinov2-dynamic": ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "depth": 2, "dynamic_img_size": True},
                       ((56, 56), 14, 5, 384, IMAGENET, 2, True)),
    "clip": ("vit_base_patch16_clip_224", {"img_size": 64, "depth": 2, "embed_dim": 64, "num_heads": 2},
             ((64, 64), 16, 1, 64, CLIP, 2, False)),
    "siglip": ("vit_so400m_patch14_siglip_384", {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2},
               ((384, 384), 14, 0, 32, HALF, 2, False)),  # 27 patches, 6 pixels over
    "deit": ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 2}, ((64, 64), 16, 2, 192, IMAGENET, 2, False)),
    "eva": ("eva02_tiny_patch14_224", {"img_size": 56, "depth": 2}, ((56, 56), 14, 1, 192, CLIP, 2, False)),
    "mixer": ("mixer_s32_224", {"img_size": 64}, ((64, 64), 32, 0, 512, HALF, 8, False)),
    "swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)},
             ((224, 224), 32, 0, 64, IMAGENET, 4, False)),
    "convnext": ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}, ((224, 224), 32, 0, 32, IMAGENET, 4, True)),
    "resnet": ("resnet18", {}, ((224, 224), 32, 0, 512, IMAGENET, 4, True)),
    "regnet": ("regnety_002", {}, ((224, 224), 32, 0, 368, IMAGENET, 4, True)),
    "efficientnet": ("efficientnet_lite0", {}, ((224, 224), 32, 0, 1280, IMAGENET, 7, True)),
    "mobilenet": ("mobilenetv3_small_050", {}, ((224, 224), 32, 0, 288, IMAGENET, 6, True)),
    "densenet": ("densenet121", {"growth_rate": 4, "block_config": (1, 1, 1, 1)}, ((224, 224), 32, 0, 8, IMAGENET, None, True)),
}  # fmt: skip
TIMM = {name: partial(timm.create_model, model, **options) for name, (model, options, _) in _TIMM.items()}
TIMM["mvp"] = lambda: MVPViT(ViTSpec(img_size=32, patch_size=8, dim=24, depth=3, heads=3))
TIMM_FACTS = {name: facts for name, (_, _, facts) in _TIMM.items()}
TIMM_FACTS["mvp"] = ((32, 32), 8, 1, 24, IMAGENET, 3, False)
TORCHVISION = {
    "vit": lambda: tv.VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=24, mlp_dim=48),
    "resnet": lambda: tv.resnet18(),
    "convnext": lambda: tv.ConvNeXt(
        [tv.convnext.CNBlockConfig(8 * i, 8 * (i + 1) if i < 4 else None, 1) for i in range(1, 5)]
    ),
    "efficientnet": lambda: tv.efficientnet_b0(),
    "mobilenet": lambda: tv.mobilenet_v3_small(),
    "swin": lambda: tv.SwinTransformer([4, 4], 8, [1, 1, 2, 1], [1, 1, 2, 2], [7, 7]),
    "regnet": lambda: tv.regnet_y_400mf(),
    "shufflenet": lambda: tv.shufflenet_v2_x0_5(),
    "densenet": lambda: tv.DenseNet(8, (1, 1, 1, 1), 16),
}
TORCHVISION_FACTS = {
    "vit": ((32, 32), 8, 1, 24, 3, False),
    "resnet": ((224, 224), 32, 0, 512, 4, True),
    "convnext": ((224, 224), 32, 0, 32, 4, True),
    "efficientnet": ((224, 224), 32, 0, 1280, 7, True),
    "mobilenet": ((224, 224), 32, 0, 576, 11, True),
    "swin": ((224, 224), 32, 0, 64, 4, True),
    "regnet": ((224, 224), 32, 0, 440, 4, True),
    "shufflenet": ((224, 224), 32, 0, 1024, 3, True),
    "densenet": ((224, 224), 32, 0, 17, None, True),
}
HF_VIT = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
          "image_size": 32, "patch_size": 8}  # fmt: skip
HF_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
# class name, its settings, its final norm; then facts as above
HF = {
    "vit": ("ViT", HF_VIT, "layernorm", ((32, 32), 8, 1, 24, HALF, 3, False)),
    "dinov2": ("Dinov2", HF_VIT, "layernorm", ((32, 32), 8, 1, 24, IMAGENET, 3, True)),
    "dinov2-registers": ("Dinov2WithRegisters", HF_VIT | {"num_register_tokens": 4}, "layernorm",
                         ((32, 32), 8, 5, 24, IMAGENET, 3, True)),
    "clip": ("CLIPVision", HF_VIT, None, ((32, 32), 8, 1, 24, CLIP, 3, False)),
    "siglip": ("SiglipVision", HF_VIT, "post_layernorm", ((32, 32), 8, 0, 24, HALF, 3, False)),
    "convnext": ("ConvNext", HF_STAGES, None, ((224, 224), 32, 0, 32, IMAGENET, 4, True)),
    "resnet": ("ResNet", HF_STAGES | {"embedding_size": 8, "layer_type": "basic"}, None,
               ((224, 224), 32, 0, 32, IMAGENET, 4, True)),
    "swin": ("Swin", {"image_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
             "layernorm", ((64, 64), 8, 0, 16, IMAGENET, 2, True)),
}  # fmt: skip


@cache
def timm_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return shaken(TIMM[name]())


@cache
def torchvision_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return shaken(TORCHVISION[name]())


@cache
def hf_model(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    kind, settings_, _, _ = HF[name]
    config = getattr(transformers, f"{kind}Config")(**settings_)
    return shaken(getattr(transformers, f"{kind}Model")(config))


def an_image(backbone: Backbone) -> torch.Tensor:
    """Noise of the tile's size; where any size goes, smaller and wider than the tile, so that rows count."""
    size = (64, 96) if backbone.any_size and backbone.tile[0] == 224 else backbone.tile
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def assert_tokens(tokens, expected, backbone, channels_last=False):
    """Tokens are the library's output: as it is, or cell by cell if that is a map."""
    if expected.ndim == 3:
        assert torch.equal(tokens, expected)
        return
    if channels_last:
        expected = expected.permute(0, 3, 1, 2)
    rows, columns = expected.shape[2:]
    assert tokens.shape[1:] == (rows * columns, expected.shape[1])
    for r in range(rows):
        for c in range(columns):
            assert torch.equal(tokens[:, r * columns + c], expected[:, :, r, c])


def hooked(model: nn.Module, block: nn.Module, x: torch.Tensor, run) -> torch.Tensor:
    """What a block returns when the whole model runs."""
    seen = []
    handle = block.register_forward_hook(lambda _, args, out: seen.append(out))
    run(model, x)
    handle.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


def size_of(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@torch.no_grad()
@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    model = timm_model(name)
    backbone = find_backbone(model)
    b = backbone
    facts = (b.tile, b.patch, b.num_prefix_tokens, b.dim, (b.mean, b.std), b.depth, b.any_size)
    assert facts == TIMM_FACTS[name]
    x = an_image(backbone)
    expected = model.forward_features(x)
    assert_tokens(backbone(x), expected, backbone, channels_last=name == "swin")
    rows, columns = (side // b.patch for side in x.shape[2:])
    assert backbone(x).shape[1] == b.num_prefix_tokens + rows * columns
    assert backbone.model is model


@torch.no_grad()
@pytest.mark.parametrize("name", [n for n in TIMM if TIMM_FACTS[n][5]])
def test_timm_block(name):
    model = timm_model(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    depth, transformer = TIMM_FACTS[name][5], hasattr(model, "blocks") and hasattr(model, "norm")
    blocks = [
        m
        for n, m in model.named_children()
        if n in ("layer1", "layer2", "layer3", "layer4", "s1", "s2", "s3", "s4")
    ]
    blocks = blocks or list(getattr(model, "blocks", None) or getattr(model, "stages", None) or model.layers)
    assert len(blocks) == depth
    for k in (1, depth - 1, depth):
        backbone = find_backbone(model, block=k)
        x = an_image(backbone)
        expected = hooked(model, blocks[k - 1], x, lambda m, x: m.forward_features(x))
        if transformer:
            expected = model.norm(expected)
        assert_tokens(backbone(x), expected, backbone, channels_last=name == "swin")
        later = size_of(*blocks[k:])
        if transformer:
            assert size_of(backbone) == size_of(model) - later
        else:
            assert size_of(backbone) <= size_of(model) - later
        assert not {p.data_ptr() for p in backbone.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert len(model.state_dict()) == len(before)


@torch.no_grad()
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    model = torchvision_model(name)
    backbone = find_backbone(model)
    b = backbone
    assert (b.tile, b.patch, b.num_prefix_tokens, b.dim, b.depth, b.any_size) == TORCHVISION_FACTS[name]
    assert (b.mean, b.std) == IMAGENET
    x = an_image(backbone)
    if name == "vit":
        expected = hooked(model, model.encoder, x, lambda m, x: m(x))
    elif hasattr(model, "avgpool"):
        seen = []
        handle = model.avgpool.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model(x)
        handle.remove()
        expected = seen[0]
    elif name == "densenet":
        expected = F.relu(model.features(x))
    else:
        expected = hooked(model, model.conv5, x, lambda m, x: m(x))
    assert_tokens(backbone(x), expected, backbone)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "block", "module", "dim", "patch"),
    [
        ("vit", 2, "encoder.layers.encoder_layer_1", 24, 8),
        ("resnet", 3, "layer3", 256, 16),
        ("convnext", 1, "features.1", 8, 4),
        ("convnext", 3, "features.5", 24, 16),
        ("efficientnet", 5, "features.5", 112, 16),
        ("mobilenet", 11, "features.11", 96, 32),
        ("swin", 3, "features.5", 32, 16),
        ("regnet", 2, "trunk_output.block2", 104, 8),
        ("shufflenet", 2, "stage3", 96, 16),
    ],
)
def test_torchvision_block(name, block, module, dim, patch):
    model = torchvision_model(name)
    backbone = find_backbone(model, block=block)
    assert (backbone.dim, backbone.patch, backbone.block) == (dim, patch, block)
    assert not {p.data_ptr() for p in backbone.parameters()} & {p.data_ptr() for p in model.parameters()}
    x = an_image(backbone)
    expected = hooked(model, model.get_submodule(module), x, lambda m, x: m(x))
    if name == "vit":
        expected = model.encoder.ln(expected)
        assert size_of(backbone) == size_of(model) - size_of(model.encoder.layers[2])
    else:
        assert size_of(backbone) < size_of(model)
    assert_tokens(backbone(x), expected, backbone, channels_last=name == "swin")


@torch.no_grad()
@pytest.mark.parametrize("name", HF)
def test_hugging_face(name):
    model, (_, _, norm, facts) = hf_model(name), HF[name]
    backbone = find_backbone(model)
    b = backbone
    assert (b.tile, b.patch, b.num_prefix_tokens, b.dim, (b.mean, b.std), b.depth, b.any_size) == facts
    x = an_image(backbone)
    assert_tokens(backbone(x), model(pixel_values=x).last_hidden_state, backbone)
    for k in {1, 2, b.depth}:
        cut = find_backbone(model, block=k)
        x = an_image(cut)
        blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == b.depth)
        expected = hooked(model, blocks[k - 1], x, lambda m, x: m(pixel_values=x))
        if norm and name != "swin":
            expected = getattr(model, norm)(expected)
        assert_tokens(cut(x), expected, cut)
        assert size_of(cut) <= size_of(model) - size_of(*blocks[k:])
    assert len(blocks) == b.depth


@torch.no_grad()
def test_hugging_face_beyond_the_vision_model():
    transformers = pytest.importorskip("transformers")
    text = {
        k: HF_VIT[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    }
    clip = transformers.CLIPModel(transformers.CLIPConfig(vision_config=HF_VIT, text_config=text)).eval()
    backbone = find_backbone(clip)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(backbone(x), clip.vision_model(x).last_hidden_state)
    assert size_of(backbone) == size_of(clip.vision_model)

    classifier = transformers.ViTForImageClassification(transformers.ViTConfig(**HF_VIT)).eval()
    assert torch.equal(find_backbone(classifier)(x), classifier.vit(x).last_hidden_state)

    wide = find_backbone(classifier, tile=(32, 64))  # the position table is interpolated
    assert wide.tile == (32, 64) and wide.any_size
    x = torch.randn(2, 3, 32, 64)
    assert wide(x).shape[1] == 1 + 4 * 8
    assert torch.equal(wide(x), classifier.vit(x, interpolate_pos_encoding=True).last_hidden_state)

    processor = SimpleNamespace(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    for given_ in (processor, SimpleNamespace(image_processor=processor)):
        backbone = find_backbone(classifier, processor=given_, std=(1, 1, 1))
        assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), (1, 1, 1))

    config = transformers.ViTConfig(**HF_VIT, name_or_path="facebook/dino-vits16")
    assert find_backbone(transformers.ViTModel(config)).mean == IMAGENET[0]
    config.model_type = "vitamin"
    with pytest.raises(UserError, match="mean and std are not known"):
        find_backbone(transformers.ViTModel(config))
    mae = transformers.ViTMAEModel(transformers.ViTMAEConfig(**HF_VIT))
    with pytest.raises(UserError, match="masks and shuffles"):
        find_backbone(mae)


@torch.no_grad()
def test_another_tile_resamples_a_copy():
    model = timm_model("vit")
    backbone = find_backbone(model, tile=48, block=1)
    assert backbone.tile == find_backbone(model, tile=48).tile == (48, 48)
    assert model.patch_embed.img_size == (32, 64) and model.pos_embed.shape[1] == 9
    own = copy.deepcopy(model)
    own.set_input_size(img_size=48)
    own.blocks = own.blocks[:1]
    x = torch.randn(1, 3, 48, 48)
    assert torch.equal(backbone(x), own.forward_features(x))
    assert find_backbone(timm_model("resnet"), tile=(64, 96))(torch.randn(1, 3, 64, 96)).shape[1] == 2 * 3


def test_a_tile_that_is_no_whole_number_of_strides_is_rounded_unless_given():
    def model():
        return timm.create_model(
            "mobilenetv3_small_050", pretrained_cfg_overlay={"input_size": (3, 240, 300)}
        )

    assert find_backbone(model()).tile == (256, 288)
    assert find_backbone(model(), block=2).tile == (240, 304)
    with pytest.raises(UserError, match="map of 8 x 8 for 240 x 240 pixels, expected whole strides of 32"):
        find_backbone(model(), tile=240)


class Patches(nn.Module):
    """Patch means as tokens behind prefix tokens, or as a map."""

    def __init__(self, patch, prefix=0, form="tokens"):
        super().__init__()
        self.patch, self.prefix, self.form = patch, prefix, form

    def forward(self, x):
        cells = F.avg_pool2d(x, self.patch)
        if self.form == "map":
            return cells
        if self.form == "channels last":
            return cells.permute(0, 2, 3, 1)
        tokens = torch.cat([x.mean((2, 3))[:, None].expand(-1, self.prefix, -1), cells.flatten(2).mT], dim=1)
        return {
            "tokens": tokens,
            "object": SimpleNamespace(last_hidden_state=tokens),
            "mapping": {"last_hidden_state": tokens},
            "tuple": (tokens,),
            "pooled": tokens.mean(1),
            "none": None,
        }[self.form]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    patch=st.integers(1, 8),
    prefix=st.integers(0, 5),
    form=st.sampled_from(["tokens", "object", "mapping", "tuple", "map", "channels last"]),
)
def test_any_callable(rows, columns, patch, prefix, form):
    prefix = prefix if form in ("tokens", "object", "mapping", "tuple") else 0
    tile = (rows * patch, columns * patch)
    model = Patches(patch, prefix, form)
    known = {"patch": patch} if form == "channels last" else {}
    backbone = find_backbone(
        model.forward if rows % 2 else model, tile=tile, num_prefix_tokens=prefix, **known
    )
    assert (backbone.tile, backbone.patch, backbone.num_prefix_tokens, backbone.depth) == (
        tile,
        patch,
        prefix,
        None,
    )
    assert (backbone.mean, backbone.std) == IMAGENET and not backbone.any_size
    if form == "channels last" and (rows, columns) == (columns, backbone.dim):
        return  # reads as (B, D, rows, columns) too, which goes first
    x = torch.randn(2, 3, *tile)
    expected = Patches(patch, prefix)(x)
    assert torch.equal(backbone(x), expected) and backbone.dim == 3


def test_dinov2_of_torch_hub():
    """Its forward_features gives a mapping; this one has the names and nothing else."""

    class Hub(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed = SimpleNamespace(img_size=(32, 32), patch_size=(8, 8))
            self.blocks = nn.ModuleList([nn.Linear(3, 3) for _ in range(3)])

        def forward_features(self, x):
            tokens = Patches(8, prefix=3)(x)
            for block in self.blocks:
                tokens = block(tokens)
            return {
                "x_norm_clstoken": tokens[:, 0],
                "x_norm_regtokens": tokens[:, 1:3],
                "x_norm_patchtokens": tokens[:, 3:],
            }

    model, x = Hub(), torch.randn(2, 3, 32, 48)
    backbone = find_backbone(model, block=2)
    assert (backbone.num_prefix_tokens, backbone.patch, backbone.depth, backbone.any_size) == (3, 8, 3, True)
    assert torch.equal(backbone(x), model.blocks[1](model.blocks[0](Patches(8, prefix=3)(x))))
    model.chunked_blocks = True
    with pytest.raises(UserError, match="block=2, but its blocks are not known"):
        find_backbone(model, block=2)


def test_a_dry_run_leaves_no_trace():
    model = timm.create_model("mobilenetv3_small_050").train()
    model.blocks[0].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    find_backbone(model)
    assert model.training and not model.blocks[0].training and model.blocks[1].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize(("name", "block"), [("vit", 1), ("mobilenet", 2)])
def test_compiles_in_one_graph_and_exports_with_a_dynamic_batch(name, block):
    backbone = find_backbone(timm_model(name), block=block, tile=None if name == "vit" else 64).eval()
    x = torch.randn(3, 3, *backbone.tile)
    expected = backbone(x)
    torch.testing.assert_close(torch.compile(backbone, fullgraph=True, backend="eager")(x), expected)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(backbone, (x,), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(exported(x[:2]), expected[:2])


def refused(model, words, **given):
    with pytest.raises(UserError, match=words) as error:
        find_backbone(model() if isinstance(model, partial) else model, **given)
    assert "\n" not in str(error.value)


def test_facts_that_contradict_the_output_are_one_line_with_both_numbers():
    refused(Patches(16, 1), r"197 tokens .* 196 \+ 1: num_prefix_tokens=1\?", tile=224)
    refused(Patches(16, 5), r"201 tokens .* 196 \+ 5: num_prefix_tokens=5\?", tile=224)
    refused(
        Patches(16, 1), "197 tokens .* 3 prefix tokens 194.* 14 x 14", tile=224, patch=16, num_prefix_tokens=3
    )
    refused(Patches(16), "6 tokens .* no 4 x 6 patches of 8 pixels", tile=(32, 48), patch=8)
    refused(timm_model("deit"), r"18 tokens .*16 \+ 2", num_prefix_tokens=1)
    refused(timm_model("vit"), "9 tokens .* no 4 x 8 patches of 8 pixels", patch=8)
    refused(timm_model("resnet"), "map .* no 1 prefix tokens", num_prefix_tokens=1)
    refused(timm_model("resnet"), "map of 7 x 7 for 224 x 224 .* strides of 16", patch=16)
    refused(torchvision_model("vit"), "made for 32 x 32.* zeros of 64 x 64", tile=64)
    refused(Patches(16), "fails on zeros of 8 x 8 pixels: RuntimeError", tile=8)
    refused(tv.squeezenet1_1(), "map of 13 x 13 for 224 x 224 pixels")


def test_models_without_the_facts_are_rejected():
    refused("resnet18", "model: .* got a str")
    refused(Patches(16), "Patches: tile .* is not given")
    refused(Patches(16, form="pooled"), r"gives \(1, 3\), expected tokens", tile=32)
    refused(Patches(16, form="none"), "got a NoneType", tile=32)
    refused(tv.GoogLeNet(aux_logits=False, init_weights=False), "GoogLeNet")
    odd = {"depth": 1, "patch_size": (16, 32), "img_size": 64}
    refused(
        timm.create_model("vit_tiny_patch16_224", **odd), r"patches of \(16, 32\) pixels, expected square"
    )


def test_blocks_that_do_not_exist_are_rejected():
    refused(timm_model("vit"), "block=4, expected 1 to 3", block=4)
    refused(timm_model("resnet"), "block=0, expected 1 to 4", block=0)
    refused(torchvision_model("swin"), "block=5, expected 1 to 4", block=5)
    for model, facts in ((timm_model("densenet"), {}), (Patches(16), {"tile": 32})):
        refused(model, "block=1, but its blocks are not known", block=1, **facts)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tile", (32, 32, 3)), ("tile", 32.0), ("mean", (0.5, 0.5)), ("mean", 0.5), ("mean", ("a", 0, 0)),
        ("mean", (np.nan, 0, 0)), ("std", (1, 0, 1)), ("patch", 0), ("patch", 16.0), ("num_prefix_tokens", -1),
    ],
)  # fmt: skip
def test_facts_of_the_wrong_kind_are_named(key, value):
    refused(Patches(16), f"{key}: expected .*, got ", **{"tile": 32, key: value})
