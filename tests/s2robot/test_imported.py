"""Datasets of other formats through the verbs: what does not fit is refused before anything is encoded."""

import json
import re

import numpy as np
import pytest

from s2robot.demos.store import EpisodeStore
from s2robot.envs.cube_config import ACTION_FRAME
from tests.demos.formats.made import lerobot_v21, store
from tests.s2robot.pictures import POLICY
from tests.s2robot.test_pipeline import EVALUATION, refused

TRAINING = ["train.steps=2", "train.batch_size=8", "train.threads=1", "features.workers=1", *POLICY]
SOURCE = {"source": {"format": "a", "name": "b"}}
CUBE_PICK = SOURCE | {
    "sizes": dict.fromkeys(("hand", "left", "right"), (32, 32)),
    "action_frame": ACTION_FRAME,
}


@pytest.fixture
def words(tiny_encoder, tmp_path):
    """Settings of a training of seconds, its features in a cache of its own."""
    return [f"encoder.checkpoint={tiny_encoder}", f"features.cache={tmp_path / 'features'}", *TRAINING]


@pytest.mark.parametrize(
    ("about", "text"),
    [
        (SOURCE, "task: expected the world of the policy's demos"),
        ({**CUBE_PICK, "robot": "koch"}, "for robot 'koch', given is 'xarm7'"),
        ({**CUBE_PICK, "rate_hz": 30}, "acts at 30 Hz, given are 10 Hz"),
        (CUBE_PICK, "the policy's action is joints (2 delta), gripper (1 binary), given is joints (7 delta)"),
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


@pytest.mark.parametrize("damaged", [0, 1])
def test_a_damaged_video_is_left_out_by_what_the_message_says(here, words, tmp_path, damaged):
    lerobot_v21(tmp_path / "aloha")
    video = tmp_path / f"aloha/videos/chunk-000/observation.images.top/episode_00000{damaged}.mp4"
    if damaged:
        video.write_bytes(video.read_bytes()[:200])
    else:
        video.unlink()
    line = refused(here("convert", "data=aloha", "out=out.zarr"), "convert")
    assert video.name in line
    (typed,) = re.findall(r'"(episodes=\S+)"', line)
    assert typed == f"episodes=[{1 - damaged}]"
    assert here("convert", "data=aloha", "out=out.zarr", typed).returncode == 0
    assert EpisodeStore.open(tmp_path / "out.zarr").meta("source_episode").tolist() == [1 - damaged]
    if damaged:
        return
    result = here("inspect", "data=aloha", f"demos.{typed}", "videos.write=false")
    assert result.returncode == 0 and "odd: " in result.stdout
    assert here("train", "demos.path=aloha", f"demos.{typed}", *words, "hydra.run.dir=run").returncode == 0
    contract = json.loads((tmp_path / "run/checkpoint/policy.json").read_text())["contract"]
    assert contract["dataset"]["episodes"] == 1


@pytest.mark.parametrize("target", ["out.zarr", "out.zarr.zip"])
def test_some_episodes_of_a_store_are_taken(here, tmp_path, target):
    whole = store(tmp_path / "own.zarr")
    assert here("convert", "data=own.zarr", f"out={target}", "episodes=[1]").returncode == 0
    if target != "out.zarr":
        assert here("convert", f"data={target}", "out=out.zarr").returncode == 0
    part = EpisodeStore.open(tmp_path / "out.zarr")
    assert len(part) == 1 and part.attrs == whole.attrs and part.meta("seed").tolist() == [8]
    for key in whole.keys:
        np.testing.assert_array_equal(part[key], whole.episode(1)[key])
    assert "got 2" in refused(here("convert", "data=own.zarr", "out=no.zarr", "episodes=[2]"), "convert")


def test_a_rate_reaches_the_reader_of_the_dataset(here, tmp_path):
    lerobot_v21(tmp_path / "aloha")
    store(tmp_path / "own.zarr")
    for data, expected in (("aloha", "rate_hz: expected 10"), ("own.zarr", "demos.rate_hz: expected null")):
        result = here("inspect", f"data={data}", "rate_hz=5", "videos.write=false")
        assert expected in refused(result, "inspect")
