"""Evaluations: the same seed gives the same records, good actions succeed, mismatches are rejected."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from s2robot.backbones.vit import MVPViT, ViTSpec, save_encoder
from s2robot.core.errors import UserError
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.build import build_encoder
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.gym_task import GymSettings
from s2robot.envs.robosuite_config import RobosuiteSettings
from s2robot.evaluation import evaluate
from s2robot.evaluation.evaluate import camera_changes, evaluate_policy, world_changes, world_for
from s2robot.evaluation.records import read_records
from s2robot.evaluation.rollouts import LearnedPlanner, NearestDemo, World, run_episodes
from s2robot.evaluation.video import film, film_episodes
from s2robot.policies import BatchActor, ChunkPolicy
from tests.configs import composed
from tests.errors import refuses
from tests.policies.small import untrained

CAMERAS, SEED = ("hand", "left"), 9000
CONFIG = CubePickConfig(cameras=CAMERAS, image_size=32, max_steps=8)


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return build_encoder({"name": "mvp-tiny", "checkpoint": str(tiny_encoder)})


def rollouts(encoder, policy, folder, episodes=3, workers=1, **more):
    planner = LearnedPlanner(policy, encoder, CAMERAS)
    return run_episodes(CONFIG, planner, episodes, SEED, workers, folder / "episodes.jsonl", **more)


def test_same_seed_gives_the_same_records(encoder, tmp_path, request):
    """In worker processes, and in this process one episode at a time."""
    done, policy = [], untrained(encoder)
    first = rollouts(encoder, policy, tmp_path, workers=2, progress=lambda count, good: done.append(count))
    assert read_records(tmp_path / "episodes.jsonl") == first.records and done == [1, 2, 3]
    assert [r["seed"] for r in first.records] == [SEED, SEED + 1, SEED + 2]
    assert all(first.spent[f"{name}_s"] > 0 for name in ("simulate", "encode", "policy"))

    request.getfixturevalue("inline")
    again = rollouts(encoder, untrained(encoder), tmp_path)
    assert again.records == first.records
    for i, actions in first.actions.items():
        assert np.array_equal(actions, again.actions[i])
        assert len(actions) == first.records[i]["steps"] == CONFIG.max_steps

    # the cube pose of that seed, and its distance in the same simulation
    env, record = CubePick(CONFIG), first.records[0]
    env.render_cameras = dict
    pose = env.reset(seed=record["seed"])[1]["cube_pose"]
    assert record["cube_xy"] == pytest.approx(pose[:2], abs=1e-5)
    assert np.cos(record["cube_yaw"] / 2) == pytest.approx(abs(pose[3]), abs=1e-4) or pose[3] < 0
    distances = [env.info()["distance"]]
    for action in first.actions[0]:
        env.step_physics(action)
        distances.append(env.info()["distance"])
    assert record["closest_m"] == pytest.approx(min(distances), abs=1e-5) and record["stage"] == env.stage


@pytest.mark.parametrize(("k", "every_step"), [(1, False), (3, False), (3, True)])
def test_chunk_equals_single_steps_and_draws_only_requested_frames(monkeypatch, k, every_step):
    env, planner = CubePick(CONFIG.replace(max_steps=2 * k)), Replay(k, every_step)
    single = [env.reset(seed=2)] + [env.step(action)[::4] for action in planner.actions]
    state, drawn, draw = env.get_state(), [], env.render_cameras
    monkeypatch.setattr(env, "render_cameras", lambda: drawn.append(1) or draw())
    record, actions, _ = World(CONFIG, planner, env).run(0, 2)
    expected = [[single[0]], single[1 : k + 1] if every_step else [single[k]]]
    assert len(drawn) == 1 + (2 * k - 1 if every_step else 1)
    assert [*map(len, planner.seen)] == [*map(len, expected)]
    for seen, (wanted, _) in zip(sum(planner.seen, []), sum(expected, []), strict=True):
        assert np.array_equal(seen["proprio"], wanted["proprio"])
        assert all(np.array_equal(seen["images"][name], frame) for name, frame in wanted["images"].items())
    assert np.array_equal(env.get_state(), state) and np.array_equal(actions, planner.actions)
    assert (record["success"], record["steps"]) == (False, 2 * k)
    assert record["closest_m"] == round(min(info["distance"] for _, info in single), 5)


class Replay:
    """A planner that returns small moves, k at a time, and notes what it sees."""

    seconds: dict[str, float] = {}

    def __init__(self, k, every_step):
        moves = np.random.default_rng(0).uniform(-0.05, 0.05, (2 * k, 7))
        self.actions = np.append(moves, np.zeros((2 * k, 1)), 1).astype(np.float32)
        self.k, self.every_step, self.seen = k, every_step, []

    def reset(self, info):
        """Nothing to prepare."""

    def plan(self, seen):
        self.seen.append(seen)
        return self.actions[self.k * (len(self.seen) - 1) :][: self.k]

    def about(self):
        return {}


def test_workers_that_render_videos_do_not_load_torch():
    """Importing torch and a model library would take several times longer."""
    script = "import sys, s2robot.envs.tasks, s2robot.evaluation.video; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True, timeout=120) == "False\n"


def test_record_stores_the_disagreement_of_the_members(encoder, tmp_path, inline, monkeypatch):
    values = []

    def disagreement(self, plans):
        values.append(round(float(plans.std(0, correction=0).max()), 3))
        return torch.tensor([values[-1]])

    monkeypatch.setattr(ChunkPolicy, "disagreement", disagreement)
    one = rollouts(encoder, untrained(encoder, members=2), tmp_path, episodes=2).records
    assert len(values) == 2 * CONFIG.max_steps // 2  # plans of two actions each
    means = np.mean(np.reshape(values, (2, -1)), 1)
    assert [record["disagreement"] for record in one] == pytest.approx(means, abs=1e-6)
    assert "disagreement" not in rollouts(encoder, untrained(encoder), tmp_path, episodes=1).records[0]


def test_evaluation_resumes_from_its_journal(encoder, tmp_path, inline):
    """Episodes with a torn line or lost actions are repeated; other settings are rejected."""
    settings, ran = {"policy": "p", "env": {"cube_size": 0.04}}, []

    def run(episodes=4, **more):
        ran.clear()
        options = {"settings": settings, "progress": lambda done, good: ran.append(done)} | more
        return rollouts(encoder, untrained(encoder), tmp_path, episodes, **options)

    first, journal = run(), tmp_path / "episodes.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(True)[:2]) + '{"episode": 4, "seed": 90')
    (tmp_path / "actions/episode_0001.npy").write_bytes(b"torn")
    again = run()
    assert ran == [2, 3, 4] and again.records == read_records(journal) == first.records
    for i, actions in first.actions.items():
        assert np.array_equal(actions, again.actions[i])

    assert run().spent["simulate_s"] == 0 and ran == [4]  # everything is done
    assert run(2).records == first.records[:2]
    more = run(5)  # one more position
    assert ran[0] in (3, 5) and more.records[:4] == first.records and more.records[4]["seed"] == SEED + 4
    other = {**settings, "env": {"cube_size": 0.02}}
    refuses("env.cube_size: expected 0.04 .*, got 0.02; .*resume=false", run, settings=other)
    assert run(1, settings=other, resume=False).records == first.records[:1] and ran == [1]


def test_policy_with_a_context_acts_equally_in_a_batch_and_alone(encoder, tmp_path, inline):
    """Chunks of two steps, as in an evaluation, and single steps give the same actions."""
    network = {"width": 16, "blocks": 1, "heads": 2, "dropout": 0.0, "action_history": True}
    policy = untrained(encoder, kind="transformer", context=3, network=network)
    batched = rollouts(encoder, policy, tmp_path, episodes=1)
    actor = BatchActor(policy, 1)
    assert actor.every_step
    env = CubePick(CONFIG)
    observation, _ = env.reset(seed=SEED)
    queue, alone = [], []
    for _ in range(CONFIG.max_steps):
        frames = np.stack([observation["images"][c] for c in CAMERAS])
        tokens = encoder.encode(frames).half().float()[None]  # (1, C, N, D)
        proprio = observation["proprio"][None]
        if queue:
            actor.observe([0], tokens, proprio)
        else:
            queue = list(actor.plan([0], tokens, proprio)[0])
        alone.append(queue.pop(0))
        actor.record_actions([0], alone[-1][None])
        observation, *_ = env.step(alone[-1])
    env.close()
    assert np.allclose(batched.actions[0], np.stack(alone), atol=1e-4)


def test_demos_of_the_same_positions_succeed_and_can_be_rendered(recorded, tmp_path, inline):
    store, config = EpisodeStore.open(recorded), CubePickConfig(cameras=("left",), image_size=16)
    done = run_episodes(config, NearestDemo(store, CubePickConfig), 2, 500, 1, tmp_path / "episodes.jsonl")
    assert [r["success"] for r in done.records] == [True] * 2
    for i, r in enumerate(done.records):
        assert r["stage"] == "held" and r["steps"] == store.lengths[i]
        assert r["time_to_success_s"] == r["steps"] / 10 and r["closest_m"] < 0.02
        assert np.array_equal(done.actions[i], store.episode(i)["action"])

    planner = NearestDemo(store, CubePickConfig, execute=64)
    pose = store.episode(1)["cube_pose"][0].copy()
    yaw = 2 * np.arctan2(pose[6], pose[3]) + np.pi / 2  # a cube has fourfold symmetry
    pose[3:] = [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
    planner.reset({"layout": CubePickConfig.layout_of({"cube_pose": pose})})
    actions, length = planner.plan([]), store.lengths[1]
    assert np.array_equal(actions[:length], store.episode(1)["action"])
    assert not actions[length:, :7].any() and (actions[length:, 7] == 1).all()

    with pytest.raises(UserError, match="short.mp4: seed 500: expected .* stage held, got lift"):
        film(config, done.records[0], done.actions[0][:-1], tmp_path / "short.mp4")  # one step short
    settings = evaluate.EvaluateSettings(videos=1, video_size=24, workers=1)
    assert film_episodes(config, done, settings, tmp_path) == {0: "videos/episode_0000.mp4"}
    assert (tmp_path / "videos/episode_0000.mp4").stat().st_size > 1000


@pytest.fixture(scope="module")
def checkpoint(save_untrained, tmp_path_factory):
    """An untrained policy as `s2robot train` would have saved it."""
    world = CubePick(CONFIG).describe()
    contract = {key: world[key] for key in ("joint_names", "env_config")} | {"camera_geometry": {}}
    return save_untrained(tmp_path_factory.mktemp("run") / "checkpoint", contract, execute=2)


QUICK = "evaluate.workers=1 evaluate.episodes=1 evaluate.videos=0 evaluate.threads=1 env.max_steps=8".split()


def config(*overrides: str):
    return composed("evaluate", "checkpoint=unused", "evaluate.episodes=2", *overrides)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("robot=panda", "trained for robot 'xarm7', got 'panda'"),
        ("env.cameras=[hand]", "the policy requires cameras hand, left, got hand: 'left' is missing"),
        ("env.rate_hz=20", "the policy acts at 10 Hz, got 20 Hz"),
        ("evaluate.control=replay", "evaluate.control: expected 'nearest_demo', got 'replay'"),
        ("evaluate.seed=499", "evaluate.seed: positions 499 to 500 hold 1 that the demos .* at .first 500."),
        ("encoder.checkpoint={other}", "was trained on encoder mvp-tiny .*, got"),
    ],
)
def test_mismatch_with_the_policy_is_rejected(checkpoint, tmp_path, override, words):
    other = tmp_path / "other.safetensors"
    torch.manual_seed(1)
    save_encoder(MVPViT(ViTSpec(img_size=32, patch_size=8, dim=64, depth=2, heads=2)), other, {"seed": 1})
    refuses(words, evaluate_policy, config(override.format(other=other)), checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_default_world_comes_from_the_contract_and_others_are_rejected(checkpoint):
    contract = json.loads((checkpoint / "policy.json").read_text())["contract"]
    contract["env_config"] |= {"max_steps": 9, "side_cameras": {"left": [[0.5, 0, 0.5], [0, 0, 0], 40.0]}}
    world, _, changes = world_for(None, contract, 128)
    assert (world.max_steps, world.image_size, world.cameras, changes) == (9, 128, CAMERAS, [])
    assert world.side_cameras == {"left": ((0.5, 0, 0.5), (0, 0, 0), 40.0)}
    contract["action_parts"] = [{"name": "position", "size": 3, "kind": "delta"}]
    words = r"the policy's action is position \(3 delta\), got joints \(7 delta\), gripper \(1 binary\)"
    refuses(words, world_for, None, contract, 128)
    trained = contract | {"env_config": json.loads(json.dumps(RobosuiteSettings(env="Stack").model_dump()))}
    with pytest.raises(UserError, match="task: expected robosuite:Stack .*, got robosuite:Lift"):
        world_for(RobosuiteSettings(env="Lift"), trained, 128)


def test_world_changes_compare_only_facts_known_to_both_sides():
    world = GymSettings(id="Pendulum-v1", success="terminated", rate_hz=20)  # two of them have no default
    trained = json.loads(json.dumps(world.model_dump()))
    assert world_changes(trained, world) == []
    assert world_changes(trained, world.replace(max_steps=9)) == ["max_steps 200 -> 9"]
    del trained["bounded"]  # as in a version without this setting
    assert world_changes(trained, world.replace(bounded=False)) == ["bounded True -> False"]
    here = {"left": {"body": "world", "position": [0, 0, 1], "quaternion": [1, 0, 0, 0], "fovy": 45.0}}
    turned = {"left": here["left"] | {"quaternion": [np.cos(0.05), np.sin(0.05), 0, 0]}}
    assert camera_changes(here, turned) == ["camera left moved by 0 cm and 5.73 degrees"]
    opposite = {"left": here["left"] | {"quaternion": [-1, 0, 0, 0]}}  # the same rotation
    assert camera_changes(here, opposite) == []
    bare = {"left": {"size": [64, 64]}}
    for one, other in ((bare, here), (here, bare), ({}, here)):
        assert camera_changes(one, other) == []  # a fact that one side lacks is not compared
    carried = {"left": here["left"] | {"body": "robot0_right_hand", "position": [9, 9, 9]}}
    assert camera_changes(here, carried) == ["camera left on world -> robot0_right_hand"]


def test_folder_resumes_only_with_its_own_policy(checkpoint, tmp_path, capsys, inline):
    """Moved cameras keep their names and config: only the geometry differs."""
    folder, out = tmp_path / "checkpoint", tmp_path / "out"
    shutil.copytree(checkpoint, folder)
    record = json.loads((folder / "policy.json").read_text())
    geometry = CubePick(CONFIG).describe()["camera_geometry"]
    moved = geometry["left"] | {"position": [0.34, 0.46, 1.26], "fovy": 60.0, "size": [224, 224]}
    record["contract"]["camera_geometry"] = geometry | {"left": moved}
    (folder / "policy.json").write_text(json.dumps(record))
    cfg = config(*QUICK)
    summary = evaluate_policy(cfg, folder, out)
    changes = ["camera left moved by 2 cm and 0 degrees", "camera left field of view 60 -> 45 degrees"]
    assert summary["world_changes"] == changes  # neither the hand camera nor the frame size is listed
    assert f"note: this world differs from the demos' world: {'; '.join(changes)}" in capsys.readouterr().out
    assert json.loads((out / "summary.json").read_text()) == summary
    assert (summary["episodes"], summary["control"], summary["robot"]) == (1, None, "xarm7")
    assert summary["cameras"] == list(CAMERAS) and summary["seed"] == 10000
    assert {"simulate_s", "encode_s", "policy_s", "wall_s"} <= set(summary["timing"])
    lines = (out / "episodes.jsonl").read_text()
    longer = lines + lines.replace('"episode": 0', '"episode": 1')
    (out / "episodes.jsonl").write_text(longer)
    shutil.copy(out / "actions/episode_0000.npy", out / "actions/episode_0001.npy")
    again = evaluate_policy(cfg, folder, out)  # resumes, with everything done
    assert len(read_records(out / "episodes.jsonl")) == 2 and again["episodes"] == 1
    assert again["timing"]["simulate_s"] == 0 and again["successes"] == summary["successes"]
    record["spec"]["execute"] = 1  # the same weights with another execution horizon
    (folder / "policy.json").write_text(json.dumps(record))
    refuses("policy.spec.execute: expected 2 as when the run began, got 1", evaluate_policy, cfg, folder, out)
    cfg.evaluate.seed = 10001
    with pytest.raises(UserError, match="evaluate.seed: expected 10000 as when the run began, got 10001"):
        evaluate_policy(cfg, checkpoint, out)
