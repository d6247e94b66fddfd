"""Fine-tuning the last encoder blocks: initial features equal the frozen ones, and only these blocks train."""

import copy

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from s2robot.core.errors import UserError
from s2robot.encoders.build import build_encoder
from s2robot.encoders.encoder import encode_cameras
from s2robot.encoders.tuning import Tail, build_early_blocks
from s2robot.training.tuned import TunedFeatures
from tests.errors import refuses

SIZES = [(64, 64), (72, 96)]  # one camera is not square and has more tiles
FRAMES = [np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8) for size in SIZES]


def settings(tiny_encoder, **changes) -> dict:
    return {"name": "mvp-tiny", "checkpoint": str(tiny_encoder), "scales": [1, 2]} | changes


CHANGES = {"scales": [1]}, {"pool": "mean"}, {"resolution": "upsampled"}, {"dtype": "bfloat16"}


@pytest.mark.parametrize(("changes", "lora"), zip(CHANGES, (3, 0, 0, 3), strict=True))
def test_features_equal_the_frozen_encoder_before_training(tiny_encoder, monkeypatch, changes, lora):
    cfg = settings(tiny_encoder, **changes)
    encoder, early = build_encoder(cfg), build_early_blocks(cfg, 1)
    tail = Tail(cfg, SIZES, 1, lora)
    expected = encode_cameras(encoder.encode, FRAMES)
    cached = encode_cameras(early.encode, FRAMES)
    counts = [rows * columns for rows, columns in (early.map_of(*size) for size in SIZES)]
    assert cached.shape == (3, 2, max(counts), 64) and counts[0] == early.num_tokens < counts[1]
    # other kernels compute bfloat16, so values agree to one step of rounding
    tolerance = {"atol": 0.03, "rtol": 0.01} if changes.get("dtype") else {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(tail(cached).detach(), expected, **tolerance)
    native, before = early.computes_in == torch.bfloat16, tail(cached)
    assert torch.equal(cached.half().float(), cached) or not native  # it has fewer digits than the cache
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: not native)  # it may train elsewhere
    assert torch.equal(tail(cached), before) is not bool(changes.get("dtype"))
    rows = TunedFeatures(cached.numpy(), tail)[np.array([2, 0])]
    torch.testing.assert_close(torch.from_numpy(rows), expected[[2, 0]], **tolerance)


@pytest.mark.parametrize(("dtype", "lora"), [("float32", 0), ("float32", 3), ("bfloat16", 3)])
def test_only_tuned_blocks_train_and_saved_weights_reproduce_them(tiny_encoder, lora, dtype):
    cfg = settings(tiny_encoder, dtype=dtype)
    frozen, early, tail = build_encoder(cfg), build_early_blocks(cfg, 1), Tail(cfg, SIZES, 1, lora)
    assert not any(p.requires_grad for p in early.parameters())
    cached = encode_cameras(early.encode, FRAMES).requires_grad_()
    before = copy.deepcopy(tail.last.state_dict())
    optimizer = torch.optim.SGD([p for p in tail.parameters() if p.requires_grad], lr=3.0 if lora else 0.1)
    for _ in range(2):  # at first, LoRA's zero factor blocks the gradient of the other factor
        optimizer.zero_grad()
        tail(cached).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(tail.parameters(), 1.0)
        optimizer.step()
    trained = {name for name, p in tail.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {name for name, p in tail.named_parameters() if p.requires_grad}
    assert all(name.startswith(("into", "out_of") if lora else "last") for name in trained)
    assert all(torch.equal(before[k], v) == bool(lora) for k, v in tail.last.state_dict().items())
    tuned = tail.tuned()
    assert len(tuned) == (4 if lora else len(before)) and "blocks.1.mlp.fc2.weight" in tuned
    assert all(name.startswith(("blocks.1.", "norm.")) for name in tuned)
    merged = build_encoder(cfg, tuned)
    assert merged.fingerprint != frozen.fingerprint == build_encoder(cfg, {}).fingerprint
    restored, original = (encode_cameras(e.encode, FRAMES) for e in (merged, frozen))
    tolerance = {"atol": 1e-4, "rtol": 0} if dtype == "float32" else {"atol": 0.06, "rtol": 0.02}
    torch.testing.assert_close(restored, tail(cached).detach(), **tolerance)
    assert (restored - original).abs().max() > 0.1


def test_last_block_of_a_cut_encoder_can_be_tuned(tmp_path):
    """A timm ViT with registers and layer scale, cut after its third block."""
    name = "vit_little_patch16_reg1_gap_256"
    save_file(timm.create_model(name, num_classes=0).state_dict(), tmp_path / "vit.safetensors")
    cfg = {"name": f"timm:{name}", "checkpoint": str(tmp_path / "vit.safetensors")}
    cfg |= {"block": 3, "img_size": 32}
    tail, early = Tail(cfg, SIZES[:1], 2), build_early_blocks(cfg, 2)
    expected = encode_cameras(build_encoder(cfg).encode, FRAMES[:1])
    cached = encode_cameras(early.encode, FRAMES[:1])
    torch.testing.assert_close(tail(cached).detach(), expected, atol=1e-4, rtol=0)
    assert {name.split(".")[1] for name in tail.tuned() if name.startswith("blocks")} == {"1", "2"}


def test_early_blocks_have_a_separate_fingerprint(tiny_encoder):
    cfg = settings(tiny_encoder)
    full, cut = build_encoder(cfg).fingerprint, build_encoder(cfg | {"block": 1}).fingerprint
    changes: list[dict] = [{}, {"pool": "mean"}, {"scales": [1]}]
    early, pooled, single = (build_early_blocks(cfg | change, 1).fingerprint for change in changes)
    assert len({full, cut, early, single}) == 4 and early == pooled


def test_untunable_encoders_are_rejected(tiny_encoder, tmp_path):
    cfg = settings(tiny_encoder)
    refuses("^train.tune.blocks: expected 0 to 1 .* got 2", build_early_blocks, cfg, 2)
    save_file(timm.create_model("resnet18", num_classes=0).state_dict(), tmp_path / "r.safetensors")
    other = {"name": "timm:resnet18", "checkpoint": str(tmp_path / "r.safetensors")}
    words = "^train.tune.blocks: expected 0 to 0 for encoder timm:resnet18, got 1 .* a ResNet"
    for build in (build_early_blocks, lambda cfg, blocks: Tail(cfg, SIZES, blocks)):
        refuses(words, build, other, 1)
    with pytest.raises(UserError, match=r"encoder mvp-tiny, fine-tuned: .* unexpected blocks.7.norm1.weight"):
        build_encoder(cfg, {"blocks.7.norm1.weight": torch.zeros(64)})
