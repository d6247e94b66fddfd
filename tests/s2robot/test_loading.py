"""Loading a policy: what is said of a wrong encoder and of a device that is not there."""

import pytest
import torch

from s2robot.backbones.vit import MVPViT, ViTSpec, save_encoder
from s2robot.common.errors import UserError
from s2robot.loading import device_of, load_policy
from s2robot.policies import PolicyError


def test_a_wrong_encoder_is_named_with_its_file(slow_policy, tmp_path):
    other = tmp_path / "other.safetensors"
    torch.manual_seed(1)
    save_encoder(MVPViT(ViTSpec(img_size=32, patch_size=8, dim=64, depth=2, heads=2)), other, {"seed": 1})
    words = r"trained on encoder mvp-tiny [0-9a-f]{12}, the one given is mvp-tiny \(.*other.safetensors\) [0-9a-f]{12}:"
    with pytest.raises(PolicyError, match=words) as error:
        load_policy(slow_policy, torch.device("cpu"), other)
    assert "\n" not in str(error.value)


def test_a_device_that_is_not_there_is_a_line():
    assert device_of("cpu") == torch.device("cpu")
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match="device: found 'gpu', expected auto, cpu, cuda"):
        device_of("gpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with pytest.raises(UserError, match=f"device: found cuda:99, torch .* finds {count} GPUs here"):
        device_of("cuda:99")
