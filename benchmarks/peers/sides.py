"""Count the batches that one side yields per second, as one line of JSON.

<python of lerobot> benchmarks/peers/sides.py lerobot <folder of the dataset> <seconds>
<python of robomimic> benchmarks/peers/sides.py robomimic <data>.hdf5 <seconds>
python benchmarks/peers/sides.py images <store> <seconds>        # batches of 16 random steps from stored images
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

CAMERAS = ["hand", "left", "right"]


def clock(batches: Iterable[Any], seconds: float) -> dict[str, float]:
    """Return the batches per second of this process. The first two do not count."""
    taken = iter(batches)
    next(taken), next(taken)
    number, start, cpu = 0, time.perf_counter(), time.process_time()
    for _ in taken:
        number += 1
        if time.perf_counter() - start > seconds:
            break
    cpu, wall = time.process_time() - cpu, time.perf_counter() - start
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    row = {"per_cpu_s": number / cpu, "per_wall_s": number / wall, "peak_mb": int(peak.split()[1]) / 1000}
    return {"batches": number} | {key: round(value, 2) for key, value in row.items()}


def lerobot(path: str) -> Iterable[Any]:
    """LeRobot's dataset in a torch loader. `pyav` decodes: torchcodec needs FFmpeg's libraries."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("own/cube", root=path, video_backend="pyav")
    return torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True)


def robomimic(path: str) -> Iterator[dict]:
    """Batches of 16 single steps, as robomimic loads them with the settings of its image experiments."""
    import robomimic.utils.file_utils as files
    import robomimic.utils.obs_utils as observations
    import robomimic.utils.train_utils as training
    import torch
    from robomimic.config import config_factory
    from robomimic.scripts import generate_paper_configs as paper

    config = paper.modify_config_for_default_image_exp(config_factory("bc"))
    config = paper.modify_bc_rnn_config_for_dataset(config, "lift", "ph", "image")
    with config.unlocked():
        config.train.data, config.train.seq_length = path, 1
        config.observation.modalities.obs.low_dim = ["joints", "opening"]
        config.observation.modalities.obs.rgb = [f"{camera}_image" for camera in CAMERAS]
    observations.initialize_obs_utils_with_config(config)
    keys = files.get_shape_metadata_from_dataset(path, config.all_obs_keys)["all_obs_keys"]
    dataset, _ = training.load_data_for_training(config, obs_keys=keys)
    while True:
        for batch in torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True):
            yield {k: observations.process_obs(v.float(), obs_key=k) for k, v in batch["obs"].items()}


def images(path: str) -> Iterator[dict]:
    """Random steps from a store, one read a frame, as floats like those of robomimic and LeRobot."""
    import torch

    from s2robot.demos.store import EpisodeStore

    store, rng = EpisodeStore.open(path), np.random.default_rng(0)
    while True:
        rows = rng.integers(store.num_steps, size=16)
        frames = {c: np.stack([store.read(f"images_{c}", i, i + 1)[0] for i in rows]) for c in CAMERAS}
        yield {c: torch.from_numpy(seen).permute(0, 3, 1, 2).float() / 255 for c, seen in frames.items()}


if __name__ == "__main__":
    side, argument, seconds = sys.argv[1:]
    sides = {f.__name__: f for f in (lerobot, robomimic, images)}
    print(json.dumps(clock(sides[side](argument), float(seconds))))
