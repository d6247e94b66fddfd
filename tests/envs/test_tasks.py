"""The registry of tasks, gymnasium environments as tasks, and one-line errors."""

import json
import sys
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from s2robot.cli import main
from s2robot.core.errors import UserError
from s2robot.demos.record import record
from s2robot.envs.gym_task import GymSettings
from s2robot.envs.tasks import make, make_cached, register_user_task, settings_of, worlds
from s2robot.evaluation.rollouts import World
from tests.errors import fails, refuses
from tests.inline import do_inline


class Dial(gymnasium.Env):
    """Turn a dial to a goal; the image brightens as the dial approaches it."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None, start=0.0, dtype="f4"):
        self.render_mode, self.start = render_mode, start
        box = gymnasium.spaces.Box
        one, eye = box(-9, 9, (1,)), box(0, 255, (12, 20, 3), np.uint8)
        seen = {"angle": one, "desired_goal": one, "eye": eye}
        self.observation_space, self.action_space = gymnasium.spaces.Dict(seen), box(-0.5, 0.5, (1,), dtype)

    def _seen(self):
        image = np.full((12, 20, 3), 200 * np.exp(-abs(self.angle - self.goal)), np.uint8)
        return {"angle": np.float32([self.angle]), "desired_goal": np.float32([self.goal]), "eye": image}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal = float(self.np_random.uniform(1, 2))
        self.angle = self.start + np.random.uniform(0, 0.01)  # the global generator, as gym-hil does
        return self._seen(), {}

    def step(self, action):
        self.angle += float(action[0])
        near = abs(self.angle - self.goal) < 0.3
        info = {"is_success": near, "distance": abs(self.angle - self.goal), "state": "far"}
        return self._seen(), -info["distance"], False, False, info

    def render(self):
        return np.tile(self._seen()["eye"], (2, 2, 1))


gymnasium.register("Dial-v0", Dial, max_episode_steps=7)
DIAL = GymSettings(id="Dial-v0", success="is_success", image_size=16, cameras=("render", "eye"))


def test_process_caches_the_most_recent_worlds():
    sizes = [DIAL.replace(image_size=size) for size in (8, 12, 16)]
    first, second = make_cached(sizes[0], draw=False), make_cached(sizes[1], draw=False)
    assert make_cached(sizes[0].replace(), draw=False) is first and make_cached(sizes[0]) is not first
    make_cached(sizes[2])  # the fourth world evicts the second, the least recently used
    assert make_cached(sizes[0], draw=False) is first and make_cached(sizes[1], draw=False) is not second
    assert main(["inspect", "data=missing"]) == 2 and not worlds  # MuJoCo cannot free renderers at exit


def test_any_gymnasium_environment_is_a_task():
    env = make(DIAL)
    check_env(env, skip_render_check=True)
    assert (env.settings.max_steps, env.camera_sizes) == (7, {"render": (16, 16), "eye": (16, 16)})
    turn = {"name": "action", "size": 1, "kind": "absolute", "low": [-0.5], "high": [0.5]}
    assert env.action_parts == [turn]
    assert [part["name"] for part in env.proprio_parts] == ["angle", "desired_goal"]
    (seen, info), (again, other) = env.reset(seed=5), make(DIAL).reset(seed=5)
    assert info["layout"] == other["layout"] != env.reset(seed=6)[1]["layout"]
    np.testing.assert_array_equal(seen["proprio"], again["proprio"])
    env.reset(seed=5)
    stages, over = [], False
    while not over:
        _, reward, over, truncated, info = env.step([0.5])
        stages.append(info["stage"])
    assert (reward, truncated, stages[-1]) == (1.0, False, "success") and "start" in stages
    env.reset(seed=5)
    assert [env.step([0.0])[3] for _ in range(7)] == [False] * 6 + [True]
    assert json.loads(json.dumps(env.describe()))["env_config"]["id"] == "Dial-v0"
    assert settings_of(json.loads(json.dumps(DIAL.model_dump()))) == DIAL


def test_success_follows_the_configured_rule():
    for rule, action, expected in (("reward>=-0.3", 0.5, True), ("terminated", 0.5, False)):
        env = make(GymSettings(id="Dial-v0", success=rule, image_size=8))
        env.reset(seed=5)
        for _ in range(4):
            env.step_physics([action])
        assert env.is_success is expected


class Turner:
    """An expert of Dial for `s2robot record`: it turns to the goal, which only the environment stores."""

    failed = False

    def __init__(self, task, rng):
        self.env = task.inner.unwrapped

    def act(self):
        return np.clip([self.env.goal - self.env.angle], -0.5, 0.5).astype(np.float32)


def test_named_expert_records_a_gymnasium_task_and_is_not_stored(tmp_path, monkeypatch):
    do_inline(monkeypatch)  # Dial is not registered in other processes
    world = DIAL.replace(expert="tests.envs.test_tasks:Turner", measure="is_success")
    with record(tmp_path / "demos.zarr", world, {}, episodes=2, seed=3, workers=1) as store:
        assert store.meta("success").all() and "images_eye" in store.keys
        assert "expert" not in store.attrs["env_config"]
        assert settings_of(store.attrs["env_config"]) == world.replace(expert=None)
    env = make(world)
    env.reset(seed=5)
    assert np.isnan(env.progress)
    env.step([0.0])
    assert env.progress == 0.0  # from its info; the reward is below zero
    with pytest.raises(UserError, match="^task.measure: expected one of is_success, .*, got 'coverage'"):
        started(make(DIAL.replace(measure="coverage"))).step([0.0])


def test_namespaced_id_imports_its_package(tmp_path, monkeypatch):
    code = "import gymnasium\ngymnasium.register('dial_room/Dial-v0', 'tests.envs.test_tasks:Dial', max_episode_steps=7)"
    (tmp_path / "dial_room.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert GymSettings(id="dial_room/Dial-v0", success="terminated").max_steps == 7
    finally:
        gymnasium.registry.pop("dial_room/Dial-v0", None)
        sys.modules.pop("dial_room", None)
    with pytest.raises(UserError, match="^task.id: expected .*, got 'nowhere/Dial-v0'"):
        GymSettings(id="nowhere/Dial-v0", success="terminated")


class Crash(Dial):
    """Ends at its third step and rejects further steps; every reward is negative, the last one by far the lowest."""

    def step(self, action):
        self.steps = getattr(self, "steps", 0) + 1
        assert self.steps <= 3, "stepped after the end"
        return self._seen(), {3: -100.0}.get(self.steps, -1.0), self.steps == 3, False, {}


gymnasium.register("Crash-v0", Crash, max_episode_steps=7)


def test_ended_episode_is_not_stepped_again():
    settings = GymSettings(id="Crash-v0", success="reward>=1", image_size=8)
    calls = {"reset": lambda info: None, "plan": lambda seen: np.zeros((9, 1)), "about": dict}
    record, *_ = World(settings, SimpleNamespace(seconds={}, every_step=False, **calls)).run(0, 5)
    assert (record["success"], record["steps"]) == (False, 7)
    assert record["progress"] == -1  # the best of negative rewards


class Kitchen(Dial):
    """Its class has no rate, its goal is a tree, and its own images need a package that is missing."""

    metadata = {"render_modes": ["rgb_array"]}

    def reset(self, **options):
        seen, info = super().reset(**options)
        return seen | {"desired_goal": {"kettle": seen["angle"], "door": seen["desired_goal"]}}, info

    def render(self):
        raise gymnasium.error.DependencyNotInstalled("pygame is not installed")


gymnasium.register("Kitchen-v0", Kitchen, max_episode_steps=7)


def test_rate_is_never_invented_goals_may_be_trees_and_a_missing_package_is_one_line():
    with pytest.raises(UserError, match="^task.rate_hz: expected a number, because the metadata of Kitchen"):
        GymSettings(id="Kitchen-v0", success="terminated")
    assert GymSettings(id="Pusher-v5", success="terminated").rate_hz == 20  # which its class does not know
    settings = {"success": "terminated", "rate_hz": 25, "proprio": ("angle",), "image_size": 8}
    env = make(GymSettings(id="Kitchen-v0", **settings))
    env.begin(np.random.default_rng(0), {})
    assert list(env.layout) == ["goal_0", "goal_1"] and 1 <= env.layout["goal_1"] <= 2
    refuses("^task.id: expected .*'Kitchen-v0': pygame is not installed", env.render_cameras)


@pytest.mark.parametrize(
    ("low", "high", "shape", "dtype"),
    [(0, 1, (12, 20, 3), np.float32), (0, 255, (12, 20, 4), np.uint8), (0, 255, (3, 12, 20), np.uint8)],
)
def test_images_of_other_shapes_or_types_are_rejected(low, high, shape, dtype, monkeypatch):
    dial = Dial()
    dial.observation_space["eye"] = gymnasium.spaces.Box(low, high, shape, dtype)
    monkeypatch.setattr("s2robot.envs.gym_task._create", lambda settings: dial)
    fails(r"task.cameras: 'eye': expected uint8 \(H, W, 3\), got ", make, DIAL)


def with_parts(env, size: int):
    env.action_parts = [{"name": "turn", "size": size, "kind": "delta"}]
    env.spaces([-1.0], [1.0], sum(part["size"] for part in env.proprio_parts))


def started(env):
    env.reset(seed=0)
    return env


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: GymSettings(id="Dial-v0", success="reward>=1OO"), "task.success: expected .*, got 'reward>=1OO'"),
        (lambda: GymSettings(id="Dail-v0", success="x"), "task.id: expected .*, got 'Dail-v0'"),
        (lambda: make(GymSettings(id="Dial-v0", success="x", cameras=("wrist",))), "task.cameras: expected one of render, eye, got 'wrist'"),
        (lambda: make(GymSettings(id="Dial-v0", success="x", kwargs={"end": 1})), "task.id: expected .*, got 'Dial-v0'"),
        (lambda: make(GymSettings(id="CartPole-v1", success="x")), "expected continuous actions"),
        (lambda: started(make(GymSettings(id="Dial-v0", success="solved"))).step([0.0]), "task.success, in .*: expected .*, got 'solved'"),
        (lambda: started(make(DIAL.replace(success="distance"))).step([0.0]), "task.success: expected 'distance' to be true or false"),
        (lambda: started(make(DIAL.replace(measure="state"))).step([0.0]), "task.measure: expected a number or a flag, got 'far'"),
        (lambda: make(DIAL.replace(kwargs={"dtype": "i8"})), "expected continuous actions"),
        (lambda: started(make(DIAL)).expert(np.random.default_rng(0)), "task gym: expected a scripted expert .*, got none"),
        (lambda: with_parts(make(DIAL), 2), "task gym: action_parts: expected 1 numbers in total, got 2"),
        (lambda: register_user_task("mine", ".pusher:Pusher"), "task.class: expected module:Class, got '.pusher:Pusher'"),
        (lambda: register_user_task("mine", "json:JSONDecoder"), "task.class: expected a subclass of"),
        (lambda: settings_of({"cube": 1}), "env_config.cube: unknown key"),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_error_line(call, words):
    refuses(words, call)


def test_dataset_settings_import_no_code():
    """Settings of a dataset are looked up by task name; a class named in the dataset is not imported."""
    refuses("task: expected .*, got 'mine'", settings_of, {"task": "mine", "target": "antigravity:Fly"})
    assert "antigravity" not in sys.modules
