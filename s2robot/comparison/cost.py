"""Milliseconds per action of several policies, measured in one process so that they can be compared.

From the frames of all cameras to the next action: encode one frame a camera, run the policy. Policies take turns, so
that a machine that slows down slows all of them.
"""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from s2robot.demos.replay import episode_frames
from s2robot.demos.store import EpisodeStore
from s2robot.evaluation.planners import LearnedPlanner
from s2robot.loading import image_size_of, load_networks

_ROUNDS, _STEPS = 3, 12  # passes, after one that warms up, over the first frames


def ms_per_action(
    checkpoints: Mapping[str, Path], store: EpisodeStore, device: str = "auto", threads: int | None = None
) -> dict[str, float]:
    """Return the median over passes of the first frames of the store's first episode, by name of the checkpoint.

    ``threads``: of torch; None leaves them.
    """
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    planners, seen = {}, {}
    for name, folder in checkpoints.items():
        policy, encoder, contract = load_networks(folder, torch.device("cpu"))
        planners[name] = LearnedPlanner(policy, encoder, contract["cameras"], device=device)
        size = image_size_of(contract, encoder)
        frames = episode_frames(store.path, 0, tuple(contract["cameras"]), size)  # (T, H, W, 3) a camera
        seen[name] = [
            {
                "images": {c: f[t][None] for c, f in zip(contract["cameras"], frames, strict=True)},
                "proprio": proprio[None],
                "count": 1,
            }
            for t, proprio in enumerate(store.episode(0)["proprio"][:_STEPS])
        ]
    times: dict[str, list[float]] = {name: [] for name in planners}
    for turn in range(_ROUNDS + 1):
        for name, planner in planners.items():
            planner.reset({"seed": 0})
            for observation in seen[name]:
                start = time.perf_counter()
                planner.plan(observation)
                if turn:
                    times[name].append(1000 * (time.perf_counter() - start))
    torch.set_num_threads(before)
    return {name: round(statistics.median(found), 2) for name, found in times.items()}
