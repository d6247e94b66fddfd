"""The one reader of what models return, under `find_backbone` and under `forward`."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from s2robot.backbones.backbone import find_backbone
from s2robot.backbones.outputs import features
from s2robot.core.errors import UserError
from s2robot.s2 import forward


def test_what_models_return():
    x, y = torch.rand(2, 3), torch.rand(4)
    assert features(x) is x
    assert features(SimpleNamespace(last_hidden_state=x)) is x
    assert features((x, y)) is x and features([x]) is x
    assert features({"x_norm_clstoken": y, "x_norm_patchtokens": x, "masks": None}, 0) is x
    assert features({"out": x, "aux": y}) is x
    assert features({"layer4": x}) is x
    for bad, words in (
        (None, "NoneType"), ({"a": x, "b": y}, "dict with a, b"), ((), "tuple"), ({}, "nothing"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            features(bad)


class Dino(nn.Module):
    """DINOv2's mapping as torch.hub's gives it, of 4 px patches with registers."""

    def __init__(self, registers: int, key: str = "x_norm_regtokens") -> None:
        super().__init__()
        self.registers, self.key = registers, key

    def row(self, x: torch.Tensor) -> torch.Tensor:
        """CLS, registers and patches, one after the other."""
        patches = F.avg_pool2d(x, 4).flatten(2).transpose(1, 2)
        front = [patches.mean(dim=1, keepdim=True) * (i + 2) for i in range(1 + self.registers)]
        return torch.cat([*front, patches], dim=1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor | None]:
        front, row = 1 + self.registers, self.row(x)
        return {
            "x_norm_clstoken": row[:, 0],
            self.key: row[:, 1:front],
            "x_norm_patchtokens": row[:, front:],
            "x_prenorm": row,
            "masks": None,
        }


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("key", ["x_norm_regtokens", "x_storage_tokens"])
def test_prefix_tokens_of_dino_are_the_same_for_both_users(registers, key):
    model, x, front = Dino(registers, key), torch.rand(2, 3, 16, 16), 1 + registers
    expected = forward(model.row, x, scales=[1, 2], num_prefix_token=front)
    assert torch.equal(forward(model, x, scales=[1, 2], num_prefix_token=front), expected)
    assert torch.equal(forward(model, x, scales=[1, 2]), expected[:, front:])  # 0 leaves them out
    backbone = find_backbone(model, tile=16, patch=4, num_prefix_tokens=front)
    assert (backbone.num_prefix_tokens, backbone.dim) == (front, 3)
    assert torch.equal(backbone(x), model.row(x))
    without = find_backbone(model, tile=16, patch=4)
    assert without.num_prefix_tokens == 0 and torch.equal(without(x), model.row(x)[:, front:])
