"""film_pair: two recorded episodes are simulated again and filmed, and what does not repeat is refused."""

from dataclasses import replace

import imageio_ffmpeg
import numpy as np
import pytest

from envs.cube_pick import CubePick, CubePickConfig
from s2robot.compare_film import film_pair
from s2robot.errors import UserError

CONFIG = replace(CubePickConfig(), image_size=64)


def attempt(seed: int, steps: int, push: float) -> tuple[dict, np.ndarray]:
    """A record and the actions (steps, 8) of an arm that moves its first joint and never grasps."""
    actions = np.zeros((steps, 8), np.float32)
    actions[:, 0] = push
    env = CubePick(CONFIG)
    env.reset(seed=seed)
    for action in actions:
        env.step(action)
    record = {"episode": 0, "seed": seed, "success": False, "stage": env.stage}
    env.close()
    return record, actions


def test_a_pair_is_filmed_from_its_actions(tmp_path):
    (a, moves_a), (b, moves_b) = attempt(700, 3, 0.05), attempt(700, 5, -0.05)
    path = film_pair(CONFIG, a, moves_a, b, moves_b, tmp_path / "videos/pair.mp4", ("base + S²", "base"))
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    pictures = [np.frombuffer(raw, np.uint8).reshape(height, width, 3).astype(int) for raw in reader]
    assert len(pictures) == 6 + 10  # the longer episode, its reset and a second of its last frame
    half = (width - 12) // 2
    first, last = (picture[height - 224 :] for picture in (pictures[0], pictures[-1]))
    assert np.abs(first[:, :half] - first[:, -half:]).mean() < 2  # one position
    assert np.abs(last[:, :half] - last[:, -half:]).mean() > 4  # two policies
    assert path.with_suffix(".png").is_file()


def test_what_does_not_repeat_is_refused(tmp_path):
    a, moves = attempt(700, 2, 0.0)
    with pytest.raises(
        UserError, match=r"pair.mp4: b: position 700 ended in stage approach .* expected held"
    ):
        film_pair(CONFIG, a, moves, {**a, "stage": "held"}, moves, tmp_path / "pair.mp4")
    with pytest.raises(UserError, match="found positions 700 and 701, expected one for both arms"):
        film_pair(CONFIG, a, moves, {**a, "seed": 701}, moves, tmp_path / "pair.mp4")
    assert not (tmp_path / "pair.mp4").exists()
