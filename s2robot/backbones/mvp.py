"""Load MVP's published encoders by name: downloaded once, verified, frozen.

    vit = load("vitb-mae-egosoup")                   # from the user's cache; downloads 343 MB the first time
    vit = load("vits-mae-hoi", "mae_pretrain_hoi_vit_small.pth")
    vit(images).shape                                # normalised (B, 3, H, W) -> (B, 1 + N, D), CLS first
    S2Encoder(vit, [224]).encode(frames).shape       # uint8 (B, H, W, 3) -> (B, N, D)

Files and weights: https://github.com/ir413/mvp (Xiao et al., arXiv 2203.06173; Radosavovic et al., arXiv 2210.03109).
"""

from __future__ import annotations

import hashlib
import http.client
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

from s2robot.backbones.vit import MVPViT, ViTSpec
from s2robot.backbones.weights import load_strict, read_state
from s2robot.core.errors import UserError, one_of, reported
from s2robot.core.files import cache_dir, replacing
from s2robot.core.progress import bar

BOX = "https://berkeley.box.com/shared/static"
_TIMEOUT_S = 60.0  # without a response or further bytes


class Published(NamedTuple):
    spec: ViTSpec
    file: str
    md5: str
    url: str


_SMALL = ViTSpec(224, 16, 384, 12, 12)
_BASE = ViTSpec(224, 16, 768, 12, 12)
_LARGE = ViTSpec(256, 16, 1024, 24, 16)
PUBLISHED: dict[str, Published] = {
    name: Published(spec, f"{file}.pth", md5, f"{BOX}/{url}.pth")
    for name, spec, file, md5, url in (
        ("vits-mae-hoi", _SMALL, "mae_pretrain_hoi_vit_small",
         "fe6e30eb4256fae298ea0a6c6b4c1ae7", "m93ynem558jo8vltlads5rcmnahgsyzr"),
        ("vits-mae-in", _SMALL, "mae_pretrain_imagenet_vit_small",
         "29a004bd4332f97cd22f55c1da26bc15", "qlsjkv03nngu37eyvtjikfe7rz14k66d"),
        ("vits-sup-in", _SMALL, "sup_pretrain_imagenet_vit_small",
         "f8f23ba960af1017783c9b975875d36d", "95a4ncqrh1o7llne2b1gpsfip4dt65m4"),
        ("vitb-mae-egosoup", _BASE, "mae_pretrain_egosoup_vit_base",
         "526093597ac1dc55df618bcbdfe8da4a", "0ckepd2ja3pi570z89ogd899cn387yut"),
        ("vitl-256-mae-egosoup", _LARGE, "mae_pretrain_egosoup_vit_large_256",
         "5352b0b6c04f044f67eba41b667fcde6", "6p0pc47mlpp4hhwlin2hf035lxlgddxr"),
    )
}  # fmt: skip


def load(name: str, checkpoint: str | Path | None = None, *, check_md5: bool = True) -> MVPViT:
    """Load one of the five checkpoints in `PUBLISHED`, without gradients and in evaluation mode.

    checkpoint: a local file; None uses the user's cache and downloads the file if it is missing.
    check_md5: reject a file whose md5 differs from the published one.
    Raises UserError for an unknown name, a failed download, a wrong md5 or mismatched weights. Pickled code in the
    file does not run. Decoder, mask token and head are dropped.
    """
    one_of("MVP checkpoint", name, PUBLISHED)
    path = fetch(name, check_md5=check_md5) if checkpoint is None else Path(checkpoint)
    published = PUBLISHED[name]
    with reported(f"{path}: not a readable weights file"):
        found = _md5(path) if check_md5 else published.md5
    if found != published.md5:
        got = f"{found}; remove the file to download it again, or set encoder.check_md5=false"
        raise UserError(f"{path}: expected md5 {published.md5} of {name} ({published.file}), got {got}")
    state = read_state(path)
    dropped, vit = ("mask_token", "decoder_", "decoder.", "head."), MVPViT(published.spec)
    load_strict(vit, {k: v for k, v in state.items() if not k.startswith(dropped)}, str(path))
    return vit.requires_grad_(False).eval()


def fetch(name: str, *, check_md5: bool = True) -> Path:
    """Return the checkpoint file in the user's cache (`cache_dir("mvp")`), downloading it if it is missing.

    A file placed there manually under its published name is used. Raises UserError if the download fails or its md5
    differs from the published one.
    """
    published = PUBLISHED[name]
    path = cache_dir("mvp") / published.file
    if path.is_file():
        return path
    hint = f"; save the file as {path}, or set checkpoint= (encoder.checkpoint= in a command)"
    kinds = (OSError, http.client.HTTPException)  # URLError and HTTPError are OSErrors
    failed = f"{name}: {published.url} could not be downloaded"
    with reported(failed, hint, kinds), replacing(path, shared=True) as part:
        _download(published.url, part)
        if check_md5 and (found := _md5(part)) != published.md5:
            raise OSError(f"expected md5 {published.md5}, got {found}")
    return path


def _download(url: str, path: Path) -> None:
    """Download a URL to a file; OSError if the server does not respond or sends fewer bytes than announced."""
    with urlopen(url, timeout=_TIMEOUT_S) as response, path.open("wb") as file, bar("downloading") as update:
        done, total = 0, int(response.headers.get("Content-Length") or 0)
        while block := response.read(1 << 20):
            file.write(block)
            done += len(block)
            update(-(-done // 10**6), -(-total // 10**6), f"MB of {url}")
    if total and done != total:
        raise OSError(f"expected {total} bytes, got {done}")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
