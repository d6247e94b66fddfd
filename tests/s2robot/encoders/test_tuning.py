"""The last blocks of an encoder with gradients: the features of the frozen one, and only these blocks learn."""

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

SIZES = [(64, 64), (72, 96)]  # one camera is no square, and has more tiles
FRAMES = [np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8) for size in SIZES]


def settings(tiny_encoder, **changes) -> dict:
    return {"name": "mvp-tiny", "checkpoint": str(tiny_encoder), "scales": [1, 2]} | changes


CHANGES = (
    ({"scales": [1]}, 3),
    ({"pool": "mean"}, 0),
    ({"resolution": "upsampled"}, 0),
    ({"dtype": "bfloat16"}, 3),
)


@pytest.mark.parametrize(("changes", "lora"), CHANGES)
def test_features_equal_the_frozen_encoder_before_training(tiny_encoder, changes, lora):
    given = settings(tiny_encoder, **changes)
    encoder, entering = build_encoder(given), build_early_blocks(given, 1)
    tail = Tail(given, SIZES, 1, lora)
    want = encode_cameras(encoder.encode, FRAMES)
    cached = encode_cameras(entering.encode, FRAMES)
    counts = [rows * columns for rows, columns in (entering.map_of(*size) for size in SIZES)]
    assert cached.shape == (3, 2, max(counts), 64) and counts[0] == entering.num_tokens < counts[1]
    # in bfloat16 the numbers are those to one step of rounding: other kernels compute them
    close = {"atol": 0.03, "rtol": 0.01} if changes.get("dtype") else {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(tail(cached).detach(), want, **close)
    if changes.get("dtype"):  # bfloat16 has fewer digits than the cache
        assert torch.equal(cached.half().float(), cached)
    rows = TunedFeatures(cached.numpy(), tail)[np.array([2, 0])]
    torch.testing.assert_close(torch.from_numpy(rows), want[[2, 0]], **close)


@pytest.mark.parametrize(("dtype", "lora"), [("float32", 0), ("float32", 3), ("bfloat16", 3)])
def test_only_tuned_blocks_train_and_saved_weights_reproduce_them(tiny_encoder, lora, dtype):
    given = settings(tiny_encoder, dtype=dtype)
    frozen, entering, tail = build_encoder(given), build_early_blocks(given, 1), Tail(given, SIZES, 1, lora)
    assert not any(p.requires_grad for p in entering.parameters())
    cached = encode_cameras(entering.encode, FRAMES).requires_grad_()
    before = copy.deepcopy(tail.last.state_dict())
    optimizer = torch.optim.SGD([p for p in tail.parameters() if p.requires_grad], lr=3.0 if lora else 0.1)
    for _ in range(2):  # a product with zeros has no gradient for its other side
        optimizer.zero_grad()
        tail(cached).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(tail.parameters(), 1.0)
        optimizer.step()
    learnt = {name for name, p in tail.named_parameters() if p.grad is not None and p.grad.any()}
    assert learnt == {name for name, p in tail.named_parameters() if p.requires_grad}
    assert all(name.startswith(("into", "out_of") if lora else "last") for name in learnt)
    after = tail.last.state_dict()
    assert all(torch.equal(before[k], after[k]) == bool(lora) for k in before)
    tuned = tail.tuned()
    assert len(tuned) == (4 if lora else len(before)) and "blocks.1.mlp.fc2.weight" in tuned
    assert all(name.startswith(("blocks.1.", "norm.")) for name in tuned)
    merged = build_encoder(given, tuned)
    assert merged.fingerprint != frozen.fingerprint == build_encoder(given, {}).fingerprint
    got, old = (encode_cameras(e.encode, FRAMES) for e in (merged, frozen))
    close = {"atol": 1e-4, "rtol": 0} if dtype == "float32" else {"atol": 0.06, "rtol": 0.02}
    torch.testing.assert_close(got, tail(cached).detach(), **close)
    assert (got - old).abs().max() > 0.1


def test_last_block_of_a_cut_encoder_can_be_tuned(tmp_path):
    """timm's ViT with registers and a scale in each block, taken after the third of its blocks."""
    name = "vit_little_patch16_reg1_gap_256"
    save_file(timm.create_model(name, num_classes=0).state_dict(), tmp_path / "vit.safetensors")
    given = {"name": f"timm:{name}", "checkpoint": str(tmp_path / "vit.safetensors")}
    given |= {"block": 3, "img_size": 32}
    tail, entering = Tail(given, SIZES[:1], 2), build_early_blocks(given, 2)
    want = encode_cameras(build_encoder(given).encode, FRAMES[:1])
    cached = encode_cameras(entering.encode, FRAMES[:1])
    torch.testing.assert_close(tail(cached).detach(), want, atol=1e-4, rtol=0)
    assert {name.split(".")[1] for name in tail.tuned() if name.startswith("blocks")} == {"1", "2"}


def test_early_blocks_have_a_separate_fingerprint(tiny_encoder):
    given = settings(tiny_encoder)
    whole, cut = build_encoder(given).fingerprint, build_encoder(given | {"block": 1}).fingerprint
    changes: list[dict] = [{}, {"pool": "mean"}, {"scales": [1]}]
    entering, pooled, single = (build_early_blocks(given | change, 1).fingerprint for change in changes)
    assert len({whole, cut, entering, single}) == 4 and entering == pooled


def test_untunable_encoders_are_rejected(tiny_encoder, tmp_path):
    given = settings(tiny_encoder)
    with pytest.raises(UserError, match="^train.tune.blocks: expected 0 to 1 .* got 2"):
        build_early_blocks(given, 2)
    save_file(timm.create_model("resnet18", num_classes=0).state_dict(), tmp_path / "r.safetensors")
    other = {"name": "timm:resnet18", "checkpoint": str(tmp_path / "r.safetensors")}
    words = "^train.tune.blocks: expected 0 to 0 for encoder timm:resnet18, got 1 .* a ResNet"
    for build in (build_early_blocks, lambda given, blocks: Tail(given, SIZES, blocks)):
        with pytest.raises(UserError, match=words):
            build(other, 1)
    with pytest.raises(UserError, match=r"encoder mvp-tiny, fine-tuned: .* unexpected blocks.7.norm1.weight"):
        build_encoder(given, {"blocks.7.norm1.weight": torch.zeros(64)})
