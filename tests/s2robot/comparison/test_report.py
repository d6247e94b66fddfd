"""A comparison's report.html: it says what compare.json says, needs nothing else, and refuses broken folders.

python tests/s2robot/comparison/test_report.py <folder>   # a made-up comparison of three arms and its report
"""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup
from omegaconf import OmegaConf

from s2robot.common.errors import UserError
from s2robot.comparison import wording
from s2robot.comparison.paired import difference, holm, mcnemar
from s2robot.comparison.power import Design, needed
from s2robot.comparison.report import write_compare_report
from s2robot.comparison.wording import points
from s2robot.evaluation.records import wilson
from s2robot.evaluation.video import Side, write_pair
from s2robot.verbs import report
from tests.s2robot.html_page import Page

ARMS = {
    "base": ("Base", "mvp-tiny", [112], 0.52, 1.2, 2_811_904, 31.0),
    "large": ("Large", "mvp-small", [112], 0.57, 4.3, 9_934_848, 58.5),
    "base-s2": ("Base + S²", "mvp-tiny", [112, 224], 0.68, 6.1, 2_811_904, 74.2),
}
AXES = [
    ("cube_size", "cube size", "cm", 2.5, [1.5, 2.5, 4.0, 5.5], [-0.3, 0.0, 0.15, 0.2]),
    ("light", "light that the demos never showed", None, "as recorded",
     ["as recorded", "dim", "coloured", "lamp from the side"], [0.0, -0.1, -0.25, -0.18]),
]  # fmt: skip
METRICS = ("position_mean_cm", "position_r2", "yaw_mean_deg")


def make_comparison(
    folder: Path, positions: int = 128, seeds: int = 3, videos: int = 0, seed: int = 0
) -> dict:
    """A comparison's folder as `s2robot compare` leaves it, its outcomes drawn; returns compare.json."""
    rng = np.random.default_rng(seed)
    cubes = rng.uniform((-0.12, -0.16), (0.12, 0.16), (positions, 2))
    ease = rng.normal(0, 0.15, positions) + 0.25 - 2.5 * np.linalg.norm(cubes, axis=1)  # the rim is harder
    solved, arms = {}, []
    for name, (label, encoder, scales, rate, gflops, parameters, ms) in ARMS.items():
        chance = np.clip(rate + ease + rng.normal(0, 0.02, (seeds, 1)), 0.02, 0.98)
        solved[name] = rng.random((seeds, positions)) < chance
        runs = []
        for row, outcomes in enumerate(solved[name]):
            runs.append({"seed": row, "run": f"arms/{name}/seed-{row}", **_count(outcomes)})
            _write_run(folder / runs[-1]["run"], cubes, outcomes, rng)
        arms.append(
            {"name": name, "label": label, "encoder": encoder, "scales": scales, "policy": "transformer", "seeds": runs,
             **_result(solved[name]), "interval": "Wilson", "gflops_per_frame": gflops, "parameters": parameters,
             "ms_per_action": ms}
        )  # fmt: skip
    pairs = [_pair(a, b, solved) for a, b in (("base-s2", "base"), ("base-s2", "large"), ("large", "base"))]
    facts = {
        "title": "Table 10 with our encoders",
        "question": "Does S² on a small encoder beat a larger encoder?",
        "arms": arms,
        "pairs": pairs,
        "power": {
            "gap": 0.1, "power": 0.8, "needed": needed(0.1, Design(0.5)), "planned": positions,
            "table": [{"gap": gap, "needed": needed(gap, Design(0.5))} for gap in (0.05, 0.1, 0.2)],
        },
        "stopping": {"method": "betting", "looks": 4, "stopped_at": None, "reason": None},
        "axes": [_axis(axis, rng, seeds * positions) for axis in AXES],
        "information": {
            "columns": ["source", "loss", "information (bits)", "ratio"],
            "rows": [["base", 0.1123, {"value": 1.234, "low": 1.1, "high": 1.36}, 0.812],
                     ["base-s2", 0.0987, {"value": 1.421, "low": 1.29, "high": 1.55}, None]],
        },
        "readout": None,
        "positions": {"seed": 10_000, "episodes": positions},
        "versions": {"s2robot": "0.4.0", "torch": "2.13.0", "mujoco": "3.9.0"},
        "command": "s2robot compare experiment=table10",
        "commands": [f"s2robot train encoder={ARMS[name][1]} train.seed={k}" for name in ARMS for k in range(seeds)],
        "videos": [],
    }  # fmt: skip
    for number in range(videos):
        wins = pairs[0]["only_a"] if number % 2 == 0 else pairs[0]["only_b"]
        path, position = f"videos/pair_{number}.mp4", wins[number // 2]
        _write_video(folder / path, position, number % 2 == 0)
        facts["videos"].append(
            {"title": f"Only {'Base + S²' if number % 2 == 0 else 'Base'} lifts it", "path": path,
             "a": "base-s2", "b": "base", "position": position}
        )  # fmt: skip
    save(folder, facts)
    return facts


def p_text(p: float) -> str:
    return wording.p_text(p).replace("\N{NO-BREAK SPACE}", " ")


def save(folder: Path, facts: dict) -> None:
    (folder / "compare.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _count(outcomes: np.ndarray) -> dict:
    return {"episodes": int(outcomes.size), "successes": int(outcomes.sum())}


def _result(outcomes: np.ndarray) -> dict:
    low, high = wilson(int(outcomes.sum()), outcomes.size)
    return {"success": float(outcomes.mean()), "low": low, "high": high}


def _write_run(folder: Path, cubes: np.ndarray, outcomes: np.ndarray, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    lines = []
    for number, (xy, success) in enumerate(zip(cubes.tolist(), outcomes.tolist(), strict=True)):
        record = {
            "episode": number, "seed": 10_000 + number, "cube_xy": xy, "cube_yaw": float(rng.uniform(-3, 3)),
            "success": success, "stage": "held" if success else "approach", "steps": 25 if success else 60,
            "time_to_success_s": 2.5 if success else None, "closest_m": 0.01, "video": None,
        }  # fmt: skip
        lines.append(json.dumps(record) + "\n")
    (folder / "episodes.jsonl").write_text("".join(lines))


def _pair(a: str, b: str, solved: dict[str, np.ndarray]) -> dict:
    found = asdict(difference(solved[a], solved[b]))
    apart = solved[a].mean(0) - solved[b].mean(0)
    only_a, only_b = ((10_000 + np.flatnonzero(sign * apart > 0)).tolist() for sign in (1, -1))
    return {
        "a": a, "b": b, **{key: found[key] for key in ("difference", "low", "high", "p", "scope")},
        "episodes": int(solved[a].size), "method": "t interval over seeds and positions",
        "mcnemar": {"wins": len(only_a), "losses": len(only_b), "p": mcnemar(len(only_a), len(only_b))},
        "only_a": only_a, "only_b": only_b,
    }  # fmt: skip


def _axis(axis: tuple, rng: np.random.Generator, episodes: int) -> dict:
    name, label, unit, default, values, shifts = axis
    arms = {}
    for arm, row in ARMS.items():
        arms[arm] = []
        for value, shift in zip(values, shifts, strict=True):
            outcomes = rng.random(episodes) < np.clip(row[3] + shift, 0.02, 0.98)
            arms[arm].append({"value": value, **_result(outcomes), **_count(outcomes)})
    return {"name": name, "label": label, "unit": unit, "default": default, "values": values, "arms": arms}


def _write_video(path: Path, position: int, first: bool) -> None:
    ramp = np.linspace(60, 220, 112, dtype=np.uint8)
    image = np.stack(
        [np.tile(ramp, (112, 1)), np.tile(ramp[:, None], (1, 112)), np.full((112, 112), 120, np.uint8)], -1
    )
    sides = []
    for label, success, count in (("Base + S²", first, 6), ("Base", not first, 9)):
        frames = [
            {camera: np.roll(image, 5 * k, 1) for camera in ("hand", "left", "right")} for k in range(count)
        ]
        record = {"seed": position, "success": success, "stage": "held" if success else "grasp"}
        sides.append(Side(label, frames, record))
    write_pair(path, *sides, hold_s=0.2)


def make_readout() -> dict:
    """What `s2robot probe` writes, as far as a page shows it."""
    rng = np.random.default_rng(1)
    cameras, pools = ["hand", "left", "right"], ["tokens", "mean"]
    results = []
    for encoder in ("base", "base-s2", "gripper pose", "mean"):
        sees = encoder.startswith("base")
        for pool in pools if sees else ["-"]:
            for camera in [*cameras, "all"] if sees else ["-"]:
                for subset in ("all", "apart"):
                    value = float(rng.uniform(1, 3))
                    found = {m: {"value": value, "low": value - 0.2, "high": value + 0.2} for m in METRICS}
                    results.append(
                        {"encoder": encoder, "pool": pool, "cameras": camera, "subset": subset, **found}
                    )
    encoders = {"base": {}, "base-s2": {}}
    figures = {f"metric {i}": {"value": 0.5, "low": 0.4, "high": 0.6} for i in range(5)}
    dense = [
        {"encoder": name, "cameras": camera, **figures} for name in encoders for camera in ("hand", "all")
    ]
    cells = {"results": dense, "differences": [{"encoder": "base-s2", "minus": "base", **dense[-1]}]}
    return {
        "cells": cells,
        "settings": {"pools": pools, "world": {"cameras": cameras}},
        "encoders": encoders, "results": results, "differences": [{**results[0], "minus": "base", "cameras": "all"}],
    }  # fmt: skip


@pytest.fixture
def undrawn(monkeypatch):
    """Plots are made and not written as SVG, which takes most of a page's time: for tests of its text."""
    monkeypatch.setattr("s2robot.comparison.report.drawing", lambda figure, name: Markup("<svg></svg>"))


@pytest.mark.usefixtures("undrawn")
def test_the_page_says_what_compare_json_says(tmp_path):
    facts = make_comparison(tmp_path)
    page = Page(write_compare_report(tmp_path))
    adjusted = holm([pair["p"] for pair in facts["pairs"]])
    for pair, p in zip(facts["pairs"], adjusted, strict=True):
        a, b = (ARMS[pair[key]][0] for key in ("a", "b"))
        found = (
            f"{a} {points(pair['difference'])} points against {b} [{points(pair['low'])}, {points(pair['high'])}], "
            f"{p_text(p)}, N = 384"
        )
        assert found in page.text
        row = page.row(f"{a} − {b}")
        assert row[2:5] == [
            points(pair["difference"]),
            f"{points(pair['low'])} to {points(pair['high'])}",
            p_text(p),
        ]
        assert row[5:] == [
            "384",
            f"{len(pair['only_a'])} / {len(pair['only_b'])}",
            p_text(pair["mcnemar"]["p"]),
        ]
    for arm, glyph in zip(facts["arms"], "●■▲", strict=True):
        row = page.row(f"{glyph} {arm['label']}")
        assert row[1] == arm["encoder"] and row[2] == ", ".join(map(str, arm["scales"]))
        assert row[4:6] == [
            f"{100 * arm['success']:.1f} %",
            f"{100 * arm['low']:.1f}–{100 * arm['high']:.1f}",
        ]
        assert row[6] == " · ".join(f"{run['successes']}/128" for run in arm["seeds"])
        assert [float(cell) for cell in row[7:]] == pytest.approx(
            [arm["gflops_per_frame"], arm["parameters"] / 1e6, arm["ms_per_action"]], rel=0.005
        )
    for axis in facts["axes"]:
        for i, value in enumerate(axis["values"]):
            cells = page.row(str(value) if isinstance(value, str) else f"{value:g}")[1:]
            for cell, points_of in zip(cells, axis["arms"].values(), strict=True):
                p = points_of[i]
                low, high = 100 * p["low"], 100 * p["high"]
                assert (
                    cell
                    == f"{100 * p['success']:.1f} % [{low:.1f}–{high:.1f}], {p['successes']}/{p['episodes']}"
                )
    for row in facts["power"]["table"]:
        assert page.row(f"{100 * row['gap']:g}") == [f"{100 * row['gap']:g}", str(row["needed"])]
    assert "Planned: 128, fewer than that" in page.text and "291 positions needed" in page.text
    assert page.row("base") == ["base", "0.112", "1.23 [1.1, 1.36]", "0.812"]
    assert all(command in page.text for command in [facts["command"], *facts["commands"]])
    assert page.row("mujoco") == ["mujoco", "3.9.0"]


def test_the_page_needs_nothing_else(tmp_path):
    facts = make_comparison(tmp_path, positions=16, seeds=2, videos=2)
    page = Page(write_compare_report(tmp_path))
    assert page.tags.count("video") == 2 and page.tags.count("svg") == 7
    for address in page.addresses:
        assert address.startswith(("data:", "#")), address
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert "@import" not in page.source and not re.search(r"url\((?!#)", page.source)
    assert len(page.ids) == len(set(page.ids))
    videos = [address for address in page.addresses if address.startswith("data:video/mp4")]
    assert len(videos) == 2 and f"position {facts['videos'][0]['position']}" in page.text
    assert "Left: Base + S², right: Base" in page.text
    before = page.source
    assert write_compare_report(tmp_path).read_text(encoding="utf-8") == before  # the same each time
    assert [p.name for p in tmp_path.iterdir() if "report" in p.name] == ["report.html"]


@pytest.mark.usefixtures("undrawn")
def test_the_verb_writes_the_page_of_a_comparison(tmp_path, capsys):
    make_comparison(tmp_path, positions=8, seeds=1)
    (tmp_path / "summary.json").write_text("{}")  # of a comparison, too
    report(OmegaConf.create({"run": str(tmp_path)}))
    assert capsys.readouterr().out == f"report: {tmp_path / 'report.html'}\n"
    assert "Arm against arm" in Page(tmp_path / "report.html").text


@pytest.mark.parametrize(
    ("name", "found"), [("", "found neither summary.json nor compare.json"), ("none", "no such")]
)
def test_the_verb_refuses_a_folder_that_is_neither(tmp_path, name, found):
    with pytest.raises(
        UserError, match=f"run: {tmp_path / name}: {found}.* expected the run folder of a finished"
    ):
        report(OmegaConf.create({"run": str(tmp_path / name)}))


@pytest.mark.usefixtures("undrawn")
def test_videos_that_are_missing_or_too_large_are_named(tmp_path):
    facts = make_comparison(tmp_path, positions=16, seeds=1, videos=2)
    (tmp_path / facts["videos"][0]["path"]).unlink()
    page = Page(write_compare_report(tmp_path, video_bytes=100))
    assert page.tags.count("video") == 0 and "2 videos are not in this page" in page.text
    assert "the file is not there" in page.text and "too large for this page" in page.text


def test_what_is_optional_may_be_missing(tmp_path):
    facts = make_comparison(tmp_path, positions=5, seeds=1)
    for key in ("power", "stopping", "axes", "information", "readout", "videos"):
        del facts[key]
    facts["pairs"], facts["commands"], facts["versions"] = [], [], {}
    for arm in facts["arms"]:
        arm |= {"gflops_per_frame": None, "parameters": None, "ms_per_action": None}
        del arm["interval"]
    save(tmp_path, facts)
    page = Page(write_compare_report(tmp_path))
    assert "No two arms were compared." in page.text and page.tags.count("svg") == 2
    for absent in (
        "Where it pays",
        "Videos",
        "features",
        "How many episodes",
        "against cost",
        "Versions",
        "None",
        "nan",
    ):
        assert absent not in page.text


@pytest.mark.parametrize(
    ("figures", "starts", "says"),
    [
        ((0.12, 0.04, 0.2, 0.003), "Base + S² +12.0 points", "Base + S² succeeded more often than Base."),
        ((-0.12, -0.2, -0.04, 0.0002), "Base + S² −12.0 points", "The data fit Base being 4.0 to 20.0 points better."),
        ((0.02, -0.03, 0.07, 0.41), "No clear difference: Base + S² +2.0", "from 3.0 points worse to 7.0 points better"),
        ((0.05, 0.001, 0.1, 0.06), "Borderline: Base + S²", "Interval and test disagree"),
        ((0.05, -0.001, 0.1, 0.04), "Borderline: Base + S²", "Interval and test disagree"),
        ((0.0, 0.0, 0.0, 1.0), "No clear difference: Base + S² +0.0", "The interval holds 0"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("undrawn")
def test_the_headline_claims_no_more_than_the_figures(tmp_path, figures, starts, says):
    facts = make_comparison(tmp_path, positions=4, seeds=1)
    facts["pairs"] = [facts["pairs"][0] | dict(zip(("difference", "low", "high", "p"), figures, strict=True))]
    facts["axes"] = []
    save(tmp_path, facts)
    page = Page(write_compare_report(tmp_path))
    headline = re.search(r"<h1>(.*?)</h1>", page.source).group(1).replace("\N{NO-BREAK SPACE}", " ")
    assert headline.startswith(starts) and says in page.text


def test_p_is_never_shown_as_zero():
    assert [p_text(p) for p in (0.0, 0.00099, 0.0041, 0.0412, 0.5, 1.0)] == [
        "p < 0.001", "p < 0.001", "p = 0.0041", "p = 0.041", "p = 0.5", "p = 1",
    ]  # fmt: skip


def test_text_is_escaped(tmp_path):
    facts = make_comparison(tmp_path, positions=4, seeds=1, videos=1)
    evil = '<script>alert("1")</script> & \' $x_1$'
    facts["title"] = facts["question"] = facts["command"] = evil
    facts["versions"] = {evil: {evil: evil}}
    facts["commands"] = [evil]
    facts["stopping"]["reason"] = facts["stopping"]["method"] = evil
    facts["information"] = {"columns": [evil], "rows": [[evil]]}
    facts["videos"][0]["title"] = evil
    for arm in facts["arms"]:
        arm |= {"label": f"{arm['label']} {evil}", "encoder": {evil: evil}, "policy": evil, "interval": evil}
    for pair in facts["pairs"]:
        pair |= {"scope": evil, "method": evil}
    facts["axes"][0] |= {"label": evil, "unit": evil}
    save(tmp_path, facts)
    page = Page(write_compare_report(tmp_path))
    assert "script" not in page.tags and page.text.count(evil) >= 12


@pytest.mark.usefixtures("undrawn")
def test_settings_as_objects_are_shown_by_name(tmp_path):
    facts = make_comparison(tmp_path, positions=4, seeds=1)
    facts["arms"][0] |= {
        "encoder": {"name": "mvp-tiny", "dtype": "bfloat16"},
        "policy": {"kind": "mlp", "execute": 4},
    }
    save(tmp_path, facts)
    assert Page(write_compare_report(tmp_path)).row("● Base")[1:4] == [
        "mvp-tiny",
        "112",
        "kind mlp, execute 4",
    ]


def test_a_readout_is_drawn_and_a_broken_one_refused(tmp_path, request):
    facts = make_comparison(tmp_path, positions=4, seeds=1)
    facts["readout"] = make_readout()
    save(tmp_path, facts)
    page = Page(write_compare_report(tmp_path))
    joined = next(r for r in facts["readout"]["results"] if r["cameras"] == "all" and r["pool"] == "tokens")
    row = next(row for row in page.rows if row[:2] == ["base", "tokens"])
    assert row[4].startswith(f"{joined['position_mean_cm']['value']:.3g} [")
    assert [row[:2] for row in page.rows if row[-5:] == ["0.5 [0.4, 0.6]"] * 5] == [
        ["base", "all"], ["base-s2", "all"], ["base-s2", "base"],
    ]  # fmt: skip
    request.getfixturevalue("undrawn")
    del facts["readout"]["cells"]  # as of an earlier version
    save(tmp_path, facts)
    assert not any(row[-1] == "0.5 [0.4, 0.6]" for row in Page(write_compare_report(tmp_path)).rows)
    del facts["readout"]["results"][0]["encoder"]
    save(tmp_path, facts)
    with pytest.raises(UserError, match=r"compare.json: readout: .* got KeyError: 'encoder'"):
        write_compare_report(tmp_path)


def _set(*path_and_value):
    *path, last, value = path_and_value

    def change(facts):
        for key in path:
            facts = facts[key]
        if value is KeyError:
            del facts[last]
        else:
            facts[last] = value

    return change


BROKEN = [
    (_set("title", KeyError), "title: expected a value, got nothing"),
    (_set("question", " "), "question: expected "),
    (_set("commands", "make"), "commands: expected a list, got 'make'"),
    (_set("versions", []), r"versions: expected keys and values, got \[\]"),
    (_set("positions", "seed", None), "positions.seed: expected an integer, got null"),
    (_set("arms", []), r"arms: expected at least 1 values, got \[\]"),
    (_set("arms", 1, 7), r"arms\[1\]: expected keys and values, got 7"),
    (_set("arms", 1, "name", "base"), "arms: expected every name once, got 'base'"),
    (_set("arms", 1, "success", 57.0), r"arms\[1\].success: expected <= 1, got 57.0"),
    (_set("arms", 0, "gflops_per_frame", KeyError), r"arms\[0\].gflops_per_frame: expected a value, got nothing"),
    (_set("arms", 0, "seeds", 0, "successes", True), r"arms\[0\].seeds\[0\].successes: expected no boolean, got true"),
    (_set("arms", 0, "seeds", 0, "run", "../x"), r"arms\[0\].seeds\[0\].run: expected .*, got '../x'"),
    (_set("arms", 0, "seeds", 1, "seed", 0), r"arms\[0\].seeds: expected every seed once, got 0"),
    (_set("pairs", 0, "a", "huge"), r"pairs\[0\].a: expected one of the arms base, large, base-s2, got 'huge'"),
    (_set("pairs", 2, "p", KeyError), r"pairs\[2\].p: expected a value, got nothing"),
    (_set("pairs", 0, "low", -20.0), r"pairs\[0\].low: expected >= -1, got -20.0"),
    (_set("pairs", 0, "mcnemar", "wins", -1), r"pairs\[0\].mcnemar.wins: expected >= 0, got -1"),
    (_set("pairs", 0, "only_b", [3]), r"pairs\[0\]: 'only_b' holds position 3, expected .* \(10000 to 10003\)"),
    (_set("power", "needed", "many"), "power.needed: expected an integer, got 'many'"),
    (_set("power", "table", [{"gap": 0.1}]), r"power.table\[0\].needed: expected a value, got nothing"),
    (_set("stopping", "looks", None), "stopping.looks: expected an integer or a list, got null"),
    (_set("axes", 0, "arms", "huge", []), r"axes\[0\].arms: expected one of the arms base, .* got 'huge'"),
    (_set("axes", 0, "arms", "base", 0, "value", 9), r"axes\[0\].arms.base\[0\].value: expected one of .*, got 9"),
    (_set("information", "rows", 0, [1]), r"information.rows\[0\]: expected 4 cells, got \[1\]"),
    (_set("readout", []), r"readout: expected keys and values, got \[\]"),
    (_set("videos", [{"title": "x"}]), r"videos\[0\].path: expected a value, got nothing"),
]  # fmt: skip


@pytest.mark.usefixtures("undrawn")
def test_broken_values_are_refused_in_one_line_and_the_earlier_report_stays(tmp_path):
    facts = make_comparison(tmp_path, positions=4, seeds=2)
    before = write_compare_report(tmp_path).read_bytes()
    for change, message in BROKEN:
        broken = json.loads(json.dumps(facts))
        change(broken)
        save(tmp_path, broken)
        with pytest.raises(UserError, match=f"compare.json: {message}") as caught:
            write_compare_report(tmp_path)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "report.html").read_bytes() == before


@pytest.mark.usefixtures("undrawn")
def test_broken_files_are_refused(tmp_path):
    facts = make_comparison(tmp_path, positions=4, seeds=2)
    episodes = tmp_path / "arms/large/seed-1/episodes.jsonl"
    whole = episodes.read_text()
    lines = whole.splitlines(keepends=True)
    beyond = {
        **json.loads(lines[-1]),
        "episode": len(lines),
        "seed": 99_999,
    }  # of an axis that tried more positions
    episodes.write_text(whole + json.dumps(beyond) + "\n")
    write_compare_report(tmp_path)
    episodes.write_text("".join(lines[:3]))
    successes = facts["arms"][1]["seeds"][1]["successes"]
    found = sum(json.loads(line)["success"] for line in lines[:3])
    expected = rf"found 3 episodes with {found} successes, expected 4 with {successes} \(compare.json: arms\[1\].seeds\[1\]\)"
    with pytest.raises(UserError, match=rf"large/seed-1/episodes.jsonl: {expected}"):
        write_compare_report(tmp_path)
    moved = [json.dumps({**json.loads(line), "seed": 77 + i}) + "\n" for i, line in enumerate(lines)]
    episodes.write_text("".join(moved))
    with pytest.raises(UserError, match="arm 'large' seed 1: position 77 is one too many"):
        write_compare_report(tmp_path)
    episodes.unlink()
    with pytest.raises(UserError, match="large/seed-1/episodes.jsonl: no such file"):
        write_compare_report(tmp_path)
    for text, message in (("{", "broken JSON"), ("[]", "expected keys and values, got")):
        (tmp_path / "compare.json").write_text(text)
        with pytest.raises(UserError, match=f"compare.json: {message}"):
            write_compare_report(tmp_path)
    with pytest.raises(UserError, match="compare.json: no such file"):
        write_compare_report(tmp_path / "nowhere")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    made = make_comparison(target, videos=4)
    made["readout"] = make_readout()
    save(target, made)
    print(write_compare_report(target))
