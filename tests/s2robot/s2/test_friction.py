"""What a new user of S2 trips over: a model frozen for good, axes in another order, images in 0 to 255, no GPU."""

import copy
import subprocess
import sys
import warnings

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from s2robot import S2
from s2robot.core.errors import UserError
from s2robot.s2 import forward

torch.set_num_threads(1)


class Model(nn.Module):
    """Patches of 4 px with a norm and dropout, and so a mode."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.drop = nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(self.embed(x)))


def frames(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def s2(model: nn.Module | None = None, **options) -> S2:
    return S2(model or Model(), **{"tile": 16, **options})


def test_a_frozen_s2_leaves_the_callers_model_as_it_was():
    model = Model().train()
    model.norm.eval()
    model.embed.bias.requires_grad_(False)
    frozen = s2(model)
    x = frames(2, 32, 32, 3)
    assert not frozen(x).requires_grad and not any(p.requires_grad for p in frozen.parameters())
    assert model.training and model.drop.training and not model.norm.training
    assert {k: p.requires_grad for k, p in model.named_parameters()} == {
        "embed.weight": True, "embed.bias": False, "norm.weight": True, "norm.bias": True,
    }  # fmt: skip
    later = s2(model, frozen=False)
    later(x).sum().backward()
    assert model.embed.weight.grad is not None


def test_a_frozen_s2_uses_the_models_weights_in_memory():
    model = Model().eval()
    frozen, x = s2(model), frames(1, 32, 32, 3)
    before = frozen(x)
    held = {p.data_ptr() for p in frozen.parameters()} | {b.data_ptr() for b in frozen.backbone.buffers()}
    assert held == {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    with torch.no_grad():
        model.embed.weight.add_(1)  # what is learnt in the model is seen
    assert not torch.equal(frozen(x), before)
    assert torch.equal(frozen(x), copy.deepcopy(frozen)(x))


def test_a_function_is_not_copied_with_all_that_it_belongs_to():
    model = Model().eval()
    frozen = S2(model.forward, tile=16)
    assert frozen.backbone.model.function.__self__ is model


@pytest.mark.parametrize(
    "change",
    [
        lambda m: torch.compile(m, backend="eager"),
        torch.jit.script,
        lambda m: nn.utils.parametrizations.weight_norm(m, "weight"),
    ],
)
def test_models_of_other_makes_are_frozen_too(change):
    model, x = nn.Conv2d(3, 4, 4, 4), frames(1, 32, 32, 3)
    made = change(model)
    expected = S2(made, tile=16, frozen=False)(x).detach()
    frozen = S2(made, tile=16)
    assert not any(p.requires_grad for p in frozen.parameters())
    torch.testing.assert_close(frozen(x), expected)


def test_a_model_that_cannot_be_copied_says_what_to_do():
    model = Model()
    model.scaled = model.embed.weight * 2  # no leaf: torch refuses to copy it
    with pytest.raises(UserError, match="Model cannot be copied .* pass frozen=False"):
        s2(model)
    assert s2(model, frozen=False).dim == 12


@pytest.mark.parametrize("shape", [(1, 3, 448, 3), (2, 20, 2000, 3), (2, 2000, 20, 3)])
def test_a_frame_with_its_axes_in_another_order_is_refused(shape):
    words = rf"a frame of {shape[1]} x {shape[2]} px is more than 16 times as long as wide.*base= or sizes="
    with pytest.raises(UserError, match=words):
        s2()(frames(*shape))
    with pytest.raises(UserError, match=words):
        s2(sizes=(16, 32))(frames(*shape))
    assert s2(base=(16, 32))(frames(*shape)).shape[1:] == (4 * 8, 12)  # asked for by hand


def test_float_images_in_0_to_255_warn_once():
    model, x = s2(), frames(1, 32, 32, 3).permute(0, 3, 1, 2).float()
    with pytest.warns(UserWarning, match=r"in 0 to 1, found a value of 25\d; divide by 255"):
        model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
        s2()(x / 255)
        s2()(frames(1, 32, 32, 3))


def test_numpy_arrays_are_images_too():
    model, x = s2(), frames(2, 30, 44, 3)
    assert torch.equal(model(x.numpy()), model(x))
    mirrored = x.numpy()[:, :, ::-1]  # a view that torch does not take
    assert torch.equal(model(mirrored), model(x.flip(2)))
    planes = (x.numpy().transpose(0, 3, 1, 2) / 255).astype(np.float32)
    assert torch.equal(model(planes), model(torch.from_numpy(planes)))
    module = Model().eval()
    assert torch.equal(
        forward(module, planes, scales=[1, 2], output_shape="bchw"),
        forward(module, torch.from_numpy(planes), scales=[1, 2], output_shape="bchw"),
    )


def test_arguments_of_the_wrong_kind_are_one_line():
    for call, words in (
        (lambda: s2(scales=2), "scales: .*2"),
        (lambda: s2(scales=(1, "2")), "scales: .*'2'"),
        (lambda: s2(scales=(1, -2)), "scales: .*-2"),
        (lambda: s2(sizes=32), "sizes: .*32"),
        (lambda: s2(sizes=(16.5,)), "S2 size: .*16.5"),
        (lambda: s2(base="big"), "S2 size: .*'big'"),
        (lambda: s2()([[1]]), "images: .* got a list"),
        (lambda: s2()(np.array(["a"])), "images: .* got a ndarray of <U1"),
        (lambda: forward(Model(), torch.rand(1, 3, 16, 16), 2), "scales: .*2"),
        (lambda: forward(Model(), torch.rand(1, 3, 16, 16), None, 16), "img_sizes: .*16"),
    ):
        with pytest.raises(UserError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_tile_whose_rest_is_in_no_token_is_refused():
    """60 px hold 3 patches of 16: rows and columns 48 to 59 would change no feature."""
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, embed_dim=24, num_heads=3)
    words = "tile 60 x 60 px is no whole number of patches of 16 px.* nearest are 48 x 48 and 64 x 64"
    with pytest.raises(UserError, match=words):
        S2(vit, tile=60)
    with pytest.raises(UserError, match="tile 18 x 18 px is no whole number of patches of 4 px"):
        S2(lambda x: F.avg_pool2d(x, 4).flatten(2).transpose(1, 2), tile=18, patch=4)


def test_importing_s2_imports_no_library_of_models():
    """They take longer to import than torch."""
    code = "import sys; from s2robot import S2; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"timm", "torchvision", "transformers", "omegaconf", "zarr", "robosuite"} & set(loaded.split())
