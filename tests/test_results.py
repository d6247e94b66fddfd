"""The figures in README.md and docs/ match the stored outcomes of individual episodes."""

import json
import shutil

import pytest

from benchmarks import verify

ROOT = verify.ROOT


def test_tables_of_all_pages_match_their_episodes():
    assert list(verify.differing()) == []


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """The committed outcomes and pages, copied to a temporary folder."""
    shutil.copytree(ROOT / "docs/results", tmp_path / "docs/results")
    for page in verify.PAGES:
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / page, tmp_path / page)
    monkeypatch.setattr(verify, "ROOT", tmp_path)
    monkeypatch.setattr(verify, "RESULTS", tmp_path / "docs/results")
    return tmp_path / "docs/results"


def test_changed_outcome_of_one_episode_is_reported(copies):
    facts = json.loads((copies / "table10/result.json").read_text())
    outcomes = facts["arms"][0]["outcomes"]
    seed, row = next(iter(outcomes.items()))
    outcomes[seed] = ("0" if row[0] == "1" else "1") + row[1:]
    (copies / "table10/result.json").write_text(json.dumps(facts))
    lines = list(verify.differing())
    assert lines and all(line.startswith("docs/results/table10/README.md") for line in lines)


def test_manually_edited_figure_is_reported(copies):
    page = copies / "table10/README.md"
    page.write_text(page.read_text().replace("[84.1, 92.5]", "[85.1, 92.5]"))
    assert [line.partition(": ")[2][0] for line in verify.differing()] == ["-", "+"]


def test_comparisons_have_all_positions_and_at_least_three_training_seeds():
    for file in (ROOT / "docs/results").glob("*/*.json"):
        facts = json.loads(file.read_text())
        for arm in facts.get("arms", []):
            sizes = {len(row) for row in arm["outcomes"].values()}
            assert sizes == {facts["positions"]["episodes"]}, (file, arm["name"])
            assert len(arm["outcomes"]) >= 3, (file, arm["name"])
