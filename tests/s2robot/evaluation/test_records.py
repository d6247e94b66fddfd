"""The figures of an evaluation against closed forms and hand-counted records."""

import json

import pytest
from statsmodels.stats.proportion import proportion_confint

from s2robot.envs.cube_config import STAGES
from s2robot.evaluation.records import Journal, read_records, read_summary, summarise, wilson
from tests.errors import refuses
from tests.s2robot.evaluation.made import record, save_records


@pytest.mark.parametrize(("episodes", "confidence"), [(1, 0.95), (2, 0.5), (16, 0.95), (1000, 0.95)])
def test_wilson_matches_statsmodels(episodes, confidence):
    for successes in {0, 1, episodes // 3, episodes - 1, episodes}:
        expected = proportion_confint(successes, episodes, 1 - confidence, "wilson")
        assert wilson(successes, episodes, confidence) == pytest.approx(expected, abs=1e-12)


def test_summary_matches_a_count_by_hand():
    solved = [record(0, time_to_success_s=2.0), record(1, time_to_success_s=3.0)]
    summary = summarise([*solved, record(2, False, "grasp"), record(3, False, "approach")])
    assert (summary["success"], summary["successes"], summary["episodes"]) == (0.5, 2, 4)
    assert list(summary["by_stage"].items()) == [("approach", 1), ("grasp", 1), ("lift", 0), ("held", 2)]
    assert summary["median_time_to_success_s"] == 2.5
    assert (summary["low"], summary["high"]) == wilson(2, 4)
    json.dumps(summary, allow_nan=False)
    assert summarise([record(0, False, "hover")])["by_stage"]["hover"] == 1  # a user's task may omit a stage


def test_records_are_read_as_written_and_in_order(tmp_path):
    records = [record(n, n % 3 > 0, STAGES[n % 4]) for n in range(7)]
    records[0] |= {"closest_m": None, "fault": "", "world": "arm"}  # as in an evaluation on hardware
    save_records(tmp_path, records[::-1])
    assert read_records(tmp_path / "episodes.jsonl") == records
    assert read_records(tmp_path / "episodes.jsonl", 3) == records[:3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"episode": 0, "se', "line 2: cannot be read: broken JSON"),
        (json.dumps({**record(1), "stage": ["held"]}), "line 2: stage: expected a string"),
        (json.dumps(record(1, time_to_success_s=float("nan"))), "line 2: time_to_success_s: expected a fin"),
        (json.dumps({k: v for k, v in record(1).items() if k != "seed"}), "line 2: seed: expected a value"),
    ],
)
def test_error_names_the_broken_record(tmp_path, text, message):
    save_records(tmp_path, [record(0)])
    path = tmp_path / "episodes.jsonl"
    path.write_text(path.read_text() + text)
    refuses(f"episodes.jsonl {message}", read_records, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"success": 0.5', "cannot be read: broken JSON"),
        (b"\xff\xfe\x00", "cannot be read"),
        (json.dumps({**summarise([record(0)]), "success": 2}).encode(), "success: expected <= 1, got 2"),
    ],
)
def test_error_names_the_broken_summary(tmp_path, content, message):
    path = tmp_path / "summary.json"
    path.write_bytes(content)
    refuses(f"summary.json: {message}", read_summary, path)


def test_episodes_without_their_settings_are_not_overwritten(tmp_path):
    """Their origin is unknown, and they may represent hours of work."""
    save_records(tmp_path, [record(0)])
    path = tmp_path / "episodes.jsonl"
    before = path.read_text()
    refuses("episodes.jsonl: expected episodes.settings.json in the same folder", Journal, path, {"seed": 0})
    assert path.read_text() == before and Journal(path, {"seed": 0}, resume=False).records == {}
