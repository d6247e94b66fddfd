"""report.html: it holds what the run folder holds, needs nothing else, and refuses broken folders."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from s2robot.core.errors import UserError
from s2robot.envs.cube_config import STAGES
from s2robot.evaluation.records import headline, summarise, wilson
from s2robot.evaluation.report import training_panels, write_report
from s2robot.evaluation.video import write_video
from tests.s2robot.evaluation.made import record
from tests.s2robot.html_page import Page

EXTRAS = {
    "policy": {"kind": "transformer", "pooling": "spatial", "context": 4},
    "encoder": {"name": "mvp-tiny", "scales": [1, 2], "fingerprint": "ab" * 32},
    "robot": "xarm7",
    "cameras": ["hand", "left", "right"],
    "seed": 10000,
    "timing": {"simulate_s": 240.3, "encode_s": 121.0, "policy_s": 9.2, "wall_s": 262.1},
    "versions": {"torch": "2.13.0", "mujoco": "3.9.0"},
    "command": "s2robot evaluate checkpoint=<best> episodes=16",
}


def make_run(folder: Path, episodes: int, failures: int, videos: int = 0) -> list[dict]:
    """A run directory as an evaluation leaves it; the first `failures` episodes failed."""
    noise = np.random.default_rng(3)
    records = [record(i, i >= failures, "held" if i >= failures else STAGES[i % 3]) for i in range(episodes)]
    for each in records[::-1][:videos]:  # from the last, so that the report has to sort failures first
        each["video"] = f"videos/episode_{each['episode']:03d}.mp4"
        frames = [{"hand": noise.integers(0, 255, (64, 64, 3), dtype=np.uint8)} for _ in range(2)]
        write_video(folder / each["video"], frames, each, hold_s=0)
    save(folder, records)
    return records


def save(folder: Path, records: list[dict], **changes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "episodes.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    (folder / "summary.json").write_text(json.dumps({**summarise(records), **EXTRAS, **changes}))


def test_report_holds_the_run_and_nothing_from_elsewhere(tmp_path):
    make_run(tmp_path, 16, 5, videos=16)
    rows = [
        {"step": 1, "train_loss": 0.5, "val_loss": float("nan")},
        {"step": 2, "train_loss": 0.4, "val_loss": None},
    ]
    rows[1] |= {"success": 0.5, "tried": 4}
    (tmp_path / "metrics.json").write_text(json.dumps(rows))
    (tmp_path / "stages.json").write_text(json.dumps([{"stage": "train", "seconds": 200.0}]))
    page = Page(write_report(tmp_path))
    assert headline(json.loads((tmp_path / "summary.json").read_text())) in page.text
    assert page.row("held") == ["held", "11", "0"] and page.row("approach") == ["approach", "16", "2"]
    assert "Failures (5)" in page.text and "3 min 20 s" in page.text and "mvp-tiny" in page.text
    assert "checkpoint=<best>" in page.text and "&lt;best&gt;" in page.source
    assert page.tags.count("svg") == 2 and page.tags.count("video") == 16
    assert len(page.ids) == len(set(page.ids))
    for address in page.addresses:
        assert address.startswith(("data:", "#")), address
    assert "<script" not in page.source and "@import" not in page.source
    targets = [address[1:] for address in page.addresses if address.startswith("#video")]
    assert targets == [f"video-{n}" for n in range(5)] and set(targets) <= set(page.ids)
    assert re.findall(r'id="video-(\d+)"', page.source) == [
        str(n) for n in range(16)
    ]  # the failures are 0..4
    assert write_report(tmp_path).read_text(encoding="utf-8") == page.source


def test_a_panel_for_each_quantity_of_the_training():
    rows = [
        {"step": 10 * i, "train_loss": 1 / i, "val_loss": 2 / i, "train_joint_error_rad": 0.02, "val_joint_error": 0.03,
         "lr": 1e-3, "seconds": 0.2, **({"success": 0.25 * i, "tried": 16} if i > 2 else {})}
        for i in range(1, 5)
    ]  # fmt: skip
    panels = {panel.title: panel for panel in training_panels(rows)}
    assert list(panels) == ["loss", "joint error", "lr", "success"]
    assert [line.label for line in panels["joint error"].lines] == ["trained on", "held out"]
    (tries,) = panels["success"].lines
    assert (tries.x, tries.y) == ([30, 40], [0.75, 1.0])
    assert list(zip(tries.low, tries.high, strict=True)) == [wilson(12, 16), wilson(16, 16)]


def test_disagreement_is_judged_where_records_have_it(tmp_path):
    records = make_run(tmp_path, 8, 2)
    assert "AUC" not in Page(write_report(tmp_path)).text
    for each, value in zip(records, (0.9, 0.02, 0.01, 0.02, 0.01, 0.01, 0.03, 0.01), strict=True):
        each["disagreement"] = value
    save(tmp_path, records)
    assert "AUC 0.88" in Page(write_report(tmp_path)).text  # 10.5 of 12 pairs


def test_every_failure_has_its_row(tmp_path):
    records = make_run(tmp_path, 7, 3)
    records[0] |= {"cube_xy": [-0.0512, 0.1449], "cube_yaw": -np.pi / 2}
    # on an arm nobody measures the distance, and an episode may end with a fault
    records[1] |= {"closest_m": None, "fault": "arm <31>", "world": "arm"}
    save(
        tmp_path,
        records,
        world="arm",
        bridge={"speed": 0.7},
        faults=1,
        training={"demos": 120, "held_out": 12},
    )
    page = Page(write_report(tmp_path))
    assert page.row("0") == ["0", "approach (not grasped)", "10000", "−5.1", "+14.5", "−90", "1.2", "60"]
    assert "FAULT: arm <31>" in page.row("1")[1] and page.row("1")[6] == "–"
    assert "share of the demos' speed 0.7 · faults 1 · fitted on 120 demos, 12 held out" in page.text


@pytest.mark.parametrize(("episodes", "failures"), [(1, 0), (1, 1), (16, 16), (128, 10)])
def test_any_outcome_makes_a_page(tmp_path, episodes, failures):
    records = make_run(tmp_path, episodes, failures)
    (tmp_path / "summary.json").write_text(json.dumps(summarise(records)))  # a bare summary is enough
    page = Page(write_report(tmp_path))
    assert f"in {episodes - failures} of {episodes} episode" in page.text
    assert page.tags.count("svg") == 1 and "video" not in page.tags


def test_videos_beyond_the_limit_are_named(tmp_path):
    make_run(tmp_path, 6, 2, videos=6)
    sizes = {n: (tmp_path / f"videos/episode_{n:03d}.mp4").stat().st_size for n in range(6)}
    (tmp_path / "videos/episode_005.mp4").unlink()
    limit = int(4 / 3 * (sizes[0] + sizes[1] + sizes[2])) + 3
    page = Page(write_report(tmp_path, video_bytes=limit))
    assert len(re.findall(r'id="video-[01]"', page.source)) == 2
    left_out = [address for address in page.addresses if address.startswith("videos/")]
    assert "videos/episode_005.mp4" in left_out and "the file is not there" in page.text
    assert len(left_out) + page.tags.count("video") == 6
    none = Page(write_report(tmp_path, video_bytes=0))
    assert none.tags.count("video") == 0 and "6 videos are not in this page" in none.text


def test_text_from_the_run_is_escaped(tmp_path):
    records = make_run(tmp_path, 2, 1)
    save(tmp_path, records, robot="<b>x</b>", policy={"a<b": '"&'}, note="<script>alert(1)</script>")
    page = Page(write_report(tmp_path))
    assert "script" not in page.tags and "policy.a<b" in page.text and '"&' in page.text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("summary.json", None, "summary.json: no such file"),
        ("episodes.jsonl", None, "episodes.jsonl: no such file"),
        ("summary.json", "{", "summary.json: broken JSON"),
        ("episodes.jsonl", '{"episode": 0', "episodes.jsonl line 1: broken JSON"),
        ("episodes.jsonl", "", "episodes.jsonl: expected 4 episodes with 3 successes .* got 0 with 0"),
        ("metrics.json", "{}", "metrics.json: expected a list of objects"),
        ("metrics.json", '[{"loss": 1}]', "metrics.json: expected a list of objects with step"),
        ("stages.json", '[{"stage": "a"}]', "stages.json: expected .* with stage and seconds"),
    ],
)
def test_broken_folders_are_refused_and_the_earlier_report_stays(tmp_path, name, text, message):
    make_run(tmp_path, 4, 1)
    before = write_report(tmp_path).read_bytes()
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before


@pytest.mark.parametrize("video", ["/etc/passwd", "../other/videos/a.mp4"])
def test_videos_outside_the_run_are_refused(tmp_path, video):
    records = make_run(tmp_path, 2, 1)
    save(tmp_path, [{**records[0], "video": video}, records[1]])
    with pytest.raises(UserError, match="video-0: expected a path inside"):
        write_report(tmp_path)
