"""Positions that one of two arms solves are simulated again and filmed for both."""

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from s2robot.comparison.film import _seeds, film_disagreements
from s2robot.comparison.plan import Plan, make_plan
from s2robot.comparison.settings import read_compare
from s2robot.core.files import configs_dir
from s2robot.demos.store import EpisodeStore
from tests.inline import do_inline


@pytest.fixture(scope="module")
def evaluated(recorded, tmp_path_factory) -> tuple[Plan, dict]:
    """Two arms, two training seeds, three positions: who solves one repeats its demo, who fails stands still for a moment."""
    solved = {"base-s2": {0: (500, 501), 1: (500,)}, "base": {0: (), 1: (502,)}}
    store = EpisodeStore.open(recorded)
    positions = {int(seed): store.episode(i)["action"] for i, seed in enumerate(store.meta("seed"))}
    out = tmp_path_factory.mktemp("compare")
    words = [f"run_dir={out}", "arms=[base-s2,base]", "experiment.seeds=[0,1]", "jobs=1"]
    words += ["evaluate.video_size=64"]
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        plan = make_plan(read_compare(compose("compare", words)), words[-1:])
    runs: dict = {}
    for arm in plan.arms:
        for seed in plan.seeds:
            folder = plan.folder(plan.main, arm, seed) / "actions"
            folder.mkdir(parents=True)
            records = runs.setdefault(arm.name, {})[seed] = []
            for episode, (position, actions) in enumerate(positions.items()):
                success = position in solved[arm.name][seed]
                np.save(
                    folder / f"episode_{episode:04d}.npy", actions if success else np.zeros_like(actions[:4])
                )
                stage = "held" if success else "approach"
                records.append({"episode": episode, "seed": position, "success": success, "stage": stage})
    return plan, runs


def test_positions_that_one_arm_solves_are_filmed_for_both_and_only_once(evaluated, monkeypatch):
    do_inline(monkeypatch)
    plan, runs = evaluated
    pair = {"a": "base-s2", "b": "base", "only_a": [500, 501], "only_b": [502]}
    videos = film_disagreements(plan, runs, pair, 3)
    shown = [(video["position"], video["arm"], video["seed"]) for video in videos]
    assert shown == [  # wins and losses of the first in turns, by seeds that show them
        (500, "base-s2", 0), (500, "base", 0), (502, "base-s2", 1), (502, "base", 1), (501, "base-s2", 0), (501, "base", 0),
    ]  # fmt: skip
    files = [plan.out / video["path"] for video in videos]
    made = [file.stat().st_mtime_ns for file in files]
    files[0].unlink()
    assert film_disagreements(plan, runs, pair, 3) == videos
    again = [file.stat().st_mtime_ns for file in files]
    assert again[0] != made[0] and again[1:] == made[1:]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 1, 1], [0, 0, 0], (0, 0)),
        ([0, 1, 1], [1, 0, 0], (1, 1)),
        ([1, 1, 0], [1, 0, 0], (1, 1)),
        ([0, 1], [1, 1], (0, 0)),
    ],
)
def test_training_seeds_that_show_the_difference(a, b, expected):
    runs = {
        arm: {seed: [{"seed": 9, "success": bool(s)}] for seed, s in enumerate(solved)}
        for arm, solved in (("a", a), ("b", b))
    }
    assert _seeds(runs, "a", "b", 9) == expected
