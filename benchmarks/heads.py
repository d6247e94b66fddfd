"""What a head costs: a step of training, and a plan, against those of regression in the same run.

    python benchmarks/heads.py
    python benchmarks/heads.py --rounds 12 policy.members=1
    python benchmarks/heads.py --rounds 50 --only flow,diffusion policy=transformer

Random features in the shape of the shipped encoder's (3 cameras, 64 tokens, 384 channels), the default policy around
the head, one thread. The heads take turns, a training step of 64 windows and a plan for one episode each, so that
what else the machine does meets all of them alike; medians of processor time count, which waiting for a core does not
change. A plan is that of `policy.plan`: pooling, network and head, without the encoder; it serves
`policy.execute` actions. Arguments after the options are Hydra overrides of `s2robot train`.
"""

import argparse
import statistics
import time

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from s2robot.common.paths import configs_dir
from s2robot.common.settings import plain
from s2robot.policies import ChunkPolicy, PolicySpec

VARIANTS = {
    "regression": [],
    "mip": ["policy/head=mip"],
    "flow": ["policy/head=flow"],
    "flow, U-Net": ["policy/head=flow", "policy.head.denoiser=unet", "policy.head.width=64"],
    "diffusion": ["policy/head=diffusion"],
    "gmm": ["policy/head=gmm"],
    "act": ["policy/head=act"],
}
CAMERAS, TOKENS, DIM, BATCH = ("hand", "left", "right"), 64, 384, 64


class Candidate:
    """A policy with its optimiser and batch."""

    def __init__(self, name: str, overrides: list[str]) -> None:
        torch.manual_seed(0)
        values = plain(compose("train", [*overrides, *VARIANTS[name]]).policy)
        spec = PolicySpec.from_dict({**values, "cameras": CAMERAS, "dim": DIM, "tokens": TOKENS})
        self.name, self.spec, self.policy = name, spec, ChunkPolicy(spec)
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-3)
        self.batch = {
            "features": torch.randn(BATCH, spec.context, len(CAMERAS), TOKENS, DIM).half(),
            "proprio": torch.randn(BATCH, spec.context, spec.proprio_dim),
            "past_actions": torch.zeros(BATCH, spec.context, spec.action_dim),
            "actions": torch.rand(BATCH, spec.chunk, spec.action_dim),
        }
        self.training: list[float] = []  # seconds of each step
        self.planning: list[float] = []

    def step(self) -> None:
        """One training step and one plan, timed."""
        self.policy.train()
        start = time.process_time()
        self.optimizer.zero_grad()
        self.policy.loss(self.batch)[0].backward()
        self.optimizer.step()
        self.training.append(time.process_time() - start)
        self.policy.eval()
        one: list[Tensor] = [self.batch[key][:1] for key in ("features", "proprio", "past_actions")]
        start = time.process_time()
        self.policy.plan(*one)
        self.planning.append(time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="turns of every head; default 30")
    parser.add_argument("--only", default=",".join(VARIANTS), help="heads beside regression, by comma")
    parser.add_argument("overrides", nargs="*", help="of s2robot train")
    args = parser.parse_intermixed_args()
    wanted = [name for name in VARIANTS if name == "regression" or name in args.only]
    torch.set_num_threads(1)
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        candidates = [Candidate(name, args.overrides) for name in wanted]
    for _ in range(args.rounds + 2):
        for candidate in candidates:
            candidate.step()
    plain_step, plain_plan = (
        statistics.median(times[2:]) for times in (candidates[0].training, candidates[0].planning)
    )
    print(
        "| head | parameters | steps/s | against regression | ms a plan | ms an action | against regression |"
    )
    print("|---|---|---|---|---|---|---|")
    for c in candidates:
        step, plan = statistics.median(c.training[2:]), statistics.median(c.planning[2:])
        size = sum(p.numel() for p in c.policy.parameters()) / 1e6
        print(
            f"| {c.name} | {size:.2f} M | {1 / step:.1f} | {plain_step / step:.2f} × | {1000 * plan:.2f} "
            f"| {1000 * plan / c.spec.execute:.2f} | {plan / plain_plan:.2f} × |"
        )


if __name__ == "__main__":
    main()
