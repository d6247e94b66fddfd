"""S2 on any model: shapes, values against the engine, gradients, compilation, frozen copies, common mistakes."""

import copy
import subprocess
import sys
import warnings

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import s2robot
from s2robot import S2
from s2robot.backbones.backbone import find_backbone
from s2robot.s2 import forward
from s2robot.s2.engine import resize
from tests.errors import refuses

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Tokens(nn.Module):
    """Tokens that depend on their patch, position in the tile and the tile's mean; with norm and dropout."""

    def __init__(self, prefix: int = 0) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.prefix, self.embed = prefix, nn.Conv2d(3, 6, 4, 4)
        self.norm, self.drop = nn.BatchNorm2d(6), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        m = self.drop(self.norm(self.embed(x)))  # (B, 6, rows, columns)
        m = torch.tanh(m + 0.1 * torch.arange(m.shape[3], device=m.device) + m.mean(dim=(2, 3), keepdim=True))
        tokens = m.flatten(2).mT
        return torch.cat([*(tokens.mean(1, keepdim=True) * (i + 1) for i in range(self.prefix)), tokens], 1)


def local(x: torch.Tensor) -> torch.Tensor:
    """Return tokens that depend only on their patch."""
    return F.avg_pool2d(x, 4).square().flatten(2).transpose(1, 2)


def make(scales=None, model=None, **options) -> S2:
    model = (model or Tokens()).eval()
    facts = {"tile": 16, "patch": 4, "num_prefix_tokens": model.prefix, "mean": MEAN, "std": STD}
    return S2(model, scales, **facts | options)


def frames(batch: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)


def normalised(images: torch.Tensor) -> torch.Tensor:
    x = images.permute(0, 3, 1, 2).double() / 255
    return ((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)).float()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(0, 5), st.lists(st.integers(1, 4), min_size=1, max_size=3).map(sorted))
def test_square_frames_match_the_reference(k, prefix, scales):
    """Upsampling from the base frame equals `forward`; native resizing equals it level by level."""
    model, x = Tokens(prefix), frames(2, 16 * k, 16 * k)
    s2 = make(scales, model, resize="upsample", prefix=prefix > 0)
    expected = forward(model, resize(normalised(x), 16), scales=scales, num_prefix_token=prefix)
    torch.testing.assert_close(s2(x), expected, rtol=1e-4, atol=1e-5)
    maps, side = [], 4 * scales[0]
    for s in scales:
        tokens = forward(model, resize(normalised(x), 16 * s), [1], None, 16, 0, prefix)[:, prefix:]
        maps.append(F.adaptive_avg_pool2d(tokens.mT.unflatten(2, (4 * s, 4 * s)), (side, side)))
    torch.testing.assert_close(make(scales, model, output="map")(x), torch.cat(maps, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frame", [(480, 640), (37, 61)])
@pytest.mark.parametrize("overlap", [0, 8])
def test_patch_local_model_has_no_seams(frame, overlap):
    s2 = S2(local, (1, 1.5, 2), tile=16, patch=4, output="map", mean=MEAN, std=STD, overlap=overlap)
    x = frames(1, *frame)
    for index, level in enumerate(s2.layout(*frame).levels):
        untiled = local(resize(normalised(x), level.frame)).mT.unflatten(2, [n // 4 for n in level.frame])
        pooled = F.adaptive_avg_pool2d(untiled, s2.layout(*frame).grid)
        torch.testing.assert_close(s2(x)[:, 3 * index : 3 * index + 3], pooled, rtol=1e-4, atol=1e-4)


def test_explicit_sizes_and_one_call_for_all_tiles():
    x, s2, calls = frames(1, 48, 64), make(sizes=((16, 24), (32, 48))), []
    s2.backbone.model.register_forward_pre_hook(lambda m, args: calls.append(tuple(args[0].shape)))
    assert s2(x).shape == (1, s2.num_tokens, s2.dim) == (1, 24, 12)
    assert calls == [(s2.layout(48, 64).tiles, 3, 16, 16)]
    assert [level.frame for level in make().layout(96, 128).levels] == [(16, 20), (32, 40)]
    assert torch.equal(make(sizes=(16, 32))(x), make()(x))
    assert make(sizes=(np.uint8(16), torch.tensor(32))).layout(48, 64) == make(sizes=(16, 32)).layout(48, 64)
    assert make(sizes=((16, 320), (32, 640)), resize="upsample")(frames(1, 32, 640)).shape == (1, 4 * 80, 12)


@pytest.mark.parametrize("output", ["tokens", "map", "pooled"])
def test_gradients_flow_unless_frozen(output):
    x, model = frames(1, 20, 24).permute(0, 3, 1, 2).float() / 255, Tokens()
    image = x.clone().requires_grad_()
    make(model=model, frozen=False, output=output)(image).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.embed.parameters()) and image.grad.abs().sum() > 0
    frozen = make(output=output)
    assert not frozen(x).requires_grad and not any(p.requires_grad for p in frozen.parameters())


def test_compiles_in_one_graph():
    torch._dynamo.reset()
    s2, x = make((1, 1.5), Tokens(), resize="upsample", overlap=4), frames(2, 30, 41)
    compiled = torch.compile(s2, fullgraph=True, backend="eager")
    for images in (x, x.permute(0, 3, 1, 2).float() / 255):
        torch.testing.assert_close(compiled(images), s2(images))


def test_autocast_and_half_models():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, num_heads=3, depth=2)
    s2, x = S2(vit, output="map"), frames(2, 64, 96)
    full = s2(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = s2(x)
    for other in (mixed, s2.to(torch.bfloat16)(x)):
        assert 0.99 < F.cosine_similarity(other.float().flatten(), full.flatten(), dim=0) < 1 - 1e-7
    assert other.dtype == torch.bfloat16


def test_prepared_copy_matches_and_leaves_the_original_unchanged():
    torch.manual_seed(0)
    s2 = S2(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3), frozen=False).train()
    exact, x = s2.prepared(torch.float32), frames(2, 128, 128)
    assert not exact.training and s2.training
    assert all(p.requires_grad for p in s2.backbone.model.blocks.parameters())
    expected, scale = s2.eval()(x).detach(), s2.scale.clone()
    torch.testing.assert_close(exact(x), expected, rtol=1e-5, atol=1e-5)
    assert s2.prepared(torch.bfloat16)(x).dtype == torch.bfloat16
    exact.half()
    exact.register_buffer("more", torch.zeros(1), persistent=False)
    assert torch.equal(s2.scale, scale) and s2._non_persistent_buffers_set == {"scale", "shift"}


def test_backbone_argument_and_exported_names():
    facts = {"tile": 16, "patch": 4, "num_prefix_tokens": 1, "mean": np.full(3, 0.5), "std": np.ones(3)}
    backbone = find_backbone(Tokens(prefix=1).eval(), **facts)
    s2 = s2robot.S2(backbone, frozen=False, block=None)
    assert s2.backbone is backbone and (s2.dim, s2.grid, s2.num_tokens) == (12, (4, 4), 16)
    assert backbone.mean == (0.5, 0.5, 0.5)
    refuses("^mean: expected no value with a Backbone", S2, backbone, mean=(0.5, 0.5, 0.5))
    assert {"S2", "load_policy"} <= set(dir(s2robot))
    with pytest.raises(AttributeError, match="no attribute 'S3'"):
        _ = s2robot.S3


def test_frozen_s2_shares_weights_and_leaves_the_model_unchanged():
    model, x = Tokens().train(), frames(2, 32, 32)
    model.norm.eval()
    model.embed.bias.requires_grad_(False)
    trainable = {k: p.requires_grad for k, p in model.named_parameters()}
    frozen = S2(model, tile=16)
    before = frozen(x)
    assert model.training and model.drop.training and not model.norm.training
    assert {k: p.requires_grad for k, p in model.named_parameters()} == trainable
    pointers = {t.data_ptr() for t in (*frozen.parameters(), *frozen.backbone.buffers())}
    assert pointers == {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    with torch.no_grad():
        model.embed.weight.add_(1)  # later changes to the model take effect
    assert not torch.equal(frozen(x), before)
    assert torch.equal(frozen(x), copy.deepcopy(frozen)(x))
    assert S2(model.forward, tile=16).backbone.model.function.__self__ is model  # its object is not copied


def test_compiled_models_freeze_and_uncopyable_models_work_unfrozen():
    x, weight_norm = frames(1, 32, 32), nn.utils.parametrizations.weight_norm
    for change in (lambda m: torch.compile(m, backend="eager"), torch.jit.script, weight_norm):
        made = change(nn.Conv2d(3, 4, 4, 4))
        frozen = S2(made, tile=16)
        assert not any(p.requires_grad for p in frozen.parameters())
        torch.testing.assert_close(frozen(x), S2(made, tile=16, frozen=False)(x).detach())
    model = Tokens()
    model.scaled = model.embed.weight * 2  # not a leaf: torch cannot copy it
    with pytest.raises(RuntimeError) as error:
        S2(model, tile=16)
    assert "frozen=False" in error.value.__notes__[0]
    assert S2(model, tile=16, frozen=False).dim == 12


def test_numpy_images_work_and_floats_in_0_to_255_warn_once():
    model, x = make(), frames(2, 30, 44)
    assert torch.equal(model(x.numpy()), model(x))
    assert torch.equal(model(x.numpy()[:, :, ::-1]), model(x.flip(2)))  # a view that torch does not accept
    planes = x.numpy().transpose(0, 3, 1, 2).astype(np.float32)
    with warnings.catch_warnings(action="error"):
        assert torch.equal(model(planes / 255), model(torch.from_numpy(planes / 255)))
    fresh = make()
    with pytest.warns(UserWarning, match="in 0 to 1"):
        fresh(planes)
    with warnings.catch_warnings(action="error"):
        fresh(planes)


def test_errors_name_the_argument_and_the_values():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, embed_dim=24, num_heads=3)
    for call, words in (
        (lambda: make(resize="nativ"), "resize: .*'nativ'.* 'native'"),
        (lambda: make((1, 2), sizes=(16, 32)), "sizes: .*got both"),
        (lambda: S2(find_backbone(Tokens(), tile=16, patch=4), block=1, tile=16), "block: .* got 1"),
        (lambda: S2(vit, tile=60), "tile: .* patches of 16 px, got 60 x 60 px.* 48 x 48"),
        (lambda: make()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)), r"torch.uint8 \(2, 3, 32, 32\)"),
    ):
        refuses(words, call)


def test_importing_s2_imports_no_model_library():
    code = "import sys; from s2robot import S2; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"timm", "torchvision", "transformers", "omegaconf", "zarr", "robosuite"} & set(loaded.split())
