"""S2 on any model: shapes, numbers against `forward` and a loop, gradients, compile, export, seams."""

from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from s2robot import S2
from s2robot.backbones.backbone import find_backbone
from s2robot.core.errors import UserError
from s2robot.s2.pyramid import resize
from s2robot.s2.reference import forward

torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", ["auto", torch.float32, torch.bfloat16])
def test_prepared_has_the_features_and_leaves_the_original_alone(dtype):
    torch.manual_seed(0)
    s2 = S2(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3), frozen=False).train()
    frames = torch.randint(0, 256, (2, 128, 128, 3), dtype=torch.uint8)
    fast = s2.prepared(dtype)
    tokens = fast(frames)
    assert (
        not tokens.requires_grad and not fast.training and not any(p.requires_grad for p in fast.parameters())
    )
    assert tokens.dtype in (torch.float32, torch.bfloat16) and (dtype == "auto" or tokens.dtype == dtype)
    assert s2.training and all(p.requires_grad for p in s2.backbone.model.blocks.parameters())
    expected = s2.eval()(frames)
    assert F.cosine_similarity(tokens.float(), expected, dim=-1).min() > 0.999
    if dtype == torch.float32:
        torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)
    scale = s2.scale.clone()
    fast.half()
    fast.register_buffer("more", torch.zeros(1), persistent=False)
    assert s2.scale.dtype == torch.float32 and torch.equal(s2.scale, scale) and not hasattr(s2, "more")
    assert s2._non_persistent_buffers_set == {"scale", "shift"}


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Tokens(nn.Module):
    """Every token knows its patch, its place in the tile and the tile's mean; norm and dropout inside."""

    def __init__(
        self, patch: int = 4, prefix: int = 0, kind: str = "tokens", tile: int | None = None
    ) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.patch, self.prefix, self.kind, self.tile = patch, prefix, kind, tile
        self.embed = nn.Conv2d(3, 6, patch, patch)
        self.norm, self.drop = nn.BatchNorm2d(6), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor):
        assert self.tile is None or x.shape[-2:] == (self.tile, self.tile)
        m = self.drop(self.norm(self.embed(x)))  # (B, 6, rows, columns)
        m = torch.tanh(m + 0.1 * torch.arange(m.shape[3], device=m.device) + m.mean(dim=(2, 3), keepdim=True))
        if self.kind == "map":
            return m
        tokens = m.flatten(2).transpose(1, 2)
        front = [tokens.mean(dim=1, keepdim=True) * (i + 1) for i in range(self.prefix)]
        tokens = torch.cat([*front, tokens], dim=1)
        return SimpleNamespace(last_hidden_state=tokens) if self.kind == "output" else tokens


class Local(nn.Module):
    """Tokens that know their patch and nothing else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 4).square().flatten(2).transpose(1, 2)


def make(scales=None, model=None, **kwargs) -> S2:
    model = model or Tokens()
    facts = {"patch": model.patch, "num_prefix_tokens": model.prefix, "mean": MEAN, "std": STD}
    if model.kind == "map":
        del facts["num_prefix_tokens"]
    return S2(model.eval(), scales, **{"tile": 4 * model.patch, **facts, **kwargs})


def frames(batch: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)


def normalised(images: torch.Tensor) -> torch.Tensor:
    x = images.permute(0, 3, 1, 2).double() / 255
    return ((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)).float()


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    height=st.integers(11, 70),
    width=st.integers(11, 70),
    patch=st.integers(1, 4),
    scales=st.lists(st.sampled_from([1, 1.3, 1.5, 2, 3]), min_size=1, max_size=4).map(sorted),
    prefix=st.integers(0, 5),
    kind=st.sampled_from(["tokens", "map", "output"]),
    cover=st.sampled_from(["overlap", "pad"]),
    overlap=st.integers(0, 1),
)
def test_shapes_and_means(batch, height, width, patch, scales, prefix, kind, cover, overlap):
    prefix = 0 if kind == "map" else prefix
    model, x = Tokens(patch, prefix, kind, tile=4 * patch), frames(batch, height, width)
    options = {"model": model, "cover": cover, "overlap": 0 if cover == "pad" else overlap * patch}
    as_map, as_mean = (make(scales, output=output, **options) for output in ("map", "pooled"))
    rows, columns = as_map.layout(height, width).grid
    assert (rows >= 4, columns >= 4) == (True, True)
    out = as_map(x)
    assert out.shape == (batch, as_map.dim, rows, columns) and as_map.dim == 6 * len(scales)
    torch.testing.assert_close(as_mean(x), out.mean(dim=(2, 3)), rtol=1e-5, atol=1e-5)
    tokens = make(scales, prefix=prefix > 0, **options)(x)
    assert tokens.shape == (batch, prefix + rows * columns, 6 * len(scales))
    assert torch.equal(tokens[:, prefix:], out.flatten(2).transpose(1, 2))
    # the shape of the frame is kept to half a patch of the longer side
    if scales[0] == 1:
        assert abs(max(rows, columns) - 4 * max(height, width) / min(height, width)) <= 0.5


@settings(max_examples=20, deadline=None)
@given(
    k=st.integers(1, 4),
    prefix=st.integers(0, 5),
    scales=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(sorted),
)
def test_square_frames_are_what_the_drop_in_gives(k, prefix, scales):
    """Upsampling from the base frame is `forward`; so is the native way, level by level."""
    model, x = Tokens(4, prefix), frames(2, 16 * k, 16 * k)
    s2 = make(scales, model, resize="upsample", prefix=prefix > 0)
    small = resize(normalised(x), 16)
    expected = forward(model.eval(), small, scales=scales, num_prefix_token=prefix)
    torch.testing.assert_close(s2(x), expected, rtol=1e-4, atol=1e-5)
    parts = [forward(model, resize(normalised(x), 16 * s), [1], None, 16, 0, prefix) for s in scales]
    grid = (4 * scales[0], 4 * scales[0])
    maps = [
        p[:, prefix:].transpose(1, 2).unflatten(2, (4 * s, 4 * s)) for p, s in zip(parts, scales, strict=True)
    ]
    maps = [F.adaptive_avg_pool2d(m, grid).flatten(2).transpose(1, 2) for m in maps]
    torch.testing.assert_close(make(scales, model)(x), torch.cat(maps, dim=-1), rtol=1e-4, atol=1e-5)


def test_frames_of_any_shape_equal_the_drop_in_on_the_resized_frame():
    model, x = Tokens(4, prefix=2, tile=16), frames(2, 96, 128)
    s2 = make((1, 2), model)
    assert [level.frame for level in s2.layout(96, 128).levels] == [(16, 20), (32, 40)]
    parts = []
    for level in s2.layout(96, 128).levels:
        y = resize(normalised(x), level.frame)
        out = forward(model, y, [1], None, 16, 0, 2)[:, 2:]
        parts.append(out.transpose(1, 2).unflatten(2, (level.frame[0] // 4, level.frame[1] // 4)))
    expected = torch.cat([parts[0], F.avg_pool2d(parts[1], 2)], dim=1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(s2(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frame", [(480, 640), (37, 61), (16, 16), (90, 31)])
@pytest.mark.parametrize("options", [{}, {"overlap": 8}, {"cover": "pad"}])
def test_a_patch_local_model_shows_no_seam_at_all(frame, options):
    """Its tiled map is the map of the whole frame."""
    s2 = S2(Local(), (1, 1.5, 2), tile=16, patch=4, output="map", mean=MEAN, std=STD, **options)
    x = frames(1, *frame)
    for index, level in enumerate(s2.layout(*frame).levels):
        whole = Local()(resize(normalised(x), level.frame))
        rows, columns = level.frame[0] // 4, level.frame[1] // 4
        whole = whole.transpose(1, 2).unflatten(2, (rows, columns))
        pooled = F.adaptive_avg_pool2d(whole, s2.layout(*frame).grid)
        torch.testing.assert_close(s2(x)[:, 3 * index : 3 * index + 3], pooled, rtol=1e-4, atol=1e-4)


def test_large_frames_are_antialiased_and_upsampling_is_not_native():
    noise = frames(1, 512, 512)
    s2 = S2(Local(), (1,), tile=16, patch=4, output="map", mean=(0, 0, 0), std=(1, 1, 1))
    assert s2(noise).std() < 0.05
    native, paper = (make((1, 2), resize=resize)(frames(1, 32, 32)) for resize in ("native", "upsample"))
    torch.testing.assert_close(native[..., :6], paper[..., :6])
    assert not torch.allclose(native[..., 6:], paper[..., 6:], atol=1e-2)


def test_sizes_and_base_by_hand():
    x = frames(1, 48, 64)
    s2 = make(sizes=((16, 24), (32, 48)))
    assert s2(x).shape == (1, s2.num_tokens, s2.dim) == (1, 24, 12)
    assert torch.equal(make(base=(16, 24))(x), s2(x))
    assert make(sizes=(16, 32)).layout(48, 64).grid == (4, 5)
    assert make(base=32).layout(64, 48).grid == (11, 8)
    assert torch.equal(make(sizes=(16, 32))(x), make()(x))
    for number in (np.int64, np.uint8, torch.tensor):  # a side too, whoever has counted it
        assert make(sizes=(number(16), number(32))).layout(48, 64) == make(sizes=(16, 32)).layout(48, 64)
        assert make(base=number(32)).layout(64, 48) == make(base=32).layout(64, 48)
    assert make(sizes=(16, 32)).layout(48, 64).tiles == 2 + 6


def test_one_call_of_the_model_for_all_tiles():
    calls = []
    model = Tokens()
    model.register_forward_pre_hook(lambda m, args: calls.append(tuple(args[0].shape)))
    s2 = make((1, 2, 3), model)
    calls.clear()
    s2(frames(2, 48, 64))
    assert calls == [(2 * s2.layout(48, 64).tiles, 3, 16, 16)]


def test_gradients_flow_unless_frozen():
    x = frames(1, 20, 24).permute(0, 3, 1, 2).float() / 255
    for output in ("tokens", "map", "pooled"):
        model, image = Tokens(), x.clone().requires_grad_()
        s2 = make(model=model, frozen=False, output=output)
        s2(image).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.embed.parameters())
        assert image.grad.abs().sum() > 0
        frozen = make(model=Tokens(), output=output)
        assert not frozen(x).requires_grad
        assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize(
    ("output", "options"),
    [("tokens", {}), ("map", {"cover": "pad"}), ("pooled", {"resize": "upsample", "overlap": 4})],
)
def test_compiles_in_one_graph(output, options):
    torch._dynamo.reset()
    s2, x = make((1, 1.5, 2), Tokens(), output=output, **options), frames(2, 30, 41)
    compiled = torch.compile(s2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), s2(x))
    image = x.permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(compiled(image), s2(image))


def test_autocast_and_half_models():
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=24, num_heads=3, depth=2, num_classes=0
    )
    s2, x = S2(vit, output="map"), frames(2, 64, 96)
    full = s2(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = s2(x)
    half = s2.to(torch.bfloat16)(x)
    assert half.dtype == torch.bfloat16
    for other in (mixed, half):
        assert 0.99 < F.cosine_similarity(other.float().flatten(), full.flatten(), dim=0) < 1 - 1e-7


def test_a_backbone_can_be_given_and_the_name_is_exported():
    import s2robot

    backbone = find_backbone(Tokens(prefix=1).eval(), tile=16, patch=4, num_prefix_tokens=1)
    s2 = s2robot.S2(backbone, frozen=False)
    assert s2.backbone is backbone and (s2.dim, s2.grid, s2.num_tokens) == (12, (4, 4), 16)
    assert "scales=(1, 2)" in repr(s2) and "tile 16 x 16" in repr(s2) and "\n" not in repr(s2)
    assert {"S2", "load_policy"} <= set(dir(s2robot))
    with pytest.raises(TypeError, match=r"S2\(\) got .*'scale', did you mean 'scales'"):
        make(scale=(1, 2, 3))
    with pytest.raises(AttributeError, match="no attribute 'S3'"):
        _ = s2robot.S3


def test_errors_name_the_argument_and_the_values():
    for call, words in (
        (lambda: make(output="cls"), "output: .*'cls'"),
        (lambda: make(resize="crop"), "resize: .*'crop'"),
        (lambda: make(cover="none"), "cover: .*'none'"),
        (lambda: make([]), "at least one scale"),
        (lambda: make([0.5, 1]), "level 8 x 8 px is smaller than the tile 16 x 16"),
        (lambda: make(sizes=((8, 32),))(frames(1, 8, 32)), "level 8 x 32 px .* tile 16 x 16"),
        (lambda: make(sizes=((32, 8),))(frames(1, 32, 8)), "level 32 x 8 px .* tile 16 x 16"),
        (lambda: make((2, 1)), "scales: .*smallest first"),
        (lambda: make((1, 2), sizes=(16, 32)), "sizes: .*got both"),
        (lambda: make(sizes=(16, 34)), "34 .*patches of 4 px; nearest is 32"),
        (lambda: make(sizes=(16, 32), base=16), "not both"),
        (lambda: make(prefix=True), "'tokens' and 0 prefix tokens"),
        (lambda: make(model=Tokens(prefix=1), prefix=True, output="map"), "'map' and 1 prefix tokens"),
        (lambda: make(overlap=16), "overlap: found 16 px, expected 0 to 12"),
        (lambda: make(overlap=8.5), "overlap: found 8.5 px, expected 0 to 12"),
        (lambda: S2(find_backbone(Tokens(), tile=16, patch=4), block=1, tile=16), "block, tile beside it"),
        (lambda: make()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)), r"torch.uint8 \(2, 3, 32, 32\)"),
        (lambda: make()(torch.zeros(2, 32, 32, 3)), r"torch.float32 \(2, 32, 32, 3\)"),
        (lambda: make()(torch.zeros(32, 32, 3, dtype=torch.uint8)), r"\(32, 32, 3\)"),
    ):
        with pytest.raises(UserError, match=words):
            call()
