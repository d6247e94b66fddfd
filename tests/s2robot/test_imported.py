"""Datasets of other formats and robots in the verbs: a mismatch is rejected before encoding."""

import re

import h5py
import numpy as np
import pytest

from s2robot import cli
from s2robot.config import DemosSettings
from s2robot.demos.errors import DatasetError
from s2robot.demos.formats.export import ExportSettings, export
from s2robot.demos.store import EpisodeStore
from s2robot.envs.cube_config import ACTION_FRAME
from s2robot.policies import load_checkpoint
from tests.demos.formats.made import FPS, edited, lerobot_v21, store
from tests.errors import raised, refuses
from tests.s2robot.pictures import TRAINING, trained, write_noise
from tests.s2robot.test_pipeline import EVALUATION, refused

SOURCE = {"source": {"format": "a", "name": "b"}}
CAMERAS = dict.fromkeys(("hand", "left", "right"), (32, 32))
CUBE_PICK = SOURCE | {"sizes": CAMERAS, "action_frame": ACTION_FRAME}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("S2ROBOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small(cache, tiny_encoder):
    """Settings of a training that takes seconds, with a separate cache."""
    return [f"encoder.checkpoint={tiny_encoder}", *TRAINING]


def test_lerobot_folder_defines_its_own_world_and_splits(cache, tmp_path):
    path = lerobot_v21(tmp_path / "in")
    demos = DemosSettings(path=str(path))
    own = {"robot": "koch", "rate_hz": FPS, "action_frame": "parts", "cameras": ("top",)}
    assert demos.imported_space() == own and DemosSettings(name="xarm7_cube").imported_space() == {}
    assert demos.folder().parent == cache / "demos" and len(demos.open()) == 2
    edited(path / "meta/info.json", splits={"train": "0:1", "test": "1:2", "odd": "80%:"})
    for name, episode in (("train", 0), ("test", 1)):
        assert DemosSettings(path=str(path), mask=name).open().meta("source_episode").tolist() == [episode]
    for name, words in (("val", "mask: expected some of train, test, odd, got"), ("odd", "80%")):
        raised(DatasetError, words, DemosSettings(path=str(path), mask=name).folder)


def test_unknown_filter_key_is_rejected(cache, tmp_path):
    own, path = store(tmp_path / "in.zarr"), tmp_path / "in.hdf5"
    export(own, path, "robomimic", ExportSettings(action_range="data"))
    with h5py.File(path, "a") as file:
        file["mask/more"] = np.array([b"demo_1", b"demo_9"])
    for mask, words in (("test", "more.*, got 'test'"), ("more", "demo_0, demo_1, got 'demo_9'")):
        with pytest.raises(DatasetError, match=f"in.hdf5: mask.*: expected some of {words}"):
            DemosSettings(path=str(path), mask=mask).folder()
    for demos in ({"path": str(own.path)}, {"name": "xarm7_cube"}):  # which have no filter keys
        refuses("demos.mask: ", DemosSettings(**demos, mask="train").folder)


@pytest.mark.parametrize(
    ("words", "about", "text"),
    [
        (["run", *EVALUATION], SOURCE, "task: expected the task of the policy's demos"),
        (["train", "train.rollouts.every=1"], CUBE_PICK, "action is joints (2 delta), gripper (1 binary)"),
    ],
)
def test_demos_that_the_world_cannot_evaluate_are_rejected(here, words, small, cache, tmp_path, about, text):
    store(tmp_path / "own.zarr", **about)
    line = refused(here, *words, "demos.path=own.zarr", *small)
    assert text in line and "own.zarr: " in line
    assert not (cache / "features").exists()


def test_demos_without_cameras_are_rejected(here, small, cache, tmp_path):
    lerobot_v21(tmp_path / "aloha")
    here("convert", "data=aloha", "out=blind.zarr", "cameras=[]")
    line = refused(here, "convert", "data=aloha", "out=blind.zarr", "to=diffusion_policy")
    assert "exists already" in line and not (cache / "demos").exists()  # found before anything is converted
    line = refused(here, "train", "demos.path=blind.zarr", *small)
    assert "blind.zarr: expected at least one camera" in line


@pytest.mark.parametrize("damaged", [0, 1])
def test_error_suggests_the_setting_that_skips_a_damaged_video(here, small, tmp_path, damaged):
    lerobot_v21(tmp_path / "aloha")
    video = tmp_path / f"aloha/videos/chunk-000/observation.images.top/episode_00000{damaged}.mp4"
    if damaged:
        video.write_bytes(video.read_bytes()[:200])
    else:
        video.unlink()
    line = refused(here, "convert", "data=aloha", "out=out.zarr")
    assert video.name in line
    (typed,) = re.findall(r'"(episodes=\S+)"', line)
    assert typed == f"episodes=[{1 - damaged}]"
    here("convert", "data=aloha", "out=out.zarr", typed)
    assert EpisodeStore.open(tmp_path / "out.zarr").meta("source_episode").tolist() == [1 - damaged]
    if damaged:
        return
    assert "anomalies: " in here("inspect", "data=aloha", f"demos.{typed}", "videos.write=false").stdout
    contract = load_checkpoint(trained(tmp_path / "run", "demos.path=aloha", f"demos.{typed}", small[0]))[1]
    assert contract["dataset"]["episodes"] == 1


@pytest.mark.parametrize("target", ["out.zarr", "out.zarr.zip"])
def test_convert_copies_the_selected_episodes_of_a_store(here, tmp_path, target):
    source = store(tmp_path / "own.zarr")
    here("convert", "data=own.zarr", f"out={target}", "episodes=[1]")
    if target != "out.zarr":
        here("convert", f"data={target}", "out=out.zarr")
    part = EpisodeStore.open(tmp_path / "out.zarr")
    assert len(part) == 1 and part.attrs == source.attrs and part.meta("seed").tolist() == [8]
    for key in source.keys:
        np.testing.assert_array_equal(part[key], source.episode(1)[key])
    ignored = "expert=4 episodes=[1] image_size=64 clip=true to=lerobot"
    cases = {"2": "episodes=[2]", "episodes, image_size, clip, to=lerobot": ignored}
    for got, words in (cases | {"True": "imitate_kicks=true"}).items():
        assert f"got {got}" in refused(here, "convert", "data=own.zarr", "out=no", *words.split())


def test_rate_is_passed_to_the_dataset_reader(here, tmp_path):
    lerobot_v21(tmp_path / "aloha")
    store(tmp_path / "own.zarr")
    for data, expected in (("aloha", "rate_hz: expected 10"), ("own.zarr", "demos.rate_hz: expected null")):
        assert expected in refused(here, "inspect", f"data={data}", "rate_hz=5", "videos.write=false")


def koch(path, episodes: int = 12, source: object = SOURCE["source"]):
    about = {"robot": "koch", "rate_hz": 20, "env_version": "", "source": source}
    return f"demos.path={write_noise(path, {'top': (32, 32)}, [9] * episodes, **about)}"


def test_missing_encoder_or_device_is_rejected_before_encoding(here, cache, small, tmp_path, monkeypatch):
    demos = koch(tmp_path / "koch.zarr")
    for verb, settings in (("train", TRAINING), ("encode", ["features.workers=1"])):
        line = refused(here, verb, demos, *settings)
        assert all(f"encoder={name}" in line for name in ("efficientnet_lite0", "dinov2_s", "mvp-tiny"))
    monkeypatch.setattr("lightning_fabric.accelerators.cuda.num_cuda_devices", lambda: 1)
    cases = {"train.accelerator=gpus": "gpus", "train.devices=2": "[0, 1]", "features.device=x": "'x'"}
    for setting, words in cases.items():
        assert words in refused(here, "train", demos, small[0], *TRAINING, setting)
    assert not cache.exists() and not list((tmp_path / "runs").glob("*/*"))


def test_a_tenth_is_held_out_and_seconds_become_steps_of_the_demos(here, small, tmp_path):
    demos = koch(tmp_path / "koch.zarr")
    times = ["train.epochs=0.5", "policy.chunk=0.4s", "policy.execute=.2s", "hydra.run.dir=run"]
    here("train", demos, small[0], *TRAINING[1:], *times)
    policy, contract = load_checkpoint(tmp_path / "run/checkpoint")
    assert (policy.spec.chunk, policy.spec.execute) == (8, 4)  # at 20 Hz
    assert (contract["training"]["demos"], contract["training"]["held_out"]) == (11, 1)
    assert contract["training"]["step"] == -(-11 * 9 // 16)
    here("evaluate", "evaluate=recorded", "checkpoint=run")
    for wrong, key in (
        (["train.epochs=2", "train.steps=5"], "train.epochs"),
        (["policy.chunk=0.01s"], "policy.chunk"),
        (["policy.chunk=soon"], "policy.chunk"),
    ):
        assert f" {key}: " in refused(here, "train", demos, small[0], *wrong)


@pytest.mark.parametrize("source, episodes, share", [("emulator", 12, 0), ("arm", 12, 0.1), ("arm", 9, 0)])
def test_small_and_emulated_datasets_hold_out_no_episodes(tmp_path, source, episodes, share):
    path = koch(tmp_path / "d.zarr", episodes, source).partition("=")[2]
    assert DemosSettings(path=path).default_validation() == share


@pytest.mark.slow  # it renders simulated demos again for each format
def test_every_format_trains_the_same_policy(recorded, tiny_encoder, tmp_path):
    def weights(data) -> bytes:
        words = [f"demos.path={data}", f"encoder.checkpoint={tiny_encoder}"]
        return (trained(tmp_path / f"run-{data.name}", *words) / "policy.safetensors").read_bytes()

    first = weights(recorded)
    for name, *more in (("a.hdf5",), ("a.zarr.zip",), ("lerobot", "to=lerobot", "pictures=png")):
        words = [f"data={recorded}", f"out={tmp_path / name}", f"hydra.run.dir={tmp_path / 'run'}"]
        assert cli.main(["convert", *words, *more, "image_size=64"]) == 0  # rendered at the encoder's size
        assert weights(tmp_path / name) == first, name
