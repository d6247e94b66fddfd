"""Pre-train an encoder by masked autoencoding on a bank of frames: MVP's recipe at the size of two cores.

    pretrain(OmegaConf.load("configs/pretrain/default.yaml") | {"data": "scenes", "out": "runs/mae"})

Every step draws its frames, crops and masks from a generator seeded by (seed, step, process), so a run that
was killed goes on from its checkpoint exactly as if nothing had happened; only with `max_minutes` does the
clock enter, through the learning rate. Each setting is explained in configs/pretrain/default.yaml.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning_fabric
import torch
from lightning_fabric import Fabric
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from timm.models.vision_transformer import Attention
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from s2robot.backbones.libraries import IMAGENET
from s2robot.backbones.vit import MVPViT, ViTSpec, save_encoder
from s2robot.common.errors import UserError
from s2robot.encoders.encoder import DTYPES
from s2robot.pretraining.frames import FrameBank
from s2robot.pretraining.mae import MAE
from s2robot.pretraining.plots import pretraining_plot
from s2robot.reporting.style import save_figure

IMAGENET_MEAN, IMAGENET_STD = IMAGENET
# a checkpoint made with other values of these is another run
RUN_KEYS = (
    "encoder",
    "decoder",
    "scales",
    "batch_size",
    "mask_ratio",
    "weight_decay",
    "crop",
    "flip",
    "jitter",
    "seed",
)


def crop_boxes(height: int, width: int, u: Tensor, crop: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Four uniform numbers u -> (top, left, height, width) of a crop; side and ratio are log-uniform."""
    size, aspect, y, x = u.tolist()
    low, high = math.log(crop["min"]), math.log(crop["max"])
    side = min(height, width) * math.exp(low + size * (high - low))
    low, high = (math.log(r) for r in crop["ratio"])
    ratio = math.exp(low + aspect * (high - low))
    w = min(width, round(side * math.sqrt(ratio)))
    h = min(height, round(side / math.sqrt(ratio)))
    return round(y * (height - h)), round(x * (width - w)), h, w


def make_batch(
    bank: FrameBank, cfg: Mapping[str, Any], generator: torch.Generator, pool: ThreadPoolExecutor
) -> Tensor:
    """Random crops as uint8 (B, 3, S, S); antialiased where they shrink.

    S is the encoder's image size times the largest scale.
    """
    size, batch = cfg["encoder"]["img_size"] * max(cfg["scales"]), cfg["batch_size"]
    rows = torch.randint(len(bank), (batch,), generator=generator).tolist()
    draws = torch.rand(batch, 5, generator=generator)

    def one(row: int, u: Tensor) -> Tensor:
        frame = bank[row]
        y, x, h, w = crop_boxes(frame.shape[0], frame.shape[1], u[:4], cfg["crop"])
        crop = torch.from_numpy(frame[y : y + h, x : x + w].copy())
        crop = crop.permute(2, 0, 1)[None]  # channels last in memory: torch's fast uint8 path
        if (h, w) != (size, size):
            crop = F.interpolate(crop, (size, size), mode="bilinear", antialias=True)
        return crop.flip(-1) if u[4] < cfg["flip"] else crop

    return torch.cat(list(pool.map(one, rows, draws)))


def normalise(images: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    """uint8 (B, 3, S, S) -> float32 in ImageNet's units, after random brightness and contrast."""
    x = images.contiguous().float().div_(255)
    if jitter:
        gain = 1 + jitter * (2 * torch.rand(2, x.shape[0], 1, 1, 1, generator=generator) - 1)
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        x = ((x - mean) * gain[0] + mean * gain[1]).clamp_(0, 1)
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    return x.sub_(mean).div_(torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))


def learning_rate(step: int, done: float, warmup_steps: int) -> float:
    """Share of the peak rate: linear warm-up over the first steps, cosine to zero as `done` goes 0 to 1."""
    return min((step + 1) / max(1, warmup_steps), 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def parameter_groups(mae: MAE, weight_decay: float) -> list[dict[str, Any]]:
    """Decay for matrices only; the fixed position tables are in no group."""
    trained = [(n, p) for n, p in mae.named_parameters() if p.requires_grad]
    plain = [p for n, p in trained if p.ndim < 2 or n.endswith(("cls_token", "mask_token"))]
    decayed = [p for n, p in trained if not (p.ndim < 2 or n.endswith(("cls_token", "mask_token")))]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def save_picture(mae: MAE, images: Tensor, path: Path, rows: int = 8) -> None:
    """One row an image: input, what the encoder saw of it, reconstruction."""
    images = images[:rows]
    masked, filled = mae.picture(images.to(mae.mask_token.device), torch.Generator().manual_seed(0))
    strip = torch.cat([images, masked.cpu(), filled.cpu()], dim=3)  # (rows, 3, S, 3 * S)
    strip = strip * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    sheet = torch.cat(list(strip), dim=1).clamp(0, 1).mul(255).round().byte()  # (3, rows * S, 3 * S)
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path)


def _plain(value: Any) -> Any:
    """Mappings and sequences of any make (OmegaConf's too) as dict and list."""
    if hasattr(value, "items"):
        return {k: _plain(v) for k, v in value.items()}
    if not isinstance(value, str) and hasattr(value, "__iter__"):
        return [_plain(v) for v in value]
    return value


def _load_checkpoint(path: Path, cfg: Mapping[str, Any]) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        raise UserError(f"{path}: not a readable checkpoint; remove it to start over") from error
    for key in RUN_KEYS:
        if saved["config"][key] != cfg[key]:
            was = saved["config"][key]
            raise UserError(f"{path}: made with {key} {was}, this run has {cfg[key]}; use another out")
    return saved


def pretrain(cfg: Mapping[str, Any], progress: bool = True) -> Path:
    """Run (or go on with) a pre-training; returns the path of the encoder, `out`/encoder.safetensors.

    The encoder is also written at every checkpoint, so that an unfinished run can be tried out.
    Raises UserError for unreadable data, a checkpoint of another run and a loss that is not finite.
    """
    cfg = _plain(cfg)
    if cfg["threads"]:
        torch.set_num_threads(cfg["threads"])
    if cfg["store"] not in DTYPES:
        raise UserError(f"pretrain.store: found {cfg['store']!r}, expected one of {', '.join(DTYPES)}")
    fabric = Fabric(accelerator=cfg["accelerator"], devices=cfg["devices"], precision=cfg["precision"])
    fabric.launch()
    out = Path(cfg["out"])
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, exported = out / "checkpoint.pt", out / "encoder.safetensors"
    bank = FrameBank(cfg["data"], every=cfg["every"], progress=progress and fabric.is_global_zero)
    fabric.seed_everything(cfg["seed"], verbose=False)
    mae = MAE(
        MVPViT(ViTSpec(**cfg["encoder"])),
        cfg["decoder"]["dim"],
        cfg["decoder"]["depth"],
        cfg["decoder"]["heads"],
        cfg["mask_ratio"],
        cfg["scales"],
    )
    if (
        fabric.device.type == "cpu"
    ):  # torch's fused kernel is slow there where tokens are few: a third of a step
        for module in mae.modules():
            if isinstance(module, Attention):
                module.fused_attn = False
    optimizer = torch.optim.AdamW(
        parameter_groups(mae, cfg["weight_decay"]), lr=cfg["lr"], betas=(0.9, 0.95), fused=True
    )
    step, elapsed, loss_mean = 0, 0.0, None
    history: list[list[float]] = []  # step, loss, learning rate
    if checkpoint.is_file():
        if not cfg["resume"]:
            raise UserError(f"{checkpoint} exists: set resume=true to go on with it or choose another out")
        saved = _load_checkpoint(checkpoint, cfg)
        mae.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step, elapsed, loss_mean = saved["step"], saved["seconds"], saved["loss"]
        history = saved.get("history", history)
    model, optimizer = fabric.setup(mae, optimizer)

    steps, budget = cfg["steps"], (cfg["max_minutes"] or math.inf) * 60
    start = time.monotonic() - elapsed
    data_seconds = 0.0

    def recipe() -> dict[str, Any]:
        return {
            "recipe": "masked autoencoding (MAE, as in MVP)" + (" with S2" if len(cfg["scales"]) > 1 else ""),
            "steps": step,
            "images_seen": step * cfg["batch_size"] * fabric.world_size,
            "minutes": round((time.monotonic() - start) / 60, 1),
            "loss": loss_mean,
            "data": bank.describe(),
            **{k: cfg[k] for k in (*RUN_KEYS, "lr", "warmup_steps", "precision", "store")},
            "versions": {"torch": torch.__version__, "lightning_fabric": lightning_fabric.__version__},
        }

    def save() -> None:
        if not fabric.is_global_zero:
            return
        state = {
            "model": mae.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "seconds": time.monotonic() - start,
            "loss": loss_mean,
            "history": history,
            "config": cfg,
        }
        torch.save(state, checkpoint.with_suffix(".part"))
        os.replace(checkpoint.with_suffix(".part"), checkpoint)
        save_encoder(mae.vit, exported, recipe(), DTYPES[cfg["store"]])
        if history:
            save_figure(pretraining_plot(history), out / "loss.png")

    def spent() -> bool:
        """Whether the time is up; process 0's clock counts, so that all stop at the same step."""
        return bool(fabric.broadcast(time.monotonic() - start >= budget)) if budget < math.inf else False

    columns = (
        TextColumn("pre-training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]} · {task.fields[rate]} images/s ·"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, disable=not progress or not fabric.is_global_zero)
    bar.disable = bar.disable or not bar.console.is_terminal
    writer = SummaryWriter(str(out), purge_step=step) if fabric.is_global_zero else None
    with bar, ThreadPoolExecutor(torch.get_num_threads()) as pool:
        task = bar.add_task("", total=steps, completed=step, loss="–", rate="–")
        tick, ticked = time.monotonic(), step
        while step < steps and not spent():
            clock = time.monotonic()
            seed = (cfg["seed"] * 1_000_003 + step) * 1024 + fabric.global_rank
            generator = torch.Generator().manual_seed(seed)
            images = normalise(make_batch(bank, cfg, generator, pool), cfg["jitter"], generator)
            data_seconds += time.monotonic() - clock
            done = max(step / steps, (clock - start) / budget)
            for group in optimizer.param_groups:
                group["lr"] = cfg["lr"] * learning_rate(step, done, cfg["warmup_steps"])
            loss, _, _ = model(fabric.to_device(images), generator)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            value = loss.item()
            if not math.isfinite(value):
                raise UserError(
                    f"the loss is {value} at step {step}; {checkpoint} is intact; lower lr {cfg['lr']}"
                )
            loss_mean = value if loss_mean is None else 0.98 * loss_mean + 0.02 * value
            if step % cfg["log_every"] == 0 and writer is not None:
                now = time.monotonic()
                rate = (step - ticked) * cfg["batch_size"] * fabric.world_size / (now - tick)
                scalars = {
                    "loss": loss_mean,
                    "lr": optimizer.param_groups[0]["lr"],
                    "images_per_second": rate,
                    "data_share": data_seconds / (now - tick),
                }
                history.append([step, scalars["loss"], scalars["lr"]])
                for name, scalar in scalars.items():
                    writer.add_scalar(name, scalar, step)
                bar.update(task, completed=step, loss=f"{loss_mean:.4f}", rate=f"{rate:.0f}")
                if bar.disable and progress and step % (10 * cfg["log_every"]) == 0:
                    print(f"step {step}/{steps}  loss {loss_mean:.4f}  {rate:.0f} images/s", flush=True)
                tick, ticked, data_seconds = now, step, 0.0
            if step % cfg["checkpoint_every"] == 0:
                save()
            if step % cfg["picture_every"] == 0 and fabric.is_global_zero:
                save_picture(mae, images, out / f"reconstruction_{step:06d}.png")
        if fabric.is_global_zero:
            sample = make_batch(bank, cfg, torch.Generator().manual_seed(cfg["seed"]), pool)
            save_picture(mae, normalise(sample, 0.0, torch.Generator()), out / "reconstruction.png")
    if writer is not None:
        writer.close()
    save()
    fabric.barrier()
    return exported
