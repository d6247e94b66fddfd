"""report.html: it shows the contents of the run folder, is self-contained, and rejects broken folders."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from s2robot.envs.cube_config import STAGES
from s2robot.evaluation.records import headline, summarise, wilson
from s2robot.evaluation.report import training_panels, write_report
from s2robot.evaluation.video import write_video
from tests.errors import refuses
from tests.s2robot.evaluation.made import record, save_records
from tests.s2robot.html_page import Page

EXTRAS = {
    "policy": {"kind": "transformer", "pooling": "spatial"}, "encoder": {"name": "mvp-tiny", "scales": [1, 2]},
    "robot": "xarm7", "cameras": ["hand", "left"], "seed": 10000, "timing": {"simulate_s": 240.3, "wall_s": 262.1},
    "versions": {"torch": "2.13.0"}, "success_text": "did it: twice", "command": "s2robot evaluate checkpoint=<best> episodes=16",
}  # fmt: skip


def make_run(folder: Path, episodes: int, failures: int, videos: int = 0) -> list[dict]:
    """Write the run directory of an evaluation whose first `failures` episodes failed."""
    records = [record(i, i >= failures, "held" if i >= failures else STAGES[i % 3]) for i in range(episodes)]
    for each in records[::-1][:videos]:  # in reverse order, so that the report must sort failures first
        each["video"] = f"videos/episode_{each['episode']:03d}.mp4"
        if each is not records[-1]:
            shutil.copy(folder / records[-1]["video"], folder / each["video"])
            continue
        frames = [{"hand": np.random.default_rng(3).integers(0, 255, (32, 32, 3), dtype=np.uint8)}]
        write_video(folder / each["video"], frames, each, height=32)
    save(folder, records)
    return records


def save(folder: Path, records: list[dict], **changes) -> None:
    save_records(folder, records)
    (folder / "summary.json").write_text(json.dumps({**summarise(records), **EXTRAS, **changes}))


def test_report_shows_the_run_and_is_self_contained(tmp_path):
    records = make_run(tmp_path, 8, 5, videos=8)
    losses = [(0.5, float("nan")), (0.4, None)]
    rows = [{"step": i, "train_loss": a, "val_loss": b} for i, (a, b) in enumerate(losses, 1)]
    (tmp_path / "metrics.json").write_text(json.dumps(rows))
    (tmp_path / "stages.json").write_text(json.dumps([{"stage": "train", "seconds": 200.0}]))
    page = Page(write_report(tmp_path))
    assert headline(json.loads((tmp_path / "summary.json").read_text())) in page.text
    assert page.row("held") == ["held", "3", "0"] and page.row("approach") == ["approach", "8", "2"]
    assert "Failures (5)" in page.text and "3 min 20 s" in page.text and "mvp-tiny" in page.text
    assert "checkpoint=<best>" in page.text and "&lt;best&gt;" in page.source
    assert page.tags.count("svg") == 2 and page.tags.count("video") == 8
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    targets = [address[1:] for address in page.addresses if address.startswith("#video")]
    assert targets == [f"video-{n}" for n in range(5)]  # the failures
    assert re.findall(r'id="(video-\d+)"', page.source) == [f"video-{n}" for n in range(8)]
    assert write_report(tmp_path).read_text(encoding="utf-8") == page.source
    (tmp_path / "summary.json").write_text(json.dumps(summarise(records)))  # a bare summary is enough
    assert "in 3 of 8 episodes" in Page(write_report(tmp_path)).text


def test_report_names_each_episodes_task(tmp_path):
    records = [each | {"task": f"lift cube {each['episode']}"} for each in make_run(tmp_path, 3, 2, videos=3)]
    save(tmp_path, records)
    page = Page(write_report(tmp_path))
    assert page.row("1")[:2] == ["1", "lift cube 1"] and "episode 2 (lift cube 2): success" in page.text


def test_training_has_one_panel_per_quantity():
    rows = [
        {"step": 10 * i, "train_loss": 1 / i, "val_loss": 2 / i, "train_joint_error_rad": 0.02, "val_joint_error": 0.03,
         "lr": 1e-3, "seconds": 0.2, **({"success": 0.25 * i, "tried": 16} if i > 2 else {})}
        for i in range(1, 5)
    ]  # fmt: skip
    panels = {panel.title: panel for panel in training_panels(rows)}
    assert list(panels) == ["loss", "joint error", "lr", "success"]
    assert [line.label for line in panels["joint error"].lines] == ["trained on", "held out"]
    (success,) = panels["success"].lines
    assert (success.x, success.y) == ([30, 40], [0.75, 1.0])
    assert list(zip(success.low, success.high, strict=True)) == [wilson(12, 16), wilson(16, 16)]


def test_every_failure_has_a_row(tmp_path):
    records = make_run(tmp_path, 8, 3)
    records[0] |= {"cube_xy": [-0.0512, 0.1449], "cube_yaw": -np.pi / 2}
    # on hardware the distance is unknown, and an episode may end with a fault
    records[1] |= {"closest_m": None, "fault": "arm <31>", "world": "arm"}
    arm = {"world": "arm", "bridge": {"speed": 0.7}, "faults": 1, "training": {"demos": 120, "held_out": 12}}
    save(tmp_path, records, **arm)
    page = Page(write_report(tmp_path))
    assert page.row("0") == ["0", "approach (not grasped)", "10000", "−5.1", "+14.5", "−90", "1.2", "60"]
    assert "FAULT: arm <31>" in page.row("1")[1] and page.row("1")[6] == "–"
    assert "share of the demos' speed 0.7 · faults 1 · fitted on 120 demos, 12 held out" in page.text


def test_videos_beyond_the_size_limit_are_linked(tmp_path, monkeypatch):
    make_run(tmp_path, 4, 2, videos=4)
    sizes = [(tmp_path / f"videos/episode_{n:03d}.mp4").stat().st_size for n in range(2)]
    (tmp_path / "videos/episode_003.mp4").unlink()
    monkeypatch.setattr("s2robot.reporting.page.VIDEO_BYTES", 4 / 3 * sum(sizes) + 8)
    page = Page(write_report(tmp_path))
    assert re.findall(r'id="(video-\d)"', page.source) == ["video-0", "video-1"]
    left_out = [address for address in page.addresses if address.startswith("videos/")]
    assert left_out == ["videos/episode_002.mp4", "videos/episode_003.mp4"]
    assert "the file is missing" in page.text and page.tags.count("video") == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("episodes.jsonl", "", "episodes.jsonl: episodes: expected 4 .*, got 0"),
        ("metrics.json", "[{", "metrics.json: cannot be read: broken JSON"),
    ],
)
def test_broken_folders_are_rejected_and_the_old_report_remains(tmp_path, name, text, message):
    make_run(tmp_path, 4, 1)
    (tmp_path / "report.html").write_text("before")
    (tmp_path / name).write_text(text)
    refuses(message, write_report, tmp_path)
    assert (tmp_path / "report.html").read_text() == "before"
