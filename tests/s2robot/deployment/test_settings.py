"""What a deployment is told, and what a box that plans makes of it."""

import inspect
from contextlib import ExitStack

import numpy as np
from hydra import compose, initialize_config_dir

from s2robot.common.paths import configs_dir, shipped_demos
from s2robot.core.settings import read
from s2robot.demos.store import EpisodeStore
from s2robot.deployment.arm import WARNING, start_cameras
from s2robot.deployment.preflight import check_pace
from s2robot.deployment.settings import Bridge, CameraSettings
from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.arms.xarm import WIRE_TIMEOUT, ArmSettings
from s2robot.envs.real.control.interpolate import Interpolator
from s2robot.envs.real.control.loop import LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig
from s2robot.envs.real.control.supervisor import Supervisor
from s2robot.envs.real.control.watchdog import WatchdogLimits
from s2robot.envs.real.emulator.motion import Motion, Plan


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


def test_a_camera_of_another_name_needs_its_kind_and_device_alone():
    bridge = configured("+bridge.cameras.wrist.kind=opencv", "+bridge.cameras.wrist.device=/dev/none")
    assert bridge.cameras["wrist"] == bridge.cameras["hand"].replace(device="/dev/none")
    with ExitStack() as stack:
        _, _, failed = start_cameras(bridge, ["front"], None, stack)
    assert "bridge.cameras: expected 'front'" in failed[0].text


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
        box.plan(Plan(target, bridge.arm.speed, bridge.arm.acceleration))
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
    assert (
        line.startswith(WARNING) and "1.75 rad/s, the limits allow 0.80; bridge.speed=0.32 keeps up" in line
    )
    assert found("bridge.limits.dq_max=[2,2,2,2,2,2,1]")


def test_the_stream_never_runs_away_from_a_box_that_plans():
    for overrides, dq, ddq in (
        ((), (1.8,) * 7, (14.0,) * 7),
        (
            ("bridge.limits.dq_max=[1,1,1,1,1,1,0.5]", "bridge.arm.mode=online"),
            (*(0.8,) * 6, 0.5),
            (4.0,) * 7,
        ),
        (("bridge.arm.mode=online", "bridge.arm.acceleration=20"), (0.8,) * 7, (14.0,) * 7),
    ):
        limits = configured(*overrides).arm_limits()
        assert (limits.dq_max, limits.ddq_max) == (dq, ddq)


def test_a_stall_that_the_driver_waits_for_is_no_missing_heartbeat():
    bridge = configured()
    assert 0.19 < WIRE_TIMEOUT <= bridge.watchdog.state_fault
    assert WIRE_TIMEOUT + 3 / bridge.arm_limits().rate_hz <= bridge.supervisor_s
