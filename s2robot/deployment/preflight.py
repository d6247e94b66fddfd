"""Does this policy fit this robot? Pure checks of a checkpoint's contract, before anything moves; no I/O.

    findings = check_contract(contract, robot, cameras, image_size)
    findings += check_observation(contract, robot, observation) + check_latency(seconds, contract["rate_hz"])
    ready = not any(finding.stops for finding in findings)

`contract` is that of `load_checkpoint`, or of a `RemotePolicy`. Every check gives its line, also where all is well,
and none ends the others. What a check cannot know is a warning, never an "ok".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from s2robot.core.parts import default_parts, read_parts, same_parts, words
from s2robot.envs.frames import ImageSize, size_of

OK, WARNING, STOP = "ok", "warning", "stop"
FOVY_TOLERANCE = 0.05  # relative; 5 % of 45 degrees move a point at the frame's border by 2.5 % of its height
ASPECT_TOLERANCE = 0.01  # relative; of the shape of frames, which a camera cuts to whole pixels
DARK, BRIGHT = 8, 247  # mean grey value of a frame below or above which nothing can be seen


@dataclass(frozen=True)
class Robot:
    """An arm as the bridge drives it."""

    name: str
    joint_names: tuple[str, ...]  # in the order of the joints in proprio and actions
    rate_hz: float  # policy steps a second
    action_frame: str  # what the bridge takes an action to mean
    q_min: tuple[float, ...] = ()  # rad, each joint's limits; () = not known
    q_max: tuple[float, ...] = ()


@dataclass(frozen=True)
class Camera:
    """A camera after set-up: as the device says, not as requested."""

    width: int  # pixels, of the frames that the policy gets, after cropping
    height: int
    fps: float
    channels: str = "rgb"  # order of the colours in its frames
    fovy: float | None = None  # degrees, vertical field of view of those frames; None = not known


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: `ok`, `warning` or `stop`, and a line about it."""

    level: str
    check: str
    text: str

    @property
    def stops(self) -> bool:
        return self.level == STOP

    def __str__(self) -> str:
        return f"{self.level:<8}{self.check}: {self.text}"


def check_contract(
    contract: Mapping[str, Any],
    robot: Robot,
    cameras: Mapping[str, Camera],
    image_size: ImageSize,
    encoder: str | None = None,
) -> list[Finding]:
    """Check a checkpoint against an arm and its cameras.

    Args:
        contract: of the checkpoint.
        cameras: by the policy's names.
        image_size: of the frames that the policy expects, pixels.
        encoder: the fingerprint of the encoder that will compute; None = the server's, which checks it itself.
    """
    rate_hz = float(contract["rate_hz"])
    findings = [
        _equal("robot", contract["robot"], robot.name),
        _joints(contract["joint_names"], robot),
        _equal("rate", f"{rate_hz:g} Hz", f"{robot.rate_hz:g} Hz"),
        _equal("action frame", contract["action_frame"], robot.action_frame),
        *check_parts(contract, len(robot.joint_names)),
    ]
    if encoder is not None:
        findings.append(_equal("encoder", contract["encoder"]["fingerprint"], encoder))
    geometry = contract.get("camera_geometry") or {}
    for name in contract["cameras"]:
        if name in cameras:
            size = size_of(image_size, name)
            findings += _camera(name, cameras[name], geometry.get(name) or {}, size, rate_hz)
        else:
            found = ", ".join(cameras) or "none"
            findings.append(Finding(STOP, f"camera {name}", f"expected by the policy, got {found}"))
    if unused := [name for name in cameras if name not in contract["cameras"]]:
        findings.append(Finding(OK, "cameras", f"not used by this policy: {', '.join(unused)}"))
    return findings


def check_parts(contract: Mapping[str, Any], joints: int) -> list[Finding]:
    """Check that actions and states are those of an arm with a gripper, where the policy says it."""
    findings = []
    for key, what in (("action_parts", "actions"), ("proprio_parts", "proprio")):
        if contract.get(key) is not None:
            given, own = read_parts(contract[key], key), default_parts(key, joints)
            if not same_parts(given, own):
                text = f"the policy's are {words(given)}, the arm's {words(own)}"
                findings.append(Finding(STOP, what, text))
    return findings


def check_observation(
    contract: Mapping[str, Any], robot: Robot, observation: Mapping[str, Any]
) -> list[Finding]:
    """Check a first real observation: frames that show something, and possible joints."""
    findings, frames = [], {}
    for name in contract["cameras"]:
        frame, check = observation["images"].get(name), f"frame {name}"
        if not isinstance(frame, np.ndarray):
            findings.append(Finding(STOP, check, "there is none"))
        elif frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            text = f"expected uint8 (H, W, 3), got {frame.dtype} {frame.shape}"
            findings.append(Finding(STOP, check, text))
        else:
            frames[name] = frame
            findings.append(_frame(check, frame))
    for a, b in combinations(frames, 2):
        if np.array_equal(frames[a], frames[b]):
            findings.append(Finding(STOP, f"frames {a} and {b}", "equal: one device under two names"))
    return [*findings, _proprio(np.asarray(observation["proprio"]), robot)]


def check_latency(seconds: Sequence[float], rate_hz: float) -> Finding:
    """Check the times of single plans (at least 20, s) against the period in which each has to be there."""
    period = 1000 / rate_hz
    if len(seconds) < 20:
        return Finding(WARNING, "latency", f"measured on {len(seconds)} plans, expected at least 20")
    p50, p99 = np.percentile(np.asarray(seconds, np.float64) * 1000, (50, 99))
    text = f"a plan takes {p50:.1f} ms (p99 {p99:.1f} ms) of the period of {period:.0f} ms"
    if not p99 < period:  # NaN, a plan that never came, stops too
        return Finding(STOP, "latency", text)
    return Finding(WARNING if p99 > period / 2 else OK, "latency", text)


# ---------------------------------------------------------------- single checks


def _equal(check: str, wanted: Any, found: Any) -> Finding:
    if wanted == found:
        return Finding(OK, check, f"{found}")
    return Finding(STOP, check, f"the policy expects '{wanted}', got '{found}'")


def _joints(wanted: Sequence[str], robot: Robot) -> Finding:
    # the simulator puts the number of the robot in front of its names
    ours, theirs = (
        [str(name).removeprefix("robot0_") for name in names] for names in (robot.joint_names, wanted)
    )
    if len(ours) != len(theirs):
        return Finding(STOP, "joints", f"the policy moves {len(theirs)} joints, the robot has {len(ours)}")
    for i, (a, b) in enumerate(zip(theirs, ours, strict=True), 1):
        if a != b:
            return Finding(STOP, "joints", f"joint {i} is '{a}' to the policy and '{b}' to the robot")
    return Finding(OK, "joints", f"{len(ours)}, in the same order")


def _camera(
    name: str, camera: Camera, trained: Mapping[str, Any], wanted: tuple[int, int], rate_hz: float
) -> list[Finding]:
    stop, warn = (partial(Finding, level, f"camera {name}") for level in (STOP, WARNING))
    size, found = f"{camera.width} x {camera.height}", []
    if camera.width < 1 or camera.height < 1:
        return [stop(f"its frames are {size}")]
    if camera.channels != "rgb":
        found.append(stop(f"expected colours as rgb, got {camera.channels}"))
    if not camera.fps >= rate_hz:
        found.append(stop(f"{camera.fps:g} frames a second are less than {rate_hz:g} steps"))
    if "size" in trained:
        # from demos whose frames were cut to squares, the policy knows squares
        height, width = wanted if wanted[0] == wanted[1] else trained["size"]
        if not math.isclose(camera.width / camera.height, width / height, rel_tol=ASPECT_TOLERANCE):
            width, height = trained["size"][::-1]
            found.append(
                stop(f"frames of {size} have another shape than the demos' {width} x {height}; crop them")
            )
    else:
        found.append(warn("the size of its frames in the demos is not known; compare the pictures"))
    if camera.height < wanted[0] or camera.width < wanted[1]:
        text = f"the encoder's {wanted[1]} x {wanted[0]} pixels and would be enlarged"
        found.append(warn(f"frames of {size} are smaller than {text}"))
    if camera.fovy is None or "fovy" not in trained:
        whose = "the camera's" if camera.fovy is None else "the demos'"
        found.append(warn(f"{whose} field of view is not known; compare the pictures"))
    elif not math.isclose(camera.fovy, trained["fovy"], rel_tol=FOVY_TOLERANCE):
        text = f"a vertical field of view of {camera.fovy:g} degrees, the demos' is {trained['fovy']:g}"
        found.append(stop(text))
    return found or [Finding(OK, f"camera {name}", f"{size} at {camera.fps:g} Hz")]


def _frame(check: str, frame: np.ndarray) -> Finding:
    mean = float(frame.mean())
    if frame.min() == frame.max():
        return Finding(STOP, check, f"every pixel is {frame.min()}: no picture")
    if mean < DARK or mean > BRIGHT:
        what = "dark" if mean < DARK else "bright"
        return Finding(STOP, check, f"too {what} to see anything (mean {mean:.0f} of 255)")
    return Finding(OK, check, f"{frame.shape[1]} x {frame.shape[0]}, mean {mean:.0f} of 255")


def _proprio(proprio: np.ndarray, robot: Robot) -> Finding:
    stop, joints = partial(Finding, STOP, "proprio"), len(robot.joint_names)
    if proprio.shape != (joints + 1,) or proprio.dtype.kind != "f":
        return stop(f"expected floats ({joints + 1},), got {proprio.dtype} {proprio.shape}")
    if not np.isfinite(proprio).all():
        return stop("holds NaN or infinity")
    if not -0.05 <= proprio[-1] <= 1.05:  # measured, so a little beyond 0 and 1 is right
        return stop(f"the gripper's opening: expected 0 to 1, got {proprio[-1]:.2f}")
    if not robot.q_min or not robot.q_max:
        return Finding(WARNING, "proprio", "the joints' limits are not known")
    for i, (q, low, high) in enumerate(zip(proprio, robot.q_min, robot.q_max, strict=False), 1):
        if not low <= q <= high:
            return stop(f"joint {i}: expected {low:.3f} to {high:.3f} rad, got {q:.3f}; degrees?")
    return Finding(OK, "proprio", "joints within their limits")
