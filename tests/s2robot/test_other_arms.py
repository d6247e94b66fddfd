"""Cartesian actions, and cameras of two shapes with custom names: from images on disk to a policy behind a server."""

import numpy as np
import pytest

from s2robot.demos.replay import camera_sizes
from s2robot.demos.store import EpisodeStore
from s2robot.loading import image_size_of, load_policy
from s2robot.serving.remote import PolicyRefused
from tests.errors import refuses
from tests.s2robot.pictures import trained, write_noise
from tests.s2robot.serving.test_server import connect, serving

TOP = "observation.images.top"
SIZES = {TOP: (48, 64), "wrist/left": (64, 64)}
ACTION = [
    {"name": "position", "size": 3, "kind": "delta", "low": [-0.05] * 3, "high": [0.05] * 3},
    {"name": "rotation", "size": 3, "kind": "rotation", "form": "axis_angle", "relative": True},
    {"name": "gripper", "size": 1, "kind": "binary"},
]
STATE = [
    {"name": "place", "size": 3, "kind": "absolute"},
    {"name": "pose", "size": 6, "kind": "rotation", "form": "rot6d"},
]


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    own = {"joint_names": [], "action_parts": ACTION, "proprio_parts": STATE}
    return write_noise(tmp_path_factory.mktemp("arm") / "demos.zarr", SIZES, (9, 9), 7, 9, **own)


@pytest.fixture(scope="module")
def checkpoint(demos, tiny_encoder):
    words = [f"demos.path={demos}", f"encoder.checkpoint={tiny_encoder}", f"env.cameras=[{','.join(SIZES)}]"]
    words += ["policy.members=2", "policy.normalise=quantile", "+policy.normalise_parts.rotation=standard"]
    return trained(demos.parent / "run", *words)


def observation(seed: int, pose=(1, 0, 0, 0, 1, 0)) -> dict:
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (*size, 3), np.uint8) for name, size in SIZES.items()}
    return {"images": images, "proprio": np.array([0.1, 0.2, 0.3, *pose], np.float32)}


def test_actions_follow_the_parts_and_depend_on_the_whole_frame(demos, checkpoint):
    assert camera_sizes(EpisodeStore.open(demos), SIZES) == SIZES
    actor, encoder, contract = load_policy(checkpoint, "cpu")
    spec = actor.batch.policy.spec
    assert spec.cameras == tuple(SIZES) and spec.grids == ((4, 5), (4, 4)) and spec.tokens == 20
    assert contract["encoder"]["frames"] == {TOP: [48, 64]} and image_size_of(contract, encoder) == SIZES
    assert (contract["action_parts"], contract["proprio_parts"]) == (ACTION, STATE)
    assert spec.normalise_parts == {"rotation": "standard"}
    first, edge = actor.act(observation(0)), observation(0)
    edge["images"][TOP][:, 60:] = 0  # outside the central square of the frame
    actor.reset()
    assert first.shape == (7,) and not np.array_equal(actor.act(edge), first)


def test_frame_or_state_of_another_shape_is_rejected(checkpoint):
    actor, _, _ = load_policy(checkpoint, "cpu")
    wrong = observation(0)
    wrong["images"][TOP] = wrong["images"]["wrist/left"]
    words = f"camera '{TOP}': expected frames of 4 x 5 tokens, .*, got 64 x 64 px, 4 x 4 tokens"
    refuses(words, actor.act, wrong)
    refuses(r"proprio: .*\(8,\)", actor.act, {**observation(0), "proprio": np.zeros(8, np.float32)})


def test_server_sends_parts_and_sizes_and_returns_the_same_actions(checkpoint):
    actor, _, _ = load_policy(checkpoint, "cpu")
    with serving(checkpoint) as (_, url, _), connect(url) as policy:
        assert policy.cameras == tuple(SIZES) and policy.image_size == SIZES
        assert policy.contract["action_parts"] == ACTION
        for seed in range(3):
            action = actor.act(observation(seed))
            assert np.abs(action[:3]).max() <= np.float32(0.05) and action[6] in (0, 1)
            assert policy.act(observation(seed)).tobytes() == action.tobytes()
        policy.reset()
        with pytest.raises(PolicyRefused, match="'pose' of step 0: expected a rotation"):
            policy.act(observation(0, pose=(1, 0, 0, 2, 0, 0)))
