"""Latency of a policy behind `s2robot serve` on this machine, against the same policy in this process.

    python -m benchmarks.serve runs/run/<date>/checkpoint --calls 500 --threads 1

The server is a process of its own on loopback. Both run on the same cores with as many threads and take turns, a plan each of
the same frames of noise. "server" is the time that the server says the plan took there, "transport" what remains of the call.
The actions are compared bit for bit. Nothing else should run meanwhile; the load of the machine is printed.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.fault_server import served
from s2robot.loading import load_policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder of a trained policy")
    parser.add_argument("--calls", type=int, default=300, help="of each kind (default 300)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each (all)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    local, encoder, contract = load_policy(args.checkpoint, "cpu")
    size, rng = encoder.image_size, np.random.default_rng(0)
    rows: dict[str, list[float]] = {"local": [], "remote": [], "server": [], "transport": []}
    with served(args.checkpoint, args.threads) as (_, remote):
        for i in range(args.calls + 10):
            images = {c: rng.integers(0, 256, (size, size, 3), np.uint8) for c in local.cameras}
            observation = {"images": images, "proprio": rng.normal(size=8).astype(np.float32)}
            plans, seconds = [], []
            for actor in (local, remote):
                actor.reset()
                begin = time.perf_counter()
                plans.append(actor.plan(observation).tobytes())
                seconds.append(time.perf_counter() - begin)
            if plans[0] != plans[1]:
                raise SystemExit(f"call {i}: the server's actions are not the local ones")
            if i >= 10:  # after the warm-up
                figures = (*seconds, remote.server_s, seconds[1] - remote.server_s)
                for name, figure in zip(rows, figures, strict=True):
                    rows[name].append(figure)
    print(f"{encoder.name} {list(encoder.sizes)}, {len(local.cameras)} frames of {size} x {size}, ", end="")
    print(f"{args.calls} calls each, {args.threads} threads, load {os.getloadavg()[0]:.1f}")
    print(f"{'ms':<10}{'p50':>8}{'p99':>8}{'max':>8}")
    for name, seconds in rows.items():
        values = np.percentile(np.array(seconds) * 1e3, (50, 99, 100))
        print(f"{name:<10}" + "".join(f"{v:>8.2f}" for v in values))
    print("all actions are the local ones, bit for bit")


if __name__ == "__main__":
    main()
