"""robomimic 0.3.0's BC-RNN-GMM: trained with its own script and the settings of its image experiments; acts over the pipe.

    <python of robomimic> -m benchmarks.peers.robomimic_peer train <data>.hdf5 <out folder> <core-minutes>
    <python of robomimic> -m benchmarks.peers.robomimic_peer act <out folder>
    <python of robomimic> -m benchmarks.peers.robomimic_peer load <data>.hdf5 <seconds>

84 px, three cameras, ResNet-18 from scratch with spatial softmax, crops of 76 px, batches of 16 sequences of 10: all from its
`generate_paper_configs.py`. Only the names of the observations are ours.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import robomimic.utils.file_utils as files
import robomimic.utils.obs_utils as observations
import robomimic.utils.train_utils as training
import torch
from robomimic.algo import RolloutPolicy
from robomimic.algo.bc import BC_RNN_GMM
from robomimic.config import config_factory
from robomimic.scripts import generate_paper_configs as paper
from robomimic.scripts.train import train

from benchmarks.peers.peer import CAMERAS, Budget, BudgetSpent, clock, serve


def config_of(data: str, out: str) -> Any:
    config = paper.modify_config_for_default_image_exp(config_factory("bc"))
    config = paper.modify_bc_rnn_config_for_dataset(config, "lift", "ph", "image")
    with config.unlocked():
        config.train.data, config.train.output_dir = data, out
        config.experiment.name = "run"
        config.experiment.rollout.enabled = False  # success is measured in our world, afterwards
        config.experiment.save.enabled = False
        config.observation.modalities.obs.low_dim = ["joints", "opening"]
        config.observation.modalities.obs.rgb = [f"{camera}_image" for camera in CAMERAS]
    config.lock()
    return config


def run(data: str, out: str, minutes: float) -> None:
    """Train until the budget is spent, then save."""
    budget, config, kept = Budget(minutes), config_of(data, out), {}
    step = BC_RNN_GMM.train_on_batch

    def counted(self, *args, **kwargs):
        kept["model"] = self
        info = step(self, *args, **kwargs)
        budget.step()
        return info

    BC_RNN_GMM.train_on_batch = counted
    torch.set_num_threads = lambda count: None  # it asks for two; see rows.py
    try:
        train(config, torch.device("cpu"))
    except BudgetSpent:
        budget.keep(out)
        with h5py.File(data) as file:  # ours = theirs * scale + offset
            np.save(Path(out, "scale.npy"), file["data"].attrs["s2robot_scale"])
        training.save_model(
            model=kept["model"],
            config=config,
            env_meta=files.get_env_metadata_from_dataset(data),
            shape_meta=files.get_shape_metadata_from_dataset(data, config.all_obs_keys),
            ckpt_path=str(Path(out, "model.pth")),
        )


class Robomimic:
    about = "robomimic 0.3.0 BC-RNN-GMM"

    def __init__(self, out: str):
        found = files.policy_from_checkpoint(
            ckpt_path=str(Path(out, "model.pth")), device=torch.device("cpu")
        )
        self.policy: RolloutPolicy = found[0]
        self.scale, self.offset = np.load(Path(out, "scale.npy"))

    def reset(self, seed: int) -> None:
        torch.manual_seed(seed)  # it draws its actions from the mixture
        self.policy.start_episode()

    def act(self, images: dict[str, np.ndarray], proprio: np.ndarray) -> np.ndarray:
        pictures = {f"{name}_image": frame for name, frame in images.items()}
        seen = {key: observations.process_obs(frame, obs_key=key) for key, frame in pictures.items()}
        action = self.policy({**seen, "joints": proprio[:7], "opening": proprio[7:]})
        return np.clip(action, -1, 1) * self.scale + self.offset


def batches(data: str) -> Iterator[dict]:
    """Batches of 16 single steps, without end, as its own training loads them."""
    config = config_of(data, "")
    with config.unlocked():
        config.train.seq_length = 1
    observations.initialize_obs_utils_with_config(config)
    keys = files.get_shape_metadata_from_dataset(data, config.all_obs_keys)["all_obs_keys"]
    dataset, _ = training.load_data_for_training(config, obs_keys=keys)
    while True:
        for batch in torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True):
            yield {k: observations.process_obs(v.float(), obs_key=k) for k, v in batch["obs"].items()}


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "train":
        run(words[0], words[1], float(words[2]))
    elif verb == "act":
        serve(lambda: Robomimic(words[0]))
    else:
        clock(batches(words[0]), float(words[1]))
