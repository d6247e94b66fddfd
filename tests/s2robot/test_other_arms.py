"""An arm whose flange is moved, from demos on disk to a policy behind a server: its parts travel along."""

import numpy as np
import pytest

from s2robot.cli import main
from s2robot.demos.store import EpisodeStore
from s2robot.loading import load_policy
from s2robot.policies import PolicyError
from s2robot.serving.remote import PolicyRefused
from tests.s2robot.serving.test_server import connect, serving

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
def checkpoint(tiny_encoder, tmp_path_factory):
    """Trained for five steps on two episodes of noise."""
    rng, out = np.random.default_rng(0), tmp_path_factory.mktemp("other_arm")
    attributes = {
        "robot": "xarm7", "joint_names": [], "rate_hz": 10, "seed": 0, "cameras": ["hand"], "camera_geometry": {},
        "action_frame": "joint_delta_commanded", "env_version": "mine", "env_config": {}, "kind": "images",
        "action_parts": ACTION, "proprio_parts": STATE,
    }  # fmt: skip
    with EpisodeStore.create(out / "demos.zarr", attributes) as store:
        for _ in range(2):
            action = np.concatenate([rng.uniform(-0.05, 0.05, (9, 6)), rng.integers(0, 2, (9, 1))], 1)
            frames = rng.integers(0, 256, (9, 64, 64, 3), np.uint8)
            store.append(
                {
                    "images_hand": frames,
                    "action": action.astype("f4"),
                    "proprio": rng.normal(size=(9, 9)).astype("f4"),
                }
            )
    words = [
        f"demos.path={out / 'demos.zarr'}", f"encoder.checkpoint={tiny_encoder}", "env.cameras=[hand]", "train.steps=5",
        "train.batch_size=8", "policy.members=2", "policy.network.hidden=[16]", "policy.network.image_dim=8",
        "policy.network.state_dim=8", "policy.pooling.keypoints=4", "policy.pooling.values=2", "policy.normalise=quantile",
        "+policy.normalise_parts.rotation=standard", "features.workers=1", "features.threads=1",
        f"features.cache={out / 'cache'}", f"hydra.run.dir={out / 'run'}",
    ]  # fmt: skip
    assert main(["train", *words]) == 0
    return out / "run" / "checkpoint"


def observation(seed: int, pose=(1, 0, 0, 0, 1, 0)) -> dict:
    frame = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    return {"images": {"hand": frame}, "proprio": np.array([0.1, 0.2, 0.3, *pose], np.float32)}


def test_it_acts_as_its_parts_say_also_behind_a_server(checkpoint):
    actor, _, contract = load_policy(checkpoint, "cpu")
    assert (contract["action_parts"], contract["proprio_parts"]) == (ACTION, STATE)
    assert actor.batch.policy.spec.normalise_parts == {"rotation": "standard"}
    with serving(checkpoint) as (_, url, _), connect(url) as policy:
        assert policy.contract["action_parts"] == ACTION
        for seed in range(3):
            action = actor.act(observation(seed))
            assert (
                action.shape == (7,) and np.abs(action[:3]).max() <= np.float32(0.05) and action[6] in (0, 1)
            )
            assert policy.act(observation(seed)).tobytes() == action.tobytes()
        policy.reset()
        with pytest.raises(PolicyRefused, match="'pose' of step 0 is .* expected a rotation"):
            policy.act(observation(0, pose=(1, 0, 0, 2, 0, 0)))


def test_a_state_of_another_arm_is_refused(checkpoint):
    actor, _, _ = load_policy(checkpoint, "cpu")
    with pytest.raises(PolicyError, match=r"proprio: .*\(8,\)"):
        actor.act({**observation(0), "proprio": np.zeros(8, np.float32)})
