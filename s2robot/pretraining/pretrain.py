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

from s2robot.backbones.device import moved
from s2robot.backbones.vit import MVPViT, save_encoder
from s2robot.core.errors import UserError
from s2robot.core.progress import bar
from s2robot.encoders.encoder import DTYPES
from s2robot.pretraining.crops import make_batch, normalise, save_reconstruction
from s2robot.pretraining.frames import FrameBank
from s2robot.pretraining.mae import MAE
from s2robot.pretraining.settings import PretrainSettings
from s2robot.training.loggers import Loggers
from s2robot.training.loop import Learner, cosine_with_warm_up, parameter_groups
from s2robot.training.processes import check_shares, launch, mean_of_all, training_in
from s2robot.training.run import Run

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
        training_in(Path(settings.out), fabric, "pretrain"),
        ThreadPoolExecutor(torch.get_num_threads()) as pool,
        bar("pre-training") if progress else nullcontext(lambda *args: None) as update,
    ):
        _Run(settings, bank, mae, fabric, pool, update).run()
    return Path(settings.out) / "encoder.safetensors"


class _Run(Run):
    """The steps of one pre-training: batches, scalars, reconstructions and the encoder."""

    state_file = "checkpoint.pt"

    def __init__(
        self,
        settings: PretrainSettings,
        bank: FrameBank,
        mae: MAE,
        fabric: Fabric,
        pool: ThreadPoolExecutor,
        update: Update,
    ) -> None:
        self.settings, self.bank, self.mae, self.pool, self.update = settings, bank, mae, pool, update
        groups = parameter_groups(mae, settings.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), fused=True)
        learner = Learner(
            fabric,
            mae,
            optimizer,
            lambda step: cosine_with_warm_up(step, settings.steps, settings.warmup_steps),
        )
        identity = settings.model_dump(include=set(_DECIDING))
        identity |= {"processes": fabric.world_size, "pictures": bank.describe()}
        super().__init__(fabric, learner, settings.steps, Path(settings.out), identity)
        self.loss: float | None = None  # running mean
        self.images = torch.empty(0)
        self.ahead: dict[int, tuple[Tensor, tuple[Tensor, Tensor]]] = {}  # batches that were drawn early
        check_shares(fabric, "pretrain.batch_size", settings.batch_size, settings.batch_size)
        self.share = settings.batch_size // fabric.world_size
        self.start = self.tick = time.monotonic()
        self.ticked, self.data_seconds, self.saved = 0, 0.0, -1

    def resume(self) -> None:
        elapsed = 0.0  # s, of earlier runs
        if self.state_path.is_file():
            if not self.settings.resume:
                raise UserError(f"{self.state_path} exists: set resume=true or choose another out")
            state = self.load_state()
            elapsed, self.loss = state["seconds"], state["loss"]
        self.start, self.ticked = time.monotonic() - elapsed, self.learner.step
        if self.fabric.is_global_zero:
            self.loggers = Loggers(("tensorboard",), self.out, self.learner.step)

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
                f"the loss is {value} at step {step}; {self.state_path} is intact; lower lr {settings.lr}"
            )
        self.loss = value if self.loss is None else 0.98 * self.loss + 0.02 * value
        if not self.fabric.is_global_zero:
            return
        if step % settings.log_every == 0:
            self._log(step, self.loss)
        if step % settings.picture_every == 0:
            save_reconstruction(self.mae, self.images, self.out / f"reconstruction_{step:06d}.png")
        if step % settings.checkpoint_every == 0:
            self.save()

    def _log(self, step: int, loss: float) -> None:
        assert self.loggers is not None
        now = time.monotonic()
        rate = (step - self.ticked) * self.settings.batch_size / (now - self.tick)
        row = {"step": step, "loss": loss, "lr": self.learner.lr, "images_per_second": rate}
        self.loggers.write(row | {"data_share": self.data_seconds / (now - self.tick)})
        self.update(step, self.settings.steps, f"loss {loss:.4f}  {rate:.0f} images/s")
        self.tick, self.ticked, self.data_seconds = now, step, 0.0

    def save(self) -> None:
        """Write the encoder, then the state."""
        seconds, dtype = time.monotonic() - self.start, DTYPES[self.settings.store]
        save_encoder(self.mae.vit, self.out / "encoder.safetensors", self._recipe(seconds), dtype)
        self.save_state(seconds=seconds, loss=self.loss)
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

    def close(self) -> None:
        """Write the last reconstruction and checkpoint."""
        if self.fabric.is_global_zero:
            generator = torch.Generator().manual_seed(self.settings.seed)
            sample = normalise(make_batch(self.bank, self.settings, generator, self.pool), 0.0, generator)
            save_reconstruction(self.mae, sample, self.out / "reconstruction.png")
            if self.saved != self.learner.step:
                self.save()
        super().close()
