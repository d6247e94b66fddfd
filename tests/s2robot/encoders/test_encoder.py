"""Encoders: what they return, what changes their fingerprint, and every file they refuse."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from s2robot.backbones.libraries import IMAGENET
from s2robot.backbones.vit import (
    PUBLISHED,
    MVPViT,
    Published,
    ViTSpec,
    load_encoder,
    save_encoder,
    sincos_2d,
)
from s2robot.core.errors import UserError
from s2robot.encoders.build import build_encoder
from s2robot.encoders.encoder import S2Encoder
from s2robot.s2.engine import encode as engine_encode
from s2robot.s2.layout import Sizes
from s2robot.s2.pyramid import channels_first, pyramid

torch.set_num_threads(1)
SPEC = ViTSpec(img_size=16, patch_size=4, dim=24, depth=2, heads=3)


def make_vit(seed: int = 0, spec: ViTSpec = SPEC) -> MVPViT:
    torch.manual_seed(seed)
    model = MVPViT(spec)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def tiny_file(tmp_path):
    path = tmp_path / "mvp-tiny.safetensors"
    save_encoder(make_vit(), path, {"steps": 7})
    return path


@pytest.fixture
def small_published(monkeypatch):
    """A published name whose model is small enough for a test; the md5 is set by the test."""
    monkeypatch.setitem(PUBLISHED, "vits-mae-hoi", Published(SPEC, "hoi.pth", "0" * 32))


def test_position_table_is_maes():
    table = sincos_2d(8, 3)[0]
    assert torch.equal(table[0], torch.zeros(8))
    column, row = 2.0, 1.0  # token 1 + 1 * 3 + 2
    angles = [column, column / 100, row, row / 100]
    expected = [np.sin(angles[0]), np.sin(angles[1]), np.cos(angles[0]), np.cos(angles[1])]
    expected += [np.sin(angles[2]), np.sin(angles[3]), np.cos(angles[2]), np.cos(angles[3])]
    np.testing.assert_allclose(table[6].numpy(), expected, rtol=1e-6)


def test_encode_is_the_vit_on_every_tile(images):
    model = make_vit()
    encoder = S2Encoder(model, (16, 32))
    tokens = encoder.encode(images)
    assert (encoder.dim, encoder.grid, encoder.image_size, encoder.num_tokens) == (48, 4, 32, 16)
    assert tokens.shape == (5, 16, 48) and tokens.dtype == torch.float32 and not tokens.requires_grad

    mean, std = (torch.tensor(v) for v in IMAGENET)
    large = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
    small = F.avg_pool2d(large, 2)
    with torch.no_grad():
        coarse = model(small)[:, 1:]
        quarters = [model(large[:, :, i : i + 16, j : j + 16])[:, 1:] for i in (0, 16) for j in (0, 16)]
    maps = [q.transpose(1, 2).reshape(5, 24, 4, 4) for q in quarters]
    fine = torch.cat([torch.cat(maps[:2], dim=3), torch.cat(maps[2:], dim=3)], dim=2)
    fine = F.avg_pool2d(fine, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens, torch.cat([coarse, fine], dim=-1), rtol=1e-4, atol=1e-4)

    pooled = S2Encoder(model, (16, 32), pool="mean")
    assert pooled.num_tokens == 1
    torch.testing.assert_close(pooled.encode(images), tokens.mean(1, keepdim=True), rtol=1e-5, atol=1e-5)


def test_a_frame_has_the_same_features_in_any_company(images):
    encoder = S2Encoder(make_vit(), (16, 32), frames_per_call=2)
    tokens = encoder.encode(images)
    assert torch.equal(encoder.encode(torch.from_numpy(images)), tokens)
    torch.testing.assert_close(encoder.encode(images[3:4])[0], tokens[3], rtol=1e-5, atol=1e-5)
    assert encoder.encode(images[:0]).shape == (0, 16, 48)
    assert encoder.encode(np.zeros((0, 48, 64, 3), np.uint8)).shape == (0, 20, 48)
    assert S2Encoder(make_vit(), (16, 32), pool="mean").encode(images[:0]).shape == (0, 1, 48)
    with pytest.raises(UserError, match=r"images: .* torch.uint8 \(0, 3\)"):
        encoder.encode(np.zeros((0, 3), np.uint8))


def test_larger_frames_are_averaged_by_area(images):
    encoder = S2Encoder(make_vit(), (16, 32))
    twice = images.repeat(2, axis=1).repeat(2, axis=2)
    torch.testing.assert_close(encoder.encode(twice), encoder.encode(images), rtol=1e-5, atol=1e-5)
    assert encoder.encode(np.zeros((1, 50, 50, 3), np.uint8)).shape == (1, 16, 48)


def test_gflops_are_the_papers():
    base = ViTSpec(224, 16, 768, 1, 12)  # one block of twelve: quick, and the rest is arithmetic
    encoder = S2Encoder(MVPViT(base), (224, 448))
    tokens, dim = 197, 768
    block = tokens * 12 * dim**2 + 2 * tokens**2 * dim
    assert encoder.gflops_per_image == pytest.approx(5 * (196 * dim * dim + block) / 1e9, rel=1e-6)
    assert 5 * (196 * dim * dim + 12 * block) / 1e9 == pytest.approx(87.9, abs=0.2)


def test_fingerprint_changes_with_all_that_matters():
    base = S2Encoder(make_vit(), (16, 32))
    assert S2Encoder(make_vit(), (16, 32), frames_per_call=1, name="other").fingerprint == base.fingerprint
    others = [
        S2Encoder(make_vit(1), (16, 32)),
        S2Encoder(make_vit(), (16,)),
        S2Encoder(make_vit(), (16, 32), pool="mean"),
        S2Encoder(make_vit(), (16, 32), mean=(0.5, 0.5, 0.5)),
        S2Encoder(make_vit(), (16, 32), dtype="bfloat16"),
        S2Encoder(make_vit(spec=ViTSpec(16, 4, 24, 2, 4)), (16, 32)),  # the heads alone
    ]
    assert len({e.fingerprint for e in [base, *others]}) == 7


class Coarsest(torch.nn.Module):
    def forward(self, x):
        return F.max_pool2d(x, 4).flatten(2).transpose(1, 2)


def test_fingerprint_of_a_model_of_ones_own_changes_with_what_no_weight_tells():
    transformers = pytest.importorskip("transformers")

    def hugging_face(heads, **settings):
        torch.manual_seed(0)
        sizes = {"hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 48}
        config = transformers.ViTConfig(
            **sizes, num_attention_heads=heads, image_size=16, patch_size=4, **settings
        )
        return transformers.ViTModel(config, add_pooling_layer=False)

    def of_timm(heads, **settings):
        torch.manual_seed(0)
        settings = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1} | settings
        return timm.models.VisionTransformer(num_heads=heads, num_classes=0, **settings)

    models = [hugging_face(3), hugging_face(6), hugging_face(3, hidden_act="relu"), of_timm(3), of_timm(6)]
    models.append(of_timm(3, act_layer=torch.nn.ReLU))
    encoders = [S2Encoder(model, (16,)) for model in models]
    encoders += [S2Encoder(model, (16,), tile=16) for model in (Patches(), Coarsest())]
    assert len({encoder.fingerprint for encoder in encoders}) == len(encoders)
    again = hugging_face(3, name_or_path="a/folder/of/this/machine")
    assert S2Encoder(again, (16,)).fingerprint == encoders[0].fingerprint
    assert S2Encoder(of_timm(3).train(), (16,)).fingerprint == encoders[3].fingerprint


def test_fingerprint_of_code_that_cannot_be_read_needs_a_description():
    exec("class Typed(torch.nn.Module):\n    forward = Patches.forward", globals(), names := {})
    for model in (Patches().forward, torch.jit.trace(Patches(), torch.zeros(1, 3, 8, 8)), names["Typed"]()):
        with pytest.raises(UserError, match="describe: "):
            _ = S2Encoder(model, (8, 16), tile=8).fingerprint
        one, two = (S2Encoder(model, (8, 16), tile=8, describe={"version": v}).fingerprint for v in (1, 2))
        assert one != two


class Patches(torch.nn.Module):
    def forward(self, x):
        return F.avg_pool2d(x, 4).flatten(2).transpose(1, 2)


def test_mvp_tiny_round_trip(tiny_file, images):
    loaded, recipe = load_encoder(tiny_file)
    assert recipe["steps"] == 7 and recipe["spec"]["heads"] == 3
    built = build_encoder({"name": "mvp-tiny", "checkpoint": str(tiny_file), "sizes": [16, 32]})
    assert torch.equal(built.encode(images), S2Encoder(make_vit(), (16, 32)).encode(images))
    by_scale = build_encoder({"name": "mvp-tiny", "checkpoint": str(tiny_file), "scales": [1, 2]})
    assert by_scale.fingerprint == built.fingerprint
    block = build_encoder({"name": "mvp-tiny", "checkpoint": tiny_file, "sizes": [16], "block": 1})
    assert (
        block.fingerprint
        != build_encoder({"name": "mvp-tiny", "checkpoint": tiny_file, "sizes": [16]}).fingerprint
    )
    x = (torch.from_numpy(images) * 1.0).permute(0, 3, 1, 2)
    x = F.avg_pool2d(x, 2) * block.scale + block.shift
    torch.testing.assert_close(
        block.encode(images), make_vit()(x, block=1)[:, 1:].detach(), rtol=1e-4, atol=1e-4
    )


def test_broken_files_are_one_line(tmp_path, tiny_file, small_published):
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"not a checkpoint")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(tiny_file.read_bytes()[:-100])
    bare = tmp_path / "bare.safetensors"
    save_file({"a": torch.zeros(1)}, bare)
    altered = bytearray(tiny_file.read_bytes())
    altered[-1] ^= 1
    flipped = tmp_path / "flipped.safetensors"
    flipped.write_bytes(altered)
    for name, path, words in [
        ("vits-mae-hoi", bad, "not a readable weights file"),
        ("vits-mae-hoi", tmp_path / "none.pth", "no such file"),
        ("mvp-tiny", cut, "not a readable safetensors file"),
        ("mvp-tiny", bare, "no recipe"),
        ("mvp-tiny", flipped, "sha256"),
        ("mvp-tiny", tmp_path / "none.safetensors", "s2robot pretrain"),
        ("timm:vit_tiny_patch16_224", bad, "not a readable weights file"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            build_encoder({"name": name, "checkpoint": path, "check_md5": False})
        assert "\n" not in str(error.value) and path.name in str(error.value)


def test_a_header_that_is_no_recipe_is_one_line(tmp_path):
    path = tmp_path / "odd.safetensors"
    for recipe, words in (
        ("{", "JSONDecodeError"),
        ("[1]", "TypeError: list indices"),
        ('{"sha256": "0"}', "KeyError: 'spec'"),
        ('{"spec": {"img_size": 16}, "sha256": "0"}', "TypeError: .* missing 4 required"),
        (json.dumps({"spec": asdict(SPEC)}), "KeyError: 'sha256'"),
        (json.dumps({"spec": asdict(SPEC) | {"dim": "24"}, "sha256": "0"}), "encoder.dim: .* got '24'"),
    ):
        save_file(make_vit().state_dict(), path, metadata={"s2robot": recipe})
        with pytest.raises(UserError, match=rf"odd.safetensors: .*\(.*{words}") as error:
            load_encoder(path)
        assert "\n" not in str(error.value)


def test_config_errors(tiny_file):
    for cfg, words in (
        ({"name": "mvp-tny"}, "nearest: mvp-tiny"),
        ({"name": "vitb-egosoup"}, "nearest: vitb-mae-egosoup"),
        ({"name": None}, "encoder.name: "),
        ({"name": "timm:vit_tiny_patch16_22"}, "nearest: vit_tiny_patch16_224"),
        ({"name": "timm:resnet18"}, "do not fit ResNet"),
        ({"size": [16]}, "encoder.size: unknown key"),
        ({"sizes": [16, 40]}, "S2 size 40 .* tile 16"),
        ({"sizes": [32, 16]}, r"encoder.sizes: .*\[32, 16\]"),
        ({"sizes": [32, 48]}, "S2 size 48 .* first size 32"),
        ({"sizes": [16], "scales": [1]}, "encoder.sizes: expected null"),
        ({"sizes": []}, "encoder.sizes: "),
        ({"sizes": ["big"]}, r"encoder.sizes\[0\]: .*'big'"),
        ({"scales": []}, "encoder.scales: "),
        ({"scales": 2}, "encoder.scales: .*2"),
        ({"scales": [1, 1.5]}, "S2 size 24 .* tile 16"),
        ({"scales": [np.nan]}, "encoder.scales.*nan"),
        ({"scales": [1, np.inf]}, "encoder.scales.*inf"),
        ({"pool": "max"}, "encoder.pool: .*'max'"),
        ({"pool": ""}, "encoder.pool: .*''"),
        ({"dtype": "int8"}, "encoder.dtype: .*'int8'"),
        ({"resolution": "fine"}, "encoder.resolution: .*'fine'"),
        ({"block": 3}, "encoder mvp-tiny: .*block=3, expected 1 to 2"),
        ({"block": "last"}, "encoder.block: .*'last'"),
        ({"img_size": 0}, "encoder.img_size"),
        ({"checkpoint": ""}, "encoder.checkpoint: .*''"),
    ):
        with pytest.raises(UserError, match=words) as error:
            build_encoder({"name": "mvp-tiny", "checkpoint": tiny_file} | cfg)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="encoder.name: "):
        build_encoder({"checkpoint": tiny_file})


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_timm_model_from_a_file(tmp_path, suffix):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3).eval()  # with a head, which is dropped
    path = tmp_path / f"weights{suffix}"
    save_file(model.state_dict(), path) if suffix == ".safetensors" else torch.save(model.state_dict(), path)
    encoder = build_encoder(
        {"name": "timm:vit_tiny_patch16_224", "checkpoint": path, "sizes": [224], "block": 3}
    )
    image = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    x = torch.from_numpy(image).permute(0, 3, 1, 2) / 255
    mean = torch.tensor(model.default_cfg["mean"]).view(3, 1, 1)
    std = torch.tensor(model.default_cfg["std"]).view(3, 1, 1)
    with torch.no_grad():
        expected = model.forward_intermediates(
            (x - mean) / std, [2], norm=True, output_fmt="NLC", intermediates_only=True
        )
    torch.testing.assert_close(encoder.encode(image), expected[0], rtol=1e-4, atol=1e-4)
    smaller = build_encoder(
        {"name": "timm:vit_tiny_patch16_224", "checkpoint": path, "sizes": [64], "img_size": 64}
    )
    assert smaller.grid == 4


def test_a_models_own_rest_is_no_place_for_a_seam():
    """SigLIP's 384 px are 27 patches of 14 and 6 px over: between tiles these would be lost."""
    model = timm.create_model(
        "vit_so400m_patch14_siglip_384", depth=1, embed_dim=32, num_heads=2, mlp_ratio=2, num_classes=0
    )
    assert S2Encoder(model, (384,)).grid == 27  # as the model has it
    with pytest.raises(UserError, match=r"tile of 384 px .* patches of 14 px.*give a tile .* of 378"):
        S2Encoder(model, (384, 768))
    assert S2Encoder(model, (378, 756), tile=378).grid == 27


@pytest.mark.parametrize(
    ("height", "width", "grid"), [(48, 64, (4, 5)), (64, 48, (5, 4)), (32, 64, (4, 8)), (16, 17, (4, 4))]
)
def test_a_frame_keeps_its_shape(height, width, grid):
    """As `S2` with the same sizes: its shorter side is a size, overlapping tiles cover the longer one."""
    model = make_vit()
    encoder = S2Encoder(model, (16, 32))
    frames = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    assert encoder.map_of(height, width) == grid
    tokens = encoder.encode(frames)
    assert tokens.shape == (3, grid[0] * grid[1], 48)
    plan = Sizes((16, 16), 4, sizes=(16, 32)).layout(height, width)
    levels = pyramid(
        channels_first(torch.from_numpy(frames)), [x.frame for x in plan.levels], plan.levels[-1].frame
    )
    expected = engine_encode(model.eval(), [x * encoder.scale + encoder.shift for x in levels], plan, front=1)
    torch.testing.assert_close(tokens, expected.detach(), rtol=1e-4, atol=1e-4)
    pooled = S2Encoder(model, (16, 32), pool="mean")
    assert pooled.map_of(height, width) == (1, 1)
    torch.testing.assert_close(pooled.encode(frames), tokens.mean(1, keepdim=True), rtol=1e-4, atol=1e-4)
    assert encoder.gflops_of(height, width) == pytest.approx(encoder.gflops_per_image / 5 * plan.tiles)


def test_what_is_drawn_for_a_camera_of_another_shape():
    encoder = S2Encoder(make_vit(), (16, 32))
    assert encoder.frame_size(480, 640) == (32, 43) and encoder.frame_size(640, 480) == (43, 32)
    assert encoder.frame_size(256, 256) == (32, 32)
    assert S2Encoder(make_vit(), (16, 32), resolution="upsampled").frame_size(480, 640) == (16, 21)
