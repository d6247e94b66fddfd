"""A comparison's report.html: it shows the figures of compare.json, is self-contained, and rejects broken folders."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from s2robot.comparison.paired import success_sequence
from s2robot.comparison.report import write_compare_report
from s2robot.comparison.statistics import MINUS, headline, p_text
from s2robot.core.errors import UserError
from s2robot.core.files import read_json, write_json
from s2robot.evaluation.records import read_records
from s2robot.evaluation.video import write_video
from s2robot.verbs import inspect
from tests.s2robot.comparison.test_compare import compare_stubs, planned
from tests.s2robot.evaluation.made import record
from tests.s2robot.html_page import Page

WORDS = ["arms=[base,base-s2,base-s2-pretrained]", "evaluate.episodes=8", "experiment.videos=0", "jobs=2", "threads=1",
         "experiment.seeds=[0,1]", "experiment.stopping.enabled=true", "experiment.stopping.alpha=0.2", "axes=[lighting]", "experiment.axis_episodes=4",
         "experiment.axes.lighting.values=[0.5,1.0]", "experiment.measure=overlap", "experiment.published=[{name: Theirs, result: 64 %}]"]  # fmt: skip


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The folder of a comparison with stub stages, a video and an axis of words."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("compared"))
        facts = compare_stubs(*planned(["run_dir=out", *WORDS], WORDS[1:2]), patch)
        run = Path("out").resolve()
    write_video(run / "videos/0.mp4", [{"hand": np.full((64, 64, 3), 90, np.uint8)}], record(0), height=64)
    (axis,), names = facts["axes"], {0.5: "dim", 1.0: ["lit"]}
    arms = {a: [p | {"value": names[p["value"]]} for p in points] for a, points in axis["arms"].items()}
    words = axis | {"label": "words", "default": ["lit"], "values": ["dim", ["lit"]], "arms": arms}
    videos = [{"path": "videos/0.mp4", "arm": "base", "seed": 0, "position": 10_000}]
    write_json(run / "compare.json", facts | {"videos": videos, "axes": [axis, words]})
    return run


@pytest.fixture
def run(compared, tmp_path):
    return shutil.copytree(compared, tmp_path / "run")


@pytest.fixture
def empty_plots(monkeypatch):
    """Make plots without writing their SVG, which takes most of a page's time: for tests of the text."""
    monkeypatch.setattr("s2robot.reporting.page.figure_svg", lambda figure, name: "<svg></svg>")


@pytest.mark.usefixtures("empty_plots")
def test_page_shows_the_figures_of_compare_json(run):
    facts, page = read_json(run / "compare.json"), Page(write_compare_report(run))
    labels = {arm["name"]: arm["label"] for arm in facts["arms"]}
    for pair in facts["pairs"]:
        assert pair["method"].startswith("confidence sequence")  # of the looks, although none of them decided
        assert headline(pair, labels) in page.text
        row = page.row(f"{labels[pair['a']]} {MINUS} {labels[pair['b']]}")
        assert row[2] == f"{100 * pair['difference']:+.1f}".replace("-", MINUS)
        counts = f"{pair['mcnemar']['wins']} / {pair['mcnemar']['losses']}"
        assert row[4:] == [p_text(pair["p_holm"]), "32", counts, p_text(pair["mcnemar"]["p"])]
    for arm, glyph in zip(facts["arms"], "●■▲", strict=True):
        row = page.row(f"{glyph} {arm['label']}")
        assert row[1:3] == [arm["encoder"], ", ".join(map(str, arm["scales"]))]
        assert row[4] == f"{100 * arm['success']:.1f} %"
        tried = [read_records(run / each["run"] / "episodes.jsonl", 8) for each in arm["seeds"]]
        outcomes = np.array([[record["success"] for record in records] for records in tried])
        assert [arm["low"], arm["high"]] == [*success_sequence(outcomes)[:2]]  # at 95 %, as the column says
        assert row[6] == ", ".join(str(run["successes"]) for run in arm["seeds"])
        costs = [arm["gflops_per_frame"], arm["parameters"] / 1e6, arm["ms_per_action"]]
        assert [float(cell) for cell in row[8:]] == pytest.approx(costs, rel=0.005)
        assert row[7] == "0.406 [0.112–0.701]"  # of 8 positions
        assert arm["progress"][0] == pytest.approx(0.40625)
    assert page.row("Theirs")[1:] == ["64 %", ""]
    for axis, row in zip(facts["axes"], ("0.5", "dim"), strict=True):
        shown = [f"{100 * points[0]['success']:.1f} %" for points in axis["arms"].values()]
        assert [cell.split(" [")[0] for cell in page.row(row)[1:]] == shown
    needed = [page.row(f"{100 * row['gap']:g}")[1] for row in facts["power"]["table"]]
    assert needed == [str(row["needed"] or "–") for row in facts["power"]["table"]]
    assert all(command in page.text for command in [facts["command"], *facts["commands"]])
    write_json(run / "compare.json", facts | {"stopping": None, "axes": [], "commands": [], "versions": {}})
    short = Page(write_compare_report(run))
    assert short.tags.count("svg") == 4 and short.tags.count("h2") == 7


def test_page_written_by_the_verb_is_self_contained(run, tmp_path):
    inspect(OmegaConf.create({"run": str(run)}))
    page = Page(run / "report.html")
    assert page.tags.count("video") == 1 and page.tags.count("svg") == 6
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not {"script", "link", "iframe", "img"} & set(page.tags) and len(page.ids) == len(set(page.ids))
    assert "@import" not in page.source and not re.search(r"url\((?!#)", page.source)
    assert "position 10000" in page.text
    assert write_compare_report(run).read_text(encoding="utf-8") == page.source  # the same each time
    (tmp_path / "empty").mkdir()
    for name in ("empty", "none"):
        with pytest.raises(UserError, match=f"^run: expected .*got {tmp_path / name}$"):
            inspect(OmegaConf.create({"run": str(tmp_path / name)}))


@pytest.mark.usefixtures("empty_plots")
def test_broken_files_are_one_error_line_and_the_old_report_remains(run):
    facts = read_json(run / "compare.json")
    before = write_compare_report(run).read_bytes()
    episodes = run / "arms/base-s2/seed-1/episodes.jsonl"
    lines = episodes.read_text().splitlines(keepends=True)
    beyond = {**json.loads(lines[-1]), "episode": len(lines), "seed": 99_999}
    episodes.write_text("".join(lines) + json.dumps(beyond) + "\n")  # an axis has more positions
    assert write_compare_report(run).read_bytes() == before
    renumbered = [json.dumps({**json.loads(line), "seed": 77 + i}) + "\n" for i, line in enumerate(lines)]
    outside = facts | {"videos": [facts["videos"][0] | {"path": "../videos/a.mp4"}]}
    for file, text, message in (
        (episodes, "".join(lines[:3]), "episodes: expected 8 .*, got 3"),
        (episodes, "".join(renumbered), "arm 'base-s2' seed 1: expected the positions of"),
        (run / "compare.json", json.dumps(outside), "expected a path inside the run directory"),
    ):
        episodes.write_text("".join(lines))
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            write_compare_report(run)
    assert (run / "report.html").read_bytes() == before
