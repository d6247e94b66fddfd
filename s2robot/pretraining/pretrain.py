"""Pre-train an encoder by masked autoencoding on a bank of frames, with MVP's recipe.

    pretrain(PretrainSettings(data="scenes", out="runs/mae"))

Every step draws its frames, crops and masks from a generator seeded by (seed, step), for all processes together. So a killed
run resumes exactly, and several processes use the same batches as one. configs/pretrain/default.yaml documents each setting.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import lightning_fabric
import torch
from lightning_fabric import Fabric
from PIL import Image
from timm.models.vision_transformer import Attention
from torch import Tensor
from torch.nn import functional as F

from s2robot.backbones.device import moved
from s2robot.backbones.libraries import IMAGENET
from s2robot.backbones.vit import MVPViT, ViTSpec, save_encoder
from s2robot.core.progress import bar
from s2robot.core.settings import from_yaml
from s2robot.pretraining.frames import FrameBank
from s2robot.pretraining.mae import MAE
from s2robot.training.loop import Learner, cosine_with_warm_up, parameter_groups
from s2robot.training.run import Loggers, Run, launch, mean_of_all
from s2robot.training.settings import Fitting

# a checkpoint with another value of one of these belongs to another run
_DECIDING = ("encoder", "decoder_dim", "decoder_depth", "decoder_heads", "scales", "batch_size", "mask_ratio",
             "weight_decay", "crop", "ratio", "flip", "jitter", "seed", "precision")  # fmt: skip
_RECIPE = (*_DECIDING, "lr", "warmup_steps", "store")
_MEAN, _STD = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)


class PretrainSettings(Fitting, at="pretrain", file="pretrain/default"):
    data: str
    out: str
    seed: int = from_yaml(ge=0, le=2**32 - 1)  # NumPy's limit
    encoder: ViTSpec = from_yaml()
    decoder_dim: int = from_yaml(ge=1)
    decoder_depth: int = from_yaml(ge=1)
    decoder_heads: int = from_yaml(ge=1)
    scales: tuple[int, ...] = from_yaml(min_length=1)
    every: int = from_yaml(ge=1)
    warmup_steps: int = from_yaml(ge=0)
    mask_ratio: float = from_yaml(ge=0, le=1)
    crop: tuple[float, float] = from_yaml()
    ratio: tuple[float, float] = from_yaml()
    flip: float = from_yaml(ge=0, le=1)
    jitter: float = from_yaml(ge=0, le=1)
    store: Literal["float32", "bfloat16"] = from_yaml()
    image_every: int = from_yaml(ge=1)

    def rules(self) -> Iterator[tuple[Any, ...]]:
        grid, scales, heads = self.encoder.grid, self.scales, self.decoder_heads
        yield "crop", 0 < self.crop[0] <= self.crop[1], "0 < minimum <= maximum"
        yield "ratio", 0 < self.ratio[0] <= self.ratio[1], "0 < minimum <= maximum"
        fits = self.decoder_dim % math.lcm(4, heads) == 0
        yield "decoder_dim", fits, f"a multiple of 4 and of {heads} (heads)"
        nested = scales[0] == 1 and all(b % a == 0 and b > a for a, b in pairwise(scales))
        fits = nested and grid % scales[-1] == 0
        yield "scales", fits, f"1 first, each a divisor of the next, the last of the encoder's grid {grid}"
        blocks, visible = scales[-1] ** 2, int(grid**2 * (1 - self.mask_ratio))
        fits = 1 <= visible < grid**2 and visible % blocks == 0
        yield "mask_ratio", fits, f"a multiple of {blocks} visible patches from 1 to {grid**2 - 1}"


def pretrain(settings: PretrainSettings) -> Path:
    """Run or resume a pre-training; returns the path of the encoder, `out`/encoder.safetensors.

    Every checkpoint also writes the encoder. Raises UserError for unreadable data, a checkpoint of another run, another
    pre-training in `out`, a non-finite loss, or the loss of one of several processes.
    """
    fabric = launch(settings, "pretrain")
    bank = FrameBank(settings.data, every=settings.every)
    fabric.seed_everything(settings.seed, verbose=False)
    sizes = (settings.decoder_dim, settings.decoder_depth, settings.decoder_heads)
    mae = MAE(MVPViT(settings.encoder), *sizes, settings.mask_ratio, settings.scales)
    if fabric.device.type == "cpu":
        for module in mae.modules():
            if isinstance(module, Attention):
                module.fused_attn = False  # slow on a CPU with few tokens: a third of a step
    with (
        ThreadPoolExecutor(torch.get_num_threads()) as pool,
        bar("pre-training") if fabric.is_global_zero else nullcontext(lambda *args: None) as update,
    ):
        _Run(settings, bank, mae, fabric, pool, update).run()
    return Path(settings.out) / "encoder.safetensors"


class _Run(Run):
    """The steps of one pre-training: batches, scalars, reconstructions and the encoder."""

    verb, state_file = "pretrain", "checkpoint.pt"
    settings: PretrainSettings

    def __init__(
        self,
        settings: PretrainSettings,
        bank: FrameBank,
        mae: MAE,
        fabric: Fabric,
        pool: ThreadPoolExecutor,
        update: Callable[[int, int, str], None],
    ) -> None:
        self.bank, self.mae, self.pool, self.update = bank, mae, pool, update
        groups = parameter_groups(mae, settings.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), fused=True)
        rate = lambda step: cosine_with_warm_up(step, settings.steps, settings.warmup_steps)  # noqa: E731
        learner = Learner(fabric, mae, optimizer, rate)
        identity = settings.model_dump(include=set(_DECIDING))
        identity |= {"processes": fabric.world_size, "pictures": bank.describe()}
        super().__init__(fabric, learner, settings, settings.batch_size, Path(settings.out), identity)
        self.loss: float | None = None  # running mean
        self.images = torch.empty(0)
        self.ahead: dict[int, tuple[Tensor, tuple[Tensor, Tensor]]] = {}  # batches drawn in advance
        self.start, self.saved = time.monotonic(), -1

    def begin(self, state: dict[str, Any] | None) -> None:
        if state:
            self.start, self.loss = time.monotonic() - state["seconds"], state["loss"]
        if self.fabric.is_global_zero:
            self.loggers = Loggers(("tensorboard",), self.out, self.learner.step)

    def batch(self, step: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return this process's share of a batch: images, and the cells to keep and to hide."""
        self.images, cells = self.ahead.pop(step) if step in self.ahead else self._draw(step)
        device = self.fabric.device
        return moved(self.images, device), (moved(cells[0], device), moved(cells[1], device))

    def _draw(self, step: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Draw the crops and masks of a step, for all processes together."""
        settings, rank = self.settings, self.fabric.global_rank
        per_process = settings.batch_size // self.fabric.world_size
        share = slice(rank * per_process, (rank + 1) * per_process)
        generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + step) * 1024)
        crops = make_batch(self.bank, settings, generator, self.pool, share)
        images = normalise(crops, settings.jitter, generator, settings.batch_size, share)
        keep, hidden = self.mae.draw_mask(settings.batch_size, generator)
        return images, (keep[share], hidden[share])

    def after(self, loss: Tensor, rest: Any) -> None:
        """Write scalars, reconstructions and checkpoints at their intervals, the checkpoint last."""
        step, settings = self.learner.step, self.settings
        if self.fabric.device.type == "cuda" and step < settings.steps:
            self.ahead[step] = self._draw(step)  # while the GPU is still computing
        value = mean_of_all(self.fabric, loss).item()
        self.check_loss(value, settings.lr)
        self.loss = value if self.loss is None else 0.98 * self.loss + 0.02 * value
        if not self.fabric.is_global_zero:
            return
        if step % settings.log_every == 0:
            assert self.loggers is not None
            self.loggers.write({"step": step, "loss": self.loss, "lr": self.learner.lr})
            self.update(step, settings.steps, f"loss {self.loss:.4f}")
        if step % settings.image_every == 0:
            save_reconstruction(self.mae, self.images, self.out / f"reconstruction_{step:06d}.png")
        if step % settings.checkpoint_every == 0:
            self.save()

    def save(self) -> None:
        """Write the encoder with its recipe, then the state."""
        self.saved, seconds, settings = self.learner.step, time.monotonic() - self.start, self.settings
        recipe = {
            "recipe": "masked autoencoding (MAE, as in MVP)" + " with S2" * (len(settings.scales) > 1),
            "steps": self.saved,
            "images_seen": self.saved * settings.batch_size,
            "minutes": round(seconds / 60, 1),
            "loss": self.loss,
            "data": self.bank.describe(),
            **settings.model_dump(include=set(_RECIPE), mode="json"),
            "versions": {"torch": torch.__version__, "lightning_fabric": lightning_fabric.__version__},
        }
        save_encoder(self.mae.vit, self.out / "encoder.safetensors", recipe, getattr(torch, settings.store))
        self.save_state(seconds=seconds, loss=self.loss)

    def close(self) -> None:
        """Write the last reconstruction and checkpoint."""
        if self.fabric.is_global_zero:
            generator = torch.Generator().manual_seed(self.settings.seed)
            sample = normalise(make_batch(self.bank, self.settings, generator, self.pool), 0.0, generator)
            save_reconstruction(self.mae, sample, self.out / "reconstruction.png")
            if self.saved != self.learner.step:
                self.save()
        super().close()


def crop_box(height: int, width: int, u: Tensor, settings: PretrainSettings) -> tuple[int, int, int, int]:
    """Map four uniform numbers u to (top, left, height, width) of a crop; side and ratio are log-uniform."""
    size, aspect, y, x = u.tolist()
    low, high = map(math.log, settings.crop)
    side = min(height, width) * math.exp(low + size * (high - low))
    low, high = map(math.log, settings.ratio)
    ratio = math.exp(low + aspect * (high - low))
    w = min(width, round(side * math.sqrt(ratio)))
    h = min(height, round(side / math.sqrt(ratio)))
    return round(y * (height - h)), round(x * (width - w)), h, w


def make_batch(
    bank: FrameBank,
    settings: PretrainSettings,
    generator: torch.Generator,
    pool: ThreadPoolExecutor,
    share: slice = slice(None),
) -> Tensor:
    """Return random crops as uint8 (B, 3, S, S), antialiased when downsized.

    S is the encoder's image size times the largest scale. Crops are drawn for the whole batch, even if only a `share`
    of it is returned.
    """
    size, batch = settings.encoder.img_size * max(settings.scales), settings.batch_size
    rows = torch.randint(len(bank), (batch,), generator=generator).tolist()
    draws = torch.rand(batch, 5, generator=generator)

    def one(row: int, u: Tensor) -> Tensor:
        frame = bank[row]
        y, x, h, w = crop_box(frame.shape[0], frame.shape[1], u[:4], settings)
        crop = torch.from_numpy(frame[y : y + h, x : x + w].copy())
        crop = crop.permute(2, 0, 1)[None]  # channels last in memory: torch's fast uint8 path
        if (h, w) != (size, size):
            crop = F.interpolate(crop, (size, size), mode="bilinear", antialias=True)
        return crop.flip(-1) if u[4] < settings.flip else crop

    return torch.cat(list(pool.map(one, rows[share], draws[share])))


def normalise(
    images: Tensor,
    jitter: float,
    generator: torch.Generator,
    batch: int | None = None,
    share: slice = slice(None),
) -> Tensor:
    """Convert uint8 (B, 3, S, S) to float32 with ImageNet's normalisation, after random brightness and contrast.

    batch: the size of the whole batch, if the images are only a `share` of it.
    """
    x = images.contiguous().float().div_(255)
    if jitter:
        gain = 1 + jitter * (2 * torch.rand(2, batch or len(x), 1, 1, 1, generator=generator)[:, share] - 1)
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        x = ((x - mean) * gain[0] + mean * gain[1]).clamp_(0, 1)
    return x.sub_(_MEAN).div_(_STD)


def save_reconstruction(mae: MAE, images: Tensor, path: Path, rows: int = 8) -> None:
    """Save an image with a row for each input: the input, its visible patches, the reconstruction."""
    images = images[:rows]
    masked, filled = mae.reconstruct(images.to(mae.mask_token.device), torch.Generator().manual_seed(0))
    strip = torch.cat([images, masked.cpu(), filled.cpu()], dim=3) * _STD + _MEAN  # (rows, 3, S, 3 * S)
    sheet = torch.cat(list(strip), dim=1).clamp(0, 1).mul(255).round().byte()  # (3, rows * S, 3 * S)
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path)
