"""Success of a policy through the whole bridge against the same policy in plain simulation, on the same positions.

    python benchmarks/bridge.py runs/run/<date>/checkpoint --out bridge
    python benchmarks/bridge.py runs/run/<date>/checkpoint --episodes 4 bridge.speed=0.5

The bridge is all of `s2robot deploy --live`: vendor's SDK, control box protocol on loopback, emulated arm, rendered
cameras, safety filter, watchdog and supervisor, in real time. Position i is the simulated episode of seed + i. After
a fault this program does what an operator would do, clears it and goes on; the episode counts as failed. Period
deviations are of the 100 Hz command stream and of the policy's decisions, with the policy running. Needs a quiet
machine; the load is printed. More arguments are settings of `s2robot deploy`.
"""

import argparse
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from s2robot.comparison.paired import difference
from s2robot.core.files import configs_dir, write_json
from s2robot.core.settings import read_some
from s2robot.deployment.deploy import DeploySettings, LiveSession
from s2robot.deployment.session import Rig
from s2robot.deployment.trace import percentiles
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.real.emulator.emulator import launch
from s2robot.evaluation.records import wilson
from s2robot.evaluation.rollouts import LearnedPlanner, run_episodes
from s2robot.loading import load_networks


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
        while done < episodes and not session.stop.requested:
            with session.started():  # after a fault again: a supervisor that has stopped the arm is gone
                fault = ""
                while done < episodes and not session.stop.requested and not fault:
                    fault = live.episode(done)
                    done += 1
            if fault:
                print(f"    {fault}", flush=True)
                session.runtime.clear()
                session.operator.free((fault,))
                session.operator.rest()
        return live


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
    rate_hz, policy_hz = session.rig.arm.limits.rate_hz, session.session.runtime.loop.config.policy_hz
    kept = ("seed", "success", "cause", "fault", "steps", "verdicts")
    counted = lambda x: {"successes": sum(x), "wilson95": list(wilson(sum(x), len(x)))}  # noqa: E731
    return {
        "checkpoint": str(args.checkpoint),
        "overrides": args.overrides,
        "positions": len(bridge),
        "seed": args.seed,
        "speed": session.rig.arm.bridge.speed,
        "bridge": counted(bridge),
        "simulation": counted(plain),
        "difference": {"estimate": gap.difference, "low": gap.low, "high": gap.high, "p": gap.p},
        "only_one": [r["seed"] for r, a, b in zip(records, bridge, plain, strict=True) if a != b],
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
    parser.add_argument("overrides", nargs="*", help="settings of `s2robot deploy`, key=value")
    args = parser.parse_intermixed_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    plain, env = simulated(args.checkpoint, args.episodes, args.seed, out)
    with launch(env=env, fps=20) as emulator:
        overrides = [
            f"checkpoint='{args.checkpoint.resolve()}'", "bridge=emulator", f"bridge.emulator.port={emulator.ports.side}",
            "live=true", "confirm=false", f"episodes={args.episodes}", f"seed={args.seed}", *args.overrides,
        ]  # fmt: skip
        found = report(bridged(overrides, args.episodes, out), plain, args)
    write_json(out / "bridge.json", found)
    print(json.dumps({key: value for key, value in found.items() if key != "episodes"}, indent=1))


if __name__ == "__main__":
    main()
