"""Classifiers end to end: a few pictures are learnt by heart, arms differ by what they should, a run goes on."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from s2robot.backbones.vit import ViTSpec
from s2robot.cli import main
from s2robot.common.errors import UserError
from s2robot.common.paths import configs_dir
from s2robot.common.settings import read
from s2robot.pretraining.objects import ObjectsSettings
from s2robot.probing import memorize as module
from s2robot.probing.memorize import Classifier, MemorizeSettings, memorize, tallies_of, train

SMALL = ViTSpec(16, 8, 32, 1, 2)


def write_noise(root, count=8, parts=("train", "test")):
    rng = np.random.default_rng(0)
    for part in parts:
        for place, name in enumerate(("dark", "light")):
            for i in range(count):
                pixels = (rng.integers(0, 90, (32, 32, 3)) + 150 * place).astype(np.uint8)
                path = root / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root


def test_pictures_are_learnt_by_heart_and_labels_that_nobody_can_know_are_not_known_elsewhere():
    torch.manual_seed(0)
    frames = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    model = Classifier(SMALL, (1, 2), "native", 12)
    settings = MemorizeSettings(seen=100, batch=12, lr=3e-3, weight_decay=0)
    before = tallies_of(model, frames, np.arange(12))
    train(model, frames, np.arange(12), settings, 0)
    after = tallies_of(model, frames, np.arange(12))
    assert before[:, 1].mean() > 2 and after[:, 1].mean() < 0.1 and after[:, 0].all()
    others = np.random.default_rng(1).integers(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    assert tallies_of(model, others, np.arange(12))[:, 0].mean() < 0.5


def test_s2_after_leaves_the_model_as_it_is():
    torch.manual_seed(0)
    base = Classifier(SMALL, (1,), "native", 2)
    kept = {k: v.clone() for k, v in base.vit.state_dict().items()}
    after = Classifier(SMALL, (1, 2), "native", 2, base.vit)
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    head = after.head.weight.clone()
    train(after, frames, np.array([0, 1, 0, 1]), MemorizeSettings(seen=2, batch=4), 0)
    assert all(torch.equal(kept[k], v) for k, v in after.vit.state_dict().items())
    assert not torch.equal(head, after.head.weight) and after.s2.dim == 2 * base.s2.dim


def test_the_command_compares_the_arms_and_goes_on(tmp_path, capsys, monkeypatch):
    write_noise(tmp_path / "data")
    words = [
        "memorize",
        "memorize.task=classes",
        f"memorize.data={tmp_path / 'data'}",
        "memorize.counts=[8,16]",
    ]
    for arm in ("base", "large"):
        words += [
            f"memorize.{arm}.{k}={v}" for k, v in (("img_size", 16), ("dim", 32), ("depth", 1), ("heads", 2))
        ]
    words += [
        "memorize.seen=6",
        "memorize.seeds=[0,1]",
        "memorize.resamples=100",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    assert main([*words, "memorize.large.depth=2"]) == 0
    report = json.loads((tmp_path / "run/memorize.json").read_text())
    arms = {row["arm"]: row for row in report["arms"] if row["pictures"] == 16}
    assert list(arms) == ["base", "base-s2-after", "base-s2", "large"]
    assert arms["large"]["parameters"] > arms["base"]["parameters"] == arms["base-s2"]["parameters"]
    assert arms["base-s2"]["gflops"] == pytest.approx(5 * arms["base"]["gflops"], rel=0.02)
    assert arms["base"]["test"]["accuracy"]["value"] == np.mean(arms["base"]["test"]["by_seed"]["accuracy"])
    assert len(report["differences"]) == 2 * 2 * 6 and "held-out accuracy" in capsys.readouterr().out
    assert (tmp_path / "run/memorize.png").stat().st_size > 5000
    monkeypatch.setattr(module, "train", lambda *_: pytest.fail("trained again"))
    assert main([*words, "memorize.large.depth=2"]) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "sing"}, "memorize.task: found 'sing', expected one of instances, classes"),
        ({"counts": [1]}, "memorize.counts: found [1], expected one or more of 2 or more"),
        ({"seen": 0}, "memorize.seen: found 0, expected 1 or more"),
        ({"lr": 0.0}, "memorize.lr: found 0"),
    ],
)
def test_values_out_of_range_are_one_line(changes, words):
    with pytest.raises(UserError) as error:
        read(MemorizeSettings, changes, "memorize")
    assert words in str(error.value)


def test_pictures_that_are_not_there_are_one_line(tmp_path):
    data = str(write_noise(tmp_path / "data"))
    with pytest.raises(UserError, match="memorize.counts: found 128, expected at most the 16 pictures"):
        memorize(MemorizeSettings(data=data, counts=(4, 128)), ObjectsSettings(), tmp_path)
    with pytest.raises(UserError, match="found no held-out pictures, expected train and test"):
        memorize(
            MemorizeSettings(data=f"{data}/train", task="classes", counts=(4,)), ObjectsSettings(), tmp_path
        )


def test_the_defaults_are_those_of_the_config():
    config = OmegaConf.load(configs_dir() / "memorize" / "default.yaml")
    assert read(MemorizeSettings, config, "memorize") == MemorizeSettings()
