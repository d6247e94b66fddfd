"""MVP's published encoders by name: fetched once, checked, frozen.

    encoder = load("vitb-mae-egosoup")               # from the user's cache; downloads 343 MB the first time
    encoder = load("vits-mae-hoi", "mae_pretrain_hoi_vit_small.pth")
    encoder.encode(images).shape                     # uint8 (B, H, W, 3) -> (B, 1 + N, D), CLS first
    encoder.encode(images, pool="mean").shape        # (B, D), the mean of the N patch tokens

Files and weights: https://github.com/ir413/mvp (Xiao et al., arXiv 2203.06173; Radosavovic et al., arXiv
2210.03109). A download goes to `<cache>/mvp/<file>.part`, goes on from there after a kill or a lost
connection, and takes its name only when its md5 is the published one. By hand, since torch.hub's and timm's downloads
neither go on nor know md5, pooch knows md5 and does not go on, and huggingface_hub goes on but only at its own hub.
"""

from __future__ import annotations

import difflib
import errno
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F

from s2robot.backbones.vit import PUBLISHED, MVPViT, load_mvp
from s2robot.common.errors import UserError
from s2robot.common.files import write_json
from s2robot.common.paths import cache_dir
from s2robot.common.progress import bar

_BOX = "https://berkeley.box.com/shared/static"
URLS = {
    "vits-mae-hoi": f"{_BOX}/m93ynem558jo8vltlads5rcmnahgsyzr.pth",
    "vits-mae-in": f"{_BOX}/qlsjkv03nngu37eyvtjikfe7rz14k66d.pth",
    "vits-sup-in": f"{_BOX}/95a4ncqrh1o7llne2b1gpsfip4dt65m4.pth",
    "vitb-mae-egosoup": f"{_BOX}/0ckepd2ja3pi570z89ogd899cn387yut.pth",
    "vitl-256-mae-egosoup": f"{_BOX}/6p0pc47mlpp4hhwlin2hf035lxlgddxr.pth",
}
POOLS = ("tokens", "mean", "cls")

_SCHEMES = ("https",)  # of the table's addresses and of whatever they redirect to
_TIMEOUT_S = 30.0  # without a byte, or to connect
_PAUSES_S = (1.0, 3.0, 9.0)  # before trying again; the count starts anew when a try has brought bytes
_PIECE = 1 << 16  # bytes


class MVP(nn.Module):
    """One of MVP's vision transformers, frozen: no parameter (norms included) has a gradient, always in eval.

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
        """Stays in evaluation mode: a frozen encoder has no other."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, images: Tensor | np.ndarray, pool: str = "tokens") -> Tensor:
        """uint8 RGB (B, H, W, 3) -> tokens (B, 1 + N, D) after the final norm, the CLS token first.

        pool: "mean" gives (B, D), the mean of the N patch tokens without CLS (as RPT uses MVP); "cls" gives
        (B, D), the CLS token (as MVP itself does). Images of another size than img_size x img_size are
        resized to it with antialiasing; their aspect is not kept. Raises UserError for another type or shape.
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
    """One of the five checkpoints in `PUBLISHED`, ready to encode.

    checkpoint: a local file; None takes the one in the user's cache and downloads it if it is not there.
    check_md5: refuse a file whose md5 is not the published one. progress: show the download.
    Raises UserError for an unknown name, a download that fails, another md5 and weights that do not fit. No
    pickled code in the file is run.
    """
    _known(name)
    if checkpoint is None:  # fetch has checked the md5
        vit, dropped = load_mvp(name, fetch(name, check_md5=check_md5, progress=progress), check_md5=False)
    else:
        vit, dropped = load_mvp(name, checkpoint, check_md5=check_md5)
    return MVP(name, vit, dropped)


def fetch(name: str, *, check_md5: bool = True, progress: bool = True) -> Path:
    """The checkpoint file in the user's cache (`paths.cache_dir("mvp")`), downloaded if it is not there.

    A file put there by hand under its published name is taken. Raises UserError, in one line that says what
    to do by hand, if it cannot be downloaded or its md5 is not the published one.
    """
    _known(name)
    published, url = PUBLISHED[name], URLS[name]
    path = cache_dir("mvp") / published.file
    md5 = published.md5 if check_md5 else None
    try:
        if path.is_file():
            if md5 and (found := _md5(path)) != md5:
                raise UserError(f"{path}: md5 {found}, but {name} has {md5}; remove it to download it again")
        else:
            _download(url, path, md5, progress)
    except (_FailedError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = f"the disk of {path.parent} is full" if full else _reason(error)
        raise UserError(
            f"{name}: {url} could not be downloaded: {reason}; put the file there by hand as {path}, "
            "or name another place with checkpoint= (encoder.checkpoint= in a command)"
        ) from error
    return path


def _known(name: str) -> None:
    if name not in PUBLISHED:
        near = difflib.get_close_matches(name, PUBLISHED, n=1, cutoff=0.3)
        hint = f"; nearest: {near[0]}" if near else ""
        raise UserError(f"MVP checkpoint: found {name!r}, expected one of {', '.join(PUBLISHED)}{hint}")


# ---------------------------------------------------------------- the download


class _FailedError(Exception):
    """Why a download cannot be done; one line."""


class _InterruptedError(_FailedError):
    """A fault of the connection or a busy server, which may be gone a moment later."""


def _download(url: str, path: Path, md5: str | None, progress: bool) -> None:
    """Fetch `url` into `path`, which appears whole or not at all; another process doing so is waited for."""
    part, about = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")
    with _alone(path.with_name(f".{path.name}.lock"), progress):
        if path.is_file():  # the process that was waited for has brought it
            return
        with part.open("ab") as file, _shown(path.name, progress) as update:
            _receive_all(url, file, about, update)
            file.flush()
            os.fsync(file.fileno())  # the rename must not survive a power cut that the bytes do not
        found = _md5(part) if md5 else md5
        if found == md5:
            os.replace(part, path)
        else:
            part.unlink()
        about.unlink(missing_ok=True)
        if found != md5:
            raise _FailedError(f"it came with md5 {found}, expected {md5}, and was removed")


def _receive_all(url: str, file: BinaryIO, about: Path, update: Callable[..., None]) -> None:
    """Ask for what `file` lacks until it is whole; gives up when `_PAUSES_S` tries in a row bring nothing."""
    tries, best, came = 0, _size(file), False
    while True:
        try:
            return _receive(url, file, about, update)
        except _InterruptedError as error:
            here = _size(file)
            if here > best:
                tries, best, came = 0, here, True
            # a machine without network is told so at once; a connection lost on the way is tried again
            hopeless = not came and isinstance(error.__cause__, urllib.error.URLError)
            if hopeless or tries == len(_PAUSES_S):
                kept = f" ({here / 1e6:.1f} MB are kept, the next try goes on from there)" if here else ""
                raise _FailedError(f"{error}{kept}") from error
            time.sleep(_PAUSES_S[tries])
            tries += 1


def _receive(url: str, file: BinaryIO, about: Path, update: Callable[..., None]) -> None:
    """One request for the bytes from the end of `file` on, or for all if the server's file is another one."""
    known = _read_about(about)
    done = _size(file)
    if done and known.get("url") != url:  # of unknown origin
        file.truncate(done := 0)
    if done and done == known.get("total"):
        return
    response = _ask(url, done)
    if done and (response is None or not _continues(response, done, known)):
        file.truncate(done := 0)
        if response is None or response.status == 206:  # 200 brings the whole already
            response = _ask(url, 0)
    if response is None:
        raise _FailedError("the server answers 416 to a request for the whole file")
    with response:
        if response.headers.get_content_type() == "text/html":
            raise _FailedError("the server sent a web page (text/html), expected a weights file")
        total = _total(response)
        write_json(about, {"url": url, "tag": _tag(response), "total": total})
        free = shutil.disk_usage(about.parent).free
        if total is not None and total - done > free:
            need = f"needs {(total - done) / 1e6:.0f} MB, the disk of {about.parent} has {free / 1e6:.0f} MB free"
            raise _FailedError(need)
        while True:
            try:
                piece = response.read1(_PIECE)
            except (OSError, http.client.HTTPException) as error:
                file.flush()
                raise _InterruptedError(f"the connection broke off: {_reason(error)}") from error
            if not piece:
                break
            file.write(piece)
            done += len(piece)
            update(done, total)
        file.flush()
    if total is not None and done < total:
        raise _InterruptedError(f"the connection ended after {done} of {total} bytes")
    if total is not None and done > total:
        raise _FailedError(f"the server sent {done} bytes, it had announced {total}")


def _ask(url: str, start: int) -> Any:
    """The response to a request for the bytes from `start` on; None if the server has no such range."""
    _check_scheme(url)
    # a compressed answer would have another length and other ranges
    headers = {"User-Agent": "s2robot", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    opener = urllib.request.build_opener(_Redirect)
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:
            return None
        text = f"the server answers {error.code} {error.reason}"
        if error.code in (408, 429) or error.code >= 500:
            raise _InterruptedError(text) from None
        raise _FailedError(text) from None
    except urllib.error.URLError as error:
        cause = error.reason if isinstance(error.reason, BaseException) else error
        raise _InterruptedError(f"no connection: {_reason(cause)}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(f"no answer: {_reason(error)}") from error


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but to no weaker scheme."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # noqa: ANN001, ANN201 (urllib's own)
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str) -> None:
    if url.partition(":")[0].lower() not in _SCHEMES:
        raise _FailedError(f"found the address {url}, expected one that starts with https:")


def _continues(response: Any, start: int, known: dict[str, Any]) -> bool:
    """Whether a response is the rest, from `start` on, of the same file that the part belongs to."""
    if response.status != 206:  # the server ignores ranges and sends all
        return False
    begin = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    same = _tag(response) == known.get("tag") and known.get("total") in (None, _total(response))
    if begin and int(begin[1]) == start and same:
        return True
    response.close()
    return False


def _tag(response: Any) -> str:
    """What changes when the server's file does."""
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def _total(response: Any) -> int | None:
    """Bytes of the whole file, if the server says so."""
    if response.status == 206:
        end = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        end = response.headers.get("Content-Length") or ""
    return int(end) if end.isdigit() else None


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _read_about(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # the part is then of unknown origin and fetched anew
    return content if isinstance(content, dict) else {}


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


@contextmanager
def _alone(lock: Path, progress: bool) -> Iterator[None]:
    """Held by one process at a time, and let go by the system when that process dies."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                print(f"waiting for another process that downloads into {lock.parent}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _shown(title: str, progress: bool) -> Iterator[Callable[[int, int | None], None]]:
    """A function to call with bytes done and bytes in all."""
    if not progress:
        yield lambda done, total: None
        return
    with bar(title.removesuffix(".pth")) as update:
        start, first = time.monotonic(), -1

        def show(done: int, total: int | None) -> None:
            nonlocal first
            first = done if first < 0 else first
            rate = (done - first) / 1e6 / max(time.monotonic() - start, 1e-3)
            whole = None if total is None else round(total / 1e6)
            update(round(done / 1e6), whole, f"MB, {rate:.1f} MB/s")

        yield show
