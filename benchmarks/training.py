"""Windows a second in training, of this code against that of another commit, in one run.

    python benchmarks/training.py
    python benchmarks/training.py --commit 0c3b294 --threads 1 --seconds 10 --rounds 3
    python benchmarks/training.py --busy --threads 2      # this code alone: quiet, and beside a process that keeps one core busy

Each side's own `train` fits its own default policy and batch size on the shipped demos, with features of the right size
that hold noise, from one memory-mapped file; `policy=transformer policy.context=16` likewise. The sides take turns, a
process each, with one network each (no ensemble; `--members 4` where both sides have it; `--batch 256` for steps of as many windows). A window is an action chunk that
a step is trained on; the first seconds, in which libraries warm up, do not count. The medians over the rounds are printed, with their ratio. Nothing else should run meanwhile; on a machine that is busy
`--clock cpu` counts seconds of the process's processors instead of the wall's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from itertools import product
from pathlib import Path

from versions import ROOT, checked_out

POLICIES = {"mlp": ["policy=mlp"], "transformer, context 16": ["policy=transformer", "policy.context=16"]}
SIZE = {"cameras": ["hand", "left", "right"], "dim": 384, "tokens": 64}  # of mvp-tiny with S2


class Enough(Exception):
    """The time is up."""


def measure(
    overrides: list[str],
    features: Path,
    threads: int,
    warm_s: float,
    seconds: float,
    clock: str,
    members: int,
) -> float:
    """Windows a second of whatever code is imported as `s2robot`."""
    import numpy as np
    from hydra import compose, initialize_config_dir

    from s2robot.common.paths import configs_dir, shipped_demos
    from s2robot.common.settings import plain
    from s2robot.demos.store import EpisodeStore
    from s2robot.policies import ChunkPolicy, PolicySpec
    from s2robot.training.settings import TrainSettings
    from s2robot.training.train import train

    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        cfg = compose("train", overrides)
    store = EpisodeStore.open(shipped_demos("xarm7_cube"))
    shape = (store.num_steps, len(SIZE["cameras"]), SIZE["tokens"], SIZE["dim"])
    mapped = np.memmap(features, np.float16, "r", shape=shape)
    length = {"steps": 1_000_000}
    batch_size, precision = cfg.train.batch_size, cfg.train.precision
    settings = TrainSettings(
        batch_size=batch_size,
        precision=precision,
        validation=0.0,
        threads=threads,
        accelerator="cpu",
        **length,
    )
    now_of = time.process_time if clock == "cpu" else time.monotonic
    begin = now_of()
    counted, since, loss = 0, 0.0, ChunkPolicy.loss

    def counting(self, batch):  # after each step of whoever trains: one place that both sides have
        nonlocal counted, since
        now = now_of()
        if now - begin > warm_s:
            if since and now - since > seconds:
                raise Enough(counted / (now - since))
            since = since or now
            pad = batch["action_pad"]  # (B, K), or (B, T, K)
            counted += int((~pad).any(-1).sum())
        return loss(self, batch)

    ChunkPolicy.loss = counting  # type: ignore[method-assign]
    alone = {"members": members}  # as many networks on both sides
    spec = PolicySpec.from_dict({**plain(cfg.policy), **SIZE, **alone})
    contract = {
        "encoder": {"name": "noise", "fingerprint": "n"}, "cameras": SIZE["cameras"], "robot": store.robot,
        "joint_names": [], "action_frame": store.attrs["action_frame"], "rate_hz": 10, "dataset": {"fingerprint": "d"},
    }  # fmt: skip
    try:
        with tempfile.TemporaryDirectory() as out:
            train(settings, spec, store, mapped, contract, Path(out))
    except Enough as result:
        return float(result.args[0])
    raise RuntimeError("the training ended before the time was up")


def in_tree(tree: Path, *arguments: object) -> float:
    """`measure` in a process of its own with the code of a tree."""
    env = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(arguments[2])}
    words = [
        sys.executable,
        __file__,
        "--measure",
        json.dumps([str(a) if isinstance(a, Path) else a for a in arguments]),
    ]
    done = subprocess.run(words, cwd=tree, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def beside(features: Path, policy: list[str], threads: int, args: argparse.Namespace) -> None:
    """This code's training quiet and beside a busy process, in turns: with threads that sleep, as the command line sets
    them, and with those that spin."""
    from s2robot.cli import yield_while_waiting

    rates: dict[tuple[str, bool], list[float]] = {}
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        os.environ.pop(name, None)
    for _ in range(args.rounds):
        for waits, busy in product(("sleep", "spin"), (False, True)):
            other = [sys.executable, "-c", "while True: pass"]
            process = subprocess.Popen(other) if busy else None
            try:
                if waits == "sleep":
                    yield_while_waiting()
                given = (policy, features, threads, args.warm, args.seconds, args.clock, args.members)
                rates.setdefault((waits, busy), []).append(in_tree(ROOT, *given))
            finally:
                os.environ.pop("OMP_WAIT_POLICY", None)
                if process:
                    process.kill()
                    process.wait()
    for waits in ("sleep", "spin"):
        quiet, busy = (statistics.median(rates[waits, b]) for b in (False, True))
        spread = "; ".join(", ".join(f"{v:.0f}" for v in rates[waits, b]) for b in (False, True))
        print(
            f"threads that {waits:<5} {threads} quiet {quiet:7.0f}  beside a busy process {busy:7.0f} windows a second  "
            f"{quiet / busy:.2f} times as long  ({spread})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commit", default="0c3b294")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--warm", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--only", choices=list(POLICIES))
    parser.add_argument("--batch", type=int, help="windows a step on both sides (default: each side's own)")
    parser.add_argument(
        "--busy", action="store_true", help="this code alone, quiet and beside a busy process"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        sys.path[:] = [p for p in sys.path if p != str(ROOT / "benchmarks")]
        overrides, features, *rest = json.loads(args.measure)
        print(measure(overrides, Path(features), *rest))
        return
    import numpy as np

    from s2robot.common.paths import shipped_demos
    from s2robot.demos.store import EpisodeStore

    batch = [f"train.batch_size={args.batch}"] if args.batch else []
    with (
        tempfile.TemporaryDirectory() as folder,
        nullcontext(ROOT) if args.busy else checked_out(args.commit) as other,
    ):
        features = Path(folder) / "features.f16"
        noise = np.random.default_rng(0).standard_normal((64, 3, 64, 384), np.float32).astype(np.float16)
        steps = EpisodeStore.open(shipped_demos("xarm7_cube")).num_steps
        with features.open("wb") as file:
            for begin in range(0, steps, len(noise)):
                file.write(noise[: steps - begin].tobytes())
        for name in [args.only] if args.only else POLICIES:
            for threads in args.threads:
                if args.busy:
                    beside(features, POLICIES[name] + batch, threads, args)
                    continue
                rates: dict[Path, list[float]] = {other: [], ROOT: []}
                for _ in range(args.rounds):
                    for tree in rates:
                        rates[tree].append(
                            in_tree(
                                tree,
                                POLICIES[name] + batch,
                                features,
                                threads,
                                args.warm,
                                args.seconds,
                                args.clock,
                                args.members,
                            )
                        )
                before, now = (statistics.median(values) for values in rates.values())
                spread = ", ".join(f"{v:.0f}" for values in rates.values() for v in values)
                print(
                    f"{name:<24} {threads} thread{'s' * (threads > 1):<1}  {args.commit} {before:7.0f}  now {now:7.0f} "
                    f"windows a {args.clock} second  ratio {now / before:.1f}  ({spread})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
