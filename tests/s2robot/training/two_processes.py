"""Train in several processes: `python -m tests.s2robot.training.two_processes <folder> <train|pretrain> <JSON>`.

The JSON sets the number of `devices`, which process `fails` in its sixth step ("killed": process 1, "first": process 0), or
`exact`: a run whose loss does not depend on the number of processes. Process n logs to <folder>/process<n>.json.
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
from s2robot.training.settings import TuneSettings
from s2robot.training.train import train
from tests.s2robot.pretraining import small as pretraining
from tests.s2robot.training.small import CONTRACT, NETWORKS, make_data, make_settings, make_spec

FAILS = {"killed": 1, "first": 0}  # the process that fails


def watch(seen: dict, number: int, fails: str) -> None:
    """Record the seed and loss of every step; make the process in FAILS fail in the sixth."""

    def wrap(kind: type, name: str) -> None:
        method = getattr(kind, name)

        def call(self, *args):
            result = method(self, *args)
            if self.training and torch.is_grad_enabled():
                step(result[0])
            return result

        setattr(kind, name, call)

    def step(value: torch.Tensor) -> None:
        seen["seeds"].append(torch.initial_seed())
        seen["losses"].append(value.item())
        if FAILS.get(fails) == number and len(seen["losses"]) == 6:
            if fails == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise UserError("no space left")

    wrap(ChunkPolicy, "forward")
    wrap(MAE, "forward")


def prepare(folder: Path) -> None:
    if not (folder / "features.npy").exists():
        np.save(folder / "features.npy", make_data(folder / "d.zarr")[1])
        pretraining.make_settings(folder)


def run(folder: Path, out: Path, job: str, devices: int, exact: bool = False, tuned: bool = False) -> Path:
    """Train or pre-train in `out`; tuned: fine-tune one of two encoder blocks, on noise instead of its input."""
    if job == "pretrain":
        return pretrain(pretraining.make_settings(folder, out=str(out), devices=devices))
    features = np.load(folder / "features.npy", mmap_mode="r")
    settings, spec = make_settings(steps=15, devices=devices), {"proprio_noise": 0.1}
    contract, tail = CONTRACT, None
    store = EpisodeStore.open(folder / "d.zarr")
    if exact:
        settings = settings.replace(log_every=1, batch_size=24, validation=0.0)
        spec = {"network": NETWORKS["mlp"] | {"dropout": 0.0}}
    if tuned:
        if not (file := folder / "encoder.safetensors").exists():
            torch.manual_seed(0)
            vit = MVPViT(ViTSpec(img_size=16, patch_size=8, dim=8, depth=2, heads=2))
            save_encoder(vit, file, {"seed": 0})
        encoder = {"name": "mvp-tiny", "checkpoint": str(file), "scales": [1]}
        features = np.random.default_rng(0).standard_normal((store.num_steps, 2, 1 + 4, 8), np.float32)
        settings, spec["dim"] = settings.replace(tune=TuneSettings(blocks=1)), 8
        contract = CONTRACT | {"encoder": CONTRACT["encoder"] | {"settings": encoder}}
        tail = Tail(encoder, [(16, 16)] * 2, 1)
    return train(settings, make_spec(**spec), store, features, contract, out, tail=tail)


def main(folder: Path, job: str, how: str) -> int:
    number, how = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))), json.loads(how)
    seen: dict = {"seeds": [], "losses": [], "first": is_first()}
    if is_first():
        prepare(folder)
    watch(seen, number, how.pop("fails", ""))
    try:
        run(folder, folder / "run", job, **how)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    (folder / f"process{number}.json").write_text(json.dumps(seen))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
