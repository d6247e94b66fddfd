"""Load MVP's published encoders by name: downloaded once, checked, frozen.

    encoder = load("vitb-mae-egosoup")               # from the user's cache; downloads 343 MB the first time
    encoder = load("vits-mae-hoi", "mae_pretrain_hoi_vit_small.pth")
    encoder.encode(images).shape                     # uint8 (B, H, W, 3) -> (B, 1 + N, D), CLS first
    encoder.encode(images, pool="mean").shape        # (B, D), the mean of the N patch tokens

Files and weights: https://github.com/ir413/mvp (Xiao et al., arXiv 2203.06173; Radosavovic et al., arXiv 2210.03109).
"""

from __future__ import annotations

import difflib
import hashlib
import http.client
import urllib.request
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F

from s2robot.backbones.vit import PUBLISHED, MVPViT, load_mvp
from s2robot.core.errors import UserError
from s2robot.core.files import cache_dir, replacing
from s2robot.core.progress import bar

_BOX = "https://berkeley.box.com/shared/static"
URLS = {
    "vits-mae-hoi": f"{_BOX}/m93ynem558jo8vltlads5rcmnahgsyzr.pth",
    "vits-mae-in": f"{_BOX}/qlsjkv03nngu37eyvtjikfe7rz14k66d.pth",
    "vits-sup-in": f"{_BOX}/95a4ncqrh1o7llne2b1gpsfip4dt65m4.pth",
    "vitb-mae-egosoup": f"{_BOX}/0ckepd2ja3pi570z89ogd899cn387yut.pth",
    "vitl-256-mae-egosoup": f"{_BOX}/6p0pc47mlpp4hhwlin2hf035lxlgddxr.pth",
}
POOLS = ("tokens", "mean", "cls")

_TIMEOUT_S = 30.0  # to connect, and between two pieces
_PIECE = 1 << 20  # bytes


class MVP(nn.Module):
    """A frozen MVP vision transformer: no gradients, always in evaluation mode.

    Attributes: `name`, `vit` (normalised images to tokens), `spec`, `dim` (D), `img_size` (px), `grid`
    (patches along a side; N = grid squared), `dropped` (keys of the file that are not the encoder's).
    """

    def __init__(self, name: str, vit: MVPViT, dropped: list[str]) -> None:
        super().__init__()
        self.name, self.spec, self.dropped = name, vit.spec, dropped
        self.dim, self.img_size, self.grid = vit.spec.dim, vit.spec.img_size, vit.spec.grid
        self.vit = vit.requires_grad_(False)
        mean, std = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
        self.register_buffer("mean", mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, 3, 1, 1), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> MVP:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, images: Tensor | np.ndarray, pool: str = "tokens") -> Tensor:
        """Encode uint8 RGB (B, H, W, 3) to tokens (B, 1 + N, D) after the final norm, the CLS token first.

        pool: "mean" returns (B, D), the mean of the N patch tokens without CLS (as RPT uses MVP); "cls" returns
        (B, D), the CLS token (as MVP itself does). Images of other sizes are resized to img_size x img_size with
        antialiasing, without keeping their aspect ratio. Raises UserError for another type or shape.
        """
        if pool not in POOLS:
            raise UserError(f"pool: found {pool!r}, expected one of {', '.join(POOLS)}")
        x = torch.as_tensor(images)
        if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[-1] != 3:
            raise UserError(f"expected images uint8 (B, H, W, 3), found {x.dtype} {tuple(x.shape)}")
        weight = self.vit.cls_token
        size = (self.img_size, self.img_size)
        if not len(x):
            x = x.new_zeros(0, *size, 3)  # interpolate refuses a batch of none
        x = x.to(weight.device).permute(0, 3, 1, 2).float()  # (B, 3, H, W)
        if x.shape[2:] != size:
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp_(0, 255)
        x = (x / 255 - self.mean.float()) / self.std.float()
        tokens = self.vit(x.to(weight.dtype))  # (B, 1 + N, D)
        if pool == "tokens":
            return tokens
        return tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(dim=1)

    forward = encode


def load(
    name: str, checkpoint: str | Path | None = None, *, check_md5: bool = True, progress: bool = True
) -> MVP:
    """Load one of the five checkpoints in `PUBLISHED`.

    checkpoint: a local file; None uses the user's cache and downloads the file if it is missing.
    check_md5: reject a file whose md5 is not the published one. progress: show the download.
    Raises UserError for an unknown name, a failed download, another md5 and weights that do not fit. Pickled code in
    the file does not run.
    """
    _check_name(name)
    if checkpoint is None:  # fetch has checked the md5
        vit, dropped = load_mvp(name, fetch(name, check_md5=check_md5, progress=progress), check_md5=False)
    else:
        vit, dropped = load_mvp(name, checkpoint, check_md5=check_md5)
    return MVP(name, vit, dropped)


def fetch(name: str, *, check_md5: bool = True, progress: bool = True) -> Path:
    """Return the checkpoint file in the user's cache (`paths.cache_dir("mvp")`), downloading it if it is missing.

    A file that was put there by hand under its published name is used. Raises UserError if the download fails or the
    md5 is not the published one.
    """
    _check_name(name)
    published, url = PUBLISHED[name], URLS[name]
    path = cache_dir("mvp") / published.file
    if not path.is_file():
        try:
            with replacing(path, shared=True) as part:
                found = _download(url, part, path.stem if progress else "")
                if check_md5 and found != published.md5:
                    raise OSError(f"received md5 {found}, expected {published.md5}")
        except (OSError, http.client.HTTPException) as error:  # URLError and HTTPError are OSErrors
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{name}: {url} could not be downloaded: {reason}; save the file as {path}, or set checkpoint= "
                "(encoder.checkpoint= in a command)"
            ) from error
    elif check_md5:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != published.md5:
            raise UserError(
                f"{path}: md5 {found}, but {name} has {published.md5}; remove the file to download it again"
            )
    return path


def _download(url: str, path: Path, title: str) -> str:
    """Write the file at a URL to `path` and return its md5; a progress bar appears if there is a title."""
    digest, done = hashlib.md5(usedforsecurity=False), 0
    request = urllib.request.Request(url, headers={"User-Agent": "s2robot"})
    with (
        urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response,
        path.open("wb") as file,
        bar(title) if title else nullcontext(lambda *args: None) as update,
    ):
        total = int(response.headers.get("Content-Length", 0))
        while piece := response.read(_PIECE):
            file.write(piece)
            digest.update(piece)
            done += len(piece)
            update(done // 10**6, total // 10**6, "MB")
    if done < total:
        raise OSError(f"the connection ended after {done} of {total} bytes")
    return digest.hexdigest()


def _check_name(name: str) -> None:
    if name not in PUBLISHED:
        near = difflib.get_close_matches(name, PUBLISHED, n=1, cutoff=0.3)
        hint = f"; nearest: {near[0]}" if near else ""
        raise UserError(f"MVP checkpoint: expected one of {', '.join(PUBLISHED)}, got {name!r}{hint}")
