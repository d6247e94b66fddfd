"""Loading a policy: its actions, and a damaged contract."""

import json
import shutil

import numpy as np
import pytest
import torch

import s2robot
from s2robot.loading import load_networks
from tests.errors import refuses


@pytest.mark.parametrize(
    ("key", "value"),
    [("encoder.features_dtype", "int3"), ("encoder.frames", [1]), ("camera_geometry", {"hand": None})],
)
def test_error_names_the_damaged_key_of_a_contract(slow_policy, tmp_path, key, value):
    path = shutil.copytree(slow_policy, tmp_path / "checkpoint") / "policy.json"
    record = json.loads(path.read_text())
    group, _, name = key.rpartition(".")
    (record["contract"][group] if group else record["contract"])[name] = value
    path.write_text(json.dumps(record))
    refuses(f"^{path}: contract: {key}.*: expected ", load_networks, path.parent, torch.device("cpu"))


def test_load_policy_returns_a_policy_that_acts(save_untrained, tmp_path, recwarn):
    geometry = dict.fromkeys(("hand", "left"), {"size": [256, 256]})  # rendered at 64 px for the encoder
    policy = s2robot.load_policy(save_untrained(tmp_path / "c", {"camera_geometry": geometry}), device="cpu")
    actor, encoder, contract = policy
    assert policy.spec.cameras == ("hand", "left") and policy.contract is contract and policy.image_size == 64
    images = dict.fromkeys(policy.spec.cameras, np.full((64, 64, 3), 90, np.uint8))
    observation = {"images": images, "proprio": np.zeros(8, np.float32)}
    policy.reset(3)
    first = policy.act(observation)
    assert first.shape == (8,) and first.dtype == np.float32
    policy.reset(3)
    assert np.array_equal(policy.plan(observation)[0], first)
    actor.reset()
    assert np.array_equal(actor.act(observation), first) and not recwarn.list
