"""The feature cache: exact, resumable after a kill at any moment, and never stale."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from s2robot.core.errors import UserError
from s2robot.encoders.cache import FeatureCache, as_stored
from s2robot.encoders.encoder import encode_cameras
from tests.errors import refuses
from tests.kills import kill_at_every_write

LENGTHS, CAMERAS, TOKENS, DIM = [3, 1, 4], ("hand", "left"), 2, 5


def frames_of(episode: int) -> np.ndarray:
    rng = np.random.default_rng(episode)
    return rng.integers(0, 256, (LENGTHS[episode], len(CAMERAS), 4, 4, 3), dtype=np.uint8)


def tokens_of(images: np.ndarray) -> torch.Tensor:
    """Return numbers that float16 must round."""
    x = torch.from_numpy(images).double().flatten(1)[:, : TOKENS * DIM]
    return (x / 7).sin().reshape(-1, TOKENS, DIM).float()


encode = partial(encode_cameras, tokens_of)


def by_camera(frames: np.ndarray) -> list[np.ndarray]:
    return list(frames.swapaxes(0, 1))  # (T, C, H, W, 3) -> one (T, H, W, 3) per camera


def make_frames(missing):
    for i in reversed(missing):  # any order is allowed
        yield i, by_camera(frames_of(i))


def make_cache(root, **changes) -> FeatureCache:
    settings = {"dataset": "d", "encoder": "e", "cameras": CAMERAS, "episode_lengths": LENGTHS}
    return FeatureCache(root, **(settings | {"tokens": TOKENS, "dim": DIM} | changes))


def expected(dtype=np.float16) -> np.ndarray:
    all_frames = np.concatenate([frames_of(i).reshape(-1, 4, 4, 3) for i in range(len(LENGTHS))])
    return tokens_of(all_frames).numpy().reshape(-1, len(CAMERAS), TOKENS, DIM).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_exact_on_reread(tmp_path, dtype):
    steps = []
    built = make_cache(tmp_path, dtype=dtype).build(make_frames, encode, lambda *done: steps.append(done))
    assert steps == [(0, 8), (4, 8), (5, 8), (8, 8)]
    make_cache(tmp_path, dtype=dtype).build(make_frames, lambda images: 1 / 0)  # nothing is encoded twice
    again = make_cache(tmp_path, dtype=dtype)
    assert again.missing() == [] and again.features.dtype == dtype and again.features.shape == (8, 2, 2, 5)
    assert np.array_equal(built, expected(dtype)) and np.array_equal(again.features, expected(dtype))
    if dtype == "float16":  # rollouts see what training saw
        assert np.array_equal(as_stored(encode(by_camera(frames_of(0)))).numpy(), built[: LENGTHS[0]])
    with pytest.raises(ValueError, match="read-only"):
        again.features[0] = 0
    assert make_cache(tmp_path, episode_lengths=[]).build(make_frames, encode).shape == (0, 2, 2, 5)


@pytest.fixture
def watched():
    """`make_frames` that records the requested episodes in `watched.requested`."""

    def frames(missing):
        frames.requested.append(list(missing))
        return make_frames(missing)

    frames.requested = []
    return frames


def test_only_required_episodes_are_encoded_and_others_later(tmp_path, watched):
    progress = []
    subset = make_cache(tmp_path, required=np.array([2, 0]))
    features = subset.build(watched, encode, lambda *n: progress.append(n))
    rows = np.r_[0:3, 4:8]
    assert np.array_equal(features[rows], expected()[rows]) and watched.requested == [[0, 2]]
    assert progress == [(0, 7), (4, 7), (7, 7)] and not subset.missing()
    complete = make_cache(tmp_path)
    assert complete.path == subset.path and complete.missing() == [1]
    assert np.array_equal(complete.build(watched, encode), expected()) and watched.requested[1:] == [[1]]


def test_resumes_after_a_failure_from_the_journal(tmp_path):
    """The journal has one line per episode; a line truncated by a kill is ignored."""
    calls, seen = [], []

    def fail_once(frames):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(frames)

    cache = make_cache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.build(make_frames, fail_once)
    assert cache.missing() == [0, 1]
    with pytest.raises(UserError, match="2 of 3 episodes are missing"):
        _ = cache.features
    journal = cache.path / "done.txt"
    cache.build(make_frames, fail_once, lambda *_: seen.append((journal.read_text(), cache.missing())))
    assert seen == [("2\n", [0, 1]), ("2\n1\n", [0]), ("2\n1\n0\n", [])]
    assert len(calls) == 4 and np.array_equal(cache.features, expected())
    journal.write_text("0\n2\n1")  # truncated from "1\n" or "12\n"
    assert cache.missing() == [1]
    refuses("1 of 3 episodes are missing", cache.build, lambda missing: iter(()), encode)
    assert cache.missing() == [1] and journal.read_text() == "0\n2\n"


def test_different_keys_use_different_caches(tmp_path):
    make_cache(tmp_path).build(make_frames, encode)
    others = {"dataset": "d2", "encoder": "e2", "cameras": ("left", "hand"), "dtype": "float32"}
    for key, value in others.items():
        assert make_cache(tmp_path, **{key: value}).missing() == [0, 1, 2]
    assert make_cache(tmp_path).missing() == []
    assert make_cache(tmp_path).path.name == "5fbc25f0bb4bfb8f"  # as in version 0.1


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("index.json", lambda path: os.truncate(path, 20)),
        ("index.json", lambda path: path.write_text(path.read_text().replace('"e"', '"stale"'))),
        ("done.txt", lambda path: path.write_text("x\n")),
        ("features.bin", lambda path: os.truncate(path, 7)),
        ("features.bin", Path.unlink),
    ],
)
def test_damaged_caches_are_never_read(tmp_path, file, damage):
    cache = make_cache(tmp_path)
    cache.build(make_frames, encode)
    damage(cache.path / file)
    assert cache.missing() == [0, 1, 2]
    assert np.array_equal(cache.build(make_frames, encode), expected())


@pytest.mark.parametrize(
    ("frames", "factor", "words"),
    [
        (lambda _: [(0, by_camera(frames_of(1)))], 1, r"episode 0: expected \(3, 2, 2, 5\) .* got \(1, 2"),
        (lambda missing: [(2, by_camera(frames_of(2)))], 1, r"2 of 3 episodes are missing \(first 0\)"),
        (make_frames, 1e6, "finite float16, got"),
        (make_frames, np.nan, "finite float16, got .* nan"),
    ],
)
def test_wrong_input_is_named(tmp_path, frames, factor, words):
    refuses(words, make_cache(tmp_path).build, frames, lambda frames: encode(frames) * factor)


def test_full_disk_is_one_error_line(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    refuses("full", make_cache(tmp_path).build, make_frames, encode)


def test_cameras_of_two_shapes_share_an_array_under_a_separate_key(tmp_path):
    """The first camera's frames are 4 x 8 px, twice the tokens of the second's."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (3, 4, width, 3), np.uint8) for width in (8, 4)]

    def tokens(images):  # one token per pixel of width
        return torch.from_numpy(images[:, 0].astype(np.float32)).repeat(1, 1, 2)[..., :5] + 1

    settings = {"episode_lengths": [3], "tokens": 8}
    cache = make_cache(tmp_path, **settings, shapes={"hand": (4, 8)})
    features = cache.build(lambda missing: [(0, frames)], partial(encode_cameras, tokens))
    assert features.shape == (3, 2, 8, 5)
    assert np.array_equal(features[:, 0], tokens(frames[0]))
    assert np.array_equal(features[:, 1, :4], tokens(frames[1])) and not features[:, 1, 4:].any()
    shapes = ({}, {"hand": (4, 9)}, {"left": (4, 8)}, {"hand": (4, 8)})
    *others, same = (make_cache(tmp_path, **settings, shapes=each) for each in shapes)
    assert len({other.path for other in (cache, *others)}) == 4 and not same.missing()


MUJOCO_3, MUJOCO_4 = ({"mujoco": v, "opengl": "llvmpipe", "robot": {"camera_pos": (0, 1)}} for v in "34")


def test_frames_are_encoded_again_when_the_renderer_changes(tmp_path):
    assert make_cache(tmp_path, renderer=None).missing() == [0, 1, 2]
    make_cache(tmp_path, renderer=MUJOCO_3).build(make_frames, encode)
    assert all(make_cache(tmp_path, renderer=each).missing() == [] for each in (MUJOCO_3, None))
    for other in (MUJOCO_4, MUJOCO_3 | {"opengl": "NVIDIA"}, MUJOCO_3 | {"robot": {"camera_pos": (0, 2)}}):
        assert make_cache(tmp_path, renderer=other).missing() == [0, 1, 2]
    assert make_cache(tmp_path).missing() == [0, 1, 2]  # a dataset that stores frames
    index = json.loads((make_cache(tmp_path, renderer=MUJOCO_3).path / "index.json").read_text())
    assert index["drawn"] == json.loads(json.dumps(MUJOCO_3))
    make_cache(tmp_path, renderer=MUJOCO_3, encoder="some", required=[0, 2]).build(make_frames, encode)
    assert make_cache(tmp_path, renderer=None, encoder="some", required=[2]).missing() == []
    nothing = make_cache(tmp_path, encoder="new", required=[])
    assert nothing.features.shape == nothing.shape and not nothing.path.exists()
    assert make_cache(tmp_path, renderer=None, encoder="some").missing() == [0, 1, 2]
    assert make_cache(tmp_path, renderer=None, encoder="other").missing() == [0, 1, 2]


def test_grown_dataset_reuses_the_features_of_earlier_episodes(tmp_path, watched):
    """Features of another encoder or renderer, or of different episodes of equal length, are not reused."""
    others = {"dataset": "other"}, {"encoder": "f"}, {"renderer": {"mujoco": "2"}}
    for n, changes in ((1, {}), *((2, each) for each in others)):
        cut = {"dataset": f"d{n}", "episode_lengths": LENGTHS[:n], "renderer": MUJOCO_3}
        make_cache(tmp_path, **cut | changes).build(make_frames, lambda frames: 1 + encode(frames))
    for path in tmp_path.glob("*/features.bin"):
        path.write_bytes(bytes(path.stat().st_size))  # reused features are 0, new ones are not
    built = make_cache(tmp_path, renderer=MUJOCO_3).build(watched, encode, dataset_of_first="d{}".format)
    assert watched.requested == [[1, 2]] and not built[:3].any() and np.array_equal(built[3:], expected()[3:])


def encode_growing_dataset(folder: Path) -> None:
    """Encode a dataset of two episodes, then the same with a third; a kill may leave either cache incomplete."""
    earlier = make_cache(folder, dataset="d2", episode_lengths=LENGTHS[:2], renderer=MUJOCO_3)
    earlier.build(make_frames, encode)
    make_cache(folder, renderer=MUJOCO_3).build(make_frames, encode, dataset_of_first="d{}".format)


def test_a_kill_at_any_write_changes_nothing(tmp_path):
    killed = kill_at_every_write(encode_growing_dataset, tmp_path, 2)
    names = {f.name for f in make_cache(tmp_path / "whole", renderer=MUJOCO_3).path.iterdir()}
    assert len(killed) >= 4
    for write, folder in killed.items():
        cache = make_cache(folder, renderer=MUJOCO_3)
        assert np.array_equal(cache.features, expected()), write
        assert {f.name for f in cache.path.iterdir()} - {"lock"} == names - {"lock"}, write
