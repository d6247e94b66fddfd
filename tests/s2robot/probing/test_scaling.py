"""Heads on images: planted rules are learned, scores match hand computation, files are streamed, runs resume."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from s2robot.cli import main
from s2robot.core.errors import UserError
from s2robot.core.settings import read
from s2robot.encoders.build import build_encoder
from s2robot.probing import heads
from s2robot.probing.frames import FrameSettings
from s2robot.probing.heads import FIT, TEST, VALIDATE, Classify, Data, Depth, ScalingSettings, fit_head, tally
from s2robot.probing.images import Rows, count_labels, encode_images, open_images, truth_rows
from s2robot.probing.memorize import MemorizeSettings
from s2robot.probing.scaling import roles_of, truths_of

SIDE = 128


def data_of(x: np.ndarray, truth: np.ndarray, folder) -> Data:
    x.tofile(folder / "rows.bin")
    rows = Rows(folder / "rows.bin", x.dtype.str, x.shape)
    return Data(rows, np.arange(x.shape[2]), truth, np.resize([FIT, FIT, VALIDATE, TEST], len(x)))


def write_folder(root, classes=("ant", "bee", "cat"), count=6, truths=True):
    """Write images with a square in the colour of their class, and the square as mask and depth."""
    rng = np.random.default_rng(0)
    for channel, name in enumerate(classes):
        for i in range(count):
            image = rng.integers(0, 80, (SIDE, SIDE, 3)).astype(np.uint8)
            top, left = rng.integers(0, SIDE // 2, 2)
            square = slice(top, top + 48), slice(left, left + 48)
            image[(*square, channel)] = 220
            mask, depth = np.zeros((SIDE, SIDE), np.uint8), np.full((SIDE, SIDE), 2000, np.uint16)
            mask[square], depth[square] = channel + 1, 500
            for part, pixels in {"images": image, "masks": mask, "depth": depth}.items():
                if truths or part == "images":
                    path = root / part / name / f"{i:03d}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(path)
    return root


def test_a_linear_head_recovers_a_planted_linear_rule(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 4, 12)).astype(np.float32) * 3 + 5
    scores = (x.mean(1) - 5) @ rng.normal(size=(12, 3))
    order = np.sort(scores, 1)
    keep = order[:, 2] - order[:, 1] > 1.5  # a margin, so that every image can be classified
    x, labels = x[keep], scores[keep].argmax(1).astype(np.int32)
    task, settings = Classify(3), ScalingSettings(steps=600, batch=64, lr=0.02, weight_decay=0)

    def accuracy(data: Data) -> float:
        head, _ = fit_head(task, "linear", data, settings, 0)
        tallies = tally(task, head, data)
        assert tallies.shape == ((data.roles == TEST).sum(), 3)
        return tallies[:, 0].mean()

    assert accuracy(data_of(x, labels, tmp_path)) > 0.99
    assert accuracy(data_of(x, rng.permutation(labels), tmp_path)) < 0.6
    assert accuracy(data_of(rng.normal(size=x.shape).astype(np.float32), labels, tmp_path)) < 0.6


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_dense_head_learns_depth_that_is_linear_in_the_token(kind, tmp_path):
    x = np.random.default_rng(1).normal(size=(240, 64, 5)).astype(np.float32)
    logs = 0.3 * x @ np.array([1.0, -1, 0.5, 0, 0.2]) + 0.4
    truth = np.rint(1000 * np.exp(logs)).astype(np.uint16).reshape(240, 8, 8)
    truth[:, 0, 0] = 0  # unknown: ignored everywhere
    task, data, steps = Depth(0.001), data_of(x, truth, tmp_path), 250 if kind == "linear" else 80
    settings = ScalingSettings(steps=steps, lr=0.03, lr_deep=0.03, weight_decay=0)
    head, _ = fit_head(task, kind, data, settings, 0)
    tallies = tally(task, head, data)
    scores = task.scores(tallies.sum(0)[None].astype(float))
    assert (tallies[:, 3] == 63).all() and scores["loss"][0] < 0.4 * logs.var()
    if kind == "linear":
        assert scores["rmse_m"][0] < 0.01 and scores["delta_1.25"][0] == 1


def test_best_state_on_validation_is_used(tmp_path):
    """Noise is memorised: longer training is worse on other images."""
    rng = np.random.default_rng(3)
    x, labels = rng.normal(size=(120, 1, 60)).astype(np.float32), rng.integers(0, 2, 120).astype(np.int32)
    data = data_of(x, labels, tmp_path)
    settings = ScalingSettings(steps=300, batch=32, lr=0.02, weight_decay=0, checks=30)
    head, curve = fit_head(Classify(2), "linear", data, settings, 0)
    step, _, best = min(curve, key=lambda check: check[2])
    assert step < 150
    assert tally(Classify(2), head, data, VALIDATE)[:, 1].mean() == pytest.approx(best, rel=1e-4)


def test_scores_match_hand_computation():
    segment = heads.Segment(3, ignore=255)
    truth = torch.tensor([[[0, 0], [1, 255]]])
    read_as = torch.tensor([[[0, 1], [1, 2]]])  # the last point is not labelled
    out = torch.nn.functional.one_hot(read_as, 3).permute(0, 3, 1, 2).float() * 9
    tallies = segment.tally(out, truth).numpy()
    assert tallies[0, :6].tolist() == [1, 1, 0, 2, 2, 0] and tallies[0, 7] == 3
    assert segment.scores(tallies.astype(float))["miou"][0] == pytest.approx(0.5)  # label 2 does not occur
    depth, truth = Depth(0.001), torch.tensor([[[1000, 2000], [4000, 0]]])
    tallies = depth.tally(torch.log(torch.tensor([[[[1.2, 2.6], [4.0, 7.0]]]])), truth).numpy()
    scores = depth.scores(tallies.astype(float))
    assert scores["rmse_m"][0] == pytest.approx(np.sqrt((0.04 + 0.36) / 3), rel=1e-5)
    assert scores["delta_1.25"][0] == pytest.approx(2 / 3)  # 1.2 and 1 are within, 1.3 is not
    out = torch.tensor([[0.0, 0.0], [np.log(3), 0.0]]).float()
    tallies = Classify(2).tally(out, torch.tensor([1, 0])).numpy()
    scores = Classify(2).scores(tallies.sum(0)[None])
    assert tallies[:, 0].tolist() == [0, 1] and scores["loss"][0] == pytest.approx(np.log(8 / 3) / 2)


def test_images_masks_and_depth_of_a_folder(tmp_path):
    images = open_images(write_folder(tmp_path))
    assert len(images) == 18 and images.classes == ("ant", "bee", "cat") and {*images.parts} == {-1}
    truth, depth = (truth_rows(images, task, 16) for task in ("segment", "depth"))
    for i in range(18):
        assert images.path(i).parent.name == images.classes[images.labels[i]]
        exact = np.asarray(Image.open(images.path(i, "segment")))[4::8, 4::8]
        assert np.array_equal(truth[i : i + 1][0], exact) and {*np.unique(depth[i : i + 1])} == {500, 2000}
    assert count_labels(images, truth, 255) == 4 and count_labels(images, truth, 3) == 3
    (tmp_path / "meta.json").write_text(json.dumps({"labels": [*"abcdef"]}))
    assert count_labels(images, truth, 255) == 6
    wide = np.zeros((40, 60, 3), np.uint8)
    wide[:, 10:50] = 200
    Image.fromarray(wide).save(images.path(0))
    frame = images.frame(0, 20)
    assert frame.shape == (20, 20, 3) and frame[:, 2:-2].min() == 200 and frame.min() > 180  # the centre crop


def test_train_and_test_folders_and_splits_by_seed(tmp_path):
    for part in ("train", "val"):
        write_folder(tmp_path / "two" / part, count=5, truths=False)
    images, settings = open_images(tmp_path / "two"), ScalingSettings()
    for seed in (0, 1):
        roles = roles_of(images, settings, seed)
        assert np.array_equal(roles == TEST, images.parts == 1)
        assert [(roles == role).sum() for role in (FIT, VALIDATE)] == [12, 3]
    assert not np.array_equal(roles, roles_of(images, settings, 0))
    single = open_images(write_folder(tmp_path / "one", count=10, truths=False))
    roles = roles_of(single, settings, 0)
    assert all(np.bincount(roles[single.labels == label]).tolist() == [6, 1, 3] for label in range(3))
    few = open_images(write_folder(tmp_path / "few", count=2, truths=False))
    for share in (0.5, 0.75, 0.99):  # each class keeps a training image, however much is held out
        roles = roles_of(few, ScalingSettings(held_out=share), 0)
        assert all(sorted(roles[few.labels == label]) == [FIT, TEST] for label in range(3))


def test_scale_one_does_not_depend_on_other_scales(tmp_path):
    images = open_images(write_folder(tmp_path, truths=False))
    facts = {"name": "mvp-tiny", "dtype": "float32", "resolution": "upsampled"}
    single, double = (build_encoder({**facts, "scales": scales}) for scales in ([1], [1, 2]))
    one, both = (encode_images("x", e, images)[:18].astype(np.float32) for e in (single, double))
    assert both.shape == (18, 64, 384) and np.abs(both[..., :192] - one).max() < 4e-3 * np.abs(one).max()
    frames = np.stack([images.frame(i, 128) for i in range(18)])
    assert np.array_equal(double.encode(frames).numpy().astype(np.float16).astype(np.float32), both)


def test_unusable_images_are_one_error_line(tmp_path):
    root = write_folder(tmp_path / "data", count=3)

    def rejects(words: str, *tasks) -> None:
        with pytest.raises(UserError, match=words):
            images = open_images(root)
            truths_of(images, ScalingSettings(tasks=tasks or ("classify",)))
            [images.frame(i, 32) for i in range(len(images))]

    mask, depth, image = (root / f"{name}/bee/002.png" for name in ("masks", "depth", "images"))
    for shape in ((64, 128), (SIDE, SIDE, 3)):
        Image.fromarray(np.zeros(shape, np.uint8)).save(mask)
        rejects("masks/bee/002.png: expected one channel .* at 128 x 128 px", "segment")
    mask.unlink()
    rejects("masks/bee/002.png: not a readable image", "segment")
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(depth)
    rejects("depth/bee/002.png: expected one channel of 16 bits", "depth")
    image.write_bytes(image.read_bytes()[:500])
    rejects("images/bee/002.png")
    for path in root.glob("images/ant/00[12].png"):
        path.unlink()
    rejects("data: expected class folders")
    for part in ("train", "val"):
        write_folder(tmp_path / "parts" / part, count=4)
    for image in (tmp_path / "parts/val/images").rglob("*.png"):
        image.unlink()
    with pytest.raises(UserError, match="parts: expected images to test on"):
        roles_of(open_images(tmp_path / "parts", classify=False), ScalingSettings(), 0)


@pytest.mark.parametrize(
    ("settings", "change", "text"),
    [
        (FrameSettings, {"train_seed": 100_000}, "probe.train_seed: "),
        (FrameSettings, {"test_seed": 499_999_980}, "probe.test_seed: "),
        (FrameSettings, {"test_seed": 300_090}, "probe.test_seed: .*training episodes"),
        (FrameSettings, {"world": {"max_steps": 5}, "frames": 6}, "probe.frames: expected <= 5, env.max_steps, got 6"),
        (MemorizeSettings, {"counts": [1]}, r"probe.counts\[0\]: "),
        (MemorizeSettings, {"base": {"img_size": 7}}, "img_size: "),
    ],
)  # fmt: skip
def test_wrong_settings_are_rejected(settings, change, text):
    with pytest.raises(UserError, match=text):
        read(settings, change, "probe")


def test_the_command_compares_arms_and_resumes(tmp_path, capsys, monkeypatch):
    write_folder(tmp_path / "data", count=5)
    words = [
        "probe", "probe=scaling", f"probe.data={tmp_path / 'data'}", "probe.families=[[tiny,twin],[twin,tiny]]",
        "+probe.models.twin={name: mvp-tiny, dtype: bfloat16}", "~probe.models.small",
        "probe.scales=[[1],[2],[1,2]]", "probe.resize=[upsample]", "probe.seeds=[0]", "probe.steps=4", "probe.heads=[conv]",
        "probe.batch=8", "probe.points=16", "probe.resamples=100", f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert main(words) == 0
    report = json.loads((tmp_path / "run/scaling.json").read_text())
    rows = report["results"]
    assert [r["arm"] for r in rows] == [f"{m} {s}" for m in ("tiny", "twin") for s in ("1", "2", "1+2") * 3]
    assert [row["gflops"] / rows[0]["gflops"] for row in rows[:3]] == pytest.approx([1, 4, 5], rel=1e-3)
    assert rows[1]["loss"]["low"] <= rows[1]["loss"]["value"] <= rows[1]["loss"]["high"]
    assert len({row["loss"]["value"] for row in rows}) == 9  # own channels for each set of scales
    assert all(rows[i]["loss"] == rows[i + 9]["loss"] for i in range(9))  # the twin has equal results
    gaps = [d["loss"] for d in report["differences"]]
    assert all((gap["p"] < 0.05) == (gap["low"] * gap["high"] > 0) for gap in gaps)
    assert (tmp_path / "run/scaling.csv").read_text().count("\n") == 1 + (2 + 2 + 3) * (6 + 15)  # arms, pairs
    page = (tmp_path / "run/scaling.html").read_text()
    assert "<svg" in page and "tiny 1+2" in page and "tiny 1+2" in capsys.readouterr().out
    assert all(f"model size: {family}, upsample" in page for family in ("tiny, twin", "twin, tiny"))
    assert main([*words, "+probe.models.tiny.scales=[1]"]) == 2
    assert "probe.models.tiny.scales: expected none, since probe.scales sets" in capsys.readouterr().err
    monkeypatch.setattr("s2robot.probing.heads.fit_head", lambda *_: pytest.fail("fitted again"))
    assert main(words) == 0
    again = json.loads((tmp_path / "run/scaling.json").read_text())
    assert again["results"] == rows and again["differences"] == report["differences"]
