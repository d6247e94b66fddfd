"""`s2robot validate` from end to end, on a small LeRobot data set: no simulator has a part in it."""

import csv
import json
import shutil

import pytest

from s2robot import cli
from tests.demos.formats import made
from tests.s2robot.html_page import Page


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("validate")


@pytest.fixture(scope="module")
def checkpoint(home, tiny_encoder):
    """Trained on one of the two episodes."""
    data = made.lerobot_v21(home / "koch")
    args = [
        "train", f"demos.path={data}", f"encoder.checkpoint={tiny_encoder}", "train.steps=2", "train.batch_size=4",
        "train.validation=0.5", "policy.members=1", "policy.network.hidden=[16]", f"hydra.run.dir={home / 'run'}",
    ]  # fmt: skip
    assert cli.main(args) == 0
    return home / "run/checkpoint"


@pytest.fixture(scope="module")
def validated(checkpoint, home):
    out = home / "out"
    assert cli.main(["validate", f"checkpoint={checkpoint}", f"hydra.run.dir={out}"]) == 0
    return out


def test_figures_table_and_pages_agree(validated, checkpoint):
    found = json.loads((validated / "validation.json").read_text())
    noted = json.loads((checkpoint / "policy.json").read_text())["contract"]["training"]
    assert found["episodes"] == noted["held_out_episodes"] and noted["held_out"] == 1
    (number,) = found["episodes"]
    assert found["steps"] == made.LENGTHS[number] - 1  # the first has no action before it
    (part,) = found["parts"]
    rows = list(csv.DictReader((validated / "validation.csv").open()))
    first = next(row for row in rows if row["measure"] == "action_error" and row["chunk_step"] == "1")
    for method in ("policy", "repeat", "mean"):
        assert float(first[method]) == pytest.approx(part["by_step"][method][0], rel=1e-5)
    page = Page(validated / "report.html")
    assert found["verdict"] in page.text and f"episodes/{number}.html" in page.addresses
    assert page.row("action")[2] == f"{part['policy']['value']:.3g}"
    curves = Page(validated / f"episodes/{number}.html")
    assert curves.tags.count("svg") == 2 and "../report.html" in curves.addresses
    for read in (page, curves):
        assert not [a for a in read.addresses if "://" in a]


def test_the_verdict_is_one_line_on_the_terminal(checkpoint, home, capsys, validated):
    out = home / "again"
    args = ["validate", f"checkpoint={checkpoint}", f"demos.path={home / 'koch'}", "validate.pages=0"]
    assert cli.main([*args, f"hydra.run.dir={out}"]) == 0
    verdict = json.loads((out / "validation.json").read_text())["verdict"]
    assert verdict in capsys.readouterr().out.splitlines() and not (out / "episodes").exists()
    assert verdict == json.loads((validated / "validation.json").read_text())["verdict"]


def refused(capsys, *args) -> str:
    assert cli.main(["validate", *args]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    return line


def test_other_parts_and_a_checkpoint_without_its_run_are_one_line(checkpoint, capsys, tmp_path):
    line = refused(capsys, f"checkpoint={checkpoint}", "demos.name=xarm7_cube")
    assert line.endswith("the policy needs cameras top, given are hand, left, right: 'top' is missing")
    copied = tmp_path / "copied"
    shutil.copytree(checkpoint, copied)
    assert "expected demos.path=<the dataset>" in refused(capsys, f"checkpoint={copied}")
    few = refused(capsys, f"checkpoint={checkpoint}", "validate.pages=-1")
    assert "validate.pages: found -1, expected 0 or more" in few
