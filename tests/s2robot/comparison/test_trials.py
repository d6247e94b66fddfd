"""`s2robot stats`: its test against full enumeration, its readers, and the exit code of the command."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from s2robot.cli import main
from s2robot.comparison import trials
from s2robot.comparison.paired import difference
from s2robot.comparison.trials import Arm, StatsSettings, read_arms
from s2robot.core.errors import UserError
from s2robot.evaluation.records import mean_interval
from tests.errors import refuses


@pytest.mark.parametrize(("m", "n"), [(10, 10), (14, 31)])
def test_barnards_test_keeps_its_error_rate_for_every_truth(m, n):
    """Enumerate all tables; it must also reject more of them than Fisher's test."""
    rejects = np.array([[trials.barnard(k, m, j, n) for j in range(n + 1)] for k in range(m + 1)]) <= 0.05
    x, y = (stats.binom.pmf(range(size + 1), size, np.linspace(0, 1, 201)[:, None]) for size in (m, n))
    rates = ((x @ rejects) * y).sum(1)
    fisher = [[stats.fisher_exact([[k, j], [m - k, n - j]])[1] for j in range(n + 1)] for k in range(m + 1)]
    assert 0.03 < max(rates) <= 0.05
    assert rejects.sum() > (np.array(fisher) <= 0.05).sum()
    assert trials.barnard(3, m, 5, n) == pytest.approx(trials.barnard(5, n, 3, m))  # in either order


def test_few_trials_beside_very_many_are_not_told_apart_by_a_normal_approximation():
    """Against a rate of 99 %, 48 of 50 are not unusual: the exact binomial p is 0.089."""
    exact = stats.binomtest(48, 50, 0.99).pvalue
    assert trials.barnard(99_000, 100_000, 48, 50) == pytest.approx(exact, rel=0.01)


def test_newcombe_interval_matches_the_paper():
    """Newcombe 1998, table II, method 10, without continuity correction: 56/70 - 48/80, and 9/10 - 3/10."""
    cases = [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090)]
    for (k, m), (j, n), low, high in cases:
        result = trials.independent(np.arange(m) < k, np.arange(n) < j)
        assert (result["low"], result["high"]) == pytest.approx((low, high), abs=1e-4)


def test_equal_positions_are_paired_and_the_detectable_gap_is_detected():
    rng = np.random.default_rng(0)
    hard = rng.random(200) < 0.4
    a, b = (Arm(name, (hard ^ (rng.random((1, 200)) < 0.05)), tuple(range(200))) for name in "ab")
    settings = StatsSettings(trials=("a", "b"))
    result = trials.compare_arms(a, b, settings)
    expected = difference(a.outcomes, b.outcomes)
    assert result["paired"] and (result["low"], result["p"]) == (expected.low, expected.p)
    unpaired = trials.compare_arms(a._replace(positions=None), b, settings)
    assert not unpaired["paired"]
    assert unpaired["high"] - unpaired["low"] > 1.5 * (result["high"] - result["low"])
    assert result["detectable"] < 0.7 * unpaired["detectable"]
    many, few = (Arm(str(n), np.arange(n)[None] < n // 2, None) for n in (80, 20))
    gap = trials.detectable(many, few, False, 0.8)
    x, y = np.random.default_rng(1).binomial((20, 80), (0.5, 0.5 + gap), (5000, 2)).T
    pooled = (x + y) / 100
    detected = np.abs(x / 20 - y / 80) / np.sqrt(pooled * (1 - pooled) * (1 / 20 + 1 / 80)) > 1.96
    assert np.mean(detected) == pytest.approx(0.8, abs=0.03)
    assert trials.detectable(few, many, False, 0.8) == gap
    none = Arm("none", np.zeros((1, 1)), None)
    assert trials.detectable(none, none, False, 0.8) is None  # 1 of 1 against 0 of 1 has p = 0.5
    few = [Arm(name, np.array([[1], [0], [1]], bool), ("only",)) for name in "ab"]
    assert trials.compare_arms(*few, settings)["detectable"] is None


def test_stages_decide_in_place_of_success():
    """40 failed trials, 12 wins and 2 losses by stage: the figures of McNemar's test, and of the mixture at a look."""
    a = np.array([["lift"] * 12 + ["approach"] * 28])
    b = np.array([["grasp"] * 12 + ["grasp"] * 2 + ["approach"] * 26])
    none = np.zeros((1, 40), bool)
    arms = [Arm(name, none, tuple(range(40)), stages) for name, stages in (("a", a), ("b", b))]
    settings = StatsSettings(trials=("a",), stages=("approach", "grasp", "lift", "held"))
    result = trials.compare_arms(*arms, settings)
    assert result["p"] == pytest.approx(stats.binomtest(2, 14).pvalue)
    assert result["difference"] == pytest.approx(10 / 40) and "detectable" not in result
    interim = trials.compare_arms(*arms, settings, 0.05)
    assert interim["p"] == pytest.approx(1 / (2**14 / 15 / 91)) and interim["low"] < result["low"]
    with pytest.raises(UserError, match="stages: a stage of a: expected one of approach, grasp, got 'lift'"):
        trials.compare_arms(*arms, settings.replace(stages=("approach", "grasp")))


def test_every_file_format_can_be_read(tmp_path):
    seeds = [{"episode_ix": i, "success": i % 2 == 0, "seed": 7 + i, "sum_reward": 0.1} for i in range(4)]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "eval_info.json").write_text(json.dumps({"per_episode": seeds, "aggregated": {}}))
    (one,) = read_arms(str(tmp_path / "one"))
    assert one.label == "one" and one.positions == ("10", "7", "8", "9")
    assert one.outcomes.tolist() == [[False, True, False, True]]
    metrics = {"successes": [True, False]}
    tasks = [{"task_group": "libero", "task_id": i, "metrics": metrics} for i in range(2)]
    (tmp_path / "many.json").write_text(json.dumps({"per_task": tasks, "overall": {"pc_success": 50.0}}))
    (many,) = read_arms(f"mine:{tmp_path / 'many.json'}")
    assert many.label == "mine" and many.positions is None and many.outcomes.sum() == 2
    lines = ["", "Arm, training_seed, Axis, Layout, position, Success"]
    lines += [
        f"{arm},{seed},,,{at},{float(arm == 'x')}" for arm in "xy" for seed in (1, 0) for at in (3, 1, 2)
    ]
    lines += ["x,0,lighting,,1,0"]
    (tmp_path / "episodes.csv").write_text("\n".join(lines), encoding="utf-8-sig")  # as Excel saves it
    x, y = read_arms(str(tmp_path))
    assert (x.label, y.label) == ("x", "y") and x.positions == y.positions == ("1", "2", "3")
    assert x.outcomes.all() and x.outcomes.shape == (2, 3) and not y.outcomes.any()
    assert [arm.label for arm in read_arms(f"all:{tmp_path}")] == ["all x", "all y"]
    (tmp_path / "own.csv").write_text("success,axis,disturbance\n1,left,none\n0,,\n")
    assert read_arms(str(tmp_path / "own.csv"))[0].outcomes.sum(1) == [1]
    stored, *_ = read_arms(str(Path(__file__).parents[3] / "docs/results/size/cube25.json"))
    assert stored.positions[0] == "150000"
    refuses("power: expected > 0.05, got 0.02", StatsSettings, trials=("a",), power=0.02)


def test_stress_tests_are_paired_by_position(tmp_path):
    arms, settings = [], StatsSettings(trials=("a", "b"))
    for file, lost, count in (("a.csv", 1, 3), ("b.csv", 8, 3), ("c.csv", 1, 2)):
        cells = product((",0", "blur,1", "blur,9")[:count], range(12))
        rows = [f"{kind},{i},{int(kind != 'blur,9' or i >= lost)}" for kind, i in cells]
        (tmp_path / file).write_text("\n".join(["disturbance,value,position,success", *rows]))
        arms += read_arms(str(tmp_path / file))
    assert trials.report(arms[:2], settings, tmp_path) == 0
    (_, b), (pair,) = json.loads((tmp_path / "stats.json").read_text()).values()
    assert pair["difference"] == pytest.approx(3.5 / 12) and pair["p"] == pytest.approx(0.01084, abs=1e-5)
    assert (pair["low"], pair["high"]) == pytest.approx((0.07562, 0.46284), abs=1e-5)  # t over 12 positions
    assert (b["successes"], b["trials"], b["seeds"]) == (16, 24, 1)
    assert (b["low"], b["high"]) == pytest.approx(mean_interval(np.array([0.5] * 8 + [1.0] * 4), 24))
    refuses("b, c: expected the same disturbances", trials.compare_arms, *arms[1:], settings)
    with pytest.raises(UserError, match="replays: expected arms without disturbances"):
        trials.compare_arms(*arms[:2], settings.model_copy(update={"replays": 9}))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "arm,position\nx,1\n", "a.csv: expected a header with one column 'success', got arm, position"),
        ("a.csv", "success,Success\n1,0\n", "expected a header with one column 'success', got success, success"),
        ("a.csv", "success\n1\n\n\nx\n", "a.csv line 5: success: expected 0, 1, true or false, got 'x'"),
        ("a.csv", "success\n", "a.csv: expected one trial or more"), ("a.jsonl", "", "expected one trial or more"),
        ("a.csv", "success\n1\nyes\n", "a.csv line 3: success: expected 0, 1, true or false, got 'yes'"),
        ("a.csv", "position,success\n1,1\n1,0\n", "a.csv: expected each position once"),
        ("a.csv", "training_seed,position,success\n0,1,1\n1,2,0\n", "a.csv: expected the same positions"),
        ("a.json", "{}", "a.json: expected one trial or more .*per_episode or per_task"),
        ("a.json", '{"per_task": [{"task_group": "g", "task_id": 0, "metrics": {"successes": []}}]}',
         r"per_task\[0\].metrics.successes: expected at least 1 values"),
        ("a.json", '{"per_episode": [{"success": "no idea"}]}', r"a.json: per_episode\[0\].success: expected true or false"),
        ("a.txt", "1", "expected one of .csv, .json, .jsonl"),
    ],
)  # fmt: skip
def test_invalid_file_is_one_error_line(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    refuses(words, read_arms, str(tmp_path / name))


def test_exit_code_is_the_verdict(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["stats", "74/80", "b:91/120", "hydra.run.dir=clear"]) == 0
    result = json.loads((tmp_path / "clear" / "stats.json").read_text())
    assert [arm["label"] for arm in result["arms"]] == ["74/80", "b"] and result["pairs"][0]["p"] < 0.05
    assert main(["stats", "66/80", "b:91/120", "c:10/80", "against=b", "hydra.run.dir=open"]) == 3
    pairs = json.loads((tmp_path / "open" / "stats.json").read_text())["pairs"]
    assert [(pair["a"], pair["b"]) for pair in pairs] == [("66/80", "b"), ("c", "b")]
    assert pairs[0]["p_holm"] >= pairs[0]["p"]
    for name, count, successes in (("real", 12, 9), ("sim", 100, 80)):
        rows = [f"{i},{int(i < successes)}\n" for i in range(count)]
        (tmp_path / f"{name}.csv").write_text("position,success\n" + "".join(rows))
    assert main(["stats", "real.csv", "sim.csv", "simulated=sim", "hydra.run.dir=both"]) == 0
    assert main(["stats", "real.csv", "sim.csv", "hydra.run.dir=own"]) == 2  # neither paired nor independent
    arm, _ = json.loads((tmp_path / "both" / "stats.json").read_text())["arms"]
    assert arm["predicted"]["simulated_only"] == 88 and arm["low"] < arm["predicted"]["success"] < arm["high"]
    assert "worth" in capsys.readouterr().out
    assert main(["stats", "real.csv", "sim.csv", "simulated=real"]) == 2
    assert "simulated: expected real on >= 10 positions of sim" in capsys.readouterr().err
    assert main(["stats", "1/2", "3/4", "sequential=true"]) == 2
    assert "same positions" in capsys.readouterr().err
    for words in (["81/80"], ["nowhere.json"], ["1/2", "1/2"], ["1/2", "against=x"], []):
        assert main(["stats", *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1
