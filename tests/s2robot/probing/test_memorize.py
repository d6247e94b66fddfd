"""Classifiers end to end: a few images are memorised, arms differ as intended, a run resumes."""

import json

import numpy as np
import pytest
import torch

from s2robot.backbones.vit import ViTSpec
from s2robot.cli import main
from s2robot.probing import memorize as module
from s2robot.probing.memorize import Classifier, MemorizeSettings, tallies_of, train
from tests.s2robot.probing.test_scaling import write_folder

SMALL = ViTSpec(16, 8, 32, 1, 2)


def noise(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)


def test_training_images_are_memorised_and_others_are_not():
    torch.manual_seed(0)
    data, model = (noise(12, 0), np.arange(12)), Classifier(SMALL, (1, 2), "native", 12)
    before = tallies_of(model, data)
    train(model, data, MemorizeSettings(seen=100, batch=12, lr=3e-3, weight_decay=0), 0)
    after = tallies_of(model, data)
    assert before[:, 1].mean() > 2 and after[:, 1].mean() < 0.1 and after[:, 0].all()
    assert tallies_of(model, (noise(12, 1), np.arange(12)))[:, 0].mean() < 0.5


def test_adding_s2_after_training_keeps_the_model_frozen():
    torch.manual_seed(0)
    base = Classifier(SMALL, (1,), "native", 2)
    before = {k: v.clone() for k, v in base.vit.state_dict().items()}
    after = Classifier(SMALL, (1, 2), "native", 2, base.vit)
    head = after.head.weight.clone()
    train(after, (noise(4, 0), np.array([0, 1, 0, 1])), MemorizeSettings(seen=2, batch=4), 0)
    assert all(torch.equal(before[k], v) for k, v in after.vit.state_dict().items())
    assert not torch.equal(head, after.head.weight) and after.s2.dim == 2 * base.s2.dim


def test_the_command_compares_arms_and_resumes(tmp_path, capsys, monkeypatch):
    for part in ("train", "test"):
        write_folder(tmp_path / "data" / part, ("ant", "bee"), 8, truths=False)
    words = "probe probe=memorize probe.task=classes probe.counts=[16] probe.base.depth=1 probe.large.depth=2".split()
    words += ["probe.seen=6", "probe.seeds=[0,1]", "probe.resamples=100", f"probe.data={tmp_path / 'data'}"]
    sizes = ("img_size=16", "dim=32", "heads=2")
    words += [f"probe.{arm}.{size}" for arm in ("base", "large") for size in sizes]
    words += [f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(words) == 0
    report = json.loads((tmp_path / "run/memorize.json").read_text())
    rows = {row["arm"]: row for row in report["results"] if (row["images"], row["part"]) == (16, "test")}
    assert [*rows] == ["base", "base-s2-after", "base-s2", "large"]
    assert rows["large"]["parameters"] > rows["base"]["parameters"] == rows["base-s2"]["parameters"]
    assert rows["base-s2"]["gflops"] == pytest.approx(5 * rows["base"]["gflops"], rel=0.02)
    assert len(report["results"]) == 2 * 4 and len(report["differences"]) == 2 * 6
    assert "base-s2-after" in capsys.readouterr().out
    assert (tmp_path / "run/memorize.png").stat().st_size > 5000
    monkeypatch.setattr(module, "train", lambda *_: pytest.fail("trained again"))
    assert main(words) == 0
