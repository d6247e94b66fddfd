"""A training by processes: `python -m tests.s2robot.training.two_processes <folder> [train|pretrain] [JSON]`.

The JSON may say which `devices` (2), what `fails`, or what `whole` settings a run has whose loss does not depend on them. Each process writes what it saw to <folder>/process<n>.json. Errors end as those of the command line do.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from s2robot.backbones.vit import MVPViT, ViTSpec, save_encoder
from s2robot.core.errors import UserError
from s2robot.core.run_folder import is_first
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.tuning import Tail
from s2robot.policies import ChunkPolicy
from s2robot.pretraining.mae import MAE
from s2robot.pretraining.pretrain import pretrain
from s2robot.training.settings import TrainSettings, TuneSettings
from s2robot.training.train import train
from tests.s2robot.pretraining import small as pretraining
from tests.s2robot.training.small import CONTRACT, NETWORKS, make_data, make_settings, make_spec


def watch(seen: dict, number: int, fails: str) -> None:
    """Note the seed and loss of every step; let process 1 die in the sixth where that is wanted."""
    loss, forward = ChunkPolicy.loss, MAE.forward

    def step(value: torch.Tensor) -> None:
        seen["losses"].append(value.item())
        if number == 1 and len(seen["losses"]) == 6:
            if fails == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if fails == "refuses":
                raise UserError("frames/7.png: not a readable image")
        if number == 0 and len(seen["losses"]) == 6 and fails == "first":
            raise UserError("no space left")

    def watched_loss(self, batch):
        result = loss(self, batch)
        if self.training:
            seen["seeds"].append(torch.initial_seed())
            step(result[0])
        return result

    def watched_forward(self, images, cells=None):
        result = forward(self, images, cells)
        if torch.is_grad_enabled():
            step(result[0])
        return result

    ChunkPolicy.loss, MAE.forward = watched_loss, watched_forward


def whole_run(folder: Path, out: Path, job: str, devices: int, kind: str = "mlp") -> Path:
    """A run without dropout and noise, so that only its data can tell how many processes share it."""
    if job == "pretrain":
        return pretrain(pretraining.make_settings(folder, out=str(out), devices=devices), progress=False)
    features = np.load(folder / "features.npy", mmap_mode="r")
    settings = make_settings(steps=15, log_every=1, devices=devices, batch_size=24, validation=0.0)
    store = EpisodeStore.open(folder / "d.zarr")
    if kind == "tuned":
        return tuned_run(folder, out, store, settings)
    spec = make_spec(kind, network=NETWORKS[kind] | {"dropout": 0.0})
    return train(settings, spec, store, features, CONTRACT, out)


def tuned_run(folder: Path, out: Path, store: EpisodeStore, settings: TrainSettings) -> Path:
    """With a block of an encoder of two, from noise in place of what enters it."""
    if not (file := folder / "encoder.safetensors").exists():
        torch.manual_seed(0)
        save_encoder(MVPViT(ViTSpec(img_size=16, patch_size=8, dim=8, depth=2, heads=2)), file, {"seed": 0})
    given = {"name": "mvp-tiny", "checkpoint": str(file), "scales": [1]}
    noise = np.random.default_rng(0).standard_normal((store.num_steps, 2, 1 + 4, 8), np.float32)
    spec = make_spec(dim=8, network=NETWORKS["mlp"] | {"dropout": 0.0})
    contract = CONTRACT | {"encoder": CONTRACT["encoder"] | {"settings": given}}
    settings = settings.replace(tune=TuneSettings(blocks=1))
    return train(settings, spec, store, noise, contract, out, tail=Tail(given, [(16, 16)] * 2, 1))


def prepare(folder: Path) -> None:
    if not (folder / "features.npy").exists():
        np.save(folder / "features.npy", make_data(folder / "d.zarr")[1])
        pretraining.make_settings(folder)


def main(folder: Path, job: str = "train", how: str = "{}") -> int:
    number = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
    given = json.loads(how)
    fails, devices = given.get("fails", ""), given.get("devices", 2)
    seen: dict = {"seeds": [], "losses": [], "first": is_first()}
    if is_first():
        prepare(folder)
    watch(seen, number, fails)
    try:
        if "whole" in given:
            whole_run(folder, folder / "run", job, devices, **given["whole"])
        elif job == "train":
            features = np.load(folder / "features.npy", mmap_mode="r")
            settings = make_settings(steps=15, devices=devices, precision="32-true")
            spec = make_spec(proprio_noise=0.1)
            train(settings, spec, EpisodeStore.open(folder / "d.zarr"), features, CONTRACT, folder / "run")
        else:
            pretrain(
                pretraining.make_settings(folder, out=str(folder / "run"), devices=devices), progress=False
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    (folder / f"process{number}.json").write_text(json.dumps(seen))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
