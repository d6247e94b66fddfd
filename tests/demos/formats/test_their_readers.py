"""Exports read by the formats' own packages: frames and numbers must match."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.demos.formats import made
from tests.demos.formats.made import psnr, written

pytestmark = pytest.mark.slow  # they install third-party packages from the registry
CLONE = os.environ.get("S2ROBOT_DIFFUSION_POLICY")  # the package is on no registry

_KEEP = """
import json, sys
import numpy as np
globals().update(json.loads(sys.argv[1]))

def keep(**arrays):
    np.savez(kept_as, **arrays)
"""


def installed(folder: Path, *packages: str) -> Path:
    """Install packages from the registry without their dependencies."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "theirs")]
    subprocess.run([*pip, *packages], check=True)
    return folder / "theirs"


def run(script: str, folder: Path, *before: Path, python: str = sys.executable, **names: object) -> dict:
    """Run a script with the globals `names` and the packages of `before` first; return the arrays it keeps."""
    file = folder / "kept.npz"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, before))}
    words = [python, "-c", _KEEP + script, json.dumps({**names, "kept_as": str(file)}, default=str)]
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


SEQUENCES = """
import robomimic.utils.obs_utils as known
from robomimic.utils.dataset import SequenceDataset

known.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["pose"], "rgb": images}})
read = {}
for name, mask in (("all", None), ("train", "train"), ("valid", "valid")):
    data = SequenceDataset(path, obs_keys=("pose", *images), dataset_keys=("actions", "rewards", "dones"),
                           load_next_obs=False, hdf5_cache_mode="all", seq_length=2, filter_by_attribute=mask)
    rows = [data[i] for i in range(len(data))]
    for key in ("actions", "rewards", "dones"):
        read[f"{name}/{key}"] = np.stack([row[key] for row in rows])
    for key in ("pose", *images):
        read[f"{name}/{key}"] = np.stack([row["obs"][key] for row in rows])
keep(**read)
"""


def test_robomimic_reads_our_file(tmp_path):
    store = made.store(tmp_path / "in.zarr")
    path = written(store, tmp_path / "out.hdf5", action_range="data", valid=0.5)
    images = ["hand_image", "left.up_image"]
    read = run(SEQUENCES, tmp_path, installed(tmp_path, "robomimic==0.3.0"), path=path, images=images)
    with h5py.File(path) as file:
        demos = {mask: [int(n[5:]) for n in file["mask"][mask]] for mask in ("train", "valid")}
        actions = {i: file[f"data/demo_{i}/actions"][:].astype("f4") for i in range(2)}  # it reads float32
    assert sorted(demos["train"] + demos["valid"]) == [0, 1]
    for name, numbers in {"all": [0, 1], **demos}.items():
        episodes = [store.episode(i) for i in numbers]
        expected = {"pose": [e["proprio"] for e in episodes], "actions": [actions[i] for i in numbers]}
        expected |= {key: [e[f"images_{key.removesuffix('_image')}"] for e in episodes] for key in images}
        for key, arrays in expected.items():
            np.testing.assert_array_equal(read[f"{name}/{key}"][:, 0], np.concatenate(arrays))
        assert read[f"{name}/dones"][:, 0].sum() == len(numbers)
        assert read[f"{name}/rewards"][:, 0].sum() == numbers.count(1)  # episode 1 succeeded
    assert np.abs(read["all/actions"]).max() == 1


BUFFER = """
import zarr
store = zarr.ZipStore(path, mode="r") if path.endswith(".zip") else zarr.DirectoryStore(path)
if own_class:
    from replay_buffer import ReplayBuffer
    buffer = ReplayBuffer.copy_from_store(store, store=zarr.MemoryStore())
    ReplayBuffer.copy_from_store(store)                 # into NumPy arrays, as their image datasets do
    assert ReplayBuffer.create_from_group(zarr.open(store, "r")).n_episodes == buffer.n_episodes
    episodes = [buffer.get_episode(i) for i in range(buffer.n_episodes)]
else:
    root = zarr.open(store, "r")
    ends = [0, *root["meta/episode_ends"][:]]
    assert all(array.shape[0] == ends[-1] for array in root["data"].values())  # as ReplayBuffer asserts
    episodes = [{k: a[i:j] for k, a in root["data"].items()} for i, j in zip(ends, ends[1:])]
keep(**{f"{i}/{key}": array for i, episode in enumerate(episodes) for key, array in episode.items()})
"""


@pytest.mark.parametrize("name", ["out.zarr", "out.zarr.zip"])
@pytest.mark.parametrize("own_class", [False, True])
def test_diffusion_policy_reads_our_buffer(tmp_path, name, own_class):
    """Read with its own class if S2ROBOT_DIFFUSION_POLICY=<clone> is set, otherwise with plain zarr 2."""
    if own_class and not CLONE:
        pytest.skip("S2ROBOT_DIFFUSION_POLICY is not set to a clone of diffusion_policy")
    store = made.store(tmp_path / "in.zarr")
    written(store, tmp_path / name)
    packages = ("zarr==2.16.1", "numcodecs==0.12.1", "asciitree==0.3.3", "fasteners==0.19")
    before = [installed(tmp_path, *packages)] + [Path(CLONE) / "diffusion_policy/common"] * bool(CLONE)
    read = run(BUFFER, tmp_path, *before, path=tmp_path / name, own_class=own_class)
    names = {"proprio": "agent_pos", "images_hand": "hand_image", "images_left.up": "left.up_image"}
    for i in range(len(store)):
        for key in ("action", "imitate", *names):
            actual, expected = read[f"{i}/{names.get(key, key)}"], store.episode(i)[key]
            np.testing.assert_array_equal(actual, expected, strict=True)


LEROBOT = """
import os
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
read = {}
for name, path in paths.items():
    data = LeRobotDataset("own/cube", root=path, video_backend="pyav", delta_timestamps={"action": [0, 0.1]})
    rows = [data[i] for i in range(len(data))]
    for key in rows[0]:
        if key != "task":
            read[f"{name}/{key}"] = np.stack([np.asarray(row[key]) for row in rows])
    read[f"{name}/task"] = np.array([row["task"] for row in rows])
    for key, stats in data.meta.stats.items():
        for statistic, value in stats.items():
            read[f"{name}/stats/{key}/{statistic}"] = value
    assert len(next(iter(torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)))["action"]) == 4
keep(**read)
"""


def test_lerobot_reads_our_folder(tmp_path):
    """Installs several GB into a new environment unless S2ROBOT_LEROBOT_PYTHON=<python> names an existing one."""
    store = made.store(tmp_path / "in.zarr", sizes={"hand": (64, 96), "left/up": (97, 63)})
    paths = {name: str(written(store, tmp_path / name, image_codec=name)) for name in ("h264", "png")}
    if not (python := os.environ.get("S2ROBOT_LEROBOT_PYTHON")):
        venv.create(tmp_path / "venv", with_pip=True)
        python = str(tmp_path / "venv/bin/python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "lerobot==0.4.4"], check=True)
    read = run(LEROBOT, tmp_path, python=python, paths=paths)
    texts = [made.TASKS[i] for i in store.meta("task").repeat(store.lengths)]
    for name in paths:
        for key, feature in {"proprio": "observation.state", "imitate": "imitate", "grid": "grid"}.items():
            np.testing.assert_array_equal(read[f"{name}/{feature}"], store[key])
        # it reads all numbers as float32
        np.testing.assert_array_equal(read[f"{name}/force_left"], store["force/left"].astype("f4"))
        current, following = read[f"{name}/action"].swapaxes(0, 1)
        np.testing.assert_array_equal(current, store["action"])
        np.testing.assert_array_equal(following[:4], store["action"][1:5])
        assert read[f"{name}/task"].tolist() == texts
        mean = read[f"{name}/stats/observation.images.hand/mean"].ravel()
        np.testing.assert_allclose(mean, store["images_hand"].mean((0, 1, 2)) / 255, atol=1e-6)
        for camera, feature in (("hand", "hand"), ("left/up", "left_up")):
            frames = np.rint(read[f"{name}/observation.images.{feature}"].transpose(0, 2, 3, 1) * 255)
            expected = store[f"images_{camera}"]
            if name.endswith("png"):
                np.testing.assert_array_equal(frames, expected)
            else:
                assert min(map(psnr, frames, expected)) > 38


CODECS = """
from pathlib import Path
import zarr
from imagecodecs.numcodecs import Jpeg2k, Jpegxl, register_codecs
from s2robot.demos.formats.convert import convert
from s2robot.demos.formats.source import Choice
from s2robot.demos.store import EpisodeStore

register_codecs(verbose=False)
frames = np.load(images)
root = zarr.open_group(path, mode="w", zarr_format=2)
for key in ("action", "agent_pos"):
    root.create_array(f"data/{key}", shape=(len(frames), 2), dtype="f4", chunks=(len(frames), 2))
for key, codec in {"a_image": Jpeg2k(level=50), "b_image": Jpegxl(level=99)}.items():  # of diffusion_policy and its forks
    root.create_array(f"data/{key}", shape=frames.shape, dtype="u1", chunks=(1, *frames.shape[1:]), compressors=codec)[:] = frames
root.create_array("meta/episode_ends", shape=(1,), dtype="i8")[:] = [len(frames)]
convert(Path(path), Path(path + ".out"), Choice(rate_hz=10))
store = EpisodeStore.open(path + ".out")
keep(a=store["images_a"], b=store["images_b"])
"""


def test_images_in_their_codecs_are_read(tmp_path):
    frames = made.frames(1)
    np.save(tmp_path / "frames.npy", frames)
    before = installed(tmp_path, "imagecodecs==2024.9.22"), Path(made.__file__).parents[3]
    read = run(CODECS, tmp_path, *before, path=tmp_path / "in.zarr", images=tmp_path / "frames.npy")
    assert psnr(read["a"], frames) > 40  # dB; the codec targets 50
    np.testing.assert_array_equal(read["b"], frames)  # level 99 is lossless
