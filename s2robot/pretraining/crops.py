"""Random crops of a bank's frames as batches, and an image of their reconstruction."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from s2robot.backbones.libraries import IMAGENET
from s2robot.pretraining.frames import FrameBank
from s2robot.pretraining.mae import MAE
from s2robot.pretraining.settings import CropSettings, PretrainSettings

ALL = slice(None)
MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)


def crop_box(height: int, width: int, u: Tensor, crop: CropSettings) -> tuple[int, int, int, int]:
    """Map four uniform numbers u to (top, left, height, width) of a crop; side and ratio are log-uniform."""
    size, aspect, y, x = u.tolist()
    low, high = math.log(crop.min), math.log(crop.max)
    side = min(height, width) * math.exp(low + size * (high - low))
    low, high = (math.log(r) for r in crop.ratio)
    ratio = math.exp(low + aspect * (high - low))
    w = min(width, round(side * math.sqrt(ratio)))
    h = min(height, round(side / math.sqrt(ratio)))
    return round(y * (height - h)), round(x * (width - w)), h, w


def make_batch(
    bank: FrameBank,
    settings: PretrainSettings,
    generator: torch.Generator,
    pool: ThreadPoolExecutor,
    share: slice = ALL,
) -> Tensor:
    """Return random crops as uint8 (B, 3, S, S), antialiased where they shrink.

    S is the encoder's image size times the largest scale. Crops are drawn for the whole batch, whatever `share` of it
    is returned.
    """
    size, batch = settings.encoder.img_size * max(settings.scales), settings.batch_size
    rows = torch.randint(len(bank), (batch,), generator=generator).tolist()
    draws = torch.rand(batch, 5, generator=generator)

    def one(row: int, u: Tensor) -> Tensor:
        frame = bank[row]
        y, x, h, w = crop_box(frame.shape[0], frame.shape[1], u[:4], settings.crop)
        crop = torch.from_numpy(frame[y : y + h, x : x + w].copy())
        crop = crop.permute(2, 0, 1)[None]  # channels last in memory: torch's fast uint8 path
        if (h, w) != (size, size):
            crop = F.interpolate(crop, (size, size), mode="bilinear", antialias=True)
        return crop.flip(-1) if u[4] < settings.flip else crop

    return torch.cat(list(pool.map(one, rows[share], draws[share])))


def normalise(
    images: Tensor, jitter: float, generator: torch.Generator, whole: int | None = None, share: slice = ALL
) -> Tensor:
    """Convert uint8 (B, 3, S, S) to float32 in ImageNet's units, after random brightness and contrast.

    whole: the size of the batch, if the images are only a `share` of it.
    """
    x = images.contiguous().float().div_(255)
    if jitter:
        drawn = torch.rand(2, whole or len(x), 1, 1, 1, generator=generator)[:, share]
        gain = 1 + jitter * (2 * drawn - 1)
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        x = ((x - mean) * gain[0] + mean * gain[1]).clamp_(0, 1)
    return x.sub_(MEAN).div_(STD)


def save_reconstruction(mae: MAE, images: Tensor, path: Path, rows: int = 8) -> None:
    """Save an image with a row for each input: the input, its visible patches, the reconstruction."""
    images = images[:rows]
    masked, filled = mae.picture(images.to(mae.mask_token.device), torch.Generator().manual_seed(0))
    strip = torch.cat([images, masked.cpu(), filled.cpu()], dim=3)  # (rows, 3, S, 3 * S)
    strip = strip * STD + MEAN
    sheet = torch.cat(list(strip), dim=1).clamp(0, 1).mul(255).round().byte()  # (3, rows * S, 3 * S)
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path)
