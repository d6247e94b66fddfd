"""Do the cameras see what they saw in the demos? A picture for the eye, and a number that finds flips and swaps.

    demos = demo_pictures(store, ("hand", "left"), 256)         # {camera: uint8 (n, S, S, 3)}
    findings = compare(frames, demos)                            # one line a camera
    draw(frames, demos, "camera_check.png")

The number is the correlation of blurred pictures, so it says little about a camera that moved by centimetres: that
is what the picture is for.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from s2robot.common.extras import require_simulator
from s2robot.demos.replay import world_of_demos
from s2robot.demos.store import EpisodeStore
from s2robot.deployment.preflight import OK, STOP, WARNING, Finding
from s2robot.envs.frames import ImageSize, size_of
from s2robot.envs.real.cameras.camera import fitted
from s2robot.reporting.style import save_figure

SIDE = 24  # pixels, of the pictures that are correlated: blurred enough for another cube and start pose
MARGIN = 0.1  # by how much another reading of the picture has to fit better
LOW = 0.5  # a correlation below this is no resemblance

_TURNS = {  # how a picture looks -> what mends it
    "upside down (rotate: 2 mends it)": lambda x: np.rot90(x, 2),
    "turned by a quarter (rotate: 1 mends it)": lambda x: np.rot90(x, 1),
    "turned by a quarter (rotate: 3 mends it)": lambda x: np.rot90(x, 3),
    "flipped top to bottom": lambda x: x[::-1],
    "mirrored left to right": lambda x: x[:, ::-1],
    "like red and blue are exchanged": lambda x: x[..., ::-1],
}


def demo_pictures(
    store: EpisodeStore, cameras: tuple[str, ...], image_size: ImageSize, episodes: int = 6
) -> dict[str, np.ndarray]:
    """First frames of some episodes, drawn again where the demos hold states.  # {camera: uint8 (n, H, W, 3)}

    Raises:
        DatasetError: a camera that the dataset lacks.
        UserError: they have to be drawn, and the simulator is not installed.
    """
    store.check(cameras=cameras)
    chosen = np.linspace(0, len(store) - 1, min(episodes, len(store))).round().astype(int)
    starts = [store.episode_slice(int(i)).start for i in chosen]
    if store.attrs["kind"] == "images":
        return {
            c: np.stack(
                [fitted(store.read(f"images_{c}", i, i + 1)[0], size_of(image_size, c)) for i in starts]
            )
            for c in cameras
        }
    require_simulator()
    from s2robot.envs.tasks import make

    env: Any = make(world_of_demos(store, cameras=cameras, image_size=image_size))
    try:
        drawn = []
        for i in starts:
            env.set_state(store.read("state", i, i + 1)[0])
            drawn.append(env.render_cameras())
    finally:
        env.close()
    return {c: np.stack([images[c] for images in drawn]) for c in cameras}


def compare(
    frames: Mapping[str, np.ndarray], demos: Mapping[str, np.ndarray], live: bool = False
) -> list[Finding]:
    """A camera's frame (H, W, 3) against the demos' pictures of all cameras; a finding each.

    live: the arm is to move; a camera that looks like another one is then no warning but a stop.
    """
    means = {name: np.mean([_small(x) for x in pictures], 0) for name, pictures in demos.items()}
    findings = []
    for name, frame in frames.items():
        if name not in means:
            continue
        check, small = f"view {name}", _small(frame)
        plain = _correlation(small, means[name])
        others = {
            f"what '{other}' saw": _correlation(small, mean) for other, mean in means.items() if other != name
        }
        turned = {what: _correlation(turn(small), means[name]) for what, turn in _TURNS.items()}
        what, best = max((others | turned).items(), key=lambda item: item[1])
        if best > plain + MARGIN:
            text = f"looks {'like ' if what in others else ''}{what} (correlation {best:.2f}, as it is {plain:.2f})"
            exchanged = what in others and best >= LOW
            findings.append(Finding(STOP if live and exchanged else WARNING, check, text))
        elif plain < LOW:
            text = f"looks unlike the demos (correlation {plain:.2f}); compare the pictures"
            findings.append(Finding(WARNING, check, text))
        else:
            findings.append(Finding(OK, check, f"looks like the demos (correlation {plain:.2f})"))
    return findings


def draw(frames: Mapping[str, np.ndarray], demos: Mapping[str, np.ndarray], path: Path) -> None:
    """A row a camera: its frame, a demo's, and both half transparent over each other."""
    names = list(frames)
    figure = Figure(figsize=(9, 3.1 * len(names)), layout="constrained", dpi=90)
    for row, name in zip(figure.subplots(len(names), 3, squeeze=False), names, strict=True):
        frame = frames[name]
        pictures: list[tuple[str, np.ndarray | None]] = [
            (f"{name}, now", frame),
            (f"{name}, in a demo", None),
            ("both", None),
        ]
        if name in demos:
            demo = fitted(demos[name][0], (frame.shape[0], frame.shape[1]))
            both = ((frame.astype(np.uint16) + demo) // 2).astype(np.uint8)
            pictures[1:] = [(f"{name}, in a demo", demo), ("both: edges should meet", both)]
        for axes, (title, image) in zip(row, pictures, strict=True):
            axes.set_title(title, fontsize=10)
            axes.set_axis_off()
            if image is None:
                axes.text(0.5, 0.5, "no demo", ha="center", va="center", transform=axes.transAxes)
            else:
                axes.imshow(image)
    save_figure(figure, path)


def _small(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> float (SIDE, SIDE, 3)."""
    return fitted(image, (SIDE, SIDE)).astype(float)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two pictures (S, S, 3), each colour about its own mean: brightness and tint do not count."""
    a, b = (x - x.mean((0, 1)) for x in (a, b))
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else 0.0
