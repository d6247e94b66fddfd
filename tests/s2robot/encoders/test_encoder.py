"""Encoders: their features, their fingerprints, and every file and setting they reject."""

import json
import pickle
import sys
from dataclasses import asdict

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from s2robot.backbones.libraries import IMAGENET
from s2robot.backbones.vit import MVPViT, ViTSpec, load_encoder, sincos_2d
from s2robot.config import encoder_settings
from s2robot.core.errors import UserError
from s2robot.encoders.build import WHEELS, build_encoder
from s2robot.encoders.encoder import S2Encoder, TileCache
from s2robot.s2 import forward
from s2robot.s2.engine import encode as engine_encode
from s2robot.s2.engine import pyramid
from s2robot.s2.tiling import plan_levels
from tests.configs import composed
from tests.errors import refuses
from tests.s2robot.pictures import noise

SPEC = ViTSpec(img_size=16, patch_size=4, dim=24, depth=2, heads=3)


def make_vit(seed: int = 0, spec: ViTSpec = SPEC) -> MVPViT:
    torch.manual_seed(seed)
    model = MVPViT(spec)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def images() -> np.ndarray:
    return noise(5, 32, 32, 3)


def build(file, scales=(1, 2), resolution="native", **more) -> S2Encoder:
    cfg = {"name": "mvp-tiny", "checkpoint": file, "scales": scales and list(scales)}
    return build_encoder(cfg | {"resolution": resolution} | more)


def build_rejected(words: str, **cfg) -> str:
    return str(refuses(words, build_encoder, {"name": "mvp-tiny"} | cfg))


SHIPPED = {
    "mvp-tiny": "313354c8f0aab4210b2e0be21f05d4c0eb89a1c28877bfb36b48b90b512f1c79",
    "mvp-tiny-s2": "f68799fecc662c37aeee911c2b3c96ff0d69591525b8e9e800c974f6ef954017",
    "mvp-small": "28fe9579f37d3c5b179d66867644c4621e9fea7abc7d8c1f516d77b32b82f578",
}


@pytest.mark.parametrize(("name", "fingerprint"), SHIPPED.items())
def test_shipped_encoders_keep_their_fingerprint(name, fingerprint):
    """Feature caches and checkpoints store it."""
    assert build_encoder({"name": name, "scales": [1, 2]}).fingerprint == fingerprint


def test_position_table_matches_mae():
    table = sincos_2d(8, 3)[0]
    assert torch.equal(table[0], torch.zeros(8))
    column, row = 2.0, 1.0  # token 1 + 1 * 3 + 2
    angles = [column, column / 100, row, row / 100]
    expected = [f(a) for pair in (angles[:2], angles[2:]) for f in (np.sin, np.cos) for a in pair]
    np.testing.assert_allclose(table[6].numpy(), expected, rtol=1e-6)


def test_features_do_not_depend_on_the_batch(images):
    encoder = S2Encoder(make_vit(), (16, 32), frames_per_call=2)
    tokens = encoder.encode(images)
    assert torch.equal(encoder.encode(torch.from_numpy(images)), tokens)
    torch.testing.assert_close(encoder.encode(images[3:4])[0], tokens[3], rtol=1e-5, atol=1e-5)
    assert encoder.encode(np.zeros((0, 48, 64, 3), np.uint8)).shape == (0, 20, 48)
    assert S2Encoder(make_vit(), (16, 32), pool="mean").encode(images[:0]).shape == (0, 1, 48)
    refuses(r"images: .* torch.uint8 \(0, 3\)", encoder.encode, np.zeros((0, 3), np.uint8))
    twice = images.repeat(2, axis=1).repeat(2, axis=2)  # larger frames are averaged by area
    torch.testing.assert_close(encoder.encode(twice), tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("frames", "limit", "sizes"), [(8, 2, [5, 4, 2, 2, 1]), (3, 1, [3, 2, 1, 1, 1, 1, 1])])  # fmt: skip
def test_out_of_memory_halves_the_batch_for_later_calls_too(monkeypatch, images, frames, limit, sizes):
    encoder = S2Encoder(make_vit(), [16, 32], frames_per_call=frames)
    expected, real, seen = encoder.encode(images), encoder._model, []

    def limited(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x) // 5)  # tiles per frame
        if seen[-1] > limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(x)

    monkeypatch.setattr(encoder, "_model", limited)
    assert torch.allclose(encoder.encode(images), expected, atol=1e-5) and encoder.frames_per_call == limit
    encoder.encode(images)
    assert seen[: len(sizes)] == sizes and max(seen[len(sizes) :]) == limit  # no retry
    limit = 0
    refuses(r"one frame of \(32, 32, 3\)", encoder.encode, images)


@pytest.mark.gpu
def test_gpu_encoder_matches_the_cpu_in_one_call():
    encoder = S2Encoder(make_vit(), [16, 32])
    images = torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8)
    expected = encoder.encode(images)
    calls, gpu = [], encoder.to("cuda")
    gpu.model.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    assert torch.allclose(gpu.encode(images).cpu(), expected, atol=1e-3) and calls == [64 * 5]


def test_gflops_match_the_paper():
    base = ViTSpec(224, 16, 768, 1, 12)  # one of twelve blocks: fast; the others follow by arithmetic
    encoder = S2Encoder(MVPViT(base), (224, 448))
    tokens, dim = 197, 768
    block = tokens * 12 * dim**2 + 2 * tokens**2 * dim
    assert encoder.gflops_per_image == pytest.approx(5 * (196 * dim * dim + block) / 1e9, rel=1e-6)
    assert 5 * (196 * dim * dim + 12 * block) / 1e9 == pytest.approx(87.9, abs=0.2)


def test_fingerprint_changes_with_every_relevant_setting():
    base = S2Encoder(make_vit(), (16, 32))
    assert S2Encoder(make_vit(), (16, 32), frames_per_call=1, name="other").fingerprint == base.fingerprint
    changes = {"pool": "mean"}, {"mean": (0.5, 0.5, 0.5)}, {"dtype": "bfloat16"}
    heads = make_vit(spec=ViTSpec(16, 4, 24, 2, 4))  # equally many weights
    others = [S2Encoder(make_vit(1), (16, 32)), S2Encoder(make_vit(), (16,)), S2Encoder(heads, (16, 32))]
    others += [S2Encoder(make_vit(), (16, 32), **change) for change in changes]
    assert len({e.fingerprint for e in [base, *others]}) == 7


def test_bfloat16_is_float32_where_it_would_be_emulated(monkeypatch, images):
    exact, made = S2Encoder(make_vit(), (16, 32)).encode(images), []
    for native in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        made.append(S2Encoder(make_vit(), (16, 32), dtype="bfloat16"))
        assert torch.equal(made[-1].encode(images), exact) is not native
    assert made[0].fingerprint == made[1].fingerprint
    fast, moved = made[1].encode(images), pickle.loads(pickle.dumps(made[0])).to("cpu")  # now native
    assert torch.equal(moved.encode(images), fast) and not torch.equal(made[0].encode(images), fast)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert 0 < (moved.to("cpu").encode(images) - exact).abs().max() < 0.02 and moved.gflops_per_image


class Patches(torch.nn.Module):
    def forward(self, x):
        return F.avg_pool2d(x, 4).flatten(2).mT


class Coarsest(torch.nn.Module):
    def forward(self, x):
        return F.max_pool2d(x, 4).flatten(2).mT


SMALL_HF = dict(patch_size=4, image_size=16, hidden_size=24, num_hidden_layers=1, intermediate_size=48)
SMALL_TIMM = dict(patch_size=4, img_size=16, embed_dim=24, depth=1, num_classes=0)


def test_fingerprint_of_a_custom_model_covers_more_than_its_weights():
    transformers = pytest.importorskip("transformers")

    def hugging_face(heads, **options):
        torch.manual_seed(0)
        config = transformers.ViTConfig(num_attention_heads=heads, **SMALL_HF, **options)
        return transformers.ViTModel(config, add_pooling_layer=False)

    def timm_vit(heads, **options):
        torch.manual_seed(0)
        return timm.models.VisionTransformer(num_heads=heads, **SMALL_TIMM, **options)

    models = [hugging_face(3), hugging_face(6), hugging_face(3, hidden_act="relu"), timm_vit(3), timm_vit(6)]
    models.append(timm_vit(3, act_layer=torch.nn.ReLU))
    encoders = [S2Encoder(model, (16,)) for model in models]
    own = [Patches(), Coarsest()]
    plain = True, False, "a", "organisation/a", "organisation/b", {"gain": [2.0]}, {3}, F.relu, torch.half
    shown = [{"setting": each} for each in (*plain, torch.ones(2), torch.zeros(2), np.ones(3))]
    for settings in (*shown, {"_gain": 2.0}):
        own.append(Patches())
        vars(own[-1]).update(settings)  # neither its source nor its weights show them
    encoders += [S2Encoder(model, (16,), tile=16) for model in own]
    assert len({encoder.fingerprint for encoder in encoders}) == len(encoders)
    again = hugging_face(3, name_or_path="a/folder/of/this/machine")
    assert S2Encoder(again, (16,)).fingerprint == encoders[0].fingerprint
    assert S2Encoder(timm_vit(3).train(), (16,)).fingerprint == encoders[3].fingerprint


def test_fingerprint_of_unreadable_code_requires_a_description():
    exec("class Typed(torch.nn.Module):\n    forward = Patches.forward", globals(), names := {})
    vars(opaque := Patches())["setting"] = object()
    traced = torch.jit.trace(Patches(), torch.zeros(1, 3, 8, 8))
    for model in (Patches().forward, traced, names["Typed"](), opaque):
        with pytest.raises(UserError, match="describe: "):
            _ = S2Encoder(model, (8, 16), tile=8).fingerprint
        one, two = (S2Encoder(model, (8, 16), tile=8, describe={"version": v}).fingerprint for v in (1, 2))
        assert one != two
    refuses("^encoder: load weights ", S2Encoder(Patches(), (16,), tile=16).load_state_dict, {})


def test_encoder_from_a_file_whole_or_cut_after_a_block(tiny_encoder):
    loaded, recipe = load_encoder(tiny_encoder)
    assert recipe["seed"] == 0
    images, built = noise(5, 64, 64, 3), build(tiny_encoder)
    assert torch.equal(built.encode(images), S2Encoder(loaded, (32, 64)).encode(images))
    assert build(tiny_encoder, None, sizes=[32, 64]).fingerprint == built.fingerprint
    block = build(tiny_encoder, (1,), block=1)
    assert block.fingerprint != build(tiny_encoder, (1,)).fingerprint
    x = F.avg_pool2d(torch.from_numpy(images).float().permute(0, 3, 1, 2), 2) * block.scale + block.shift
    loaded.blocks = loaded.blocks[:1]
    torch.testing.assert_close(block.encode(images), loaded(x)[:, 1:].detach(), rtol=1e-4, atol=1e-4)


def test_broken_files_are_one_error_line(tmp_path, tiny_encoder):
    valid, content = tiny_encoder.read_bytes(), {"bad.pth": b"not a checkpoint"}
    content |= {"cut.safetensors": valid[:-100], "flipped.safetensors": valid[:-1] + bytes([valid[-1] ^ 1])}
    for file, data in content.items():
        (tmp_path / file).write_bytes(data)
    for name, file, words in [
        ("vits-mae-hoi", "none.pth", "No such file"),
        ("mvp-tiny", "cut.safetensors", "incomplete metadata"),
        ("mvp-tiny", "flipped.safetensors", "sha256"),
        ("mvp-tiny", "none.safetensors", "s2robot pretrain"),
        ("timm:vit_tiny_patch16_224", "bad.pth", "not a readable weights file"),
    ]:
        assert file in build_rejected(words, name=name, checkpoint=tmp_path / file, check_md5=False)
    odd = json.dumps({"spec": asdict(SPEC) | {"dim": "24"}, "sha256": "0"})
    for recipe, words in (("{", ": expected an encoder file"), (odd, ": .*dim: .* got '24'")):
        save_file(make_vit().state_dict(), tmp_path / "odd.safetensors", metadata={"s2robot": recipe})
        build_rejected(f"odd.safetensors{words}", checkpoint=tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"name": "timm:vit_tiny_patch16_22"}, "'vit_tiny_patch16_224'"),
        ({"name": "timm:resnet18"}, "do not fit ResNet"),
        ({"sizes": [32, 80]}, r"sizes: .* tile of 32 px, got \[32, 80\]"),
        ({"sizes": [32], "scales": [1]}, "encoder.sizes: expected null"),
        ({"block": 3}, "block: expected 1 to 2, got 3"),
        ({"checkpoint": ""}, "expected an encoder file"),  # an unset shell variable
    ],
)
def test_config_errors(tiny_encoder, cfg, words):
    build_rejected(words, **{"checkpoint": tiny_encoder} | cfg)


def test_timm_model_from_a_file(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3).eval()  # with a head, which is dropped
    expected, image = S2Encoder(model, (64,), tile=64, block=3), noise(1, 64, 64, 3)
    for save, path in ((save_file, tmp_path / "w.safetensors"), (torch.save, tmp_path / "w.pth")):
        save(model.state_dict(), path)
        cfg = {"checkpoint": path, "sizes": [64], "block": 3, "img_size": 64}
        built = build_encoder({"name": "timm:vit_tiny_patch16_224"} | cfg)
        assert built.grid == 4 and torch.equal(built.encode(image), expected.encode(image))


def old_names(model) -> dict[str, torch.Tensor]:
    """Return the state of timm's EfficientNet-Lite0 under the package's names, in the order of its layers."""
    layers = {"_conv_stem": model.conv_stem, "_bn0": model.bn1}
    for i, block in enumerate(block for stage in model.blocks for block in stage):
        names = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"][2 * (i == 0) :]
        own = [m for m in block.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.BatchNorm2d)]
        layers |= {f"_blocks.{i}.{name}": layer for name, layer in zip(names, own, strict=True)}
    layers |= {"_conv_head": model.conv_head, "_bn1": model.bn2, "_fc": model.classifier}
    states = [(name, layer.state_dict()) for name, layer in layers.items()]
    return {f"{name}.{key}": value for name, state in states for key, value in state.items()}


def test_missing_package_and_unreachable_hub_are_one_error_line(monkeypatch):
    build_rejected(r"pip install 's2robot\[imagenet\]'$", name="efficientnet_lite0")

    def unreachable(*_, pretrained, **__):
        raise OSError("no route\nand more")

    monkeypatch.setattr(timm, "create_model", unreachable)
    build_rejected("^encoder.checkpoint: .*resnet18.*: no route and more$", name="timm:resnet18")


def test_weights_of_an_installed_package_match_timm(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0")
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    name, package, file = WHEELS["efficientnet_lite0"]
    path, weights = tmp_path / package / file, tmp_path / "timm.safetensors"
    path.parent.mkdir(parents=True)
    (tmp_path / package / "__init__.py").write_text("raise ImportError('the package must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = {"name": "efficientnet_lite0", "block": 5, "sizes": [224]}
    save_file(model.state_dict(), weights)
    expected = build_encoder(cfg | {"name": f"timm:{name}", "checkpoint": weights})
    for counters in (True, False):  # of batches, which older files lack
        old = {k: v for k, v in old_names(model).items() if counters or "num_batches" not in k}
        torch.save(old, path)
        built = build_encoder(cfg)
        assert built.fingerprint == expected.fingerprint and (built.dim, built.num_tokens) == (112, 196)
    assert package not in sys.modules
    old["_conv_stem.weight"] = torch.full_like(old["_conv_stem.weight"], torch.nan)
    torch.save(old, path)
    build_rejected("conv_stem.weight is not finite", **cfg)
    old["_blocks.16._expand_conv.weight"] = old.pop("_blocks.15._expand_conv.weight")
    torch.save(old, path)
    build_rejected("weights do not fit", **cfg)


def test_tiles_with_a_partial_patch_cannot_be_split():
    """SigLIP's 384 px are 27 patches of 14 px plus 6 px, which would be lost between tiles."""
    sizes = {"depth": 1, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "num_classes": 0}
    model = timm.create_model("vit_so400m_patch14_siglip_384", **sizes)
    assert S2Encoder(model, (384,)).grid == S2Encoder(model, (378, 756), tile=378).grid == 27
    refuses(r"tile: .* patches of 14 px, got 384 x 384 px.* 378", S2Encoder, model, (384, 768))


@pytest.mark.parametrize(("height", "width", "grid"), [(48, 64, (4, 5)), (64, 48, (5, 4)), (16, 17, (4, 4))])
def test_frames_keep_their_aspect_ratio(height, width, grid):
    """The shorter side gets the configured size; overlapping tiles cover the longer one."""
    model, encoder, frames = make_vit(), S2Encoder(make_vit(), (16, 32)), noise(3, height, width, 3)
    assert (encoder.dim, encoder.grid, encoder.image_size, encoder.num_tokens) == (48, 4, 32, 16)
    assert encoder.map_of(height, width) == grid
    tokens = encoder.encode(frames)
    assert tokens.dtype == torch.float32 and not tokens.requires_grad
    plan, (mean, std) = plan_levels(height, width, (16, 16), 4, sizes=(16, 32)), IMAGENET
    sizes = [level.frame for level in plan.levels]
    x = ((torch.from_numpy(frames) / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)
    expected = engine_encode(model, pyramid(x, sizes, sizes[-1]), plan, front=1).detach()
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)
    pooled = S2Encoder(model, (16, 32), pool="mean")
    assert pooled.map_of(height, width) == (1, 1)
    torch.testing.assert_close(pooled.encode(frames), tokens.mean(1, keepdim=True), rtol=1e-4, atol=1e-4)
    assert encoder.gflops_of(height, width) == pytest.approx(encoder.gflops_per_image / 5 * plan.tiles)
    assert encoder.frame_size(480, 640) == (32, 43) and encoder.frame_size(640, 480) == (43, 32)


def test_upsampled_features_match_the_paper_with_a_separate_fingerprint(tiny_encoder):
    frames = noise(3, 64, 64, 3)
    native, upsampled = build(tiny_encoder), build(tiny_encoder, resolution="upsampled")
    a, b = native.encode(frames), upsampled.encode(frames)  # (3, 16, 2 * 64)
    torch.testing.assert_close(b[..., :64], a[..., :64], rtol=1e-5, atol=1e-5)
    assert (a[..., 64:] - b[..., 64:]).abs().mean() > 1e-3
    small = torch.from_numpy(frames).view(3, 32, 2, 32, 2, 3).float().mean((2, 4))  # area average
    first = small.permute(0, 3, 1, 2) * upsampled.scale + upsampled.shift
    expected = forward(upsampled._model, first, scales=[1, 2], num_prefix_token=1)[:, 1:]
    torch.testing.assert_close(b, expected, rtol=1e-4, atol=1e-4)
    assert native.fingerprint != upsampled.fingerprint
    assert (native.image_size, upsampled.image_size) == (64, 32)  # of the frames to render
    assert upsampled.frame_size(480, 640) == (32, 43)
    single = build(tiny_encoder, (1,), "upsampled")  # nothing to enlarge
    assert single.fingerprint == build(tiny_encoder, (1,)).fingerprint and single.image_size == 32
    cfg = composed("train", f"encoder.checkpoint={tiny_encoder}", "s2.resolution=upsampled")
    assert build_encoder(encoder_settings(cfg)).upsampled


def every_pixel(tiles: torch.Tensor) -> torch.Tensor:
    return tiles.float().cumsum(-1).flatten(2).mT


@pytest.mark.parametrize(("dtype", "side"), [(torch.float32, 1), (torch.float32, 8), (torch.bfloat16, 3)])
def test_equal_tiles_are_computed_once_within_and_across_calls(dtype, side):
    torch.manual_seed(0)
    tiles, seen = torch.randn(5, 3, side, side).to(dtype), []
    tiles[4] = tiles[3].flip(0)  # the same sum, but a different tile
    model = TileCache(lambda x: seen.extend(x) or every_pixel(x), size=2)  # evicts the least recently used
    for rows, n in (([0, 1, 0], 2), ([0], 2), ([2], 3), ([0], 3), ([1], 4), ([0], 4), ([3, 4, 3, 4], 8)):
        assert torch.equal(model(tiles[rows]), every_pixel(tiles[rows]))
        assert len(seen) == n and len(model._entries) <= 2


def test_single_larger_scale_on_the_base_grid(tiny_encoder):
    frames = noise(3, 64, 64, 3)
    both, large = build(tiny_encoder), build(tiny_encoder, (2,))
    averaged = build(tiny_encoder, (2,), grid=1)
    assert (large.grid, averaged.grid, averaged.map_of(64, 64)) == (2 * both.grid, both.grid, (4, 4))
    torch.testing.assert_close(averaged.encode(frames), both.encode(frames)[..., 64:])
    assert len({both.fingerprint, large.fingerprint, averaged.fingerprint}) == 3
    assert build(tiny_encoder, (2,), grid=2).fingerprint == large.fingerprint
    refuses("s2.grid", build, tiny_encoder, (1,), grid=2)


@pytest.mark.parametrize(("key", "value"), [("pool", "avg"), ("dtype", "float16"), ("resolution", "upsample")])  # fmt: skip
def test_invalid_options_are_rejected_in_python(key, value):
    refuses(rf"^(encoder|s2)\.{key}: ", S2Encoder, make_vit(), (16, 32), **{key: value})
