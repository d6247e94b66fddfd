"""Settings of a deployment (limits, cameras, pace) and its policy."""

import inspect
import itertools
import time
from contextlib import ExitStack

import cv2
import numpy as np
import pytest

from s2robot.core.errors import UserError
from s2robot.deployment.arm import WARNING, Camera, place_of, start_cameras
from s2robot.deployment.policy import make_policy
from s2robot.deployment.preflight import check_pace
from s2robot.deployment.settings import Bridge, CameraSettings, read_bench, read_bridge, read_policy
from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.arms.xarm import WIRE_TIMEOUT
from s2robot.envs.real.control.loop import STOOD_S, LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig
from s2robot.envs.real.control.supervisor import Supervisor
from tests.configs import composed
from tests.errors import refuses
from tests.s2robot.pictures import scene


def configured(*overrides):
    return read_bridge(composed("deploy", "run_dir=none", *overrides))


def acting(checkpoint, *overrides):
    own = f"checkpoint='{checkpoint}'", "bridge=emulator", "policy.threads=1", "run_dir=none"
    cfg = composed("deploy", *own, *overrides)
    return read_policy(cfg), read_bench(cfg)


def test_code_defaults_match_the_default_config():
    bridge = configured()
    assert bridge.arm_limits() == XARM7_LIMITS and bridge == Bridge()
    assert bridge.safety == SafetyConfig() and bridge.loop == LoopConfig()
    assert set(bridge.cameras) == {"hand", "left", "right"}
    assert inspect.signature(Supervisor).parameters["limit_s"].default == bridge.supervisor_s


class Film:
    """A V4L2 device with images of 96 x 72 at 20 Hz."""

    def __init__(self, device, backend):
        assert (device, backend) == ("/dev/v4l/by-id/hand", cv2.CAP_V4L2)
        values = {}
        self.set, self.get = values.__setitem__, lambda prop: values.get(prop, 0.0)
        self.isOpened = self.release = lambda: True
        self._images = itertools.cycle(scene(2))

    def read(self):
        time.sleep(0.05)
        return True, next(self._images)[..., ::-1]


def test_each_camera_kind_and_the_reasons_for_missing_frames(realsense, pictures, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Film)
    monkeypatch.setattr("s2robot.deployment.arm.EXPOSURE_S", 0.1)
    realsense.pictures = scene(3)
    cameras, words = {
        "hand": ("opencv", "/dev/v4l/by-id/hand"), "left": ("realsense", "0042"), "right": ("replay", pictures),
        "wrist": ("opencv", "null"), "top": ("emulator", "null"),
    }, []  # fmt: skip
    for name, (kind, device) in cameras.items():
        key = f"{'+' * (name in ('wrist', 'top'))}bridge.cameras.{name}"
        settings = f"kind={kind}", f"device={device}", "width=96", "height=72", "fps=20"
        words += [f"{key}.{setting}" for setting in settings]
    bridge = configured(*words)
    with pytest.raises(UserError, match="exposure: expected null with kind=realsense, got 9"):
        configured(*words, "bridge.cameras.left.exposure=9")
    assert bridge.cameras["wrist"] == CameraSettings(width=96, height=72, fps=20)
    with ExitStack() as stack:
        readers, facts, failed = start_cameras(bridge, [*cameras, "front"], None, stack, 64)
        assert list(readers) == ["hand", "left"] and facts["hand"] == facts["left"] == Camera(72, 72, 20.0)
        replay = bridge.replace(cameras={"left": bridge.cameras["right"]})
        assert start_cameras(replay, ["left"], None, stack, {"left": (72, 96)})[1]["left"].width == 96
    assert [f.check for f in failed] == [f"camera {name}" for name in ("right", "wrist", "top", "front")]
    texts = ("images_right", "wrist.device: ", "top.kind: ", "'front'")
    assert all(text in f.text and f.level == "stop" for f, text in zip(failed, texts, strict=True))


def test_the_lock_of_an_arm_does_not_depend_on_how_its_address_was_typed():
    typed = ("localhost", "127.0.0.1", "no such host")
    arms = [read_bench(composed("deploy", "run_dir=none", f"robot.ip='{ip}'")) for ip in typed]
    assert [place_of(arm) for arm in arms] == ["127.0.0.1", "127.0.0.1", "no such host"]


def test_policy_pace_above_the_speed_limit_is_a_warning():
    def findings(*overrides):
        bridge = configured(*overrides)
        return [f for f in check_pace(bridge, bridge.arm_limits(), 10) if f.check == "pace"]

    assert findings() == findings("bridge.arm.mode=online", "bridge.speed=0.32") == []
    (finding,) = findings("bridge.arm.mode=online")
    assert finding.level == WARNING and "bridge.speed=0.32 " in finding.text
    assert findings("bridge.limits.dq_max=[2,2,2,2,2,2,1]")


def test_online_mode_lowers_the_stream_limits():
    assert set(configured().arm_limits().dq_max) == {1.8}
    words = ("bridge.limits.dq_max=[1,1,1,1,1,1,0.5]", "bridge.arm.acceleration=20")
    for changes, last, most in (((), 0.8, 4.0), (words, 0.5, 14.0)):
        limits = configured("bridge.arm.mode=online", *changes).arm_limits()
        assert (limits.dq_max, limits.ddq_max) == ((*(0.8,) * 6, last), (most,) * 7)


def test_driver_timeout_and_slowest_rate_are_within_the_loops_limits():
    bridge = configured()
    assert 0.19 < WIRE_TIMEOUT <= bridge.watchdog.state_fault
    refuses("limits.rate_hz: expected >= 25, got 20", configured, "bridge.limits.rate_hz=20")  # gaps are rest
    assert 1 / 25 < STOOD_S
    assert WIRE_TIMEOUT + 3 / bridge.arm_limits().rate_hz <= bridge.supervisor_s


def made(checkpoint, *overrides):
    with ExitStack() as stack:
        return make_policy(*acting(checkpoint, *overrides), stack)


@pytest.fixture(scope="module")
def pair(save_untrained, tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("pair") / "checkpoint", members=2)


@pytest.fixture
def observe():
    rng = np.random.default_rng(0)
    return lambda: {
        "images": {name: rng.integers(0, 256, (64, 64, 3), np.uint8) for name in ("hand", "left")},
        "proprio": np.zeros(8, np.float32),
    }


def test_uncertain_plan_is_replaced_by_a_new_one(pair, observe):
    first, second = observe(), observe()
    sure, unsure = made(pair), made(pair, "bridge.watchdog.disagreement=1e-9")
    for policy in (sure, unsure):
        policy.act(first)
    assert sure.actor.disagreement == unsure.actor.disagreement > 1e-9
    plan = made(pair)
    np.testing.assert_array_equal(unsure.act(second), plan.act(second))  # a plan for the current observation
    assert not np.array_equal(sure.act(second), plan.act(second))
    assert sure.actor.mean_disagreement == pytest.approx(sure.actor.disagreement)  # one plan so far
    sure.actor.reset()
    assert sure.actor.mean_disagreement is None and sure.actor.disagreement == 0


def test_instruction_is_the_task_of_every_episode(save_untrained, tmp_path, observe):
    folder = save_untrained(tmp_path / "two", by_task=True, tasks=("lift it", "leave it"))
    policy = made(folder, "policy.instruction='leave it'")
    for _ in range(2):
        policy.reset()
        policy.act(observe())
        assert policy.actor.batch._task.tolist() == [[0.0, 1.0]]


def test_disagreement_limit_requires_a_local_ensemble(slow_policy, pair):
    limit = "bridge.watchdog.disagreement=0.05"
    refuses("^bridge.watchdog.disagreement: expected null for a policy of one", made, slow_policy, limit)
    source, bench = acting(pair, limit)
    served = source.replace(checkpoint=None, url="ws://nowhere:1")
    with pytest.raises(UserError, match="^bridge.watchdog.disagreement: expected null .*with policy.url"):
        make_policy(served, bench, ExitStack())


FLOW = {"head": {"kind": "flow", "width": 8, "layers": 1}, "chunk": 8, "execute": 4}


def test_checkpoint_policy_plans_ahead(save_untrained, tmp_path, observe):
    contract = {"training": {"longest_target": 7}}
    policy = made(save_untrained(tmp_path / "c", contract, **FLOW), "bridge.plan_s=0.2", "bridge.speed=1")
    ahead, plans = policy.planner, []
    plan, ahead._stale_s = ahead._plan, np.inf  # tolerate a busy machine

    def record_plan(seen, left, fixed):
        plans.append((left, fixed, plan(seen, left, fixed)))
        return plans[-1][2]

    ahead._plan = record_plan
    actions = [ahead._idle(60) and policy.act(observe()) for _ in range(9)]
    (_, _, first), (left, fixed, second) = plans[:2]
    assert len(first) == len(second) == 7  # the eighth step was not trained
    np.testing.assert_array_equal(actions, [*first[:6], *second[2:5]])
    np.testing.assert_allclose(second[:fixed], left[:2], atol=1e-6)
    policy.reset()
    assert not len(ahead.remaining)


def test_chunk_check_returns_the_planned_actions(slow_policy, observe):
    """Each call returns the remaining actions of the plan, which equal those without the check."""
    checked, seen = made(slow_policy, "bridge.loop.check_chunks=true"), observe()
    rows = [checked.act(seen) for _ in range(3)]
    assert [len(r) for r in rows] == [3, 2, 1]
    np.testing.assert_array_equal(rows[0][1:], rows[1])
    plain = made(slow_policy)
    np.testing.assert_array_equal([plain.act(seen) for _ in range(3)], rows[0])


def test_a_rehearsal_delays_plans_and_cameras(slow_policy, observe, monkeypatch):
    waits, cameras = [], []
    policy = made(slow_policy, "bridge.rehearse.inference_delay=0.2")
    monkeypatch.setattr(time, "sleep", waits.append)
    for _ in range(4):  # a plan lasts three actions
        policy.act(observe())
    assert waits == [0.2, 0.2]
    reader = lambda name, source, rotate, delay_s: cameras.append((name, delay_s))  # noqa: E731
    monkeypatch.setattr("s2robot.deployment.arm.CameraReader", reader)
    with pytest.raises(AttributeError), ExitStack() as stack:
        scene = inspect.types.SimpleNamespace(camera=lambda name: None)
        bridge = configured("bridge=emulator", "bridge.rehearse.camera_delay=0.05")
        start_cameras(bridge, ["left"], scene, stack)
    assert cameras == [("left", 0.05)]
    with pytest.raises(UserError, match=r"^bridge.rehearse.camera_delay: expected 0 on a real arm, got 0.05"):
        configured("bridge.rehearse.camera_delay=0.05")


@pytest.mark.parametrize(
    ("changes", "plan_s", "expected"),
    [({}, 0.2, "null with policy.head regression"), (FLOW | {"ensemble": 0.1}, 0.2, "null for a policy that sees"),
     (FLOW, 0.6, "<= 0.571 with 8 trained steps and policy.execute=4"),
     (FLOW | {"contract": {"training": {"longest_target": 6}}}, 0.3, "<= 0.286 with 6 trained steps")],
)  # fmt: skip
def test_policy_that_cannot_plan_ahead_is_rejected(save_untrained, tmp_path, changes, plan_s, expected):
    with pytest.raises(UserError, match=f"^bridge.plan_s: expected {expected}"):
        made(save_untrained(tmp_path / "c", **changes), f"bridge.plan_s={plan_s}")


def test_policy_with_other_actions_is_rejected_before_connecting(save_untrained, tmp_path):
    gripper = {"name": "gripper", "size": 1, "kind": "binary"}
    parts = [{"name": "joints", "size": 7, "kind": "absolute"}, gripper]
    checkpoint = save_untrained(tmp_path / "c", {"action_parts": parts}, action_parts=parts)
    words = r"^policy: actions: expected the arm's joints \(7 delta\), gripper \(1 binary\), got joints \(7 absolute\)"
    refuses(words, made, checkpoint)
