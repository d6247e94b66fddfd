"""MVP's checkpoints: the right network for each name, and a download that survives what a network does."""

import contextlib
import hashlib
import http.server
import multiprocessing
import os
import re
import socket
import tempfile
import threading
import time
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf

from s2robot.backbones import mvp
from s2robot.backbones.vit import PUBLISHED, ViTSpec
from s2robot.common.errors import UserError

torch.set_num_threads(1)
SMALL = {  # stand-ins of the same form for names whose true size would take long
    "vits-mae-hoi": ViTSpec(16, 4, 24, 2, 6),
    "vits-mae-in": ViTSpec(16, 4, 24, 2, 6),
    "vits-sup-in": ViTSpec(16, 4, 24, 2, 6),
    "vitb-mae-egosoup": ViTSpec(24, 8, 32, 3, 4),
    "vitl-256-mae-egosoup": ViTSpec(32, 8, 48, 4, 4),
}
NAME = "vits-mae-hoi"


# ---------------------------------------------------------------- files of the published format


def published_state(spec: ViTSpec, seed: int = 0, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """The keys and shapes of MVP's files, spelled out; `scale` is that of what enters the first block."""
    rng = torch.Generator().manual_seed(seed)

    def r(*shape: int, by: float = 1.0) -> torch.Tensor:
        return by * torch.randn(*shape, generator=rng)

    d, p = spec.dim, spec.patch_size
    tokens = 1 + (spec.img_size // p) ** 2
    state = {
        "cls_token": r(1, 1, d, by=scale),
        "pos_embed": r(1, tokens, d, by=scale),
        "patch_embed.proj.weight": r(d, 3, p, p, by=scale / p),
        "patch_embed.proj.bias": r(d, by=scale),
        "norm.weight": 1 + r(d, by=0.2),
        "norm.bias": r(d, by=0.2),
    }
    for i in range(spec.depth):
        for norm in ("norm1", "norm2"):
            state[f"blocks.{i}.{norm}.weight"] = 1 + r(d, by=0.2)
            state[f"blocks.{i}.{norm}.bias"] = r(d, by=0.2)
        for layer, n_in, n_out in (
            ("attn.qkv", d, 3 * d),
            ("attn.proj", d, d),
            ("mlp.fc1", d, 4 * d),
            ("mlp.fc2", 4 * d, d),
        ):
            state[f"blocks.{i}.{layer}.weight"] = r(n_out, n_in, by=n_in**-0.5)
            state[f"blocks.{i}.{layer}.bias"] = r(n_out, by=0.1)
    return state


DECODER = {
    "mask_token": torch.zeros(1, 1, 8),
    "decoder_embed.weight": torch.zeros(8, 24),
    "decoder_pos_embed": torch.zeros(1, 17, 8),
    "decoder_blocks.0.attn.qkv.weight": torch.zeros(24, 8),
    "decoder_norm.bias": torch.zeros(8),
    "decoder_pred.weight": torch.zeros(48, 8),
}


def write(monkeypatch, path, name: str, spec: ViTSpec, state: dict) -> bytes:
    """Save a state as published and make its md5 and spec those of `name`."""
    torch.save({"model": state}, path)
    content = path.read_bytes()
    md5 = hashlib.md5(content).hexdigest()
    monkeypatch.setitem(PUBLISHED, name, replace(PUBLISHED[name], spec=spec, md5=md5))
    return content


# ---------------------------------------------------------------- an independent forward pass


def slow_forward(state: dict, images: np.ndarray, patch: int, heads: int, depth: int, eps: float = 1e-6):
    """The vision transformer in float64 loops, from the paper; uint8 (B, S, S, 3) -> (B, 1 + N, D)."""
    w = {k: v.double().numpy() for k, v in state.items()}
    x = images / 255.0
    x = (x - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])

    def norm(t: np.ndarray, key: str) -> np.ndarray:
        centred = t - t.mean(axis=-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * w[f"{key}.weight"]
            + w[f"{key}.bias"]
        )

    def linear(t: np.ndarray, key: str) -> np.ndarray:
        return t @ w[f"{key}.weight"].T + w[f"{key}.bias"]

    out = []
    for image in x:
        kernel = w["patch_embed.proj.weight"]  # (D, 3, p, p)
        rows = range(0, image.shape[0], patch)
        patches = [image[i : i + patch, j : j + patch].transpose(2, 0, 1).ravel() for i in rows for j in rows]
        t = np.stack(patches) @ kernel.reshape(len(kernel), -1).T + w["patch_embed.proj.bias"]
        t = np.concatenate([w["cls_token"][0], t]) + w["pos_embed"][0]  # (1 + N, D)
        for i in range(depth):
            block = f"blocks.{i}"
            q, k, v = np.split(linear(norm(t, f"{block}.norm1"), f"{block}.attn.qkv"), 3, axis=-1)
            width = q.shape[-1] // heads
            mixed = []
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                scores = q[:, part] @ k[:, part].T / np.sqrt(width)
                scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
                mixed.append(scores / scores.sum(axis=-1, keepdims=True) @ v[:, part])
            t = t + linear(np.concatenate(mixed, axis=-1), f"{block}.attn.proj")
            hidden = linear(norm(t, f"{block}.norm2"), f"{block}.mlp.fc1")
            t = t + linear(hidden * 0.5 * (1 + erf(hidden / np.sqrt(2))), f"{block}.mlp.fc2")
        out.append(norm(t, "norm"))
    return np.stack(out)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_vit_small_has_twelve_heads_and_eps_1e_6(monkeypatch, tmp_path):
    """The true ViT-S at its true size; embeddings so small that the norms' eps shows."""
    spec = ViTSpec(224, 16, 384, 12, 12)
    assert PUBLISHED["vits-mae-in"].spec == spec
    state = published_state(spec, scale=2e-3)
    assert len(state) == 150 and sum(v.numel() for v in state.values()) == 21_665_664
    write(monkeypatch, tmp_path / "in.pth", "vits-mae-in", spec, state)
    encoder = mvp.load("vits-mae-in", tmp_path / "in.pth")
    images = noise(1, 224, 224, 3)
    tokens = encoder.encode(images)
    assert tokens.shape == (1, 197, 384) and encoder.dropped == []
    expected = slow_forward(state, images, 16, heads=12, depth=12)
    assert np.abs(tokens.numpy() - expected).max() < 2e-3
    for wrong in ({"heads": 6}, {"heads": 12, "eps": 1e-5}):
        other = slow_forward(state, images, 16, depth=12, **wrong)
        assert np.abs(tokens.numpy() - other).mean() > 0.02


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_name_against_the_independent_forward_pass(monkeypatch, tmp_path, name):
    spec = SMALL[name]
    state = published_state(spec)
    write(monkeypatch, tmp_path / "x.pth", name, spec, state | DECODER)
    encoder = mvp.load(name, tmp_path / "x.pth")
    assert encoder.dropped == sorted(DECODER) and encoder.name == name
    images = noise(3, spec.img_size, spec.img_size, 3)
    expected = slow_forward(state, images, spec.patch_size, spec.heads, spec.depth)
    tokens = encoder.encode(torch.from_numpy(images))
    np.testing.assert_allclose(tokens.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert tokens.shape == (3, 1 + encoder.grid**2, encoder.dim)
    np.testing.assert_allclose(
        encoder.encode(images, pool="mean"), expected[:, 1:].mean(1), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(encoder.encode(images, pool="cls"), expected[:, 0], rtol=1e-4, atol=1e-4)


@pytest.fixture
def small(monkeypatch, tmp_path):
    spec = SMALL[NAME]
    write(monkeypatch, tmp_path / "small.pth", NAME, spec, published_state(spec))
    return mvp.load(NAME, tmp_path / "small.pth")


def test_frozen_means_every_parameter_and_eval(small):
    assert [n for n, p in small.named_parameters() if p.requires_grad] == []
    assert len(list(small.parameters())) == 30  # the norms' too
    assert not any(m.training for m in small.train().modules())
    assert not small.encode(noise(1, 16, 16, 3)).requires_grad


def test_features_can_feed_a_head_that_learns(small):
    head = torch.nn.Linear(24, 2)
    head(small.encode(noise(2, 16, 16, 3), pool="mean")).sum().backward()
    assert head.weight.grad.abs().sum() > 0


@settings(deadline=None, max_examples=15)
@given(st.integers(16, 70), st.integers(16, 70))
def test_any_size_is_resized_with_antialiasing(height, width):
    spec = SMALL[NAME]
    vit = mvp.MVPViT(spec)
    encoder = mvp.MVP(NAME, vit, [])
    image = torch.from_numpy(noise(1, height, width, 3))
    resized = torch.nn.functional.interpolate(
        image.permute(0, 3, 1, 2).float(), (16, 16), mode="bicubic", antialias=True
    ).clamp(0, 255)
    normed = (resized / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    torch.testing.assert_close(encoder.encode(image), vit(normed).detach(), rtol=1e-4, atol=1e-5)


def test_fine_stripes_become_grey_not_aliased(small):
    stripes = np.zeros((1, 160, 160, 3), np.uint8)
    stripes[:, :, ::2] = 255
    grey = np.full((1, 16, 16, 3), 127, np.uint8)
    black = np.zeros((1, 16, 16, 3), np.uint8)
    near, far = ((small.encode(stripes) - small.encode(other)).abs()[:, 1:].mean() for other in (grey, black))
    assert near < 0.1 * far


@pytest.mark.parametrize(
    ("images", "pool", "words"),
    [
        (np.zeros((1, 16, 16, 3), np.float32), "tokens", r"uint8 \(B, H, W, 3\), found torch.float32"),
        (np.zeros((1, 3, 16, 16), np.uint8), "tokens", r"found torch.uint8 \(1, 3, 16, 16\)"),
        (np.zeros((16, 16, 3), np.uint8), "tokens", r"found torch.uint8 \(16, 16, 3\)"),
        (np.zeros((1, 16, 16, 3), np.uint8), "max", "found 'max', expected one of tokens, mean, cls"),
    ],
)
def test_wrong_input(small, images, pool, words):
    with pytest.raises(UserError, match=words):
        small.encode(images, pool=pool)


def test_no_images_and_half_precision(small):
    assert small.encode(np.zeros((0, 40, 30, 3), np.uint8)).shape == (0, 17, 24)
    assert small.encode(np.zeros((0, 40, 30, 3), np.uint8), pool="mean").shape == (0, 24)
    images = noise(2, 16, 16, 3)
    exact = small.encode(images)
    rough = small.bfloat16().encode(images)
    assert rough.dtype == torch.bfloat16 and (rough - exact).abs().mean() < 0.1


def test_files_that_are_refused(monkeypatch, tmp_path):
    spec = SMALL[NAME]
    path = tmp_path / "x.pth"
    state = published_state(spec)
    write(monkeypatch, path, NAME, spec, state | {"decoy.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"unexpected decoy.weight$"):
        mvp.load(NAME, path)
    write(monkeypatch, path, NAME, spec, {k: v for k, v in state.items() if k != "norm.bias"} | DECODER)
    with pytest.raises(UserError, match=r"missing norm.bias$"):
        mvp.load(NAME, path)
    torch.save({"model": state}, path)  # the md5 is still that of the last write
    with pytest.raises(UserError, match=f"md5 [0-9a-f]{{32}}, but {NAME} .* has [0-9a-f]{{32}}"):
        mvp.load(NAME, path)
    assert mvp.load(NAME, path, check_md5=False).dropped == []
    with pytest.raises(UserError, match="no such file"):
        mvp.load(NAME, tmp_path / "none.pth")
    with pytest.raises(UserError, match="found 'vitb-egosoup', .* nearest: vitb-mae-egosoup"):
        mvp.load("vitb-egosoup")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_pickled_code_does_not_run(monkeypatch, tmp_path):
    path, trace = tmp_path / "bomb.pth", tmp_path / "ran"
    write(monkeypatch, path, NAME, SMALL[NAME], {"cls_token": Bomb(trace)})
    with pytest.raises(UserError, match="bomb.pth: not a readable weights file") as error:
        mvp.load(NAME, path)
    assert "\n" not in str(error.value) and not trace.exists()
    torch.load(path, weights_only=False)  # the bomb is a real one
    assert trace.exists()


# ---------------------------------------------------------------- the download


class Server(http.server.ThreadingHTTPServer):
    """One file at /weights.pth, and the faults of a real network by name in `faults`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.faults, self.drop_at = b"", '"one"', set(), 0
        self.requests: list[str] = []  # the Range header of each
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, faults = self.server, self.server.faults
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", server.redirect)
            return self.end_headers()
        wanted = self.headers.get("Range", "")
        server.requests.append(wanted)
        if "silent" in faults:
            time.sleep(1)
            return None
        for code in (404, 503):
            if code in faults:
                return self.send_error(code)
        if "busy once" in faults:
            faults.remove("busy once")
            return self.send_error(503)
        content = server.content
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and "no ranges" not in faults else 0
        if start and start >= len(content):
            return self.send_error(416)
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "text/html" if "page" in faults else "application/octet-stream")
        if server.etag:
            self.send_header("ETag", server.etag)
        if start:
            begin = start + (1 if "wrong range" in faults else 0)
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        if "no length" not in faults:
            self.send_header("Content-Length", str(10**15 if "huge" in faults else len(body)))
        self.end_headers()
        if faults & {"drops", "stalls"}:
            body = body[: server.drop_at]
        for i in range(0, len(body), 20_000):
            with contextlib.suppress(OSError):  # the client may have seen enough
                self.wfile.write(body[i : i + 20_000])
            if "slow" in faults:
                time.sleep(0.02)
        if "stalls" in faults and start + len(body) < len(content):
            time.sleep(2)
        return None


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server that holds a small file of the published format as that of NAME."""
    with Server() as server:
        server.content = write(
            monkeypatch, tmp_path / "source", NAME, SMALL[NAME], published_state(SMALL[NAME])
        )
        assert 40_000 < len(server.content) < 200_000
        server.drop_at = 30_000
        monkeypatch.setitem(mvp.URLS, NAME, server.url)
        monkeypatch.setattr(mvp, "_SCHEMES", ("http",))
        monkeypatch.setattr(mvp, "_PAUSES_S", (0.0, 0.0, 0.0))
        monkeypatch.setenv("S2ROBOT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "*")
        yield server
        server.shutdown()


@pytest.fixture
def folder(server, tmp_path):
    return tmp_path / "cache" / "mvp"


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


FILE = PUBLISHED[NAME].file


def test_downloads_once(server, folder):
    encoder = mvp.load(NAME, progress=False)
    assert encoder.encode(noise(1, 16, 16, 3)).shape == (1, 17, 24)
    assert names(folder) == [FILE] and (folder / FILE).read_bytes() == server.content
    mvp.load(NAME)
    assert server.requests == [""]


def test_goes_on_where_a_lost_connection_left_it(server, folder):
    server.faults = {"drops"}
    mvp.load(NAME, progress=False)
    size = len(server.content)
    assert server.requests == ["", *(f"bytes={at}-" for at in range(30_000, size, 30_000))]
    assert names(folder) == [FILE] and (folder / FILE).read_bytes() == server.content


def test_goes_on_where_a_silent_server_left_it(server, folder, monkeypatch):
    monkeypatch.setattr(mvp, "_TIMEOUT_S", 0.3)
    server.faults, server.drop_at = {"stalls"}, 60_000
    assert mvp.fetch(NAME, progress=False).read_bytes() == server.content
    assert "bytes=60000-" in server.requests


def test_goes_on_after_a_kill(server, folder):
    server.faults = {"slow"}
    killed = multiprocessing.get_context("fork").Process(target=mvp.fetch, args=(NAME,))
    killed.start()
    part = folder / f"{FILE}.part"
    while not part.exists() or not part.stat().st_size:
        time.sleep(0.005)
    killed.kill()
    killed.join()
    kept = part.stat().st_size
    assert 0 < kept < len(server.content) and names(folder) == [f"{FILE}.part", f"{FILE}.part.json"]
    mvp.load(NAME, progress=False)
    assert server.requests == ["", f"bytes={kept}-"]


def test_a_complete_part_needs_no_request(server, folder, monkeypatch):
    monkeypatch.setattr(mvp, "_md5", lambda path: 1 / 0)  # dies between the last byte and the rename
    with pytest.raises(ZeroDivisionError):
        mvp.fetch(NAME, progress=False)
    monkeypatch.undo()
    monkeypatch.setenv("S2ROBOT_CACHE", str(folder.parent))
    monkeypatch.setattr(mvp, "_SCHEMES", ())  # nothing may be asked for
    monkeypatch.setitem(mvp.URLS, NAME, server.url)
    monkeypatch.setitem(
        PUBLISHED, NAME, replace(PUBLISHED[NAME], md5=hashlib.md5(server.content).hexdigest())
    )
    assert mvp.fetch(NAME, progress=False).read_bytes() == server.content


def start_part(server, folder, content: bytes, url: str | None = None, total: int | None = None):
    folder.mkdir(parents=True)
    (folder / f"{FILE}.part").write_bytes(content)
    about = {"url": url or server.url, "tag": '"one"', "total": total or len(server.content)}
    mvp.write_json(folder / f"{FILE}.part.json", about)


@pytest.mark.parametrize(
    ("fault", "requests"),
    [
        ("no ranges", ["bytes=100-"]),  # its 200 brings the whole
        ("wrong range", ["bytes=100-", ""]),
    ],
)
def test_starts_over_if_the_server_does_not_go_on(server, folder, fault, requests):
    start_part(server, folder, b"x" * 100)  # would spoil the md5 if it were kept
    server.faults = {fault}
    assert mvp.fetch(NAME, progress=False).read_bytes() == server.content
    assert server.requests == requests


@pytest.mark.parametrize("change", ["tag", "total", "shorter", "url", "no note"])
def test_starts_over_if_the_file_has_changed(server, folder, change):
    size = len(server.content)
    start_part(
        server,
        folder,
        b"x" * (size + 5 if change == "shorter" else 100),
        url="http://elsewhere/weights.pth" if change == "url" else None,
        total=size + 9 if change in ("total", "shorter") else None,
    )
    if change == "tag":
        server.etag = '"two"'
    if change == "no note":
        (folder / f"{FILE}.part.json").write_text("{broken")
    assert mvp.fetch(NAME, progress=False).read_bytes() == server.content
    assert server.requests[-1] == ""


@settings(deadline=None, max_examples=8)
@given(drop=st.integers(25_000, 110_000), ranges=st.booleans(), busy=st.booleans())
def test_any_break_gives_the_same_bytes(drop, ranges, busy):
    with (
        Server() as server,
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as cache,
    ):
        server.content, server.drop_at = os.urandom(100_000), drop
        server.faults = {"drops"} | ({"busy once"} if busy else set()) | (set() if ranges else {"no ranges"})
        md5 = hashlib.md5(server.content).hexdigest()
        patch.setitem(mvp.URLS, NAME, server.url)
        patch.setitem(PUBLISHED, NAME, replace(PUBLISHED[NAME], md5=md5))
        patch.setattr(mvp, "_SCHEMES", ("http",))
        patch.setattr(mvp, "_PAUSES_S", (0.0, 0.0, 0.0))
        patch.setenv("no_proxy", "*")
        patch.setenv("S2ROBOT_CACHE", cache)
        if ranges or drop >= len(server.content):
            assert mvp.fetch(NAME, progress=False).read_bytes() == server.content
        else:  # every try starts anew and ends early: given up, not tried for ever
            with pytest.raises(UserError, match=f"ended after {drop} of 100000 bytes"):
                mvp.fetch(NAME, progress=False)
            assert len(server.requests) == 4 + busy
        server.shutdown()


def one_line(error, folder) -> str:
    """The error's text, after what every failed download must say: the address and two ways out."""
    text = str(error.value)
    assert "\n" not in text and text.startswith(f"{NAME}: http")
    assert f"put the file there by hand as {folder / FILE}" in text and "checkpoint=" in text
    return text


@pytest.mark.parametrize(
    ("fault", "words", "requests"),
    [
        ("404", "the server answers 404 Not Found", 1),
        ("503", "the server answers 503 Service Unavailable", 4),
        ("silent", "no answer: timed out", None),  # how many arrive is a matter of time
        ("huge", r"needs 1000000000 MB, the disk of .* has \d+ MB free", 1),
        ("page", "sent a web page", 1),
    ],
)
def test_servers_that_do_not_deliver(server, folder, monkeypatch, fault, words, requests):
    monkeypatch.setattr(mvp, "_TIMEOUT_S", 0.3 if fault == "silent" else 30.0)
    server.faults = {int(fault) if fault.isdigit() else fault}
    with pytest.raises(UserError, match=words) as error:
        mvp.load(NAME, progress=False)
    assert server.url in one_line(error, folder)
    assert requests in (None, len(server.requests)) and FILE not in names(folder)


@pytest.mark.parametrize("cause", ["no such host", "nobody listens"])
def test_no_network(server, folder, monkeypatch, cause):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{closed.getsockname()[1]}"
    if cause == "no such host":
        unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        monkeypatch.setattr(socket, "getaddrinfo", Mock(side_effect=unknown))
    monkeypatch.setitem(mvp.URLS, NAME, f"http://{host}/weights.pth")
    # without network nothing is tried again
    monkeypatch.setattr(mvp.time, "sleep", Mock(side_effect=AssertionError("tried again")))
    start_part(server, folder, b"x" * 100, url=f"http://{host}/weights.pth")
    words = "Name or service not known" if cause == "no such host" else "Connection refused"
    with pytest.raises(UserError, match=rf"no connection: {words} \(0.0 MB are kept") as error:
        mvp.load(NAME, progress=False)
    one_line(error, folder)


def test_wrong_content_is_removed(server, folder):
    right = hashlib.md5(server.content).hexdigest()
    server.content = server.content[:-1] + b"?"
    wrong = hashlib.md5(server.content).hexdigest()
    with pytest.raises(UserError, match=f"came with md5 {wrong}, expected {right}, and was removed") as error:
        mvp.load(NAME, progress=False)
    one_line(error, folder)
    assert names(folder) == []
    assert mvp.fetch(NAME, check_md5=False, progress=False).read_bytes() == server.content
    with pytest.raises(UserError, match=f"{FILE}: md5 {wrong}, but {NAME} has {right}; remove it"):
        mvp.load(NAME)


def test_a_cut_without_a_stated_length_is_found_by_the_md5(server, folder):
    server.faults = {"no length", "drops"}
    with pytest.raises(UserError, match="came with md5"):
        mvp.load(NAME, progress=False)
    server.faults = {"no length"}
    assert mvp.fetch(NAME, progress=False).read_bytes() == server.content


def test_full_disk(server, folder):
    folder.mkdir(parents=True)
    (folder / f"{FILE}.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=f"the disk of {folder} is full") as error:
        mvp.load(NAME, progress=False)
    one_line(error, folder)


def test_a_folder_that_cannot_be_written(server, folder):
    folder.mkdir(parents=True)
    (folder / f"{FILE}.part").mkdir()
    with pytest.raises(UserError, match="Is a directory") as error:
        mvp.load(NAME, progress=False)
    one_line(error, folder)


def test_a_file_put_there_by_hand_is_taken(server, folder):
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(server.content)
    mvp.load(NAME, progress=False)
    assert server.requests == []


def test_only_https(server, folder, monkeypatch):
    assert set(mvp.URLS) == set(PUBLISHED)
    assert all(url.startswith("https://") for name, url in mvp.URLS.items() if name != NAME)
    (folder.parent / "local").mkdir(parents=True)
    monkeypatch.setitem(mvp.URLS, NAME, (folder.parent / "local").as_uri())
    with pytest.raises(UserError, match="found the address file:"):
        mvp.load(NAME, progress=False)
    monkeypatch.setitem(mvp.URLS, NAME, server.url.replace("weights.pth", "redirect"))
    server.redirect = server.url
    server.faults = {404}
    with pytest.raises(UserError, match="404"):  # the redirect was followed
        mvp.load(NAME, progress=False)
    for scheme in ("ftp", "https"):  # https stands here for a scheme that the table's is not
        server.redirect = server.url.replace("http:", f"{scheme}:")
        with pytest.raises(UserError, match=f"found the address {server.redirect}"):
            mvp.load(NAME, progress=False)
    monkeypatch.undo()
    monkeypatch.setenv("S2ROBOT_CACHE", str(folder.parent))
    monkeypatch.setitem(mvp.URLS, NAME, server.url)
    server.requests.clear()
    with pytest.raises(UserError, match="expected one that starts with https:"):
        mvp.load(NAME, progress=False)
    assert server.requests == []


def fetch_in_process(queue) -> None:
    try:
        queue.put(mvp.fetch(NAME, progress=False).read_bytes())
    except BaseException as error:
        queue.put(repr(error))


def test_two_processes_bring_one_file(server, folder):
    server.faults = {"slow"}
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=fetch_in_process, args=(queue,)) for _ in range(3)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=20) for _ in processes]
    for process in processes:
        process.join()
    assert results == [server.content] * 3
    assert server.requests == [""] and names(folder) == [FILE]


def test_progress_is_told_and_can_be_silenced(server, capsys):
    mvp.fetch(NAME, progress=False).unlink()
    assert capsys.readouterr().out == ""
    mvp.fetch(NAME)
    shown = re.search(r"mae_pretrain_hoi_vit_small +(\d+)/(\d+) .* MB, [\d.]+ MB/s", capsys.readouterr().out)
    assert shown[1] == shown[2] == "0"  # a small file: whole megabytes
