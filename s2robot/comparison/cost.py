"""Milliseconds per action of several policies, measured in one process so that they can be compared.

From the frames of all cameras to the next action: encode one frame a camera, run the policy. Policies take turns, so
that a machine that slows down meanwhile slows all of them.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from s2robot.demos.replay import episode_frames
from s2robot.demos.store import EpisodeStore
from s2robot.evaluation.planners import LearnedPlanner
from s2robot.loading import image_size_of, load_networks


def ms_per_action(
    checkpoints: Mapping[str, Path],
    store: EpisodeStore,
    device: str = "auto",
    rounds: int = 3,
    steps: int = 12,
    threads: int | None = None,
) -> dict[str, float]:
    """Median over ``rounds`` passes of the first ``steps`` frames of the store's first episode.

    Args:
        checkpoints: arm -> folder of a trained policy.
        store: whose frames are seen; recorded states are drawn.
        threads: of torch; None: as they are.
    """
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    planners: dict[str, LearnedPlanner] = {}
    frames: dict[str, tuple[list[np.ndarray], np.ndarray]] = {}  # (T, H, W, 3) a camera, and proprio (T, 8)
    for arm, folder in checkpoints.items():
        policy, encoder, contract = load_networks(folder, torch.device("cpu"))
        cameras = contract["cameras"]
        planners[arm] = LearnedPlanner(policy, encoder, cameras, device=device)
        drawn = episode_frames(store.path, 0, tuple(cameras), image_size_of(contract, encoder))
        frames[arm] = drawn, store.episode(0)["proprio"][:steps]
    times: dict[str, list[float]] = {arm: [] for arm in planners}
    for turn in range(rounds + 1):  # the first warms up
        for arm, planner in planners.items():
            planner.reset({"seed": 0})
            for observation in _observations(planner.cameras, *frames[arm]):
                start = time.perf_counter()
                planner.plan(observation)
                if turn:
                    times[arm].append(1000 * (time.perf_counter() - start))
    torch.set_num_threads(before)
    return {arm: round(statistics.median(found), 2) for arm, found in times.items()}


def _observations(cameras: Sequence[str], frames: Sequence[np.ndarray], proprio: np.ndarray):
    """Yield one observation per step, as the evaluation passes it to a planner (count = 1)."""
    for step in range(len(proprio)):
        images = {camera: seen[step][None] for camera, seen in zip(cameras, frames, strict=True)}
        yield {"images": images, "proprio": proprio[step][None], "count": 1}
