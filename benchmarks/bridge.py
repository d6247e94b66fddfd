"""Success of a policy through the whole bridge against the same policy in plain simulation, on the same positions.

    python benchmarks/bridge.py runs/run/<date>/checkpoint --out bridge
    python benchmarks/bridge.py runs/run/<date>/checkpoint --episodes 4 bridge.speed=0.5

The bridge is all of `s2robot deploy --live`: vendor's SDK, control box protocol on loopback, emulated arm, rendered
cameras, safety filter, watchdog and supervisor, in real time. Position i is the simulated episode of seed + i. After
a fault this program does what an operator would do, clears it and goes on; the episode counts as failed. Period
deviations are of the 100 Hz command stream and of the policy's decisions, with the policy running. Needs a quiet
machine; the load is printed. More arguments are settings of `s2robot deploy`.

    python benchmarks/bridge.py <checkpoint of policy/head=flow policy.chunk=16> --seams 0.2 --episodes 8

measures the seams between chunks in plain simulation, at the demos' speed, where a plan takes 0.2 s. Meanwhile the arm stands
(`waits`, today's default), or executes the chunk before, which the plan continues (`continues`, bridge.plan_s) or is not told
(`unaware`). A jump is against the chunk before, had it gone on: how far joints are from it when the new chunk takes over, rad,
and how much their speed differs, rad/s. `change` is that of the executed speed from one action to the next, rad/s, at seams and
elsewhere. Each is of the joint where it is largest, as median and 95 % quantile.
"""

import argparse
import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from s2robot.comparison.paired import difference
from s2robot.core.files import configs_dir, write_json
from s2robot.core.settings import read_some
from s2robot.deployment.ahead import PlanAhead
from s2robot.deployment.deploy import DeploySettings, LiveSession
from s2robot.deployment.session import Rig
from s2robot.deployment.trace import percentiles
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.real.control.clock import Clock
from s2robot.envs.real.emulator.emulator import launch
from s2robot.evaluation.records import wilson
from s2robot.evaluation.rollouts import LearnedPlanner, run_episodes
from s2robot.loading import load_networks, load_policy


def simulated(checkpoint: Path, episodes: int, seed: int, out: Path) -> tuple[list[bool], dict[str, Any]]:
    """Plain simulation; successes in order, and the world's settings."""
    policy, encoder, contract = load_networks(checkpoint, torch.device("cpu"))
    world, cameras = contract["env_config"], contract["cameras"]
    config = CubePickConfig(**world | {"image_size": encoder.image_size, "cameras": tuple(cameras)})
    planner = LearnedPlanner(policy, encoder, cameras, contract["encoder"]["features_dtype"])
    rollouts = run_episodes(config, planner, episodes, seed, 1, out / "simulated.jsonl")
    return [bool(r["success"]) for r in rollouts.records], world


def bridged(overrides: list[str], episodes: int, out: Path) -> LiveSession:
    """Run the episodes through the bridge; the session holds the records."""
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        cfg = compose("deploy", [*overrides, f"run_dir='{out}'"])
    with ExitStack() as stack:
        rig = Rig(cfg, stack)
        rig.check(out / "camera_check.png")
        live = LiveSession(rig, read_some(DeploySettings, cfg), out)
        done, session = 0, live.session
        while done < episodes and not session.stop.requested():
            with session.started():  # after a fault again: a supervisor that has stopped the arm is gone
                fault = ""
                while done < episodes and not session.stop.requested() and not fault:
                    fault = live.episode(done)
                    done += 1
            if fault:
                print(f"    {fault}", flush=True)
                session.runtime.clear()
                session.operator.free((fault,))
                session.operator.rest()
        return live


class Instant(Clock):
    """Threads that end before they are waited for."""

    def spawn(self, target: Callable[[], None], name: str) -> Any:
        target()


def seams(checkpoint: Path, episodes: int, seed: int, plan_s: float) -> dict[str, Any]:
    """Jumps at the seams of chunks, see the module."""
    policy = load_policy(checkpoint, "cpu")
    actor, contract, execute = policy.actor, policy.contract, policy.spec.execute
    rate = contract["rate_hz"]
    world = contract["env_config"] | {"image_size": policy.image_size, "cameras": tuple(contract["cameras"])}
    env, delay, rows = CubePick(CubePickConfig(**world)), math.ceil(round(plan_s * rate, 6)), {}
    for mode in ("waits", "unaware", "continues"):
        jumps, at_seams, elsewhere, successes = [], list[float](), list[float](), 0

        def plan(observation: Any, left: np.ndarray, fixed: int) -> np.ndarray:
            known = (left, fixed) if mode == "continues" else (left[:0], 0)  # noqa: B023
            chunk = actor.plan_chunk(observation, *known)
            if len(left):
                old, new = left[:, :7], chunk[:, :7]
                apart = np.zeros(7) if mode == "waits" else new[:delay].sum(0)  # noqa: B023
                speeds = [old[0], new[0]] if mode == "waits" else [new[delay] - old[delay]]  # noqa: B023
                jumps.append((np.abs(apart - old[:delay].sum(0)).max(), np.abs(speeds).max() * rate))  # noqa: B023
                seam.extend([now, now + delay] if mode == "waits" else [now + delay])  # noqa: B023
            return chunk

        for episode in range(episodes):
            observation, _ = env.reset(seed=seed + episode)
            actor.reset(seed + episode)
            ahead, chunk = PlanAhead(plan, execute, delay, clock=Instant()), np.zeros((0, 8))
            queue: list[np.ndarray] = []
            now, seam, last, over = 0, list[int](), np.zeros(8), False
            while not over:
                if mode != "waits":
                    action = ahead.act(observation)
                else:
                    if not queue:
                        chunk = plan(observation, chunk[execute:], 0)
                        queue = [np.append(np.zeros(7), last[7])] * delay + [*chunk[:execute]]
                    action = queue.pop(0)
                change = np.abs(action - last)[:7].max() * rate
                if change:  # it does not stand
                    (at_seams if now in seam else elsewhere).append(change)
                observation, _, success, late, _ = env.step(action)
                now, last, over = now + 1, action, success or late
            successes += success
        measured = {"rad": [j for j, _ in jumps], "rad_s": [j for _, j in jumps], "change_at_seams": at_seams}
        measured["change_elsewhere"] = elsewhere
        rows[mode] = {key: np.percentile(x, (50, 95)).tolist() for key, x in measured.items()}
        rows[mode] |= {"seams": len(jumps), "successes": successes, "episodes": episodes}
        shown = "; ".join(f"{key} {rows[mode][key][0]:.2g}, {rows[mode][key][1]:.2g}" for key in measured)
        print(f"{mode}: {len(jumps)} seams: {shown}; {successes} of {episodes} picked", flush=True)
    return rows


def report(session: LiveSession, plain: list[bool], args: argparse.Namespace) -> dict[str, Any]:
    """All figures, as JSON types."""
    records = session.records
    bridge = [bool(r["success"]) for r in records]
    plain = plain[: len(bridge)]
    gap = difference(np.array([bridge], float), np.array([plain], float))
    stream, decisions, latency = (
        np.concatenate([np.zeros(0), *(r[key] for r in records if key in r)])
        for key in ("periods_s", "decision_periods_s", "latencies_s")
    )
    both = list(zip([r["seed"] for r in records], bridge, plain, strict=True))
    rate_hz, policy_hz = session.rig.arm.limits.rate_hz, session.session.runtime.loop.config.policy_hz
    kept = ("seed", "success", "cause", "fault", "steps", "verdicts")

    def counted(successes: list[bool]) -> dict[str, Any]:
        return {"successes": sum(successes), "wilson95": list(wilson(sum(successes), len(successes)))}

    return {
        "checkpoint": str(args.checkpoint),
        "overrides": args.overrides,
        "positions": len(bridge),
        "seed": args.seed,
        "speed": session.rig.arm.bridge.speed,
        "bridge": counted(bridge),
        "simulation": counted(plain),
        "difference": {"estimate": gap.difference, "low": gap.low, "high": gap.high, "p": gap.p},
        "only_bridge": [seed for seed, a, b in both if a and not b],
        "only_simulation": [seed for seed, a, b in both if b and not a],
        "faults": {str(r["seed"]): r["fault"] for r in records if r["fault"]},
        "holds": sum(state == "hold" for r in records for state, _ in r["changes"]),
        "command_period_deviation_ms": percentiles(np.abs(stream - 1 / rate_hz)),
        "policy_period_deviation_ms": percentiles(np.abs(decisions - 1 / policy_hz)),
        "policy_latency_ms": percentiles(latency),
        "load": os.getloadavg(),
        "cores": os.cpu_count(),
        "episodes": [{key: r[key] for key in kept} for r in records],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder of a trained policy")
    parser.add_argument("--episodes", type=int, default=32, help="positions (default 32)")
    parser.add_argument("--seed", type=int, default=10000, help="of the first one (default 10000)")
    parser.add_argument("--out", type=Path, default=Path("bridge"), help="folder for all that is written")
    parser.add_argument(
        "--seams", type=float, metavar="S", help="measure seams alone, with plans that take so long"
    )
    parser.add_argument("overrides", nargs="*", help="settings of `s2robot deploy`, key=value")
    args = parser.parse_intermixed_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if args.seams:
        write_json(out / "seams.json", seams(args.checkpoint, args.episodes, args.seed, args.seams))
        return
    plain, env = simulated(args.checkpoint, args.episodes, args.seed, out)
    print(f"plain simulation: {sum(plain)} of {len(plain)}", flush=True)
    with launch(env=env, fps=20) as emulator:
        overrides = [
            f"checkpoint='{args.checkpoint.resolve()}'", "bridge=emulator", f"bridge.emulator.port={emulator.ports.side}",
            "live=true", "confirm=false", f"episodes={args.episodes}", f"seed={args.seed}", *args.overrides,
        ]  # fmt: skip
        found = report(bridged(overrides, args.episodes, out), plain, args)
    write_json(out / "bridge.json", found)
    gap, count = found["difference"], found["positions"]
    for name in ("bridge", "simulation"):
        print(f"{name}: {found[name]['successes']} of {count}")
    print(f"difference {100 * gap['estimate']:+.1f} points [{100 * gap['low']:.1f}, {100 * gap['high']:.1f}]")
    print(
        f"only the bridge: {found['only_bridge']}, only the simulation: {found['only_simulation']}; {found['holds']} holds"
    )
    for name in ("command_period_deviation_ms", "policy_period_deviation_ms", "policy_latency_ms"):
        print(f"{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in (found[name] or {}).items()))
    print(f"load {found['load'][0]:.1f} on {found['cores']} cores: {out / 'bridge.json'}")


if __name__ == "__main__":
    main()
