"""What goes to a GPU, and batches that its memory holds; a GPU that is full is played by a call that says so."""

import pytest
import torch

from s2robot.backbones.device import fitting, moved
from s2robot.core.errors import UserError
from s2robot.encoders.encoder import S2Encoder
from tests.s2robot.encoders.test_encoder import make_vit


class Full:
    """A call that holds so many rows at most."""

    def __init__(self, most: int):
        self.most, self.sizes = most, []

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(rows))
        if len(rows) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return rows * 2


@pytest.mark.parametrize(
    ("rows", "at_once", "most", "sizes", "fits"),
    [
        (10, 8, 64, [8, 2], 8),
        (11, 8, 3, [8, 4, 2, 2, 2, 2, 2, 1], 2),
        (3, 5, 1, [3, 3, 2, 1, 1, 1], 1),
    ],
)
def test_a_full_memory_halves_the_batch_and_loses_no_row(rows, at_once, most, sizes, fits):
    call, x = Full(most), torch.arange(rows)
    outputs, allowed = fitting(call, x, at_once)
    assert torch.equal(torch.cat(outputs), 2 * x)
    assert (call.sizes, allowed) == (sizes, fits)


def test_a_row_that_does_not_fit_is_one_line():
    with pytest.raises(UserError, match=r"one frame of \(4, 4, 3\)"):
        fitting(Full(0), torch.zeros(3, 4, 4, 3), 2)


def test_an_encoder_keeps_what_fitted(monkeypatch):
    encoder = S2Encoder(make_vit(), [16, 32], frames_per_call=8)
    images = torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8)
    wanted, real, seen = encoder.encode(images), encoder._model, []

    def small(x: torch.Tensor, model: object = None) -> torch.Tensor:
        seen.append(len(x))
        if len(x) > 2 * 5:  # tiles of two frames
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(x)

    monkeypatch.setattr(encoder, "_model", small)
    assert torch.allclose(encoder.encode(images), wanted, atol=1e-5) and encoder.frames_per_call == 2
    seen.clear()
    encoder.encode(images)
    assert seen == [10, 10, 10]  # nothing is tried again


@pytest.mark.gpu
def test_the_copy_to_a_gpu_is_whole_when_it_is_used():
    x = torch.arange(2**22)
    for _ in range(20):  # the pinned memory of one copy is that of the next
        assert torch.equal(moved(x, torch.device("cuda")).cpu(), x)


@pytest.mark.gpu
def test_an_encoder_on_a_gpu_gives_the_processors_features_in_one_call():
    encoder = S2Encoder(make_vit(), [16, 32])
    images = torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8)
    wanted = encoder.encode(images)
    calls, gpu = [], encoder.to("cuda")
    gpu.model.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    assert torch.allclose(gpu.encode(images).cpu(), wanted, atol=1e-3) and calls == [64 * 5]
