"""Prepared models against the original models."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from s2robot.backbones import inference
from s2robot.backbones.device import moved
from s2robot.backbones.inference import PackedLinear, can_pack, default_dtype, prepare
from s2robot.backbones.vit import MVPViT, ViTSpec
from tests.errors import refuses

SPEC = ViTSpec(img_size=32, patch_size=8, dim=96, depth=3, heads=3)


def vit() -> MVPViT:
    torch.manual_seed(0)
    model = MVPViT(SPEC).eval()
    for parameter in model.parameters():  # larger than initially, so that every part affects the features
        if parameter.requires_grad and parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.1)
    return model


def resnet() -> nn.Module:
    return timm.create_model("resnet18", num_classes=0)


def images(b: int = 3, side: int = 32) -> torch.Tensor:
    return torch.randn(b, 3, side, side, generator=torch.Generator().manual_seed(b))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return F.cosine_similarity(a.float().flatten(0, -2), b.float().flatten(0, -2), dim=-1).min().item()


class Pieces(nn.Module):
    """Linear layers in other arrangements: in a Sequential with both kinds of GELU, alone, applied by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, 40, 8, 8)
        self.mlp = nn.Sequential(nn.Linear(40, 80), nn.GELU(), nn.Linear(80, 40), nn.GELU("tanh"), nn.ReLU())
        self.odd = nn.Linear(40, 7, bias=False)
        self.by_hand = nn.Linear(7, 5)
        self.register_buffer("shift", torch.rand(5))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor | None]:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = self.odd(self.mlp(x))
        return {"tokens": F.linear(x, self.by_hand.weight, self.by_hand.bias) + self.shift, "nothing": None}


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_convnext", "test_efficientnet"])
@torch.inference_mode()
def test_timm_models_in_both_dtypes(name):
    torch.manual_seed(0)
    model, x = timm.create_model(name, num_classes=0).eval(), images(2, 160 if "vit" in name else 96)
    expected = model(x)
    exact, half = prepare(model, torch.float32)(x), prepare(model, torch.bfloat16)(x)
    assert torch.equal(prepare(model)(x), prepare(model)(x))
    assert exact.dtype == half.dtype == torch.float32
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-5 * max(1, expected.abs().max().item()))
    assert 0.999 < cosine(half, expected) < 1


def test_converted_packed_layer_is_plain_and_batch_norm_stays_float32():
    layer = nn.Linear(8, 6).requires_grad_(False)
    plain, x = copy.deepcopy(layer).double(), torch.ones(2, 8).double()
    PackedLinear.from_linear(layer, "none")
    torch.testing.assert_close(layer.double()(x), F.gelu(plain(x)))
    fast = prepare(resnet(), torch.bfloat16)
    assert fast.bn1.running_var.dtype == fast.bn1.weight.dtype == torch.float32
    assert fast.conv1.weight.dtype == torch.bfloat16
    assert fast.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("packed", [True, False])
@torch.inference_mode()
def test_other_outputs_layer_containers_and_autocast(packed, monkeypatch):
    if not packed:
        monkeypatch.setattr(inference, "can_pack", lambda *_: False)
    for model in (Pieces().eval(), vit()):
        fast, expected = prepare(model, torch.float32), model(images())
        assert any(isinstance(m, PackedLinear) for m in fast.modules()) is inference.can_pack()
        for each in (fast, copy.deepcopy(fast)):
            torch.testing.assert_close(each(images()), expected, rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert cosine(fast(images()), expected) > 0.999


@pytest.mark.parametrize("make", [vit, resnet, Pieces])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_and_prepared_copy_are_independent(make, dtype):
    """Packed or converted weights would otherwise keep old values while the others change."""
    model = make().train()
    before, trainable = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    fast = prepare(model, dtype)
    assert model.training and not fast.training and "forward" not in vars(model)
    assert type(fast) is type(model) and list(fast.state_dict()) == list(before)
    assert trainable == [p.requires_grad for p in model.parameters()]
    assert not any(p.requires_grad for p in fast.parameters())
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    copied = {k: v.clone() for k, v in fast.state_dict().items()}
    with torch.no_grad():
        for t in (*model.parameters(), *model.buffers()):
            t.add_(1)
    assert all(torch.equal(v, copied[k]) for k, v in fast.state_dict().items())
    fast.load_state_dict(model.state_dict())
    torch.testing.assert_close(fast(images()), prepare(model, dtype)(images()), rtol=0, atol=0)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@torch.inference_mode()
def test_large_batches_are_split_evenly_with_equal_results(dtype, atol, monkeypatch):
    expected = prepare(vit(), dtype)(images(7))
    monkeypatch.setattr(inference, "PIXELS_PER_CALL", 3 * 32 * 32 + 5)
    fast, sizes = prepare(vit(), dtype), []
    fast.blocks[0].register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    torch.testing.assert_close(fast(images(7)), expected, rtol=0, atol=atol)
    fast(images(4))
    assert sizes == [3, 3, 1, 2, 2]
    assert fast(images(0)).shape == (0, 17, 96)
    pieces = prepare(Pieces().eval(), torch.float32)(images(7))
    torch.testing.assert_close(pieces, Pieces()(images(7)), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_chunked_masked_and_qk_norm_attention_match_timm(monkeypatch):
    fast, plain = prepare(vit(), torch.bfloat16), vit().blocks[0].attn
    x, mask = torch.randn(2, 5, 96), torch.eye(5, dtype=torch.bool)
    options = {"img_size": 32, "depth": 1, "qk_norm": True, "global_pool": "", "num_classes": 0}
    normed = timm.create_model("vit_tiny_patch16_224", **options).eval()
    with sdpa_kernel(SDPBackend.MATH):
        out = fast.blocks[0].attn(x.bfloat16(), attn_mask=mask)
        assert cosine(out, plain(x, attn_mask=mask)) > 0.999 and cosine(out, plain(x)) < 0.99
        expected = fast(images(5))
        monkeypatch.setattr(inference, "SCORES_PER_CALL", 2 * 3 * 17 * 17)
        torch.testing.assert_close(fast(images(5)), expected, rtol=0, atol=0.02)
        other = prepare(normed, torch.bfloat16)
        assert "forward" not in vars(other.blocks[0].attn)
        assert cosine(other(images()), normed(images())) > 0.999


@torch.inference_mode()
def test_copies_and_pickles_compute_the_same():
    fast = prepare(vit(), torch.bfloat16)
    expected = fast(images())
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), prepare(fast, torch.bfloat16)):
        assert torch.equal(other(images()), expected)
        attention = other.blocks[0].attn
        assert not can_pack() or attention.forward.args[0] is attention  # not the original's
    assert copy.deepcopy(fast.to("meta")).norm.weight.is_meta  # packs on the CPU only


def test_default_dtype(monkeypatch):
    for has, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        assert default_dtype("cpu") == prepare(vit()).norm.weight.dtype == dtype
    assert default_dtype("meta") == torch.float32
    refuses("dtype: expected .* 'auto', got 'int8'", prepare, vit(), "int8")


@pytest.mark.gpu
def test_gpu_copy_is_complete_before_use():
    x = torch.arange(2**22)
    for _ in range(20):  # the next copy reuses the pinned memory
        assert torch.equal(moved(x, torch.device("cuda")).cpu(), x)


def test_bfloat16_model_runs_on_a_cpu_without_avx512():
    """oneDNN reads the limit when it starts; it packs 16-bit weights only with AVX-512."""
    script = """
import torch
from s2robot.backbones.inference import prepare
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 3))
print(tuple(prepare(model, torch.bfloat16)(torch.ones(2, 8, dtype=torch.bfloat16)).shape))
"""
    words, env = [sys.executable, "-c", script], os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=300)
    assert done.stdout.strip() == "(2, 3)", done.stderr[-500:]
