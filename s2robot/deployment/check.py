"""The pre-flight of a deployment: everything compared, one line for each finding, a picture; nothing moves.

The views of the cameras are compared with the demos' by the correlation of blurred images. That finds flips and
exchanged cameras, and says little about a camera that moved by centimetres: for that there is the picture.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from s2robot.config import DemosSettings
from s2robot.core.errors import UserError
from s2robot.demos.errors import DatasetError
from s2robot.demos.replay import world_of_demos
from s2robot.demos.store import EpisodeStore
from s2robot.deployment.arm import JOINT_NAMES, ConnectedArm
from s2robot.deployment.policy import Policy
from s2robot.deployment.preflight import (
    OK,
    STOP,
    WARNING,
    Finding,
    Robot,
    check_contract,
    check_latency,
    check_observation,
)
from s2robot.deployment.settings import Bridge
from s2robot.envs.cube_config import ACTION_FRAME
from s2robot.envs.errors import EnvError
from s2robot.envs.frames import ImageSize, size_of
from s2robot.envs.gl import require_simulator
from s2robot.envs.real.arms.driver import ArmLimits, ArmState
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.cameras.camera import fitted
from s2robot.envs.real.control.safety import SafetyFilter
from s2robot.reporting.style import save_figure

PLANS = 20  # measured for the latency
SIDE = 24  # pixels, of the images that are correlated: blurred enough for another cube and start pose
MARGIN = 0.1  # by how much another reading of the image has to fit better
LOW = 0.5  # a correlation below this is no resemblance

_TURNS = {  # how an image looks, and what mends it
    "upside down (rotate: 2 mends it)": lambda x: np.rot90(x, 2),
    "turned by a quarter (rotate: 1 mends it)": lambda x: np.rot90(x, 1),
    "turned by a quarter (rotate: 3 mends it)": lambda x: np.rot90(x, 3),
    "flipped top to bottom": lambda x: x[::-1],
    "mirrored left to right": lambda x: x[:, ::-1],
    "like red and blue are exchanged": lambda x: x[..., ::-1],
}


def check_all(
    policy: Policy, arm: ConnectedArm, demos: DemosSettings, picture: Path, live: bool = False
) -> list[Finding]:
    """Check contract, arm, observation, views and latency; write `picture`.

    Args:
        arm: read now.
        demos: whose images the cameras' are compared with.
        live: whether the arm is to move: exchanged cameras then stop it.
    """
    contract, failed, limits = policy.contract, arm.cameras.failed, arm.limits
    state, speed, size = arm.driver.read(), arm.bridge.speed, policy.image_size
    # fewer than two commands between two decisions are no path
    rate = min(policy.rate_hz, limits.rate_hz / 2)
    robot = Robot("xarm7", JOINT_NAMES, rate, ACTION_FRAME, limits.q_min, limits.q_max)
    known = {f.check for f in failed}
    compared = check_contract(contract, robot, arm.cameras.facts, size, policy.encoder)
    findings = [f for f in compared if f.check not in known] + failed
    if speed < 1:
        text = f"{speed:g} of the demos': a decision every {1000 / rate / speed:.0f} ms"
        findings.append(Finding(OK, "speed", text))
    findings += check_pace(arm.bridge, limits, rate * speed) + _check_arm(limits, state)
    latest = {name: reader.latest() for name, reader in arm.readers.items()}
    images = {name: fitted(f.image, size_of(size, name)) for name, f in latest.items() if f is not None}
    proprio = np.append(state.q, state.gripper).astype(np.float32)
    observation = {"images": images, "proprio": proprio}
    known = {check.replace("camera", "frame") for check in known}
    findings += [f for f in check_observation(contract, robot, observation) if f.check not in known]
    findings += check_views(demos, policy, images, picture, live)
    if not any(f.stops for f in findings):  # a policy is not asked about what it cannot see
        findings.append(_check_latency(policy, observation, rate * speed))
    return findings


def check_pace(bridge: Bridge, limits: ArmLimits, rate_hz: float) -> list[Finding]:
    """Warn where an action may ask for more than the arm does in a period: it would fall behind the policy."""
    asked, allowed = bridge.loop.max_delta * rate_hz, min(limits.dq_max)
    if asked <= allowed:
        return []
    enough = np.floor(100 * bridge.speed * allowed / asked) / 100
    text = f"actions may ask for {asked:.2f} rad/s, the limits allow {allowed:.2f}; bridge.speed={enough:g} keeps up"
    return [Finding(WARNING, "pace", text)]


def _check_arm(limits: ArmLimits, state: ArmState) -> list[Finding]:
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


def _check_latency(policy: Policy, observation: Mapping, rate_hz: float) -> Finding:
    seconds = []
    policy.reset()
    try:
        for i in range(PLANS + 2):
            begin = time.monotonic()
            policy.plan(observation)
            if i >= 2:  # warm
                seconds.append(time.monotonic() - begin)
    except Exception as error:  # whatever a policy raises: it will not act
        return Finding(
            STOP, "latency", " ".join(f"the policy fails: {type(error).__name__}: {error}".split())
        )
    finally:
        policy.reset()
    return check_latency(seconds, rate_hz)


# ---------------------------------------------------------------- views


def check_views(
    demos: DemosSettings, policy: Policy, frames: Mapping[str, np.ndarray], picture: Path, live: bool
) -> list[Finding]:
    """Compare the cameras' frames with the demos'; write `picture`."""
    findings: list[Finding] = []
    images: dict[str, np.ndarray] = {}
    try:
        store = EpisodeStore.open(demos.folder())
        if (policy.contract.get("dataset") or {}).get("fingerprint") != store.fingerprint:
            text = f"{store.path.name} is not what this policy was trained on; compare with care (demos.path=<folder>)"
            findings.append(Finding(WARNING, "demos", text))
        names = tuple(name for name in frames if name in store.cameras)
        images = demo_images(store, names, policy.image_size)
    except (UserError, DatasetError, EnvError) as error:
        findings.append(Finding(WARNING, "demos", f"no images to compare with: {error}"))
    if frames:
        draw_views(frames, images, picture)
        findings += compare_views(frames, images, live)
    return findings


def demo_images(
    store: EpisodeStore, cameras: tuple[str, ...], image_size: ImageSize, episodes: int = 6
) -> dict[str, np.ndarray]:
    """Return first frames of some episodes, drawn again where the demos hold states.  # {camera: uint8 (n, H, W, 3)}

    Raises:
        DatasetError: a camera that the dataset lacks.
        UserError: they have to be drawn, and the simulator is not installed.
    """
    store.check(cameras=cameras)
    chosen = np.linspace(0, len(store) - 1, min(episodes, len(store))).round().astype(int)
    starts = [store.episode_slice(int(i)).start for i in chosen]
    if store.attrs["kind"] == "images":
        read = lambda c, i: fitted(store.read(f"images_{c}", i, i + 1)[0], size_of(image_size, c))  # noqa: E731
        return {c: np.stack([read(c, i) for i in starts]) for c in cameras}
    require_simulator()
    from s2robot.envs.tasks import make

    env: Any = make(world_of_demos(store, cameras=cameras, image_size=image_size))
    try:
        drawn = []
        for i in starts:
            env.set_state(store.read("state", i, i + 1)[0])
            drawn.append(env.render_cameras())
    finally:
        env.close()
    return {c: np.stack([images[c] for images in drawn]) for c in cameras}


def compare_views(
    frames: Mapping[str, np.ndarray], demos: Mapping[str, np.ndarray], live: bool = False
) -> list[Finding]:
    """Compare a camera's frame (H, W, 3) with the demos' images of all cameras; a finding each.

    live: the arm is to move; a camera that looks like another one is then no warning but a stop.
    """
    means = {name: np.mean([_small(x) for x in images], 0) for name, images in demos.items()}
    findings = []
    for name, frame in frames.items():
        if name not in means:
            continue
        check, small = f"view {name}", _small(frame)
        plain = _correlation(small, means[name])
        others = {f"what '{o}' saw": _correlation(small, mean) for o, mean in means.items() if o != name}
        turned = {what: _correlation(turn(small), means[name]) for what, turn in _TURNS.items()}
        what, best = max((others | turned).items(), key=lambda item: item[1])
        if best > plain + MARGIN:
            text = f"looks {'like ' if what in others else ''}{what} (correlation {best:.2f}, as it is {plain:.2f})"
            exchanged = what in others and best >= LOW
            findings.append(Finding(STOP if live and exchanged else WARNING, check, text))
        elif plain < LOW:
            text = f"looks unlike the demos (correlation {plain:.2f}); compare the pictures"
            findings.append(Finding(WARNING, check, text))
        else:
            findings.append(Finding(OK, check, f"looks like the demos (correlation {plain:.2f})"))
    return findings


def draw_views(frames: Mapping[str, np.ndarray], demos: Mapping[str, np.ndarray], path: Path) -> None:
    """Draw a row for each camera: its frame, a demo's, and both over each other."""
    figure = Figure(figsize=(9, 3.1 * len(frames)), layout="constrained", dpi=90)
    rows = figure.subplots(len(frames), 3, squeeze=False)
    for row, (name, frame) in zip(rows, frames.items(), strict=True):
        images = {f"{name}, now": frame}
        if name in demos:
            demo = fitted(demos[name][0], (frame.shape[0], frame.shape[1]))
            both = ((frame.astype(np.uint16) + demo) // 2).astype(np.uint8)
            images |= {f"{name}, in a demo": demo, "both: edges should meet": both}
        for axes in row:
            axes.set_axis_off()
        for axes, (title, image) in zip(row, images.items(), strict=False):
            axes.set_title(title, fontsize=10)
            axes.imshow(image)
    save_figure(figure, path)


def _small(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> float (SIDE, SIDE, 3)."""
    return fitted(image, (SIDE, SIDE)).astype(float)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two images (S, S, 3), each colour about its own mean: brightness and tint do not count."""
    a, b = (x - x.mean((0, 1)) for x in (a, b))
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else 0.0
