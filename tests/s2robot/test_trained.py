"""Training the full encoder with its policy: from a task visible only in pixels to a checkpoint that acts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from s2robot import pipeline
from s2robot.comparison.plan import settings_of
from s2robot.config import encoder_settings
from s2robot.core.errors import UserError
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.build import build_encoder
from s2robot.encoders.trained import Pixels
from s2robot.encoders.tuning import FullEncoder
from s2robot.policies import load_checkpoint, load_tuned
from s2robot.training.train import _Run
from tests.errors import refuses
from tests.s2robot.test_tuned import SIZES, make_demos, planned, task_of, trained
from tests.s2robot.training.small import CAMERAS, Killed, about

TILE = 32  # px, one stride of the network


def make_dots(path: Path, episodes: int = 24, steps: int = 10) -> Path:
    """Write frames of 36 px with one bright dot, whose position is the action; the states are constant."""
    rng = np.random.default_rng(0)
    with EpisodeStore.create(path, about("images") | {"cameras": ["hand"], "camera_geometry": {}}) as store:
        for i in range(episodes):
            at = rng.integers(0, 31, (steps, 2))
            frames = rng.integers(0, 60, (steps, 36, 36, 3), dtype=np.uint8)
            for frame, (y, x) in zip(frames, at, strict=True):
                frame[y : y + 6, x : x + 6] = 250
            action = np.zeros((steps, 8), np.float32)
            action[:, :2] = (at - 15) / 150
            arrays = {"action": action, "proprio": np.zeros_like(action), "images_hand": frames}
            store.append(arrays, {"seed": i, "success": True})
    return path


def full_task(demos: Path, encoder=None, cameras=CAMERAS, policy=None, **changes) -> pipeline.Task:
    own = {"name": "timm:test_resnet", "trained": True, "img_size": TILE, "crop": 0.9, "scales": [1]}
    task = task_of(demos, Path("unused"), policy=policy, **{"tune": {"blocks": 0}, "lr": 3e-3} | changes)
    return replace(task, encoder=own | (encoder or {}), space=task.space | {"cameras": cameras})


@pytest.fixture
def demos(inline, tmp_path):
    return make_demos(tmp_path / "demos.zarr")


def test_only_a_trained_encoder_learns_what_only_pixels_show(demos, tmp_path):
    """The control starts from the same weights and takes as many steps, but its encoder stays unchanged."""
    network = {"image_dim": 16, "state_dim": 8, "hidden": [32], "dropout": 0.0}
    policy = {"members": 1, "proprio_noise": 0.0, "chunk": 1, "execute": 1, "network": network}
    policy["pooling"] = {"kind": "spatial_softmax", "keypoints": 4, "values": 2}  # learns in the fewest steps
    training, errors, first = {"steps": 90, "batch_size": 32, "log_every": 90, "ema": 0.9}, [], []
    dots = make_dots(tmp_path / "dots.zarr")
    for rate in (1.0, 0.0):
        task = full_task(dots, {"rate": rate}, ("hand",), policy, **training)
        folder = trained(task, tmp_path / f"run{rate}")
        errors.append(json.loads((folder.parent / "metrics.json").read_text())[-1]["val_joint_error"])
        first.append(load_tuned(folder)["0.conv1.0.weight"])
    assert errors[0] < 0.5 * errors[1]
    start = FullEncoder(full_task(dots).encoder, [(36, 36)], 0).tuned()["0.conv1.0.weight"]
    assert torch.equal(first[1], start) and (first[0] - start).abs().max() > 1e-3


@pytest.mark.parametrize("per_camera", [True, False])
def test_training_crops_are_random_and_all_layers_receive_gradients(demos, per_camera):
    task = full_task(demos, {"per_camera": per_camera, "scales": [1, 2]})
    frames = [np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8) for size in SIZES.values()]
    encoder = build_encoder(task.encoder)
    pixels = Pixels(encoder).encode_cameras(frames)
    sizes = [encoder.frame_size(*size) for size in SIZES.values()]
    assert sizes == [(71, 71), (71, 106)] and pixels.shape == (3, 2, 71 * 106, 3)
    model = FullEncoder(task.encoder, sizes)
    torch.manual_seed(3)
    model.train()
    seen = model(pixels)
    assert not torch.equal(model(pixels), seen)
    torch.manual_seed(3)
    assert torch.equal(model(pixels), seen)  # from the step's seed, so that a resumed run repeats it
    seen.square().sum().backward()
    names = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()]
    assert len(names) == len(list(model.parameters()))
    assert sum("conv1.0.weight" in name for name in names) == (2 if per_camera else 1)
    model.eval()
    central = model(pixels)
    assert torch.equal(central, model(pixels))
    assert torch.equal(build_encoder(task.encoder, model.tuned()).encode_cameras(frames), central)
    # the central 64 px of 71, without a crop
    inner = [pixels[:, i, : h * w].unflatten(1, (h, w)) for i, (h, w) in enumerate(sizes)]
    at = [(x.shape[2] - w) // 2 for x, w in zip(inner, (64, 95), strict=True)]
    inner = [x[:, 3:67, i : i + w].numpy() for x, i, w in zip(inner, at, (64, 95), strict=True)]
    uncut = build_encoder({**task.encoder, "crop": 1.0}, model.tuned())
    torch.testing.assert_close(uncut.encode_cameras(inner), central, atol=0.05, rtol=0)


def test_checkpoint_acts_as_trained_and_a_resumed_run_is_identical(demos, tmp_path, monkeypatch):
    task = full_task(demos, {"scales": [1, 2]}, steps=6, checkpoint_every=2, log_every=2)
    folder = trained(task, tmp_path / "run")
    tuned, (_, contract) = load_tuned(folder), load_checkpoint(folder)
    built = build_encoder(task.encoder, tuned)
    assert contract["encoder"]["fingerprint"] == built.fingerprint
    assert contract["encoder"]["parameters"] == built.num_parameters == sum(map(torch.numel, tuned.values()))
    state, name = torch.load(folder.parent / "training_state.pt"), "tail.copies.1.model.conv1.0.weight"
    assert torch.equal(state["average"][f"module.{name}"], tuned["1.conv1.0.weight"])
    assert not torch.equal(state["model"][name], tuned["1.conv1.0.weight"])
    model = FullEncoder(task.encoder, [built.frame_size(*size) for size in SIZES.values()]).eval()
    model.load(tuned)
    assert np.array_equal(*planned(task, folder, model))

    after = _Run.after

    def dies(run, *args):
        after(run, *args)
        if run.learner.step == 5:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(_Run, "after", dies)
        trained(task, tmp_path / "killed")
    again = trained(task, tmp_path / "killed")
    for name in ("policy.safetensors", "encoder.safetensors", "golden.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_training_starts_from_the_encoder_of_another_run(demos, tmp_path):
    parent = trained(full_task(demos, steps=3), tmp_path / "parent")
    task = full_task(demos, {"rate": 0.0}, steps=1, from_=str(parent))
    child, start = load_tuned(trained(task, tmp_path / "child")), load_tuned(parent)
    assert child.keys() == start.keys() and all(torch.equal(child[k], start[k]) for k in child)
    other = full_task(demos, {"crop": 0.8}, steps=1, from_=str(parent))
    refuses(r"^train.from: .*encoder.crop", trained, other, tmp_path / "other")


def test_wrong_setting_is_one_error_line_before_reading(demos, tmp_path):
    for changes, key in (
        ({"policy": {"zero_features": True}}, "encoder.trained: expected false"),
        ({"tune": {"blocks": 1}}, "train.tune.blocks: expected 0"),
    ):
        refuses(f"^{key}", full_task, demos, **changes)
    for encoder, words in (
        ({"crop": 1.2}, "encoder.crop: expected <= 1"),
        ({"img_size": 40}, r"tile: expected a whole number of patches of 32 px, got 40 x 40 px"),
        ({"img_size": 96}, r"encoder.img_size: expected at most 64 px .*'hand'"),
        ({"scales": [1, 3]}, r"encoder.img_size: expected at most 64 px .*, got 96"),
    ):
        refuses(f"^{words}", trained, full_task(demos, encoder), tmp_path / "run")
    with pytest.raises(UserError, match="wrist"):  # a dataset without frames of a camera
        trained(full_task(demos, cameras=("wrist",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_encoder_of_the_paper_is_available():
    cfg = settings_of("train", ["encoder=resnet18", "s2=single"])
    encoder = build_encoder(encoder_settings(cfg))
    assert (encoder.image_size, encoder.map_of(240, 320), encoder.dim) == (107, (3, 4), 512)
    kinds = {type(module) for module in FullEncoder(encoder_settings(cfg), [(107, 107)]).modules()}
    assert nn.GroupNorm in kinds and nn.BatchNorm2d not in kinds
