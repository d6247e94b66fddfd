"""MVP's checkpoints: the right network for each name, and its download."""

import hashlib
import multiprocessing
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from s2robot.backbones import mvp
from s2robot.backbones.mvp import PUBLISHED
from s2robot.backbones.vit import ViTSpec
from s2robot.encoders.encoder import S2Encoder
from tests.errors import refuses
from tests.s2robot.pictures import noise

# small stand-ins for models that would be slow at full size
SMALL = dict.fromkeys(("vits-mae-hoi", "vits-mae-in", "vits-sup-in"), ViTSpec(16, 4, 24, 2, 6))
SMALL |= {"vitb-mae-egosoup": ViTSpec(24, 8, 32, 3, 4), "vitl-256-mae-egosoup": ViTSpec(32, 8, 48, 4, 4)}
NAME = "vits-mae-hoi"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def published_state(spec: ViTSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the keys and shapes of MVP's files, written out, with random values."""
    rng, d, p = torch.Generator().manual_seed(seed), spec.dim, spec.patch_size
    shapes = {"cls_token": (1, 1, d), "pos_embed": (1, 1 + (spec.img_size // p) ** 2, d),
              "patch_embed.proj.weight": (d, 3, p, p), "patch_embed.proj.bias": (d,),
              "norm.weight": (d,), "norm.bias": (d,)}  # fmt: skip
    layers = {"norm1": (d,), "norm2": (d,), "attn.qkv": (3 * d, d), "attn.proj": (d, d),
              "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}  # fmt: skip
    for i in range(spec.depth):
        for layer, shape in layers.items():
            shapes |= {f"blocks.{i}.{layer}.weight": shape, f"blocks.{i}.{layer}.bias": shape[:1]}
    scaled = {k: torch.randn(*shape, generator=rng) * shape[-1] ** -0.5 for k, shape in shapes.items()}
    return {k: value + ("norm" in k) for k, value in scaled.items()}


UNUSED = "mask_token", "decoder_embed.weight", "decoder_pos_embed", "decoder_blocks.0.attn.qkv.weight"
DECODER = dict.fromkeys(UNUSED, torch.zeros(8))


def write(monkeypatch, path, state: dict, name: str = NAME) -> bytes:
    """Save a state in the published format and register its md5 and spec under `name`."""
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, path)
    content = path.read_bytes()
    md5 = hashlib.md5(content).hexdigest()
    monkeypatch.setitem(PUBLISHED, name, PUBLISHED[name]._replace(spec=SMALL[name], md5=md5))
    return content


def slow_forward(state: dict, images: np.ndarray, spec: ViTSpec) -> np.ndarray:
    """Compute the paper's vision transformer in float64, head by head; uint8 (B, S, S, 3) -> (B, 1 + N, D)."""
    w = {k: v.double() for k, v in state.items()}

    def linear(t: torch.Tensor, key: str) -> torch.Tensor:
        return t @ w[f"{key}.weight"].T + w[f"{key}.bias"]

    def norm(t: torch.Tensor, key: str) -> torch.Tensor:
        t = (t - t.mean(-1, keepdim=True)) / (t.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return t * w[f"{key}.weight"] + w[f"{key}.bias"]

    mean, std = (torch.tensor(v, dtype=torch.float64) for v in IMAGENET)
    x = ((torch.from_numpy(images) / 255.0 - mean) / std).permute(0, 3, 1, 2)  # (B, 3, S, S)
    patches = F.unfold(x, spec.patch_size, stride=spec.patch_size).mT  # (B, N, 3 * p * p)
    t = patches @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"]
    t = torch.cat([w["cls_token"].expand(len(t), -1, -1), t], 1) + w["pos_embed"]
    width = spec.dim // spec.heads
    for i in range(spec.depth):
        qkv, mixed = linear(norm(t, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv"), []
        for h in range(0, spec.dim, width):
            q, k, v = (part[..., h : h + width] for part in qkv.split(spec.dim, -1))
            mixed.append((q @ k.mT / width**0.5).softmax(-1) @ v)
        t = t + linear(torch.cat(mixed, -1), f"blocks.{i}.attn.proj")
        hidden = linear(norm(t, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        t = t + linear(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)), f"blocks.{i}.mlp.fc2")
    return norm(t, "norm").numpy()


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_model_matches_an_independent_forward_pass(monkeypatch, tmp_path, name):
    spec, state = SMALL[name], published_state(SMALL[name])
    write(monkeypatch, tmp_path / "x.pth", state | DECODER, name)
    encoder = S2Encoder(mvp.load(name, tmp_path / "x.pth"), [spec.img_size])
    images = noise(3, spec.img_size, spec.img_size, 3)
    expected = slow_forward(state, images, spec)[:, 1:]
    assert expected.shape == (3, spec.grid**2, spec.dim) and expected.std() > 0.3
    np.testing.assert_allclose(encoder.encode(images), expected, rtol=1e-4, atol=1e-4)


def rejected(words: str, path: Path | None = None, **how) -> str:
    return str(refuses(words, mvp.load, NAME, path, **how))


def test_invalid_files_are_rejected(monkeypatch, tmp_path):
    path, state = tmp_path / "x.pth", published_state(SMALL[NAME])
    write(monkeypatch, path, state | {"decoy.weight": torch.zeros(1)})
    rejected("unexpected decoy.weight$", path)
    write(monkeypatch, path, {k: v for k, v in state.items() if k != "norm.bias"} | DECODER)
    rejected("missing norm.bias$", path)
    torch.save({"model": state}, path)  # the registered md5 is still that of the last write
    rejected(f"expected md5 [0-9a-f]{{32}} of {NAME} .*, got [0-9a-f]{{32}}", path)
    rejected(f"^{tmp_path}: not a readable weights file: ", tmp_path)
    assert not mvp.load(NAME, path, check_md5=False).training


def test_pickled_code_does_not_run(monkeypatch, tmp_path):
    path, trace = tmp_path / "bomb.pth", tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(trace),))

    write(monkeypatch, path, {"cls_token": Bomb()})
    rejected("bomb.pth: not a readable weights file", path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # without protection, the code runs
    assert trace.exists()


FILE = PUBLISHED[NAME].file


def set_url(monkeypatch, url: str) -> None:
    monkeypatch.setitem(PUBLISHED, NAME, PUBLISHED[NAME]._replace(url=url))


@pytest.fixture
def source(monkeypatch, tmp_path):
    """A small file of the published format, at the URL of NAME."""
    path = tmp_path / "source.pth"
    write(monkeypatch, path, published_state(SMALL[NAME]))
    set_url(monkeypatch, path.as_uri())
    monkeypatch.setenv("S2ROBOT_CACHE", str(tmp_path))
    return path


def files(source) -> dict[str, bytes]:
    """Return the downloaded files."""
    return {p.name: p.read_bytes() for p in source.with_name("mvp").iterdir()}


def test_downloads_once_and_shows_progress(source, capsys):
    right, content = source.read_bytes(), source.read_bytes() + b"?"
    assert mvp.load(NAME)(torch.rand(1, 3, 16, 16)).shape == (1, 17, 24) and files(source) == {FILE: right}
    source.write_bytes(content)  # a different file, which is not downloaded again
    mvp.load(NAME)
    assert capsys.readouterr().err == ""
    (source.with_name("mvp") / FILE).unlink()
    assert mvp.fetch(NAME, check_md5=False).read_bytes() == content
    assert "1/1" in capsys.readouterr().out
    wrong, right = (hashlib.md5(each).hexdigest() for each in (content, right))
    rejected(f"{FILE}: expected md5 {right} of {NAME} .*, got {wrong}; remove")


FAULTS = {
    "no server": "Connection refused", "short": "expected md5", "cut off": "expected 9 bytes, got 5", "full disk": "No space left",
}  # fmt: skip


@pytest.mark.parametrize(("fault", "words"), FAULTS.items())
def test_failed_download_is_one_error_line_and_leaves_nothing(source, monkeypatch, fault, words):
    if fault == "no server":
        set_url(monkeypatch, "http://127.0.0.1:1/x.pth")  # nothing listens there
        monkeypatch.setenv("no_proxy", "*")
    if fault == "cut off":
        server = socket.create_server(("127.0.0.1", 0))
        set_url(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}/x.pth")
        monkeypatch.setenv("no_proxy", "*")

        def answer():
            connection, _ = server.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\nshort")
            connection.close()

        Thread(target=answer, daemon=True).start()
    if fault == "short":
        source.write_bytes(source.read_bytes()[:30_000])
    if fault == "full disk":
        monkeypatch.setattr(mvp, "_download", lambda *_: Path("/dev/full").write_text("x"))
    text = rejected(f"^{NAME}: .*{words}")
    assert f"mvp/{FILE}" in text and "checkpoint=" in text and files(source) == {}


def test_concurrent_downloads_leave_one_complete_file(source):
    with ThreadPoolExecutor(1) as pool, multiprocessing.get_context("fork").Pool(1) as processes:
        one = pool.submit(mvp.fetch, NAME)
        other = processes.apply_async(mvp.fetch, (NAME,))
        assert one.result(20) == other.get(20)
    assert files(source) == {FILE: source.read_bytes()}
