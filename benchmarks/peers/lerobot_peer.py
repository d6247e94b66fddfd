"""LeRobot 0.4.4's ACT and diffusion policy: trained with its own script and defaults; they act over the pipe.

    <python of lerobot> -m benchmarks.peers.lerobot_peer train <data folder> <out folder> <core-minutes> act
    <python of lerobot> -m benchmarks.peers.lerobot_peer act <out folder> [n_action_steps]
    <python of lerobot> -m benchmarks.peers.lerobot_peer load <data folder> <seconds>

Not their defaults: `pyav` decodes the videos (torchcodec wants FFmpeg's libraries), and ACT's ResNet-18 starts from
scratch, since the weights of ImageNet are a download from outside the registry.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.scripts import lerobot_train
from lerobot.utils.control_utils import predict_action

from benchmarks.peers.peer import Budget, BudgetSpent, clock, serve

FROM_SCRATCH = {"act": ["--policy.pretrained_backbone_weights=null"], "diffusion": []}


def run(data: str, out: str, minutes: float, kind: str) -> None:
    """Train until the budget is spent, then save policy and processors."""
    budget, kept = Budget(minutes), {}
    step, make = lerobot_train.update_policy, lerobot_train.make_pre_post_processors

    def counted(metrics, policy, *args, **kwargs):
        kept["policy"] = policy
        done = step(metrics, policy, *args, **kwargs)
        budget.step()
        return done

    def remembered(*args, **kwargs):
        kept["processors"] = make(*args, **kwargs)
        return kept["processors"]

    lerobot_train.update_policy, lerobot_train.make_pre_post_processors = counted, remembered
    sys.argv = [
        "lerobot-train", "--dataset.repo_id=own/cube", f"--dataset.root={data}", "--dataset.video_backend=pyav",
        f"--policy.type={kind}", "--policy.device=cpu", "--policy.push_to_hub=false", f"--output_dir={out}/run",
        *FROM_SCRATCH[kind],
    ]  # fmt: skip
    try:
        lerobot_train.train()
    except BudgetSpent:
        budget.keep(out)
        for part in (kept["policy"], *kept["processors"]):
            part.save_pretrained(Path(out, "policy"))


class LeRobot:
    def __init__(self, out: str, n_action_steps: int | None):
        path = str(Path(out, "policy"))
        config: Any = PreTrainedConfig.from_pretrained(path)
        if n_action_steps:
            config.n_action_steps = n_action_steps
        self.policy = get_policy_class(config.type).from_pretrained(path, config=config)
        self.before, self.after = make_pre_post_processors(config, pretrained_path=path)
        self.about = f"lerobot 0.4.4 {config.type}, {config.n_action_steps} actions a plan"

    def reset(self, seed: int) -> None:
        torch.manual_seed(seed)  # diffusion draws its noise
        for part in (self.policy, self.before, self.after):
            part.reset()

    def act(self, images: dict[str, np.ndarray], proprio: np.ndarray) -> np.ndarray:
        pictures = {f"observation.images.{name}": frame for name, frame in images.items()}
        seen = {**pictures, "observation.state": proprio}
        device = torch.device("cpu")
        return predict_action(seen, self.policy, device, self.before, self.after, use_amp=False).numpy()


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "train":
        run(words[0], words[1], float(words[2]), words[3])
    elif verb == "act":
        serve(lambda: LeRobot(words[0], int(words[1]) if words[1:] else None))
    else:
        dataset = LeRobotDataset("own/cube", root=words[0], video_backend="pyav")
        clock(torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True), float(words[1]))
