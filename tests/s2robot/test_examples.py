"""Every script of examples/ runs on a tiny scale and gives the documented results."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from tests.s2robot.evaluation.made import record, save_records

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str, *arguments: object):
    """Return the result of an example's `main` for these arguments."""
    return importlib.import_module(f"examples.{name}").main([str(a) for a in arguments])


def test_every_example_is_tested_here_and_documented():
    names = {file.stem for file in EXAMPLES.glob("*.py")}
    here, page = (file.read_text(encoding="utf-8") for file in (Path(__file__), EXAMPLES / "README.md"))
    assert names and all(f'"{name}"' in here and f"{name}.py" in page for name in names)
    assert all(len(f.read_text(encoding="utf-8").splitlines()) <= 75 for f in EXAMPLES.glob("*.py"))


def test_s2_wraps_models_of_three_libraries(tmp_path):
    from PIL import Image

    Image.new("RGB", (96, 64)).save(tmp_path / "photo.png")
    tokens = example("s2_timm", tmp_path / "photo.png", "--model", "vit_tiny_patch16_224")
    assert tokens.shape == (1, 14 * 21, 2 * 192)
    maps, gradient = example("s2_torchvision", "--size", 64)
    assert maps.shape[:2] == (2, 1024) and gradient > 0
    tokens, reference = example("s2_huggingface")
    assert tokens.shape == (1, 196, 192) and reference.shape == (1, 197, 192)
    np.testing.assert_allclose(reference[:, 1:].numpy(), tokens.numpy(), atol=1e-4)


def test_s2_in_a_llava():
    done = example("s2_llava")
    assert done["images"] == (1, 3, 1008, 1008) and done["tokens"] == (576,)
    assert done["output"][1] > 576 + 3


def test_own_demos_and_own_encoder(tmp_path):
    store = example("own_demos", tmp_path / "mine.zarr", "--episodes", 2, "--steps", 5, "--size", 128)
    assert len(store) == 2 and store.num_steps == 10
    features = example("own_encoder", tmp_path / "mine.zarr")
    assert features.shape == (10, 3, 16, 64) and np.isfinite(features).all()
    bare = (EXAMPLES / "own_arm/configs/robot/ur5e.yaml").read_text(encoding="utf-8")
    (tmp_path / "bare.yaml").write_text(bare.replace("gripper: binary", "gripper: null"))
    store = example("own_demos", tmp_path / "bare.zarr", "--arm", tmp_path / "bare.yaml", "--size", 32)
    assert store["action"].shape == store["proprio"].shape == (60, 6)


def test_train_by_hand(tmp_path):
    losses = example("train_by_hand", "--steps", 60, "--out", tmp_path / "checkpoint")
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


@pytest.mark.realtime
def test_act_locally_and_through_a_server(slow_policy, monkeypatch):
    monkeypatch.setenv("S2ROBOT_TOKEN", "a-token-for-these-tests")
    for action in (example("act", slow_policy), example("serve_and_call", slow_policy, "--deadline", 60)):
        assert action.shape == (8,) and np.isfinite(action).all()


def test_evaluate(slow_policy):
    assert example("evaluate", slow_policy, "--episodes", 2, "--steps", 2) == [False, False]


def test_compare_arms(tmp_path):
    rng = np.random.default_rng(0)
    folders = {arm: [tmp_path / f"{arm}{seed}" for seed in range(3)] for arm in "ab"}
    for arm, chance in (("a", 0.9), ("b", 0.4)):
        for folder in folders[arm]:
            save_records(folder, [record(i, bool(rng.random() < chance)) for i in range(64)])
    result = example("compare_arms", "--a", *folders["a"], "--b", *folders["b"])
    assert result.difference > 0.3 and result.low > 0
