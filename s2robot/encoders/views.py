"""Light augmentation on features: a few other views of every frame are encoded beside it, a training draws one of them.

    views = Views(3, shift=0.02, colour=0.2)
    views.names(("hand", "left"))                    # ("hand~1", "left~1", "hand~2", ...): K times the cameras
    views.frames(render_episodes(...))               # frames of those, as of more cameras

A view is the same scene from a camera that was bumped (a shift of whole pixels, the edge repeated) in another light
(contrast, and each colour's brightness). It is one for a whole episode and camera, so that the steps of a context fit
together, and it is the same whenever it is made: it follows from view, episode and the camera's place in the list.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from s2robot.encoders.cache import Frames


@dataclass(frozen=True)
class Views:
    """How many other views there are of a frame, and how far they differ.

    Args:
        count: K.
        shift: largest shift, as a share of the frame's side.
        colour: largest change of contrast, and twice that of a colour's brightness, as a share.
    """

    count: int
    shift: float
    colour: float

    @property
    def key(self) -> str:
        """What the features depend on besides frames and encoder; the count is told by the names."""
        return f"views of version 1, shift {self.shift:g}, colour {self.colour:g}"

    def names(self, cameras: Sequence[str]) -> tuple[str, ...]:
        """Names of the views: all cameras of the first, then of the second."""
        return tuple(f"{name}~{view}" for view in range(1, self.count + 1) for name in cameras)

    def frames(self, frames: Frames) -> Iterator[tuple[int, list[np.ndarray]]]:
        """The views of each episode's frames, uint8 (T, H, W, 3) a camera, as of K * C cameras in the order of `names`."""
        for episode, seen in frames:
            views = [
                self.changed(camera, np.random.default_rng([view, episode, place]))
                for view in range(1, self.count + 1)
                for place, camera in enumerate(seen)
            ]
            yield episode, views

    def changed(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Another view of the frames uint8 (T, H, W, 3) of a camera."""
        height, width = frames.shape[1:3]
        down, right = (round(rng.uniform(-self.shift, self.shift) * side) for side in (height, width))
        rows = np.clip(np.arange(height) - down, 0, height - 1)
        columns = np.clip(np.arange(width) - right, 0, width - 1)
        contrast = rng.uniform(1 - self.colour, 1 + self.colour)
        gains = rng.uniform(1 - self.colour / 2, 1 + self.colour / 2, 3)
        levels = ((np.arange(256)[:, None] - 127.5) * contrast + 127.5) * gains  # (256, 3)
        table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        moved = frames[:, rows][:, :, columns]
        return np.stack([table[moved[..., c], c] for c in range(3)], -1)
