"""A dataset and an independent gymnasium world: binding, checks and evaluation."""

import json

import gymnasium
import numpy as np
import pytest
import zarr
from gymnasium.spaces import Box, Dict

from s2robot.config import DemosSettings
from s2robot.demos.binding import bind
from s2robot.demos.formats.source import Choice
from s2robot.demos.store import EpisodeStore
from s2robot.envs.gym_task import GymSettings
from s2robot.envs.tasks import make
from tests.demos.formats.made import converted
from tests.demos.formats.made import refused as not_converted
from tests.errors import refuses
from tests.s2robot.pictures import POLICY
from tests.s2robot.test_pipeline import refused

GOAL = np.array([0.8, 0.2])


class Slider(gymnasium.Env):
    """A dot that moves half-way to its target at each step; solved near the goal."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, render_mode=None):
        hand = Dict({"at": Box(0, 1, (2,)), "fast": Box(-1, 1, (1,))})
        seen = Dict({"top": Box(0, 255, (16, 16, 3), np.uint8)})
        self.observation_space, self.action_space = Dict({"hand": hand, "pixels": seen}), Box(0, 1, (2,))

    def observed(self):
        image = np.full((16, 16, 3), 40, np.uint8)
        row, column = (self.at * 15).round().astype(int).clip(0, 15)
        image[row, column] = 255, 0, 0
        fast = np.array([self.fast], np.float32)
        return {"hand": {"at": self.at.astype(np.float32), "fast": fast}, "pixels": {"top": image}}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.fast = self.np_random.uniform(0, 1, 2), 0.0
        return self.observed(), {}

    def step(self, action):
        before, self.at = self.at, (self.at + action) / 2
        self.fast = float(np.abs(self.at - before).max())
        near = float(1 - np.abs(self.at - GOAL).max())
        return self.observed(), near, False, False, {"is_success": near > 0.97}


gymnasium.register("Slider-v0", Slider, max_episode_steps=6)
WORLD = GymSettings(id="Slider-v0", success="is_success", cameras=("pixels/top",))
TYPED = ["task=gym", "task.id=Slider-v0", "task.success=is_success", "task.cameras=[pixels/top]"]
COLUMNS = ("state[:3]",)


@pytest.fixture
def buffer(tmp_path):
    """Six episodes whose state includes the hidden goal; no timestamps, no limits, and another camera name."""
    world, rows, ends = Slider(), [], []
    for seed in range(6):
        seen, _ = world.reset(seed=seed)
        for action in np.random.default_rng(seed).uniform(0, 1, (5, 2)).astype("f4"):
            state = np.concatenate([*seen["hand"].values(), GOAL])
            rows.append({"action": action, "state": state.astype("f4"), "cam": seen["pixels"]["top"]})
            seen = world.step(action)[0]
        ends.append(len(rows))
    path = tmp_path / "buffer.zarr"
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    for key in rows[0]:
        root.create_array(f"data/{key}", data=np.stack([row[key] for row in rows]))
    root.create_array("meta/episode_ends", data=np.array(ends))
    return path


@pytest.fixture
def words(buffer, tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("S2ROBOT_CACHE", str(tmp_path / "cache"))
    return [
        f"data={buffer}", "rate_hz=20", "proprio=state[:3]", f"encoder.checkpoint={tiny_encoder}", "train.steps=2",
        "train.batch_size=8", "train.threads=1", "features.workers=1", "train.validation=0.3", *POLICY,
    ]  # fmt: skip


EVALUATION = ["evaluate.episodes=2", "evaluate.workers=1", "evaluate.threads=1", "evaluate.videos=0"]


def test_dataset_without_a_world_uses_the_world_of_the_command_line(here, words, tmp_path):
    here("run", *words, *TYPED, *EVALUATION, "hydra.run.dir=run")
    contract = json.loads((tmp_path / "run/checkpoint/policy.json").read_text())["contract"]
    about = contract["env_config"]
    assert (about["id"], about["cameras"], about["names"]) == ("Slider-v0", ["cam"], {"cam": "pixels/top"})
    assert (about["rate_hz"], about["max_steps"]) == (20, 6)
    assert contract["encoder"]["frames"] == {"cam": [16, 16]}  # rendered at the dataset's resolution
    assert (contract["action_frame"], contract["robot"]) == ("gym:Slider-v0", "none")
    assert contract["action_parts"][0]["high"] == [1, 1]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["task"]["version"] == "gym:Slider-v0" and 0 < summary["mean_best_progress"] <= 1
    # the checkpoint stores its world
    here("evaluate", "checkpoint=run", *EVALUATION, "hydra.run.dir=again")
    first, second = ((tmp_path / f / "episodes.jsonl").read_text() for f in ("run", "again"))
    assert first == second
    other = refused(here, "evaluate", "checkpoint=run", *TYPED[:3], *EVALUATION)
    assert "the policy requires cameras cam, got render" in other
    here("evaluate", "evaluate=recorded", "checkpoint=run", "features.workers=1")


def test_policy_without_a_world_is_evaluated_in_that_of_the_command_line(here, words):
    here("train", *words, "hydra.run.dir=free")
    assert "task: expected" in refused(here, "evaluate", "checkpoint=free", *EVALUATION)
    here("evaluate", "checkpoint=free", *TYPED, *EVALUATION)


def test_mismatched_dataset_is_rejected_before_it_is_read(here, words, tmp_path):
    del words[2]  # all of the state
    line = refused(here, "train", *words, *TYPED)
    assert "proprio: expected hand (3 absolute), got state (5 absolute)" in line
    assert not list((tmp_path / "cache").rglob("*.zarr"))


def test_convert_stores_the_world_and_replay_detects_a_wrong_one(here, words, buffer, tmp_path):
    for columns, name, limit in (("state[:3]", "right", 5), ("state[1,0,2]", "swapped", 100)):
        args = [f"data={buffer}", "rate_hz=20", f"proprio={columns}", *TYPED, f"out={name}.zarr"]
        here("convert", *args)
        result = here("inspect", f"data={name}.zarr", "replay=true")
        near = float(result.stdout.partition("hand 1: ")[2].partition(" %")[0])
        assert near < limit and (limit == 5 or near > 10), result.stdout
    assert EpisodeStore.open(tmp_path / "right.zarr").attrs["env_config"]["id"] == "Slider-v0"
    file = tmp_path / "right.zarr/zarr.json"
    about = json.loads(file.read_text())
    del about["attributes"]["source"]  # now as if recorded here
    file.write_text(json.dumps(about))
    here("train", "data=right.zarr", *words[3:], "hydra.run.dir=own")
    contract = json.loads((tmp_path / "own/checkpoint/policy.json").read_text())["contract"]
    assert contract["env_config"]["id"] == "Slider-v0"
    assert "task: expected" in refused(here, "inspect", *words[:3], "replay=true")


@pytest.fixture
def store(buffer):
    return converted(buffer, Choice(proprio=COLUMNS, rate_hz=20))


@pytest.mark.parametrize(
    ("about", "world", "text"),
    [
        ({"rate_hz": 10.0}, WORLD, "rate_hz: expected 20, got 10"),
        ({"robot": "koch"}, WORLD.replace(robot="panda"), "robot: expected panda, got koch"),
        ({"action_frame": "mine"}, WORLD, "action_frame: expected gym:Slider-v0, got mine"),
        ({"cameras": ["cam", "b"], "camera_geometry": {}}, WORLD, "cameras: expected pixels/top, got cam, b"),
        ({"camera_geometry": {"cam": {"size": [12, 16]}}}, WORLD, "camera cam: expected the shape 16 x 16, got 12 x 16"),
        ({"action_parts": [{"name": "a", "size": 2, "kind": "delta"}]}, WORLD, "action: expected action (2 absolute), got a (2 delta)"),
    ],
)  # fmt: skip
def test_error_names_every_difference(store, about, world, text):
    wrong = {"proprio_parts": [{"name": "b", "size": 2, "kind": "absolute"}]}
    words = r"^data in gym:Slider-v0: [^\n]*proprio: expected hand"
    assert text in str(refuses(words, bind, store.attrs | about | wrong, world, "data"))


def test_cameras_match_by_name_by_suffix_or_as_the_only_one():
    two = WORLD.replace(cameras=("a", "b"), names={"a": "render", "b": "pixels/top"})
    for cameras, names in (
        (("b", "a"), {"a": "render", "b": "pixels/top"}),
        (("top", "render"), {"top": "pixels/top"}),
        (("top",), {"top": "pixels/top"}),
    ):
        seen = two.seen_as(cameras)
        assert (seen.cameras, seen.names) == (cameras, names)
    assert two.seen_as(("a", "c")) is two and WORLD.seen_as(("c",)).names == {"c": "pixels/top"}
    assert WORLD.seen_as(("c",), {}) is WORLD  # the names in a checkpoint are not inferred


def test_actions_beyond_the_limits_of_the_world_are_rejected_or_clipped(store, buffer):
    demos = DemosSettings(path=str(store.path))
    opened = demos.open(WORLD.replace(rate_hz=20.01))
    assert opened.attrs["rate_hz"] == 20.01  # a measured rate is close to that of the world
    assert opened.fingerprint == store.fingerprint and opened.attrs["action_parts"][0]["low"] == [0, 0]
    assert demos.open().attrs == store.attrs
    zarr.open_array(str(store.path / "data/action"), mode="r+")[7, 1] = 1.5
    refuses("action 2: expected 0 to 1 .*got 3.3 % .*, the farthest 1.5", demos.open, WORLD)
    for clipped in (demos.replace(clip=True), DemosSettings(mix=(demos,), clip=True)):
        assert clipped.open(WORLD)["action"][7, 1] == 1 and clipped.imported_space(WORLD)["rate_hz"] == 20
    assert demos.open(WORLD.replace(bounded=False))["action"][7, 1] == 1.5
    env = make(WORLD.replace(bounded=False))
    start = env.reset(seed=0)[0]["proprio"][:2]
    env.step_physics([1.5, 1.5])
    np.testing.assert_allclose(env.proprio[:2], (start + 1.5) / 2, rtol=1e-5)


def test_columns_of_an_array_can_be_selected(buffer):
    state = zarr.open_array(str(buffer / "data/state"))[:]
    choice = Choice(proprio=("state[4,0:2]",), action=("action[1]",), rate_hz=20)
    selected = converted(buffer, choice, "selected.zarr")
    np.testing.assert_array_equal(selected["proprio"], state[:, [4, 0, 1]])
    parts = (*selected.attrs["proprio_parts"], *selected.attrs["action_parts"])
    assert [part["size"] for part in parts] == [3, 1]
    for columns in ("state[:6]", "state[2:2]", "state[x]"):
        choice = Choice(proprio=(columns,), rate_hz=20)
        not_converted(buffer, "proprio: state: expected columns", choice=choice)
