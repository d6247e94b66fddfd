"""`s2robot reproduce`: planted differences and their verdicts, and a repeated evaluation."""

import json

import numpy as np
import pytest
from scipy import stats

from s2robot.comparison.reproduce import VERDICTS, compare_runs
from s2robot.envs.cube_config import CubePickConfig


def records(successes, frames="a", state="s"):
    start = {"state": state, "frames": frames}
    return [{"seed": 100 + i, "success": bool(done), "start": start} for i, done in enumerate(successes)]


def test_verdict_follows_the_difference_and_the_number_of_positions():
    rng = np.random.default_rng(0)
    done = rng.random(256) < 0.9
    same = compare_runs(records(done), records(done), 0.05)
    assert (same["verdict"], same["changed"]) == ("reproduced", [])
    assert same["other_starts"] == {"state": [], "frames": []}
    lost = done & (rng.random(256) < 0.85)
    worse = compare_runs(records(done), records(lost), 0.05)
    assert worse["verdict"] == "differs" and worse["difference"] == pytest.approx(lost.mean() - done.mean())
    assert worse["changed"] == [100 + int(i) for i in np.flatnonzero(done != lost)]
    perfect = [records([k >= lost for k in range(128)]) for lost in range(9)]
    lost = [compare_runs(perfect[0], again, 0.05)["verdict"] for again in perfect].count("reproduced")
    assert 0.02 < stats.binom.cdf(lost - 1, 128, 0.05) < 0.05  # although one side loses no position
    few = [records(done[:20])] * 2
    assert compare_runs(*few, 0.05)["verdict"] == "cannot tell"  # no difference, but too few positions
    assert compare_runs(*few, 0.3)["verdict"] == "reproduced"
    assert set(VERDICTS) == {"reproduced", "differs", "cannot tell"}


def test_different_images_and_different_physics_are_distinguished():
    a, b = records([1, 1, 1]), records([1, 1, 1])
    b[1]["start"] = {"state": "s", "frames": "b"}
    b[2]["start"] = {"state": "t", "frames": "b"}
    assert compare_runs(a, b, 0.05)["other_starts"] == {"state": [102], "frames": [101, 102]}


def test_run_is_reproduced_here_but_not_by_another_policy(here, save_untrained, tiny_encoder, tmp_path):
    env = CubePickConfig(cameras=("hand", "left"), max_steps=4)
    policy = save_untrained(tmp_path / "policy", {"env_config": env.model_dump(mode="json")})
    words = ["evaluate.episodes=3", "evaluate.videos=0", "evaluate.workers=1", "env.cameras=[hand,left]"]
    words += ["env.max_steps=4", f"checkpoint={policy}"]
    here("evaluate", *words, "hydra.run.dir=first")
    first = json.loads((tmp_path / "first" / "episodes.jsonl").read_text().splitlines()[0])
    assert set(first["start"]) == {"state", "frames"}
    (facts := policy / "policy.json").write_text(facts.read_text().replace(str(tiny_encoder), "moved"))
    repeat = "reproduce", "run=first", "checkpoint=policy", "workers=1", f"encoder.checkpoint={tiny_encoder}"
    assert "3 of 3 episodes start identically" in here(*repeat, "margin=0.9", "hydra.run.dir=second").stdout
    lines = (tmp_path / "first" / "episodes.jsonl").read_text().replace(first["start"]["frames"], "0" * 12)
    (tmp_path / "first" / "episodes.jsonl").write_text("".join(lines.splitlines(True)[::2]))  # killed
    other = here(*repeat, "hydra.run.dir=third", status=4)
    assert "different initial images in 1 of 2 episodes" in other.stdout
    assert "in another folder" in here(*repeat, "hydra.run.dir=first", status=2).stderr
    wrong = save_untrained(tmp_path / "wrong", {"env_config": env.model_dump(mode="json")}, deltas=0.02)
    assert "; checkpoint=" in here("reproduce", "run=first", "hydra.run.dir=no", status=2).stderr
    refused = here("reproduce", "run=first", f"checkpoint={wrong}", "hydra.run.dir=fourth", status=2)
    assert "wrong: policy: expected" in refused.stderr
