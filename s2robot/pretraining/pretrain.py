"""Pre-train an encoder by masked autoencoding on a bank of frames, with MVP's recipe.

    pretrain(PretrainSettings(data="scenes", out="runs/mae"))

Every step draws its frames, crops and masks from a generator seeded by (seed, step), for all processes together. So a
killed run resumes exactly, and several processes see the same batches as one. configs/pretrain/default.yaml documents
each setting.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning_fabric
import torch
from lightning_fabric import Fabric
from timm.models.vision_transformer import Attention
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from s2robot.backbones.device import moved
from s2robot.backbones.vit import MVPViT, save_encoder
from s2robot.common.errors import UserError
from s2robot.common.progress import bar
from s2robot.encoders.encoder import DTYPES
from s2robot.pretraining.crops import make_batch, normalise, save_reconstruction
from s2robot.pretraining.frames import FrameBank
from s2robot.pretraining.mae import MAE
from s2robot.pretraining.settings import PretrainSettings
from s2robot.training.loop import Learner, learn, parameter_groups
from s2robot.training.processes import alone, check_shares, launch, mean_of_all, together
from s2robot.training.schedule import cosine_with_warm_up
from s2robot.training.state import load_state, save_state, told

# a checkpoint with another value of one of these belongs to another run
_DECIDING = ("encoder", "decoder", "scales", "batch_size", "mask_ratio", "weight_decay", "crop", "flip", "jitter",
             "seed", "precision")  # fmt: skip
_RECIPE = (*_DECIDING, "lr", "warmup_steps", "store")
Update = Callable[[int, int, str], None]


def pretrain(settings: PretrainSettings, progress: bool = True) -> Path:
    """Run or resume a pre-training; returns the path of the encoder, `out`/encoder.safetensors.

    Every checkpoint also writes the encoder. Raises UserError for unreadable data, a checkpoint of another run, another
    pre-training in `out`, a loss that is not finite, a full disk and the end of one of several processes.
    """
    fabric = launch(settings, "pretrain")
    progress = progress and fabric.is_global_zero
    bank = FrameBank(settings.data, every=settings.every, progress=progress)
    fabric.seed_everything(settings.seed, verbose=False)
    decoder = settings.decoder
    sizes = (decoder.dim, decoder.depth, decoder.heads)
    mae = MAE(MVPViT(settings.encoder), *sizes, settings.mask_ratio, settings.scales)
    if fabric.device.type == "cpu":
        for module in mae.modules():
            if isinstance(module, Attention):
                module.fused_attn = False  # slow on a CPU with few tokens: a third of a step
    with (
        alone(fabric, Path(settings.out)),
        together(fabric, "pretrain"),
        ThreadPoolExecutor(torch.get_num_threads()) as pool,
        bar("pre-training") if progress else nullcontext(lambda *args: None) as update,
    ):
        run = _Run(settings, bank, mae, fabric, pool, update)
        run.go_on()
        learn(run.learner, settings.steps, run.batch, run.after)
        return run.close()


class _Run:
    """The steps of one pre-training: batches, scalars, reconstructions and the state on disk."""

    def __init__(
        self,
        settings: PretrainSettings,
        bank: FrameBank,
        mae: MAE,
        fabric: Fabric,
        pool: ThreadPoolExecutor,
        update: Update,
    ) -> None:
        self.settings, self.bank, self.mae, self.fabric = settings, bank, mae, fabric
        self.pool, self.update, self.out = pool, update, Path(settings.out)
        groups = parameter_groups(mae, settings.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), fused=True)
        self.learner = Learner(
            fabric,
            mae,
            optimizer,
            lambda step: cosine_with_warm_up(step, step / settings.steps, settings.warmup_steps),
        )
        self.identity = settings.model_dump(include=set(_DECIDING))
        self.identity |= {"processes": fabric.world_size, "pictures": bank.describe()}
        self.loss: float | None = None  # running mean
        self.images = torch.empty(0)
        self.ahead: dict[int, tuple[Tensor, tuple[Tensor, Tensor]]] = {}  # batches that were drawn early
        check_shares(fabric, "pretrain.batch_size", settings.batch_size, settings.batch_size)
        self.share = settings.batch_size // fabric.world_size
        self.writer: SummaryWriter | None = None
        self.start = self.tick = time.monotonic()
        self.ticked, self.data_seconds, self.saved = 0, 0.0, -1

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def go_on(self) -> None:
        """Load the checkpoint in `out`, if there is one."""
        elapsed = 0.0  # s, of earlier runs
        if self.checkpoint.is_file():
            if not self.settings.resume:
                raise UserError(f"{self.checkpoint} exists: set resume=true or choose another out")
            state = load_state(self.checkpoint, self.identity, self.fabric.device)
            elapsed, self.loss = state["seconds"], state["loss"]
            self.learner.load_state_dict(state)
        self.start, self.ticked = time.monotonic() - elapsed, self.learner.step
        if self.fabric.is_global_zero:
            with told(self.out):
                self.writer = SummaryWriter(str(self.out), purge_step=self.learner.step)

    def batch(self, step: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return this process's share of a batch: images, and the cells to keep and to hide."""
        self.images, cells = self.ahead.pop(step) if step in self.ahead else self._draw(step)
        device = self.fabric.device
        return moved(self.images, device), (moved(cells[0], device), moved(cells[1], device))

    def _draw(self, step: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Draw the crops and masks of a step, for all processes together."""
        clock, settings, rank = time.monotonic(), self.settings, self.fabric.global_rank
        whole, mine = settings.batch_size, slice(rank * self.share, (rank + 1) * self.share)
        generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + step) * 1024)
        crops = make_batch(self.bank, settings, generator, self.pool, mine)
        images = normalise(crops, settings.jitter, generator, whole, mine)
        keep, hidden = self.mae.draw_mask(whole, generator)
        self.data_seconds += time.monotonic() - clock
        return images, (keep[mine], hidden[mine])

    def after(self, loss: Tensor, rest: Any) -> None:
        """Write scalars, reconstructions and checkpoints at their steps; the checkpoint last."""
        step, settings = self.learner.step, self.settings
        if self.fabric.device.type == "cuda" and step < settings.steps:
            self.ahead[step] = self._draw(step)  # while the GPU still computes
        value = mean_of_all(self.fabric, loss).item()
        if not math.isfinite(value):
            raise UserError(
                f"the loss is {value} at step {step}; {self.checkpoint} is intact; lower lr {settings.lr}"
            )
        self.loss = value if self.loss is None else 0.98 * self.loss + 0.02 * value
        if not self.fabric.is_global_zero:
            return
        if step % settings.log_every == 0:
            self._log(step, self.loss)
        if step % settings.picture_every == 0:
            with told(self.out):
                save_reconstruction(self.mae, self.images, self.out / f"reconstruction_{step:06d}.png")
        if step % settings.checkpoint_every == 0:
            self._save()

    def _log(self, step: int, loss: float) -> None:
        assert self.writer is not None
        now = time.monotonic()
        rate = (step - self.ticked) * self.settings.batch_size / (now - self.tick)
        shares = {"images_per_second": rate, "data_share": self.data_seconds / (now - self.tick)}
        with told(self.out):
            for name, scalar in ({"loss": loss, "lr": self.learner.lr} | shares).items():
                self.writer.add_scalar(name, scalar, step)
        self.update(step, self.settings.steps, f"loss {loss:.4f}  {rate:.0f} images/s")
        self.tick, self.ticked, self.data_seconds = now, step, 0.0

    def _save(self) -> None:
        """Write the encoder, then the state, so that a kill in between leaves an older state."""
        seconds, dtype = time.monotonic() - self.start, DTYPES[self.settings.store]
        with told(self.out):
            save_encoder(self.mae.vit, self.out / "encoder.safetensors", self._recipe(seconds), dtype)
        state = {"identity": self.identity, "seconds": seconds, "loss": self.loss}
        save_state(self.checkpoint, state | self.learner.state_dict())
        self.saved = self.learner.step

    def _recipe(self, seconds: float) -> dict[str, Any]:
        """Describe how the encoder was made, for its file."""
        settings, step = self.settings.model_dump(), self.learner.step
        return {
            "recipe": "masked autoencoding (MAE, as in MVP)" + " with S2" * (len(settings["scales"]) > 1),
            "steps": step,
            "images_seen": step * settings["batch_size"],
            "minutes": round(seconds / 60, 1),
            "loss": self.loss,
            "data": self.bank.describe(),
            **{key: settings[key] for key in _RECIPE},
            "versions": {"torch": torch.__version__, "lightning_fabric": lightning_fabric.__version__},
        }

    def close(self) -> Path:
        """Write the last reconstruction and checkpoint; returns the path of the encoder."""
        if self.fabric.is_global_zero:
            generator = torch.Generator().manual_seed(self.settings.seed)
            sample = normalise(make_batch(self.bank, self.settings, generator, self.pool), 0.0, generator)
            with told(self.out):
                save_reconstruction(self.mae, sample, self.out / "reconstruction.png")
                if self.writer is not None:
                    self.writer.close()
            if self.saved != self.learner.step:
                self._save()
        self.fabric.barrier()
        return self.out / "encoder.safetensors"
