"""A training on demos of an arm that moves its flange: what is stored of it, told by part, and what acts."""

import json

import numpy as np
import pytest

from s2robot.demos.store import EpisodeStore
from s2robot.policies import Actor, PolicyError, load_checkpoint
from s2robot.training.train import train
from tests.s2robot.training.small import CAMERAS, CONTRACT, DIM, TOKENS, make_settings, make_spec

ARM = [
    {"name": "position", "size": 3, "kind": "delta"},
    {"name": "rotation", "size": 3, "kind": "rotation", "form": "axis_angle", "relative": True},
    {"name": "gripper", "size": 1, "kind": "binary"},
]
FLANGE = [
    {"name": "place", "size": 3, "kind": "absolute"},
    {"name": "pose", "size": 6, "kind": "rotation", "form": "rot6d"},
]
PARTS = {"action_parts": ARM, "proprio_parts": FLANGE}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight episodes whose actions follow from the features."""
    rng = np.random.default_rng(0)
    keys = ("robot", "joint_names", "cameras", "action_frame", "rate_hz")
    about = {k: CONTRACT[k] for k in keys} | PARTS | {
        "camera_geometry": {}, "env_version": "none", "env_config": {}, "seed": 0, "kind": "states",
    }  # fmt: skip
    features, way = [], rng.normal(size=(DIM, 7))
    path = tmp_path_factory.mktemp("arm") / "d.zarr"
    with EpisodeStore.create(path, about) as store:
        for i in range(8):
            seen = rng.normal(size=(10 + i, len(CAMERAS), TOKENS, DIM)).astype(np.float16)
            action = np.tanh(seen[:, 0].mean(1, dtype=np.float32) @ way / 2) * 0.3
            action[:, 6] = action[:, 6] > 0
            proprio = np.tile([0.1 * i, 0, 0, 1, 0, 0, 0, 1, 0], (10 + i, 1))
            store.append({"action": action.astype("f4"), "proprio": proprio.astype("f4")})
            features.append(seen)
    return EpisodeStore.open(path), np.concatenate(features)


def test_it_trains_and_tells_by_part(data, tmp_path):
    store, features = data
    spec = make_spec(action_dim=7, proprio_dim=9, chunk=2, action_target="cumulative", **PARTS)
    settings = make_settings(steps=200, log_every=100, checkpoint_every=200, lr=1e-2, validation=0.25)
    folder = train(settings, spec, store, features, CONTRACT | PARTS, tmp_path)
    row = json.loads((tmp_path / "metrics.json").read_text())[-1]
    told = {
        "position_loss",
        "rotation_loss",
        "gripper_loss",
        "position_error",
        "rotation_error",
        "gripper_accuracy",
    }
    assert {f"train_{name}" for name in told} | {f"val_{name}" for name in told} <= set(row)
    policy, contract = load_checkpoint(folder)
    assert (
        contract["action_parts"] == ARM
        and contract["training"]["val_rotation_error"] == row["val_rotation_error"]
    )
    actor = Actor(policy, lambda images: features[0, :, :, :])
    errors = []
    for step in range(0, len(features), 5):
        actor.encode = lambda images, step=step: features[step]
        actor.reset()
        frames = {name: np.zeros((4, 4, 3), np.uint8) for name in CAMERAS}
        action = actor.act({"images": frames, "proprio": store["proprio"][step]})
        errors.append(np.abs(action - store["action"][step]))
    assert np.mean(errors, 0)[:6].max() < 0.1 and np.mean(errors, 0)[6] < 0.2  # of 0.3 and of 0 or 1
    broken = store["proprio"][0].copy()
    broken[3:6] = broken[6:9]
    actor.reset()
    with pytest.raises(
        PolicyError, match=r"observation: proprio: 'pose' of step 0 is \[0, 1, 0, 0, 1, 0\], which is no"
    ):
        actor.act({"images": frames, "proprio": broken})


def test_a_contract_of_other_parts_is_refused(data, tmp_path):
    store, features = data
    spec = make_spec(action_dim=7, proprio_dim=9, **PARTS)
    with pytest.raises(
        PolicyError, match=r"contract: action_parts are joints \(6 delta\), gripper .* policy's are posi"
    ):
        train(make_settings(steps=1), spec, store, features, CONTRACT, tmp_path)
