"""Scaling: planted rules are found, figures are those by hand, files are read piece by piece, bad input is one line."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from s2robot.cli import main
from s2robot.common.errors import UserError
from s2robot.common.paths import configs_dir
from s2robot.common.settings import read
from s2robot.encoders.build import build_encoder
from s2robot.pretraining.objects import ObjectsSettings
from s2robot.probing.examples import easy, examples, gains, probabilities, write_examples
from s2robot.probing.heads import FIT, TEST, VALIDATE, Classify, Depth, HeadSettings, Segment, fit, tally
from s2robot.probing.pictures import open_pictures
from s2robot.probing.rows import Rows, encode_pictures, largest_label, mean_rows, truth_rows
from s2robot.probing.scaling import check_roles, gather, roles_of, scaling
from s2robot.probing.scaling_figures import pairs
from s2robot.probing.scaling_settings import Arm, Result, ScalingSettings

SIDE = 128


def rows_of(array: np.ndarray, folder) -> Rows:
    path = folder / "rows.bin"
    array.tofile(path)
    return Rows(path, array.dtype, array.shape)


def mixed_roles(count: int) -> np.ndarray:
    return np.array([FIT, FIT, VALIDATE, TEST])[np.arange(count) % 4]


def write_folder(root, classes=("ant", "bee", "cat"), count=6, truths=True):
    """Pictures of one colour a class, a square in them, with the square as mask and depth."""
    rng = np.random.default_rng(0)
    for place, name in enumerate(classes):
        for i in range(count):
            image = rng.integers(0, 80, (SIDE, SIDE, 3)).astype(np.uint8)
            top, left = rng.integers(0, SIDE // 2, 2)
            square = slice(top, top + 48), slice(left, left + 48)
            image[(*square, place)] = 220
            mask, depth = np.zeros((SIDE, SIDE), np.uint8), np.full((SIDE, SIDE), 2000, np.uint16)
            mask[square], depth[square] = place + 1, 500
            parts = {"images": image, "masks": mask, "depth": depth} if truths else {"images": image}
            for part, pixels in parts.items():
                path = root / part / name / f"{i:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root


# --- heads --------------------------------------------------------------------------------------------------


def test_a_linear_head_recovers_a_planted_linear_rule(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 4, 12)).astype(np.float32) * 3 + 5
    scores = (x.mean(1) - 5) @ rng.normal(size=(12, 3))
    order = np.sort(scores, 1)
    keep = order[:, 2] - order[:, 1] > 1.5  # a margin, so that the rule is learnt to the last picture
    x, labels = x[keep], scores[keep].argmax(1).astype(np.int32)
    roles = mixed_roles(len(x))
    rows, task, columns = rows_of(x, tmp_path), Classify(3), np.arange(12)
    settings = HeadSettings(steps=600, batch=64, lr=0.02, weight_decay=0)
    fitted = fit(task, "linear", rows, columns, labels, roles, settings, seed=0)
    found = tally(task, fitted.head, rows, columns, labels, roles == TEST)
    assert found.shape == ((roles == TEST).sum(), 3) and found[:, 0].mean() > 0.99
    noise = fit(task, "linear", rows, columns, rng.permutation(labels), roles, settings, seed=0)
    assert tally(task, noise.head, rows, columns, labels, roles == TEST)[:, 0].mean() < 0.6
    # columns that do not hold the rule do not give it
    blind = fit(
        task, "linear", rows_of(rng.normal(size=x.shape), tmp_path), columns, labels, roles, settings, 0
    )
    assert blind.curve[-1][2] > 0.9 * np.log(2)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_dense_head_finds_a_depth_that_is_linear_in_its_token(kind, tmp_path):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(240, 64, 5)).astype(np.float32)
    logs = 0.3 * x @ np.array([1.0, -1, 0.5, 0, 0.2]) + 0.4
    truth = np.rint(1000 * np.exp(logs)).astype(np.uint16).reshape(240, 8, 8)
    truth[:, 0, 0] = 0  # not known: counts nowhere
    task, roles = Depth(0.001), mixed_roles(240)
    rows = rows_of(x, tmp_path)
    settings = HeadSettings(
        steps=250 if kind == "linear" else 80, batch=16, lr=0.03, lr_deep=0.03, weight_decay=0
    )
    fitted = fit(task, kind, rows, np.arange(5), truth, roles, settings, 0)
    found = tally(task, fitted.head, rows, np.arange(5), truth, roles == TEST)
    scores = task.scores(found.sum(0)[None].astype(float), np.ones(1))
    assert (found[:, 3] == 63).all()
    if kind == "linear":
        assert scores["rmse_m"][0] < 0.01 and scores["delta_1.25"][0] == 1
    else:
        assert scores["loss"][0] < 0.4 * logs.var()


def test_an_attention_head_reads_the_one_token_that_tells(tmp_path):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(600, 9, 8)).astype(np.float32) * 0.3
    labels = rng.integers(0, 2, 600).astype(np.int32)
    place = rng.integers(0, 9, 600)
    x[np.arange(600), place, 0] = 4  # "look here"
    x[np.arange(600), place, 1] = 4 * labels - 2
    rows, roles, columns = rows_of(x, tmp_path), mixed_roles(600), np.arange(8)
    settings = HeadSettings(steps=200, batch=64, lr_deep=0.01)
    fitted = fit(Classify(2), "attention", rows, columns, labels, roles, settings, 0)
    assert tally(Classify(2), fitted.head, rows, columns, labels, roles == TEST)[:, 0].mean() > 0.97


def test_the_state_that_did_best_on_validation_is_kept(tmp_path):
    """Noise is learnt by heart: the longer, the worse on others."""
    rng = np.random.default_rng(3)
    rows = rows_of(rng.normal(size=(120, 1, 60)).astype(np.float32), tmp_path)
    labels, roles = rng.integers(0, 2, 120).astype(np.int32), mixed_roles(120)
    settings = HeadSettings(steps=300, batch=32, lr=0.02, weight_decay=0, checks=30)
    fitted = fit(Classify(2), "linear", rows, np.arange(60), labels, roles, settings, 0)
    held = {step: loss for step, _, loss in fitted.curve}
    assert held[fitted.step] == min(held.values()) and fitted.step < 150
    kept = tally(Classify(2), fitted.head, rows, np.arange(60), labels, roles == VALIDATE)[:, 1].mean()
    assert kept == pytest.approx(min(held.values()), rel=1e-4)


# --- figures by hand ----------------------------------------------------------------------------------------


def test_miou_by_hand():
    task = Segment(3, ignore=255)
    truth = torch.tensor([[[0, 0], [1, 255]]])
    read_as = torch.tensor([[[0, 1], [1, 2]]])  # the last point is not labelled
    out = torch.nn.functional.one_hot(read_as, 3).permute(0, 3, 1, 2).float() * 9
    found = task.tally(out, truth).numpy()
    assert found[0, :3].tolist() == [1, 1, 0] and found[0, 3:6].tolist() == [2, 2, 0] and found[0, 7] == 3
    scores = task.scores(found.astype(float), np.ones(1))
    assert scores["miou"][0] == pytest.approx(0.5)  # (1/2 + 1/2) / 2: nobody saw a label 2


def test_rmse_and_delta_by_hand():
    task = Depth(0.001)
    truth = torch.tensor([[[1000, 2000], [4000, 0]]])
    out = torch.log(torch.tensor([[[[1.2, 2.6], [4.0, 7.0]]]]))
    scores = task.scores(task.tally(out, truth).numpy().astype(float), np.ones(1))
    assert scores["rmse_m"][0] == pytest.approx(np.sqrt((0.04 + 0.36) / 3), rel=1e-5)
    assert scores["delta_1.25"][0] == pytest.approx(2 / 3)  # 1.2 and 1 are within, 1.3 is not


def test_accuracy_and_loss_by_hand():
    out = torch.tensor([[0.0, 0.0], [np.log(3), 0.0]])
    found = Classify(2).tally(out.float(), torch.tensor([1, 0])).numpy()
    assert found[:, 0].tolist() == [0, 1] and found[:, 2] == pytest.approx([0.5, 0.75])
    scores = Classify(2).scores(found.sum(0)[None], np.array([2.0]))
    assert scores["accuracy"][0] == 0.5 and scores["loss"][0] == pytest.approx(np.log(8 / 3) / 2)


def test_which_arms_are_compared():
    settings = ScalingSettings(scales=((1,), (1, 2)), families=(("a", "b"),))
    arms = [Arm(m, s, "native", "depth", "linear") for m in ("a", "b", "c") for s in ((1,), (1, 2))]
    named = {(x.label, y.label) for x, y in pairs(arms, settings)}
    assert named == {("a 1+2", "a 1"), ("b 1+2", "b 1"), ("c 1+2", "c 1"), ("b 1", "a 1"), ("a 1+2", "b 1")}


def test_only_the_larger_model_gains_by_hand():
    base, larger, s2 = (
        np.array(p)
        for p in ([0.2, 0.5, 0.1, 0.9, 0.5], [0.9, 0.6, 0.8, 0.95, 0.4], [0.1, 0.5, 0.7, 0.9, 0.9])
    )
    assert gains(base, larger, s2, 3).tolist() == [0, 1, 3]  # picture 2 is what S2 gains on too
    assert gains(base, s2, larger, 3).tolist() == [4]
    labels, sure = np.array([0, 0, 1, 0, 0]), np.fmin(base, larger)
    assert easy(0, labels, sure, set()) == [3, 1] and easy(0, labels, sure, {3}) == [1, 4]
    seeds = [Result(np.array([0, 2]), np.array([[1, 0, 0.4], [0, 0, 0.2]]), 0, 0)]
    seeds.append(Result(np.array([2, 3]), np.array([[1, 0, 0.6], [0, 0, 0.1]]), 0, 0))
    found = probabilities(seeds, 4)
    assert found[[0, 2, 3]] == pytest.approx([0.4, 0.4, 0.1]) and np.isnan(found[1])


# --- reading ------------------------------------------------------------------------------------------------


def test_rows_are_read_piece_by_piece_from_either_kind_of_file(tmp_path):
    array = np.random.default_rng(0).normal(size=(11, 3, 2)).astype(np.float16)
    rows = rows_of(array, tmp_path)
    for size in (1, 4, 11, 20):
        assert np.array_equal(np.concatenate([b for _, b in rows.blocks(size)]), array)
    means = mean_rows(rows, 4)
    assert means.shape == (11, 1, 2) and not hasattr(means.file, "parts")
    assert np.allclose(means.read(3, 9)[:, 0], array[3:9].astype(np.float32).mean(1), atol=1e-6)


def test_pictures_masks_and_depth_of_a_folder(tmp_path):
    pictures = open_pictures(write_folder(tmp_path), ["classify", "segment", "depth"])
    assert len(pictures) == 18 and pictures.classes == ("ant", "bee", "cat") and set(pictures.parts) == {-1}
    assert len({pictures.path(i) for i in range(18)}) == 18
    assert pictures.labels.tolist() != sorted(pictures.labels)  # mixed
    truth, depth = (truth_rows(pictures, task, 16, tmp_path / "cache") for task in ("segment", "depth"))
    for i in range(18):
        assert pictures.path(i).parent.name == pictures.classes[pictures.labels[i]]
        exact = np.asarray(Image.open(pictures.truth_path(i, "segment")))[4::8, 4::8]
        assert np.array_equal(truth.read(i, i + 1)[0], exact)
        assert set(np.unique(depth.read(i, i + 1))) == {500, 2000}
    assert largest_label(truth, 255, pictures, None) == 3
    wide = np.zeros((40, 60, 3), np.uint8)
    wide[:, 10:50] = 200
    Image.fromarray(wide).save(pictures.path(0))
    assert pictures.frame(0, 20).shape == (20, 20, 3) and pictures.frame(0, 20).min() == 200  # the middle


def test_train_and_test_folders_and_splits_by_seed(tmp_path):
    for part in ("train", "val"):
        write_folder(tmp_path / "two" / part, count=5, truths=False)
    pictures, settings = open_pictures(tmp_path / "two"), ScalingSettings(families=())
    for seed in (0, 1):
        roles = roles_of(pictures, settings, seed)
        assert np.array_equal(roles == TEST, pictures.parts == 1)
        assert [(roles == role).sum() for role in (FIT, VALIDATE)] == [12, 3]
    assert not np.array_equal(roles, roles_of(pictures, settings, 0))
    whole = open_pictures(write_folder(tmp_path / "one", count=10, truths=False))
    roles = roles_of(whole, settings, 0)
    for label in range(3):
        assert np.bincount(roles[whole.labels == label]).tolist() == [6, 1, 3]


def test_of_each_class_something_is_learnt_however_much_is_held_out(tmp_path):
    few = open_pictures(write_folder(tmp_path / "few", count=2, truths=False))
    for share in (0.5, 0.75, 0.99):
        roles = roles_of(few, ScalingSettings(families=(), held_out=share), 0)
        for label in range(3):
            assert sorted(roles[few.labels == label].tolist()) == sorted([FIT, TEST])


def test_a_loss_is_the_mean_of_the_steps_since_the_last(tmp_path):
    """Where the steps are no multiple of the checks, the last interval is a short one."""
    rng = np.random.default_rng(3)
    rows = rows_of(rng.normal(size=(60, 1, 8)).astype(np.float32), tmp_path)
    labels, roles = rng.integers(0, 5, 60).astype(np.int32), np.full(60, FIT, np.int8)
    settings = HeadSettings(steps=41, batch=32, lr=1e-6, weight_decay=0, checks=4)
    fitted = fit(Classify(5), "linear", rows, np.arange(8), labels, roles, settings, 0)
    assert [step for step, *_ in fitted.curve] == [10, 20, 30, 40, 41]
    losses = [loss for _, loss, _ in fitted.curve]
    assert losses[-1] == pytest.approx(np.mean(losses[:-1]), rel=0.2)


def test_scale_one_is_the_same_whatever_other_scales_there_are(tmp_path):
    pictures = open_pictures(write_folder(tmp_path, truths=False))
    facts = {"name": "mvp-tiny", "dtype": "float32", "resolution": "upsampled"}
    single, double = (build_encoder({**facts, "scales": scales}) for scales in ([1], [1, 2]))
    one = encode_pictures("one", single, pictures, tmp_path / "cache").read(0, 18).astype(np.float32)
    both = encode_pictures("both", double, pictures, tmp_path / "cache").read(0, 18).astype(np.float32)
    assert both.shape == (18, 64, 384) and np.abs(both[..., :192] - one).max() < 4e-3 * np.abs(one).max()
    frames = np.stack([pictures.frame(i, 128) for i in range(18)])
    assert np.array_equal(double.encode(frames).numpy().astype(np.float16).astype(np.float32), both)


# --- bad input ----------------------------------------------------------------------------------------------


def refused(root, tasks=("classify",), **changes):
    settings = ScalingSettings(
        data=str(root), tasks=tasks, families=(), cache=str(root.parent / "cache"), **changes
    )
    with pytest.raises(UserError) as error:
        pictures, _ = gather(settings, ObjectsSettings(), root.parent / "cache")
        for i in range(len(pictures)):
            pictures.frame(i, 32)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_pictures_that_cannot_be_used_are_one_line(tmp_path):
    root = write_folder(tmp_path / "data")
    mask, depth = root / "masks/bee/002.png", root / "depth/bee/002.png"
    good = {path: path.read_bytes() for path in (mask, depth)}
    Image.fromarray(np.zeros((64, 128), np.uint8)).save(mask)
    assert "masks/bee/002.png: found 128 x 64 px, expected 128 x 128 px" in refused(root, ("segment",))
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(mask)
    assert "found a mask of mode RGB, expected one channel" in refused(root, ("segment",))
    Image.fromarray(np.full((SIDE, SIDE), 9, np.uint8)).save(mask)
    assert "found label 9, expected labels below 4" in refused(root, ("segment",), labels=4)
    assert "found a mask of 8 bits, expected 16: labels beyond 255, of 300" in refused(
        root, ("segment",), labels=300
    )
    mask.unlink()
    assert "masks/bee/002.png: no such file" in refused(root, ("segment",))
    mask.write_bytes(good[mask])
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(depth)
    assert "depth/bee/002.png: found depth of 8 bits, expected a PNG of 16 bits" in refused(root, ("depth",))
    depth.write_bytes(good[depth])
    broken = root / "images/bee/003.png"
    broken.write_bytes(broken.read_bytes()[:500])
    assert "images/bee/003.png: not a readable image" in refused(root)
    kept, said = open_pictures(root).readable(["classify"], lambda *_: None)
    assert len(kept) == 17 and len(said) == 1 and "bee/003.png" in said[0]
    for i in range(1, 6):
        (root / f"images/cat/{i:03d}.png").unlink()
    assert "class 'cat': found 1 picture to learn from, expected 2 or more" in refused(root)
    assert "expected the folders images and depth" in refused(root / "images", ("depth",))
    assert "no such folder" in refused(root / "nowhere")
    (tmp_path / "flat").mkdir()
    assert "found no pictures" in refused(tmp_path / "flat")
    for part, count in (("train", 4), ("val", 4)):
        write_folder(tmp_path / "parts" / part, count=count)
    for picture in (tmp_path / "parts/val/images").rglob("*.png"):
        picture.unlink()
    with pytest.raises(UserError, match="parts: found no picture to be judged on, expected 1 or more"):
        check_roles(open_pictures(tmp_path / "parts", ("segment",)), ScalingSettings(families=()))
    broken.rename(tmp_path / "flat" / "a.png")
    assert "class folders" in refused(tmp_path / "flat")


def test_a_model_without_the_asked_block_is_one_line(tmp_path):
    settings = ScalingSettings(data=str(write_folder(tmp_path / "data")), families=())
    with pytest.raises(UserError, match="scaling.models.tiny: .*block=9"):
        scaling({"tiny": {"name": "mvp-tiny", "block": 9}}, settings, ObjectsSettings(), tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ["sing"]}, "scaling.tasks: found ['sing'], expected some of classify, segment, depth"),
        ({"resize": []}, "scaling.resize: found [], expected some of upsample, native"),
        (
            {"scales": [[1.0], [2.0, 3.0]]},
            "scaling.scales: found [[1.0], [2.0, 3.0]], expected 1 in each set",
        ),
        ({"heads": {"depth": ["mask2former"]}}, "found 'mask2former', expected some of linear, conv"),
        ({"head": {"steps": 0}}, "scaling.head.steps: found 0, expected 1 or more"),
        ({"held_out": 1.0}, "scaling.held_out: found 1.0, expected a value from 0.01 to 0.99"),
    ],
)
def test_settings_out_of_range_are_one_line(changes, words):
    with pytest.raises(UserError) as error:
        read(ScalingSettings, changes, "scaling")
    assert words in str(error.value)


def test_the_defaults_are_those_of_the_config():
    config = OmegaConf.load(configs_dir() / "scaling" / "default.yaml")
    del config.models
    assert read(ScalingSettings, config, "scaling") == ScalingSettings()
    assert (
        read(ObjectsSettings, OmegaConf.load(configs_dir() / "objects" / "default.yaml"), "objects")
        == ObjectsSettings()
    )


# --- the whole ----------------------------------------------------------------------------------------------


def test_the_command_writes_table_picture_and_page_and_goes_on(tmp_path, capsys, monkeypatch):
    write_folder(tmp_path / "data")
    words = [
        "scaling", f"scaling.data={tmp_path / 'data'}", f"scaling.cache={tmp_path / 'cache'}", "~scaling.models.small",
        "scaling.families=[]", "scaling.scales=[[1],[1,2]]", "scaling.resize=[upsample]", "scaling.seeds=[0,1]",
        "scaling.head.steps=10", "scaling.head.batch=8", "scaling.points=16", "scaling.resamples=100",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert main(words) == 0
    report = json.loads((tmp_path / "run/scaling.json").read_text())
    assert [row["arm"] for row in report["arms"]] == ["tiny 1", "tiny 1+2"] * 5
    assert report["pictures"]["fit"] + report["pictures"]["validate"] + report["pictures"]["test"] == 18
    arm = report["arms"][1]
    assert (
        arm["gflops"] == pytest.approx(5 * report["arms"][0]["gflops"], rel=1e-3)
        and len(arm["by_seed"]["accuracy"]) == 2
    )
    low, value, high = (arm["loss"][k] for k in ("low", "value", "high"))
    assert low <= value <= high and value == pytest.approx(np.mean(arm["by_seed"]["loss"]))
    table = list(csv.DictReader((tmp_path / "run/scaling.csv").open()))
    assert len(table) == (2 * 2 + 4 * 2 + 4 * 3) * 3 // 2  # arms, and half as many differences
    page = (tmp_path / "run/scaling.html").read_text()
    assert "<svg" in page and "tiny 1+2" in page and "http" not in page.replace("http://www.w3.org", "")
    assert "tiny 1+2" in capsys.readouterr().out
    monkeypatch.setattr("s2robot.probing.scaling.fit", lambda *_: pytest.fail("fitted again"))
    settings = ScalingSettings(
        data=str(tmp_path / "data"), cache=str(tmp_path / "cache"), families=(), scales=((1,), (1, 2)),
        resize=("upsample",), seeds=(0, 1), head=HeadSettings(steps=10, batch=8), points=16, resamples=100,
    )  # fmt: skip
    models = {"tiny": {"name": "mvp-tiny", "dtype": "bfloat16"}}
    outcome = scaling(models, settings, ObjectsSettings(), tmp_path / "run")
    again = outcome.report
    # a family of twins: what the "larger" one gains, S2 does not
    arms = {replace(arm, model="twin"): found for arm, found in outcome.results.items()}
    twins = replace(outcome, results=outcome.results | arms)
    shown = examples(twins, replace(settings, families=(("tiny", "twin"),), examples=2))
    assert shown[0]["larger"]["rows"] == [] and shown[0]["s2"]["of"] == len(
        np.unique([r.rows for r in arms[next(iter(arms))]])
    )
    page = write_examples(shown, outcome.pictures, tmp_path / "run")
    assert (
        page is not None
        and "data:image/jpeg" in page.read_text()
        and "Only tiny 1+2 gains" in page.read_text()
    )
    assert again["arms"] == report["arms"] and again["differences"] == report["differences"]
