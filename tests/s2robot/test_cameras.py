"""Cameras of two shapes, named as their owner names them, from pictures on disk to a policy behind a server."""

import numpy as np
import pytest

from s2robot.cli import main
from s2robot.demos.replay import camera_sizes
from s2robot.demos.store import EpisodeStore
from s2robot.loading import image_size_of, load_policy
from s2robot.policies import PolicyError
from tests.s2robot.serving.test_server import connect, serving

SIZES = {"observation.images.top": (48, 64), "wrist/left": (64, 64)}


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """Two episodes of noise, 12 steps each."""
    rng = np.random.default_rng(0)
    attributes = {
        "robot": "xarm7", "joint_names": [f"robot0_joint{i}" for i in range(1, 8)], "rate_hz": 10, "seed": 0,
        "cameras": list(SIZES), "camera_geometry": {}, "action_frame": "joint_delta_commanded", "env_version": "mine",
        "env_config": {}, "kind": "images",
    }  # fmt: skip
    path = tmp_path_factory.mktemp("cameras") / "demos.zarr"
    with EpisodeStore.create(path, attributes) as store:
        for _ in range(2):
            frames = {
                f"images_{c}": rng.integers(0, 256, (12, *size, 3), np.uint8) for c, size in SIZES.items()
            }
            action = np.append(rng.normal(0, 0.01, (12, 7)), rng.integers(0, 2, (12, 1)), 1)
            proprio = np.append(rng.normal(0, 1, (12, 7)), rng.uniform(0, 1, (12, 1)), 1)
            store.append({**frames, "action": action.astype("f4"), "proprio": proprio.astype("f4")})
    return path


@pytest.fixture(scope="module")
def checkpoint(demos, tiny_encoder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    words = [
        f"demos.path={demos}", f"encoder.checkpoint={tiny_encoder}", "env.cameras=[observation.images.top,wrist/left]",
        "train.steps=5", "train.batch_size=8", "policy.network.hidden=[16]", "policy.network.image_dim=8",
        "policy.network.state_dim=8", "policy.pooling.keypoints=4", "policy.pooling.values=2", "features.workers=1",
        "features.threads=1", f"features.cache={out / 'cache'}", f"hydra.run.dir={out / 'run'}",
    ]  # fmt: skip
    assert main(["train", *words]) == 0
    return out / "run" / "checkpoint"


def observation(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (*size, 3), np.uint8) for name, size in SIZES.items()}
    return {"images": images, "proprio": rng.normal(size=8).astype(np.float32)}


def test_the_store_gives_them_back(demos):
    store = EpisodeStore.open(demos)
    assert camera_sizes(store, SIZES) == SIZES
    assert store.episode(1)["images_wrist/left"].shape == (12, 64, 64, 3)
    assert (demos / "data" / "images_wrist%2Fleft" / "zarr.json").is_file()


def test_a_policy_of_two_shapes_acts_and_sees_all_of_each_frame(checkpoint):
    actor, encoder, contract = load_policy(checkpoint, "cpu")
    spec = actor.batch.policy.spec
    assert spec.cameras == tuple(SIZES) and spec.grids == ((4, 5), (4, 4)) and spec.tokens == 20
    assert contract["encoder"]["frames"] == {"observation.images.top": [48, 64]}
    assert image_size_of(contract, encoder) == SIZES
    actor.reset()
    first = actor.act(observation(0))
    assert first.shape == (8,) and np.isfinite(first).all()
    edge = observation(0)
    edge["images"]["observation.images.top"][:, 60:] = 0  # what a square cut out of the middle would not show
    actor.reset()
    assert not np.array_equal(actor.act(edge), first)


def test_a_frame_of_another_shape_is_refused(checkpoint):
    actor, _, _ = load_policy(checkpoint, "cpu")
    wrong = observation(0)
    wrong["images"]["observation.images.top"] = wrong["images"]["wrist/left"]
    words = (
        "camera 'observation.images.top': expected frames of 4 x 5 tokens, .*, got 64 x 64 px, 4 x 4 tokens"
    )
    with pytest.raises(PolicyError, match=words):
        actor.act(wrong)


def test_a_server_tells_the_sizes_and_gives_the_same_actions(checkpoint):
    actor, _, _ = load_policy(checkpoint, "cpu")
    with serving(checkpoint) as (_, url, _), connect(url) as policy:
        assert policy.cameras == tuple(SIZES) and policy.image_size == SIZES
        for seed in range(3):
            assert policy.act(observation(seed)).tobytes() == actor.act(observation(seed)).tobytes()
