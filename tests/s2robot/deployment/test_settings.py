"""What a deployment is told, and what a box that plans makes of it."""

import inspect
import itertools
import time
from contextlib import ExitStack

import cv2
import numpy as np
from hydra import compose, initialize_config_dir

from s2robot.core.files import configs_dir, shipped_demos
from s2robot.core.settings import read
from s2robot.demos.store import EpisodeStore
from s2robot.deployment.arm import WARNING, Camera, start_cameras
from s2robot.deployment.preflight import check_pace
from s2robot.deployment.settings import Bridge, CameraSettings
from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.arms.xarm import WIRE_TIMEOUT, ArmSettings
from s2robot.envs.real.control.loop import LoopConfig
from s2robot.envs.real.control.motion import Interpolator
from s2robot.envs.real.control.safety import SafetyConfig
from s2robot.envs.real.control.supervisor import Supervisor
from s2robot.envs.real.control.watchdog import WatchdogLimits
from s2robot.envs.real.emulator.controller import Motion
from tests.s2robot.pictures import scene


def configured(*overrides):
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        return read(Bridge, compose("deploy", [*overrides, "run_dir=none"]).bridge)


def test_defaults_are_the_same_in_code_and_config():
    """Every field of every safety setting; whoever builds a loop without a config gets the rehearsed values."""
    bridge = configured()
    assert bridge.arm_limits() == XARM7_LIMITS
    assert bridge.safety == SafetyConfig() and bridge.watchdog == WatchdogLimits()
    assert bridge.loop_config(10.0, 256, live=False) == LoopConfig()
    assert set(bridge.cameras) == {"hand", "left", "right"}
    assert all(camera == CameraSettings() for camera in bridge.cameras.values())
    assert bridge.arm == ArmSettings() and bridge == Bridge()
    assert inspect.signature(Supervisor).parameters["limit_s"].default == bridge.supervisor_s


class Film:
    """Pictures of 96 x 72 at 20 Hz as a V4L2 device."""

    def __init__(self, device, backend):
        assert (device, backend) == ("/dev/v4l/by-id/hand", cv2.CAP_V4L2)
        values = {}
        self.set, self.get = values.__setitem__, lambda prop: values.get(prop, 0.0)
        self.isOpened = self.release = lambda: True
        self._images = itertools.cycle(scene(2))

    def read(self):
        time.sleep(0.05)
        return True, next(self._images)[..., ::-1]


def test_cameras_of_each_kind_and_why_others_give_no_frames(realsense, pictures, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Film)
    monkeypatch.setattr("s2robot.deployment.arm.EXPOSURE_S", 0.1)
    realsense.pictures = scene(3)
    cameras = {
        "hand": ("opencv", "/dev/v4l/by-id/hand"), "left": ("realsense", "0042"), "right": ("replay", pictures),
        "wrist": ("opencv", "null"), "top": ("emulator", "null"),
    }  # fmt: skip
    words = []
    for name, (kind, device) in cameras.items():
        begin = f"{'+' * (name in ('wrist', 'top'))}bridge.cameras.{name}"
        words += [
            f"{begin}.{key}"
            for key in (f"kind={kind}", f"device={device}", "width=96", "height=72", "fps=20")
        ]
    bridge = configured(*words)
    assert bridge.cameras["wrist"] == CameraSettings(width=96, height=72, fps=20)
    with ExitStack() as stack:
        readers, facts, failed = start_cameras(bridge, [*cameras, "front"], None, stack, 64)
        assert list(readers) == ["hand", "left"] and facts["hand"] == facts["left"] == Camera(72, 72, 20.0)
        replay = bridge.replace(cameras={"left": bridge.cameras["right"]})
        assert start_cameras(replay, ["left"], None, stack, {"left": (72, 96)})[1]["left"].width == 96
    assert [f.check for f in failed] == [f"camera {name}" for name in ("right", "wrist", "top", "front")]
    texts = ("images_right", "wrist.device: ", "top.kind: ", "'front'")
    assert all(text in finding.text and finding.stops for finding, text in zip(failed, texts, strict=True))


def lag(limits, bridge, episode):
    """How far a box that plans falls behind the stream of a demo's actions, rad."""
    box, path = Motion(episode["proprio"][0, :7]), Interpolator(limits)
    path.reset(box.joints)
    goal, most, periods = box.joints, 0.0, round(10 / bridge.speed)  # of the stream, between two actions
    for i in range(periods * len(episode["action"])):
        now = i / 100
        if i % periods == 0:
            goal = goal + episode["action"][i // periods, :7]
            path.push(now, now + periods / 100, goal)
        target = path.step(now)[0]
        box.plan(target, bridge.arm.speed, bridge.arm.acceleration)
        box.advance(0.005)
        box.advance(0.005)
        most = max(most, float(np.abs(target - box.joints).max()))
    return most


def test_a_box_that_plans_keeps_up_with_the_stream():
    servo, online = configured(), configured("bridge.arm.mode=online")
    episodes = EpisodeStore.open(shipped_demos("xarm7_cube"))
    fast, slow = servo.arm_limits(), online.arm_limits()
    assert set(fast.dq_max) == {1.8} and set(slow.dq_max) == {0.8} and set(slow.ddq_max) == {4.0}
    lags = [[lag(limits, online, episodes.episode(i)) for i in range(4)] for limits in (fast, slow)]
    assert max(lags[0]) > fast.lag_max  # a fault, were the stream as fast as in mode servo
    assert max(lags[1]) < slow.lag_max / 2


def test_a_policy_that_asks_for_more_speed_than_is_allowed_is_told():
    def found(*overrides):
        bridge = configured(*overrides)
        return [str(f) for f in check_pace(bridge, bridge.arm_limits(), 10) if f.check == "pace"]

    assert found() == found("bridge.arm.mode=online", "bridge.speed=0.32") == []
    (line,) = found("bridge.arm.mode=online")
    assert line.startswith(WARNING) and "the limits allow 0.80; bridge.speed=0.32 keeps up" in line
    assert found("bridge.limits.dq_max=[2,2,2,2,2,2,1]")


def test_the_stream_never_runs_away_from_a_box_that_plans():
    for words, dq, ddq in (
        (("bridge.limits.dq_max=[1,1,1,1,1,1,0.5]",), (*(0.8,) * 6, 0.5), (4.0,) * 7),
        (("bridge.arm.acceleration=20",), (0.8,) * 7, (14.0,) * 7),
    ):
        limits = configured("bridge.arm.mode=online", *words).arm_limits()
        assert (limits.dq_max, limits.ddq_max) == (dq, ddq)


def test_a_stall_that_the_driver_waits_for_is_no_missing_heartbeat():
    bridge = configured()
    assert 0.19 < WIRE_TIMEOUT <= bridge.watchdog.state_fault
    assert WIRE_TIMEOUT + 3 / bridge.arm_limits().rate_hz <= bridge.supervisor_s
