"""Datasets of other formats through the verbs: what does not fit is refused before anything is encoded."""

import pytest

from tests.demos.formats.made import lerobot_v21, store
from tests.s2robot.test_pipeline import EVALUATION, POLICY, refused

TRAINING = ["train.steps=2", "train.batch_size=8", "train.threads=1", "features.workers=1", *POLICY]
CUBE_PICK = {
    "sizes": dict.fromkeys(("hand", "left", "right"), (32, 32)),
    "source": {"format": "a", "name": "b"},
    "action_frame": "joint_delta_commanded",
}


@pytest.fixture
def words(tiny_encoder, tmp_path):
    """Settings of a training of seconds, its features in a cache of its own."""
    return [f"encoder.checkpoint={tiny_encoder}", f"features.cache={tmp_path / 'features'}", *TRAINING]


@pytest.mark.parametrize(
    ("about", "text"),
    [
        ({"source": {"format": "a", "name": "b"}}, "the policy needs cameras hand, left.up"),
        ({**CUBE_PICK, "robot": "koch"}, "for robot 'koch', given is 'xarm7'"),
        ({**CUBE_PICK, "rate_hz": 30}, "acts at 30 Hz, given are 10 Hz"),
        (CUBE_PICK, "the policy's action is joints (2 delta)"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "train"])
def test_demos_that_the_world_cannot_evaluate_are_refused_before_encoding(
    here, words, tmp_path, verb, about, text
):
    store(tmp_path / "own.zarr", **about)
    more = ["train.rollouts.every=1"] if verb == "train" else EVALUATION
    line = refused(here(verb, "demos.path=own.zarr", *words, *more), verb)
    assert text in line and "own.zarr: " in line
    assert not (tmp_path / "features").exists()


def test_demos_without_cameras_are_refused(here, words, tmp_path):
    lerobot_v21(tmp_path / "aloha")
    assert here("convert", "data=aloha", "out=blind.zarr", "cameras=[]").returncode == 0
    line = refused(here("train", "demos.path=blind.zarr", *words), "train")
    assert "blind.zarr: found no cameras" in line
