"""A comparison's report.html: it says what compare.json says, needs nothing else, and refuses broken folders."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup
from omegaconf import OmegaConf

from s2robot.comparison.report import write_compare_report
from s2robot.comparison.statistics import MINUS, all_pairs, arm_figures, arm_interval, headline, p_text
from s2robot.core.errors import UserError
from s2robot.evaluation.video import write_video
from s2robot.verbs import inspect
from tests.s2robot.evaluation.made import record, save_records
from tests.s2robot.html_page import Page

ARMS = {
    "base": ("Base", "mvp-tiny", [112], 0.52, 1.2, 2_811_904, 31.0),
    "large": ("Large", "mvp-small", [112], 0.57, 4.3, 9_934_848, 58.5),
    "base-s2": ("Base + S²", "mvp-tiny", [112, 224], 0.68, 6.1, 2_811_904, 74.2),
}
AXES = [
    ("cube_size", "cube size", "cm", 2.5, [1.5, 2.5, 4.0], [-0.3, 0.0, 0.15]),
    ("light", "light that the demos never showed", None, "as recorded", ["as recorded", "dim"], [0.0, -0.1]),
]


def save(folder: Path, facts: dict) -> None:
    (folder / "compare.json").write_text(json.dumps(facts), encoding="utf-8")


def _axis(axis: tuple, rng: np.random.Generator, shape: tuple[int, int]) -> dict:
    about = dict(zip(("name", "label", "unit", "default", "values"), axis[:5], strict=True))
    arms: dict[str, list] = {arm: [] for arm in ARMS}
    for arm, row in ARMS.items():
        for value, shift in zip(*axis[4:], strict=True):
            x = rng.random(shape) < np.clip(row[3] + shift, 0.02, 0.98)
            counts = {"episodes": x.size, "successes": int(x.sum())}
            arms[arm].append({"value": value, **arm_interval(x), **counts})
    return about | {"arms": arms}


def make_comparison(folder: Path, positions: int = 128, seeds: int = 3, videos: int = 0) -> dict:
    """A comparison's folder as `s2robot compare` leaves it, its outcomes drawn; returns compare.json."""
    rng = np.random.default_rng(0)
    solved, arms = {}, []
    for name, (label, encoder, scales, rate, gflops, parameters, ms) in ARMS.items():
        solved[name] = rng.random((seeds, positions)) < rate
        runs = [f"arms/{name}/seed-{seed}" for seed in range(seeds)]
        for run, outcomes in zip(runs, solved[name], strict=True):
            episodes = [record(i, bool(x), "held" if x else "approach") for i, x in enumerate(outcomes)]
            save_records(folder / run, episodes)
        arms.append(
            {"name": name, "label": label, "encoder": encoder, "scales": scales, "policy": "transformer",
             "gflops_per_frame": gflops, "parameters": parameters, "ms_per_action": ms,
             **arm_figures(solved[name], range(seeds), runs)}
        )  # fmt: skip
    pairs = all_pairs(solved, range(10_000, 10_000 + positions), [("base-s2", "base"), ("large", "base")])
    facts = {
        "title": "Table 10 with our encoders", "question": "Does S² on a small encoder beat a larger encoder?",
        "arms": arms, "pairs": pairs,
        "power": {
            "gap": 0.1, "power": 0.8, "needed": 291, "planned": positions,
            "table": [{"gap": 0.05, "needed": 1154}, {"gap": 0.2, "needed": None}],
        },
        "stopping": {"method": "betting", "looks": [0] * 4, "stopped_at": None, "reason": "all tried"},
        "axes": [_axis(axis, rng, (seeds, positions)) for axis in AXES],
        "positions": {"seed": 10_000, "episodes": positions},
        "versions": {"s2robot": "0.4.0"}, "command": "s2robot compare experiment=table10",
        "commands": [f"s2robot train encoder={arm[1]}" for arm in ARMS.values()], "videos": [],
    }  # fmt: skip
    for number in range(videos):
        path, frames = f"videos/{number}.mp4", [{"hand": np.full((64, 64, 3), 90, np.uint8)}]
        write_video(folder / path, frames, record(number), height=64, hold_s=0)
        facts["videos"].append({"path": path, "arm": "base", "seed": 0, "position": 10_000 + number})
    save(folder, facts)
    return facts


@pytest.fixture
def undrawn(monkeypatch):
    """Plots are made and not written as SVG, which takes most of a page's time: for tests of its text."""
    monkeypatch.setattr("s2robot.reporting.page.drawing", lambda figure, name: Markup("<svg></svg>"))


@pytest.mark.usefixtures("undrawn")
def test_the_page_says_what_compare_json_says(tmp_path):
    facts = make_comparison(tmp_path)
    page = Page(write_compare_report(tmp_path))
    labels = {name: row[0] for name, row in ARMS.items()}
    for pair in facts["pairs"]:
        assert headline(pair, labels) in page.text
        row = page.row(f"{labels[pair['a']]} {MINUS} {labels[pair['b']]}")
        assert row[2] == f"{100 * pair['difference']:+.1f}".replace("-", MINUS)
        counts = f"{pair['mcnemar']['wins']} / {pair['mcnemar']['losses']}"
        assert row[4:] == [p_text(pair["p_holm"]), "768", counts, p_text(pair["mcnemar"]["p"])]
    for arm, glyph in zip(facts["arms"], "●■▲", strict=True):
        row = page.row(f"{glyph} {arm['label']}")
        assert row[1:3] == [arm["encoder"], ", ".join(map(str, arm["scales"]))]
        assert row[4] == f"{100 * arm['success']:.1f} %"
        assert row[6] == " · ".join(f"{run['successes']}/128" for run in arm["seeds"])
        costs = [arm["gflops_per_frame"], arm["parameters"] / 1e6, arm["ms_per_action"]]
        assert [float(cell) for cell in row[7:]] == pytest.approx(costs, rel=0.005)
    for axis, row in zip(facts["axes"], ("4", "dim"), strict=True):
        shown = [f"{100 * points[-1]['success']:.1f} %" for points in axis["arms"].values()]
        assert [cell.split(" [")[0] for cell in page.row(row)[1:]] == shown
    assert page.row("5") == ["5", "1154"] and page.row("20") == ["20", "–"]
    assert all(command in page.text for command in [facts["command"], *facts["commands"]])
    save(tmp_path, facts | {"stopping": None, "axes": [], "commands": [], "versions": {}})
    few = Page(write_compare_report(tmp_path))
    assert few.tags.count("svg") == 4 and few.tags.count("h2") == 6


def test_the_page_that_the_verb_writes_needs_nothing_else(tmp_path):
    facts = make_comparison(tmp_path, positions=16, seeds=2, videos=2)
    (tmp_path / "summary.json").write_text("{}")  # of a comparison, too
    inspect(OmegaConf.create({"run": str(tmp_path)}))
    page = Page(tmp_path / "report.html")
    assert page.tags.count("video") == 2 and page.tags.count("svg") == 6
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not {"script", "link", "iframe", "img"} & set(page.tags) and len(page.ids) == len(set(page.ids))
    assert "@import" not in page.source and not re.search(r"url\((?!#)", page.source)
    assert f"position {facts['videos'][0]['position']}" in page.text
    assert write_compare_report(tmp_path).read_text(encoding="utf-8") == page.source  # the same each time
    (tmp_path / "empty").mkdir()
    for name in ("empty", "none"):
        with pytest.raises(UserError, match=f"^run: expected .*got {tmp_path / name}$"):
            inspect(OmegaConf.create({"run": str(tmp_path / name)}))


@pytest.mark.usefixtures("undrawn")
def test_broken_files_are_refused_in_one_line_and_the_earlier_report_stays(tmp_path):
    facts = make_comparison(tmp_path, positions=4, seeds=2, videos=1)
    before = write_compare_report(tmp_path).read_bytes()
    episodes = tmp_path / "arms/large/seed-1/episodes.jsonl"
    lines = episodes.read_text().splitlines(keepends=True)
    beyond = {**json.loads(lines[-1]), "episode": len(lines), "seed": 99_999}
    episodes.write_text("".join(lines) + json.dumps(beyond) + "\n")  # an axis tried more positions
    assert write_compare_report(tmp_path).read_bytes() == before
    moved = [json.dumps({**json.loads(line), "seed": 77 + i}) + "\n" for i, line in enumerate(lines)]
    outside = facts | {"videos": [facts["videos"][0] | {"path": "../videos/a.mp4"}]}
    for file, text, message in (
        (episodes, "".join(lines[:3]), "expected .'episodes': 4, .*, got .'episodes': 3"),
        (episodes, "".join(moved), "arm 'large' seed 1: expected the positions of"),
        (tmp_path / "compare.json", json.dumps(outside), "expected a path inside the run folder"),
    ):
        episodes.write_text("".join(lines))
        file.write_text(text)
        with pytest.raises(UserError, match=message) as caught:
            write_compare_report(tmp_path)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "report.html").read_bytes() == before
