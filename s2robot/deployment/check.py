"""The pre-flight of a deployment: everything compared, one line for each finding, a picture; nothing moves."""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from s2robot.common.errors import UserError
from s2robot.common.settings import DemosSettings
from s2robot.demos.errors import DatasetError
from s2robot.demos.store import EpisodeStore
from s2robot.deployment import views
from s2robot.deployment.arm import robot_of
from s2robot.deployment.cameras import Cameras
from s2robot.deployment.policy import Policy
from s2robot.deployment.preflight import (
    OK,
    STOP,
    WARNING,
    Finding,
    check_contract,
    check_latency,
    check_observation,
)
from s2robot.deployment.settings import Bench, Bridge
from s2robot.envs.errors import EnvError
from s2robot.envs.frames import ImageSize, size_of
from s2robot.envs.real.arms.driver import ArmLimits, ArmState
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.cameras.camera import CameraReader, fitted
from s2robot.envs.real.control.safety import SafetyFilter

PLANS = 20  # measured for the latency


def observe(readers: Mapping[str, CameraReader], state: ArmState, image_size: ImageSize) -> dict:
    """What the policy would be given now."""
    images = {}
    for name, reader in readers.items():
        frame = reader.latest()
        if frame is not None:
            images[name] = fitted(frame.image, size_of(image_size, name))
    return {"images": images, "proprio": np.append(state.q, state.gripper).astype(np.float32)}


def check_all(
    bench: Bench,
    policy: Policy,
    limits: ArmLimits,
    state: ArmState,
    cameras: Cameras,
    demos: DemosSettings,
    picture: Path,
    live: bool = False,
) -> list[Finding]:
    """Contract, arm, observation, pictures and latency; writes `picture`.

    Args:
        state: the arm's, read now.
        demos: whose pictures the cameras' are compared with.
        live: whether the arm is to move: exchanged cameras then stop it.
    """
    contract, failed, speed = policy.contract, cameras.failed, bench.bridge.speed
    # fewer than two commands between two decisions are no path
    robot = robot_of(limits, min(policy.rate_hz, limits.rate_hz / 2))
    compared = check_contract(contract, robot, cameras.facts, policy.image_size, policy.encoder)
    told = {f.check for f in failed}
    findings = [f for f in compared if f.check not in told] + failed
    if speed < 1:
        text = f"{speed:g} of the demos': a decision every {1000 / robot.rate_hz / speed:.0f} ms"
        findings.append(Finding(OK, "speed", text))
    findings += _pace(bench.bridge, limits, robot.rate_hz * speed)
    findings += _arm(limits, state)
    observation = observe(cameras.readers, state, policy.image_size)
    gone = {finding.check.replace("camera", "frame") for finding in failed}
    findings += [f for f in check_observation(contract, robot, observation) if f.check not in gone]
    findings += _views(demos, policy, observation["images"], picture, live)
    if not any(f.stops for f in findings):  # a policy is not asked about what it cannot see
        findings.append(_latency(policy, observation, robot.rate_hz * speed))
    return findings


def _pace(bridge: Bridge, limits: ArmLimits, rate_hz: float) -> list[Finding]:
    """Can the arm go as far in a period as an action may ask for? It would fall behind the policy otherwise."""
    asked, allowed = bridge.loop.max_delta * rate_hz, min(limits.dq_max)
    if asked <= allowed:
        return []
    enough = np.floor(100 * bridge.speed * allowed / asked) / 100
    text = f"actions may ask for {asked:.2f} rad/s, the limits allow {allowed:.2f}; bridge.speed={enough:g} keeps up"
    return [Finding(WARNING, "pace", text)]


def _arm(limits: ArmLimits, state: ArmState) -> list[Finding]:
    findings = []
    if state.error:
        text = f"reports error {state.error}; look at it, then clear it in UFACTORY Studio"
        findings.append(Finding(STOP, "arm", text))
    try:
        SafetyFilter(limits, ArmPoints("xarm7")).reset(state.q)
        findings.append(Finding(OK, "arm", "stands within joint limits, workspace and above the table"))
    except EnvError as error:
        findings.append(Finding(STOP, "arm", str(error)))
    return findings


def _views(
    demos: DemosSettings, policy: Policy, frames: Mapping[str, np.ndarray], picture: Path, live: bool
) -> list[Finding]:
    """The cameras' pictures beside the demos'."""
    findings: list[Finding] = []
    pictures: dict[str, np.ndarray] = {}
    try:
        store = EpisodeStore.open(demos.folder())
        trained = (policy.contract.get("dataset") or {}).get("fingerprint")
        if trained != store.fingerprint:
            text = f"{store.path.name} is not what this policy was trained on; compare with care (demos.path=<folder>)"
            findings.append(Finding(WARNING, "demos", text))
        names = tuple(name for name in frames if name in store.cameras)
        pictures = views.demo_pictures(store, names, policy.image_size)
    except (UserError, DatasetError, EnvError) as error:
        findings.append(Finding(WARNING, "demos", f"no pictures to compare with: {error}"))
    if frames:
        views.draw(frames, pictures, picture)
        findings += views.compare(frames, pictures, live)
    return findings


def _latency(policy: Policy, observation: Mapping, rate_hz: float) -> Finding:
    seconds = []
    policy.reset()
    try:
        for i in range(PLANS + 2):
            begin = time.monotonic()
            policy.plan(observation)
            if i >= 2:  # warm
                seconds.append(time.monotonic() - begin)
    except Exception as error:  # whatever a policy raises: it will not act
        text = f"the policy fails: {type(error).__name__}: {error}"
        return Finding(STOP, "latency", " ".join(text.split()))
    finally:
        policy.reset()
    return check_latency(seconds, rate_hz)
