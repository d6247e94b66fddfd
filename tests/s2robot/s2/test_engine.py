"""The engine under all users of S2: what it puts together, and what it refuses."""

import pytest
import torch
from torch.nn import functional as F

from s2robot.core.errors import UserError
from s2robot.s2.engine import encode
from s2robot.s2.layout import LONGEST, Sizes, square
from s2robot.s2.pyramid import resize

torch.set_num_threads(1)
GENERATOR = torch.Generator().manual_seed(0)


def model(x: torch.Tensor) -> torch.Tensor:
    """Two prefix tokens, then patches of 2 px."""
    patches = F.avg_pool2d(x, 2).square()
    return torch.cat([x.amax((2, 3))[:, None].expand(-1, 2, -1), patches.flatten(2).mT], dim=1)


def levels(*sides: int) -> list[torch.Tensor]:
    return [torch.rand(3, 3, side, side, generator=GENERATOR) for side in sides]


def test_levels_stand_side_by_side_on_the_grid_of_the_first():
    layout, (small, large) = square((4, 8), 4, 2), levels(4, 8)
    out = encode(model, [small, large], layout, front=2, output="map")
    assert (layout.cells, layout.grid, layout.tiles) == ((2, 2), (2, 2), 5)
    torch.testing.assert_close(out[:, :3], F.avg_pool2d(small, 2).square())
    torch.testing.assert_close(out[:, 3:], F.avg_pool2d(F.avg_pool2d(large, 2).square(), 2))
    tokens = encode(model, [small, large], layout, front=2, prefix=True)
    assert torch.equal(tokens[:, 2:], out.flatten(2).mT)
    torch.testing.assert_close(tokens[:, 0, 3:], F.max_pool2d(large, 4).mean((2, 3)))  # the mean over tiles
    pooled = encode(model, [small, large], layout, front=2, output="pooled")
    torch.testing.assert_close(pooled, out.mean((2, 3)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: encode(model, levels(4), square((4,), 4, 2)), r"gives 6 tokens a tile, expected 0 \+ 2 x 2"),
        (
            lambda: encode(model, levels(6), square((4,), 4, 2), 2),
            r"planned for a frame of \(4, 4\), found .*\(6, 6\)",
        ),
        (lambda: square((), 4, 2), "sizes are empty"),
        (lambda: square((2,), 4, 2), "S2 size 2 is not a whole multiple of the model's tile 4"),
        (lambda: square((4, 6), 4, 2), "S2 size 6 is not a whole multiple"),
        (lambda: Sizes((4, 4), 2, scales=()), "at least one scale or size"),
        (lambda: Sizes((4, 4), 2, sizes=(4,), base=4), "not both"),
        (lambda: Sizes((4, 4), 2).layout(0, 5), "a frame of 0 x 5 px"),
        (lambda: Sizes((4, 4), 2).layout(4, 4 * LONGEST + 1), "a frame of 4 x 65 px is more than 16 times"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()


@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (2, 3, 6, 10), (4, 3, 256, 256)])
def test_half_the_size_is_torchs_mean_to_the_last_bit(shape):
    for images in (
        torch.randn(shape),
        torch.randn(shape) * 1e6,
        torch.randn(shape).to(memory_format=torch.channels_last),
    ):
        half = (shape[2] // 2, shape[3] // 2)
        wanted = F.avg_pool2d(images, 2)
        assert torch.equal(resize(images, half), wanted)
        assert torch.equal(resize(images.requires_grad_(), half), wanted)
