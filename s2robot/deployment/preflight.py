"""Pre-flight checks of a deployment: does this policy fit this arm? One line per check, and an image; nothing moves.

A failed check does not prevent the others. Anything a check cannot determine is a warning, never "ok". The cameras' views
are compared with the demos' by the correlation of blurred images, which detects flips and swapped cameras; a shift of a
camera by centimetres is visible only in the image.
"""

import math
import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from s2robot.config import DemosSettings
from s2robot.core.errors import UserError
from s2robot.core.files import replacing
from s2robot.demos.replay import frames_of, world_of_demos
from s2robot.demos.store import EpisodeStore
from s2robot.deployment.arm import OK, STOP, WARNING, Camera, ConnectedArm, Finding
from s2robot.deployment.policy import Policy
from s2robot.deployment.settings import Bridge
from s2robot.envs.cube_config import ACTION_FRAME
from s2robot.envs.errors import EnvError
from s2robot.envs.frames import ImageSize, size_of
from s2robot.envs.real.arms.description import ArmDescription
from s2robot.envs.real.arms.driver import ArmLimits, ArmState, Array
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.cameras.camera import fitted
from s2robot.envs.real.control.safety import SafetyFilter
from s2robot.envs.real.control.sensors import observation_of
from s2robot.evaluation.video import side_by_side

FOVY_TOLERANCE = 0.05  # relative; 5 % of 45 degrees move a point at the frame's border by 2.5 % of its height
ASPECT_TOLERANCE = 0.01  # relative tolerance of the aspect ratio, since cameras crop to whole pixels
DARK, BRIGHT = 8, 247  # mean grey value of a frame below or above which nothing is visible
PLANS = 20  # number measured for the latency
SIDE = 24  # pixels, of the images to correlate: blurred enough to ignore cube and start pose
MARGIN = 0.1  # by which the correlation of a changed image must be better
LOW = 0.5  # images with a lower correlation do not resemble each other
_TURNS = {  # how an image looks, and what corrects it
    "upside down (add 2 to rotate, modulo 4)": lambda x: np.rot90(x, 2),
    "rotated by 90 degrees (add 1 to rotate, modulo 4)": lambda x: np.rot90(x, 1),
    "rotated by 90 degrees (add 3 to rotate, modulo 4)": lambda x: np.rot90(x, 3),
    "flipped top to bottom": lambda x: x[::-1],
    "mirrored left to right": lambda x: x[:, ::-1],
    "as if red and blue were swapped": lambda x: x[..., ::-1],
}


def check_all(
    policy: Policy, arm: ConnectedArm, demos: DemosSettings, picture: Path, live: bool = False
) -> list[Finding]:
    """Check contract, arm, observation, and latency, compare the views with the demos' and write the image file `picture`.
    `live`: the arm will move, so swapped cameras are a "stop"."""
    limits, size, state = arm.limits, policy.image_size, arm.driver.read()
    # a path requires at least two commands between two decisions
    rate = min(policy.rate_hz, limits.rate_hz / 2)
    findings = check_contract(policy.contract, arm.bench, rate, arm.cameras, size, policy.encoder)
    findings += arm.failed + check_pace(arm.bridge, limits, rate)
    findings += _check_arm(limits, arm.points, state, arm.bench.start)
    if arm.driver.stop_effect:
        findings.append(Finding(WARNING, "stop", arm.driver.stop_effect))
    observation = observation_of(state, arm.readers, size, arm.bench.gripper is not None)
    findings += check_observation(observation, limits)
    findings += check_views(demos, policy, observation["images"], picture, live)
    if all(f.level != STOP for f in findings):  # a policy cannot plan without a valid observation
        findings.append(_check_latency(policy, observation, rate * arm.bridge.speed, arm.bridge.plan_s))
    return findings


def check_contract(
    contract: Mapping[str, Any], arm: ArmDescription, rate_hz: float, cameras: Mapping[str, Camera],
    image_size: ImageSize, encoder: str | None = None,
) -> list[Finding]:  # fmt: skip
    """Check a checkpoint's contract against an arm and its cameras.

    Args:
        rate_hz: decisions per second that the arm can follow.
        image_size: of the frames that the policy expects, pixels.
        encoder: the fingerprint of the encoder in use; None = the server's, which checks it itself.
    """
    # the simulator prefixes joint names with the robot's number
    joints = [str(name).removeprefix("robot0_") for name in contract["joint_names"]]
    fingerprint, rate = contract["encoder"]["fingerprint"], float(contract["rate_hz"])
    geometry, findings = contract.get("camera_geometry") or {}, []
    for check, expected, actual in (
        ("robot", contract["robot"], arm.name),
        ("joints", ", ".join(joints), ", ".join(arm.joint_names)),
        ("rate", f"{rate:g} Hz", f"{rate_hz:g} Hz"),
        ("action frame", contract["action_frame"], ACTION_FRAME),
        ("encoder", fingerprint, encoder or fingerprint),
    ):
        text = actual if expected == actual else f"the policy expects '{expected}', got '{actual}'"
        findings.append(Finding(OK if expected == actual else STOP, check, text))
    for name in contract["cameras"]:
        if name in cameras:  # a camera that failed already has a finding
            problems = _camera(cameras[name], geometry.get(name) or {}, size_of(image_size, name), rate)
            findings += [Finding(level, f"camera {name}", text) for level, text in problems]
    return findings


def _camera(
    camera: Camera, trained: Mapping[str, Any], expected: tuple[int, int], rate_hz: float
) -> list[tuple[str, str]]:
    size, results = f"{camera.width} x {camera.height}", []
    if not camera.fps >= rate_hz:
        results.append((STOP, f"expected at least {rate_hz:g} frames per second, got {camera.fps:g}"))
    if "size" in trained:
        # if the demos' frames were cropped to squares, the policy expects squares
        height, width = expected if expected[0] == expected[1] else trained["size"]
        if not math.isclose(camera.width / camera.height, width / height, rel_tol=ASPECT_TOLERANCE):
            height, width = trained["size"]
            text = f"frames of {size} differ in aspect ratio from the demos' {width} x {height}; crop them"
            results.append((STOP, text))
    else:
        results.append((WARNING, "its frame size in the demos is unknown; compare the images"))
    if camera.height < expected[0] or camera.width < expected[1]:
        text = f"frames of {size} are smaller than the encoder's {expected[1]} x {expected[0]} pixels and will be enlarged"
        results.append((WARNING, text))
    if camera.fovy is None or "fovy" not in trained:
        whose = "the camera's" if camera.fovy is None else "the demos'"
        results.append((WARNING, f"{whose} field of view is unknown; compare the images"))
    elif not math.isclose(camera.fovy, trained["fovy"], rel_tol=FOVY_TOLERANCE):
        degrees = f"{trained['fovy']:g} degrees as in the demos, got {camera.fovy:g}"
        results.append((STOP, f"expected a vertical field of view of {degrees}"))
    return results or [(OK, f"{size} at {camera.fps:g} Hz")]


def check_pace(bridge: Bridge, limits: ArmLimits, rate_hz: float) -> list[Finding]:
    """Warn if an action may request more motion than the arm can do in a period: it would fall behind the policy."""
    findings, speed = [], bridge.speed
    if speed < 1:
        text = f"{speed:g} times the demos' speed: a decision every {1000 / rate_hz / speed:.0f} ms"
        findings.append(Finding(OK, "speed", text))
    requested, allowed = bridge.loop.max_delta * rate_hz * speed, min(limits.dq_max)
    if requested > allowed:
        enough = np.floor(100 * speed * allowed / requested) / 100
        text = f"actions may request {requested:.2f} rad/s, the limits allow {allowed:.2f}; bridge.speed={enough:g} suffices"
        findings.append(Finding(WARNING, "pace", text))
    return findings


def _check_arm(limits: ArmLimits, points: ArmPoints, state: ArmState, start: Array) -> list[Finding]:
    text = f"reports error {state.error}; inspect the arm, then clear it with the manufacturer's software"
    results, safety = [(STOP, text)] if state.error else [], SafetyFilter(limits, points)
    if problem := safety.problem_between(start, start, safety.dt):
        results.append((STOP, f"robot.home, where an episode starts, is outside the limits ({problem})"))
    try:
        safety.reset(state.q)
        where = "joint limits and workspace, and above the table" if points.names else "joint limits"
        results.append((OK, f"within {where}"))
    except EnvError as error:
        results.append((STOP, str(error)))
    if not points.names:
        text = "no Cartesian limits: without a model of this arm, box, table and point speeds are NOT checked"
        results.append((WARNING, text))
    return [Finding(level, "arm", text) for level, text in results]


def check_observation(observation: Mapping[str, Any], limits: ArmLimits) -> list[Finding]:
    """Check a first real observation: usable frames, and joints within their limits."""
    findings, frames = [], observation["images"]
    for name, frame in frames.items():
        mean = float(frame.mean())
        level, text = OK, f"{frame.shape[1]} x {frame.shape[0]}, mean {mean:.0f} of 255"
        if frame.min() == frame.max():
            level, text = STOP, f"no image: every pixel is {frame.min()}"
        elif not DARK <= mean <= BRIGHT:
            what = "dark" if mean < DARK else "bright"
            level, text = STOP, f"too {what} to see anything (mean {mean:.0f} of 255)"
        findings.append(Finding(level, f"frame {name}", text))
    for a, b in combinations(frames, 2):
        if np.array_equal(frames[a], frames[b]):
            findings.append(Finding(STOP, f"frames {a} and {b}", "identical: one device has both names"))
    ranges = [(f"joint {i}", *ends) for i, ends in enumerate(zip(limits.q_min, limits.q_max, strict=True), 1)]
    # a measured opening may be slightly outside 0 to 1
    ranges += [("the gripper's opening", -0.05, 1.05)] * (len(observation["proprio"]) - limits.joints)
    wrong = [
        f"{name}: expected {low:.3f} to {high:.3f}, got {value:.3f}; check the unit, which may be degrees"
        for (name, low, high), value in zip(ranges, observation["proprio"], strict=True)
        if not low <= value <= high
    ]
    text = "; ".join(wrong) or "joints within their limits"
    return [*findings, Finding(STOP if wrong else OK, "proprio", text)]


def _check_latency(policy: Policy, observation: Mapping, rate_hz: float, plan_s: float | None) -> Finding:
    seconds = []
    policy.reset()
    try:
        for i in range(PLANS + 2):
            begin = time.monotonic()
            policy.actor.plan(policy.seen(observation))
            if i >= 2:  # warm
                seconds.append(time.monotonic() - begin)
    except Exception as error:  # the policy may raise anything; it cannot act
        text = " ".join(f"the policy fails: {type(error).__name__}: {error}".split())
        return Finding(STOP, "latency", text)
    finally:
        policy.reset()
    return check_latency(seconds, rate_hz if plan_s is None else 1 / plan_s)


def check_latency(seconds: Sequence[float], rate_hz: float) -> Finding:
    """Check the durations of single plans (s) against the period, or `bridge.plan_s`, within which each must finish."""
    period = 1000 / rate_hz
    p50, p99 = np.percentile(np.asarray(seconds, np.float64) * 1000, (50, 99))
    text = f"a plan takes {p50:.1f} ms (p99 {p99:.1f} ms) of the period of {period:.0f} ms"
    return Finding(STOP if not p99 < period else WARNING if p99 > period / 2 else OK, "latency", text)


def check_views(
    demos: DemosSettings, policy: Policy, frames: Mapping[str, np.ndarray], picture: Path, live: bool
) -> list[Finding]:
    """Compare the cameras' frames with the demos'; write the image file `picture`."""
    findings, images = list[Finding](), dict[str, np.ndarray]()
    try:
        store = EpisodeStore.open(demos.folder())
        if (policy.contract.get("dataset") or {}).get("fingerprint") != store.fingerprint:
            text = f"this policy was not trained on {store.path.name}; set demos.path=<folder> for a valid comparison"
            findings.append(Finding(WARNING, "demos", text))
        images = demo_images(store, tuple(n for n in frames if n in store.cameras), policy.image_size)
    except UserError as error:
        findings.append(Finding(WARNING, "demos", f"no images to compare with: {error}"))
    if frames:
        draw_views(frames, images, picture)
        findings += compare_views(frames, images, live)
    return findings


def demo_images(
    store: EpisodeStore, cameras: tuple[str, ...], image_size: ImageSize, episodes: int = 6
) -> dict[str, np.ndarray]:
    """Return the first frames {camera: uint8 (n, H, W, 3)} of some episodes, rendered from states (UserError: no simulator)."""
    chosen = np.linspace(0, len(store) - 1, min(episodes, len(store))).round().astype(int)
    starts = [store.episode_slice(int(i)).start for i in chosen]
    if store.attrs["kind"] == "images":
        read = lambda c, i: fitted(store.read(f"images_{c}", i, i + 1)[0], size_of(image_size, c))  # noqa: E731
        return {c: np.stack([read(c, i) for i in starts]) for c in cameras}
    world = world_of_demos(store, cameras=cameras, image_size=image_size)
    states = np.concatenate([store.read("state", i, i + 1) for i in starts])
    return dict(zip(cameras, frames_of([states], world), strict=True))


def compare_views(
    frames: Mapping[str, np.ndarray], demos: Mapping[str, np.ndarray], live: bool = False
) -> list[Finding]:
    """Compare each camera's frame (H, W, 3) with the demos' images of all cameras; return one finding per camera.

    live: the arm will move; a camera that looks like another one is then a "stop" instead of a warning.
    """
    small = lambda image: fitted(image, (SIDE, SIDE)).astype(float)  # noqa: E731  # (SIDE, SIDE, 3)
    means, findings = {name: np.mean([small(x) for x in images], 0) for name, images in demos.items()}, []
    for name in [name for name in frames if name in means]:
        seen = small(frames[name])
        level, plain = WARNING, _correlation(seen, means[name])
        others = {f"what '{o}' saw": _correlation(seen, mean) for o, mean in means.items() if o != name}
        turned = {what: _correlation(turn(seen), means[name]) for what, turn in _TURNS.items()}
        what, best = max((others | turned).items(), key=lambda item: item[1])
        if best > plain + MARGIN:
            text = f"looks {'like ' if what in others else ''}{what} (correlation {best:.2f}, as it is {plain:.2f})"
            if live and what in others and best >= LOW:
                level = STOP
        elif plain < LOW:
            text = f"looks unlike the demos (correlation {plain:.2f}); compare the images"
        else:
            level, text = OK, f"looks like the demos (correlation {plain:.2f})"
        findings.append(Finding(level, f"view {name}", text))
    return findings


def draw_views(frames: Mapping[str, np.ndarray], demos: Mapping[str, np.ndarray], path: Path) -> None:
    """Draw a row per camera: its frame, a demo's frame, and an overlay of both."""
    rows = []
    for name, frame in frames.items():
        images = {f"{name}, now": frame}
        if name in demos:
            demo = fitted(demos[name][0], (frame.shape[0], frame.shape[1]))
            both = ((frame.astype(np.uint16) + demo) // 2).astype(np.uint8)
            images |= {f"{name}, in a demo": demo, "both: edges should meet": both}
        rows.append(side_by_side(images, 360))
    width = max(row.shape[1] for row in rows)
    sheet = np.concatenate([np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0))) for row in rows])
    with replacing(path) as part:
        Image.fromarray(sheet).save(part, "png")


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of two images (S, S, 3), each colour relative to its mean, so brightness and tint are ignored."""
    a, b = (x - x.mean((0, 1)) for x in (a, b))
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else 0.0
