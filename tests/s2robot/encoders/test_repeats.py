"""What repeats is computed once, and nothing else changes."""

import numpy as np
import pytest
import torch
from torch import Tensor

import s2robot.encoders.encoder
from s2robot.encoders.build import build_encoder
from s2robot.encoders.repeats import LEAST, Once

torch.set_num_threads(1)


class Counting:
    """Twice each image's first row of pixels, and how many images came."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.counts.append(len(x))
        return 2 * x[:, :, 0]


def test_rows_are_each_image_s_own_and_repeats_are_not_computed():
    model, x = Counting(), torch.randn(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    once = Once(model)
    batches = (x, x[:7], x[[3, 3, 9, 9, 0, 1, 2]], torch.cat([x[4:8], -x[:6]]))
    for batch in batches:
        assert torch.equal(once(batch), 2 * batch[:, :, 0])
    # twice nothing is new, and the kernel of LEAST images is not left; then six are
    assert model.counts == [12, LEAST, LEAST, 6]


def test_a_small_batch_keeps_its_size():
    model, x = Counting(), torch.ones(LEAST - 1, 3, 4, 4)
    once = Once(model)
    assert torch.equal(once(x), 2 * x[:, :, 0])
    once(x)
    assert model.counts == [LEAST - 1, LEAST - 1]


def test_a_repeat_in_the_middle_of_a_small_batch_leaves_the_rows_in_their_places():
    """Images that are computed all the same, to keep the batch from being tiny, came behind the others."""
    x = torch.randn(2 * LEAST, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for first in range(LEAST):  # of one to LEAST images that were there before, wherever they stand
        for last in range(first + 1, LEAST + 1):
            once = Once(Counting())
            once(x[LEAST:])
            batch = x[:LEAST].clone()
            batch[first:last] = x[LEAST : LEAST + last - first]
            for _ in range(2):
                assert torch.equal(once(batch), 2 * batch[:, :, 0])


def test_images_of_equal_sums_are_told_apart():
    words = torch.zeros(8, 12, dtype=torch.int64)
    words[torch.arange(8), torch.arange(8)] = 1  # sums of 1 everywhere
    x = words.view(torch.float32).view(8, 3, 2, 4)
    once = Once(lambda y: y.flatten(1).clone())
    for _ in range(2):
        assert torch.equal(once(x).view(torch.int64), words)


def test_it_forgets_what_is_long_ago():
    model, x = Counting(), torch.randn(12, 3, 4, 4)
    once = Once(model, most=6)
    once(x[:6]), once(x[6:]), once(x[:6])
    assert model.counts == [6, 6, 6] and len(once._seen) == 6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_of_a_still_camera_are_the_same_to_the_bit(monkeypatch, dtype):
    frames = np.random.default_rng(0).integers(0, 256, (6, 256, 256, 3), np.uint8)
    frames[1:, 128:] = frames[0, 128:]  # the lower half stands still
    encoder = build_encoder({"name": "mvp-tiny", "sizes": [128, 256], "dtype": dtype})
    found = encoder.encode(frames)
    monkeypatch.setattr(s2robot.encoders.encoder, "Once", lambda model: model)
    assert torch.equal(found, encoder.encode(frames))
