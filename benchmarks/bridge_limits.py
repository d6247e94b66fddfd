"""Run a policy within the bridge's limits in virtual time, so that load cannot disturb it.

    python benchmarks/bridge_limits.py <checkpoint> --episodes 32 0.7,1.8,14,-4 0.7,1.8,14,-1 0.7,1.8,14,0
    python benchmarks/bridge_limits.py <checkpoint> --lag --episodes 16 0.7,1.8,14,-1 1,2.6,20,-10
    python benchmarks/bridge_limits.py <checkpoint> --lag --online --episodes 4 0.7,0.8,4,-4 0.3,0.8,4,-4

A setting is four numbers: bridge.speed, limits.dq_max (rad/s), limits.ddq_max (rad/s²) and limits.table_clearance (mm). The
interpolator, the safety filter and the emulator's scene are the real ones; there is no network and no watchdog. "error 31"
counts episodes in which the arm pushes longer and harder than the emulated box allows at sensitivity 3. The first line is the
policy in plain simulation: the largest joint change in a step and the lowest fingertip position. --lag disables the lag limits
and prints the tracking error. With --online the box plans to each target (0.8 rad/s, 4 rad/s²), as in mode 6.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.real.arms.driver import XARM7_LIMITS, ArmLimits
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.control.motion import Interpolator
from s2robot.envs.real.control.safety import Safe, SafetyConfig, SafetyFilter, Verdict
from s2robot.envs.real.emulator.controller import COLLISION_FORCE, COLLISION_TIME, Motion
from s2robot.envs.real.emulator.scene import ScenePlant, SceneRenderer
from s2robot.loading import load_policy

PLANNED, READY = 9, 1  # ticks of 10 ms from an observation to the first action of a plan, and to the others
FPS, FRAME_DELAY = 20, 0.05  # of the cameras, s
GRIPPER_TICKS = 10  # between two gripper commands
STROKE_S = 0.5  # s, the emulated gripper's whole way
SENSITIVITY = 3


def asked_for(config: CubePickConfig, actor: Any, seeds: range) -> tuple[int, float, float]:
    """Plain simulation: successes, largest change of a joint (rad), lowest finger point commanded (m, table = 0)."""
    env, points = CubePick(config), ArmPoints(config.robot)
    tips = [i for i, name in enumerate(points.names) if "finger tip" in name]
    good, most, lowest = 0, 0.0, np.inf
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        actor.reset()
        done = truncated = False
        while not (done or truncated):
            before = env.commanded.copy()
            observation, _, done, truncated, _ = env.step(actor.act(observation))
            most = max(most, float(np.abs(env.commanded - before).max()))
            lowest = min(lowest, float(points.at(env.commanded)[tips, 2].min()) - XARM7_LIMITS.table_z)
        good += env.is_success
    env.close()
    return good, most, lowest


def episode(
    plant: ScenePlant, renderer: SceneRenderer, actor: Any, points: ArmPoints, limits: ArmLimits, speed: float,
    seed: int, gripper_hold: int, filter_class: type[SafetyFilter], motion_class: type[Motion],
) -> dict[str, Any]:  # fmt: skip
    """One episode through interpolator and filter."""
    start = plant.reset(seed)
    plant.place(start)
    plant.reset(seed)
    for _ in range(100):  # the gripper opens, as it does before an episode on the arm
        plant.step(start, 1.0, 0.004)
    motion, path = motion_class(plant.joints), Interpolator(limits)
    safety = filter_class(limits, points, SafetyConfig(clamps_max=200))
    safety.reset(plant.joints)
    path.reset(plant.joints)
    actor.reset()
    low, high = np.add(limits.q_min, limits.margin), np.subtract(limits.q_max, limits.margin)
    commanded, opening, turned, clamped = plant.joints.copy(), 1.0, gripper_hold, False
    told = going = 1.0  # the gripper: commanded and current opening
    known, frames, due, action = plant.opening, [plant.positions], -1, np.zeros(8)
    period = 0.1 / speed
    ticks = round(period * limits.rate_hz)
    pushed = longest = fastest = 0.0
    clamps, end = 0, "not in time"
    for k in range(plant.env.config.max_steps * ticks):
        now = k / limits.rate_hz
        if k % ticks == 0:
            seen = max(0, round(np.floor((now - FRAME_DELAY) * FPS) / FPS * limits.rate_hz))
            proprio = np.append(plant.joints, known).astype(np.float32)
            due = k + (PLANNED if k // ticks % actor.batch.execute == 0 else READY)
            action = actor.act({"images": renderer.draw(frames[seen]), "proprio": proprio})
        if k == due:
            wanted = np.clip((path.q if clamped else commanded) + action[:7], low, high)
            asked, turned, clamped = (0.0 if action[7] >= 0.5 else 1.0), turned + 1, False
            if asked != opening and turned > gripper_hold:
                opening, turned = asked, 0
            commanded = safety.above_table(wanted)
            path.push(now, now + period, commanded)
        safe = safety(path.step(now)[0], opening, plant.joints, 0.0)
        if safe.verdict == Verdict.STOP:
            end = safe.reasons[0]
            break
        if safe.verdict != Verdict.PASS:
            path.follow(safe.q, safety.dq_last)
            clamped, clamps = True, clamps + 1
        fastest = max(fastest, float(np.abs(safety.dq_last).max()))
        motion.servo(safe.q)
        if k % GRIPPER_TICKS == 0:
            told, known = opening, plant.opening
        for _ in range(2 + k % 2):  # 250 Hz
            going += float(np.clip(told - going, -0.004 / STROKE_S, 0.004 / STROKE_S))
            plant.step(motion.advance(0.004), going, 0.004)
            pushed = pushed + 0.004 if plant.contact > COLLISION_FORCE[SENSITIVITY] else 0.0
            longest = max(longest, pushed)
        frames.append(plant.positions)
        if plant.env.is_success:
            break
    return {
        "success": plant.env.is_success, "error": longest > COLLISION_TIME, "pushed": longest, "fastest": fastest,
        "clamps": clamps, "seconds": now, "end": "" if plant.env.is_success else f"{seed}: {end}",
    }  # fmt: skip


class LagFilter(SafetyFilter):
    """A filter that records the tracking error: rad, m, clamped."""

    rows: list[tuple[float, float, bool]] = []

    def __call__(self, q_target: object, gripper: object, q_measured: np.ndarray, state_age: float) -> Safe:
        behind = np.linalg.norm(self.points.at(self.q_last) - self.points.at(q_measured), axis=1)
        lag = np.abs(self.q_last - q_measured).max()
        safe = super().__call__(q_target, gripper, q_measured, state_age)
        self.rows.append((float(lag), float(behind.max()), safe.verdict == Verdict.CLAMP))
        return safe


class Online(Motion):
    """The box in mode 6: it plans to every set point."""

    def servo(self, target: np.ndarray) -> None:
        self.plan(target, 0.8, 4.0)  # bridge.arm's, of mode online


def limits_line(rows: list[dict]) -> str:
    pushed, fastest = (max(r[key] for r in rows) for key in ("pushed", "fastest"))
    clamps, seconds = (np.median([r[key] for r in rows]) for key in ("clamps", "seconds"))
    errors = sum(r["error"] for r in rows)
    line = f"{errors:>8}{pushed:>12.2f}{fastest:>7.2f}{clamps:>8.0f}{seconds:>9.1f}"
    return "\n    ".join([line, *(r["end"] for r in rows if r["end"])])


def lag_line() -> str:
    rad, metres, clamped = np.array(LagFilter.rows, float).T
    far = f"{np.percentile(rad, 99):>10.3f}{rad.max():>7.3f}{1000 * np.percentile(metres, 99):>9.0f}"
    return f"{far}{1000 * metres.max():>7.0f}{clamped.mean():>9.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder of a trained policy")
    parser.add_argument("settings", nargs="*", default=["0.7,1.8,14,-4"], help="speed,dq_max,ddq_max,mm")
    parser.add_argument("--episodes", type=int, default=12, help="positions (default 12)")
    parser.add_argument("--seed", type=int, default=10000, help="of the first one (default 10000)")
    parser.add_argument("--gripper-hold", type=int, default=5, help="bridge.loop.gripper_hold (default 5)")
    parser.add_argument("--lag", action="store_true", help="show how far the arm is behind its command")
    parser.add_argument("--online", action="store_true", help="the box plans, as in mode 6")
    args = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    actor, encoder, contract = load_policy(args.checkpoint, "cpu")
    config = CubePickConfig(**contract["env_config"] | {"image_size": encoder.image_size})
    seeds = range(args.seed, args.seed + args.episodes)
    columns = f"{'rad: p99':>10}{'max':>7}{'mm: p99':>9}{'max':>7}{'clamped':>9}"
    if not args.lag:
        good, most, lowest = asked_for(config, actor, seeds)
        print(f"plain simulation: {good} of {args.episodes}; changes of up to {most:.2f} rad a step, finger tips up to "
              f"{-1000 * lowest:.0f} mm below the table", flush=True)  # fmt: skip
        columns = f"{'error 31':>10}{'pushed, s':>11}{'rad/s':>7}{'clamps':>8}{'seconds':>9}"
    plant, points = ScenePlant(config), ArmPoints(config.robot)
    renderer = SceneRenderer(plant)
    kinds = (LagFilter if args.lag else SafetyFilter, Online if args.online else Motion)
    print(f"{'speed,dq,ddq,clearance':<24}{'success':>9}{columns}")
    for text in args.settings:
        speed, dq, ddq, clearance = map(float, text.split(","))
        changes = {"dq_max": (dq,) * 7, "ddq_max": (ddq,) * 7, "table_clearance": clearance / 1000}
        changes |= {"lag_max": 9.0, "point_lag_max": 9.0} if args.lag else {}
        limits = XARM7_LIMITS.replace(**changes)
        LagFilter.rows.clear()
        rig = plant, renderer, actor, points, limits, speed
        rows = [episode(*rig, seed, args.gripper_hold, *kinds) for seed in seeds]
        start = f"{text:<24}{sum(r['success'] for r in rows):>5} / {len(rows)}"
        print(start + (lag_line() if args.lag else limits_line(rows)), flush=True)


if __name__ == "__main__":
    main()
