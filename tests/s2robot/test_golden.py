"""The golden trace: loading gives the same actions, and an error names the stage that drifts."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from s2robot.golden import FILE, write_trace
from s2robot.loading import image_size_of, load_networks
from tests.errors import refuses

CPU = torch.device("cpu")
STATES = np.random.default_rng(0).normal(size=(2, 8))


@pytest.fixture(scope="module", params=["regression", "flow"])
def traced(request, save_untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("traced") / "checkpoint"
    save_untrained(folder, head={"kind": request.param})
    policy, encoder, contract = load_networks(folder, CPU)
    write_trace(folder, policy, encoder, contract, image_size_of(contract, encoder), STATES)
    return folder


@pytest.fixture
def checkpoint(traced, tmp_path):
    return shutil.copytree(traced, tmp_path / "checkpoint")


def change_arrays(folder, **arrays):
    trace = load_file(folder / FILE)
    trace |= {name: change(trace[name].copy()) for name, change in arrays.items()}
    save_file(trace, folder / FILE)


def test_checkpoint_with_unchanged_outputs_loads(traced):
    load_networks(traced, CPU)
    trace = load_file(traced / FILE)
    assert trace["actions"].shape == (2, 4, 8) and trace["images.hand"].dtype == np.uint8
    assert trace["actions"].std() > 0 and trace["tokens"].dtype == np.float16


@pytest.mark.parametrize("share", [0.01, 0.1, 1.0])
def test_drift_error_names_its_stage(checkpoint, share):
    tokens = load_file(checkpoint / FILE)["tokens"]
    change_arrays(checkpoint, tokens=lambda x: (x.astype(np.float32) * (1 + share)).astype(x.dtype))
    refuses(r"golden.safetensors: the encoder: expected .* within 0.002, got", load_networks, checkpoint, CPU)
    joints = np.repeat([1 + share, 1], [7, 1]).astype(np.float32)  # radians, small beside a gripper's 1
    for drift in (lambda x: x * joints, lambda x: x + share * np.sqrt((x**2).mean())):
        change_arrays(checkpoint, tokens=lambda x: tokens, actions=drift)
        refuses("the policy, from the same tokens: expected", load_networks, checkpoint, CPU)


def test_other_or_damaged_trace_is_one_line_and_a_missing_one_is_no_error(checkpoint):
    wrong = (lambda x: -x, "the policy, from the same"), (lambda x: x[:, :3], "expected a readable trace")
    tokens = load_file(checkpoint / FILE)["tokens"]
    for damaged in (tokens[:0], tokens[0, 0, 0, 0], tokens.repeat(2, 0)):  # the policy allocates for each row
        change_arrays(checkpoint, tokens=lambda _, to=damaged: np.array(to))
        refuses("golden.safetensors: expected a readable trace", load_networks, checkpoint, CPU)
    change_arrays(checkpoint, tokens=lambda _: tokens)
    for change, text in wrong:  # first, as if this machine had the opposite sign of every state
        change_arrays(checkpoint, proprio=change)
        refuses(f"golden.safetensors: {text}", load_networks, checkpoint, CPU)
    (checkpoint / FILE).unlink()
    load_networks(checkpoint, CPU)
