"""Two recorded episodes are simulated again and filmed side by side, and what does not repeat is refused."""

from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from s2robot.common.errors import UserError
from s2robot.common.paths import configs_dir
from s2robot.comparison.film import Attempt, _seeds, film_disagreements, film_pair
from s2robot.comparison.plan import Plan, make_plan
from s2robot.comparison.settings import read_compare
from s2robot.demos.store import EpisodeStore
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from tests.inline import do_inline

WORLD = CubePickConfig(image_size=64)


def attempt(label: str, seed: int, steps: int, push: float) -> Attempt:
    """An arm that moves its first joint and never grasps."""
    actions = np.zeros((steps, 8), np.float32)
    actions[:, 0] = push
    env = CubePick(WORLD)
    env.reset(seed=seed)
    for action in actions:
        env.step(action)
    record = {"episode": 0, "seed": seed, "success": False, "stage": env.stage}
    env.close()
    return Attempt(label, WORLD, record, actions)


def test_a_pair_is_filmed_from_its_actions(tmp_path):
    path = film_pair(
        tmp_path / "videos/pair.mp4", attempt("base + S²", 700, 3, 0.05), attempt("base", 700, 5, -0.05)
    )
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    pictures = [np.frombuffer(raw, np.uint8).reshape(height, width, 3).astype(int) for raw in reader]
    assert len(pictures) == 6 + 10  # the longer episode, its reset and a second of its last frame
    half = (width - 12) // 2
    first, last = (picture[height - 224 :] for picture in (pictures[0], pictures[-1]))
    assert np.abs(first[:, :half] - first[:, -half:]).mean() < 2  # one position
    assert np.abs(last[:, :half] - last[:, -half:]).mean() > 4  # two policies
    assert path.with_suffix(".png").is_file()


def test_what_does_not_repeat_is_refused(tmp_path):
    a, path = attempt("a", 700, 2, 0.0), tmp_path / "pair.mp4"
    held = replace(a, label="b", record={**a.record, "stage": "held"})
    with pytest.raises(
        UserError, match=r"pair.mp4: b: position 700 ended in stage approach .* expected held"
    ):
        film_pair(path, a, held)
    with pytest.raises(UserError, match="found positions 700 and 701, expected one for both arms"):
        film_pair(path, a, replace(a, record={**a.record, "seed": 701}))
    assert not path.exists()


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
    assert [video["position"] for video in videos] == [500, 502, 501]  # wins and losses of the first in turns
    assert [video["seeds"] for video in videos] == [[0, 0], [1, 1], [0, 0]]  # those that show it
    assert videos[0]["title"] == "Base + S2 succeeds, Base does not"
    assert videos[1]["title"] == "Base succeeds, Base + S2 does not"
    files = [plan.out / video["path"] for video in videos]
    assert all(Path(video["path"]).parent == Path("videos") for video in videos)
    made = [file.stat().st_mtime_ns for file in files]
    files[0].unlink()
    assert film_disagreements(plan, runs, pair, 3) == videos
    again = [file.stat().st_mtime_ns for file in files]
    assert again[0] != made[0] and again[1:] == made[1:]


@pytest.mark.parametrize(
    ("a", "b", "a_wins", "expected"),
    [
        ([1, 1, 1], [0, 0, 0], True, (0, 0)),
        ([0, 1, 1], [1, 0, 0], True, (1, 1)),
        ([1, 1, 0], [1, 1, 0], True, (0, 2)),  # no seed shows it for both arms
        ([0, 1], [0, 1], False, (0, 1)),
    ],
)
def test_training_seeds_that_show_the_difference(a, b, a_wins, expected):
    runs = {
        arm: {seed: [{"seed": 9, "success": bool(s)}] for seed, s in enumerate(solved)}
        for arm, solved in (("a", a), ("b", b))
    }
    assert _seeds(runs, "a", "b", 9, a_wins) == expected
