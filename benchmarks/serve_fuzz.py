"""Fuzz a policy server and its client with damaged messages, and count crashes and hangs.

    python -m benchmarks.serve_fuzz runs/run/<date>/checkpoint --seconds 5 --seed 1

In turn, the server's port receives damaged HTTP and frames, an admitted client sends damaged requests, and a client calls a
server that sends damaged answers. After each turn a good client must receive the same actions as at the start. The exit code is
1 after a crash (the server ended, its actions changed, or the client raised a foreign error) or a hang (nothing by the deadline).
"""

import argparse
import contextlib
import logging
import random
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect
from websockets.sync.server import serve

from benchmarks.fault_server import TOKEN, start
from s2robot.serving.remote import RemoteError, RemotePolicy
from s2robot.serving.wire import pack, unpack

PATIENCE = 20.0  # s, for the good client
DEADLINE, GRACE = 0.3, 2.0  # s, of a fuzzed client's call, and what a busy machine may add
HEADERS = {"Authorization": f"Api-Key {TOKEN}"}
HANDSHAKE = (
    "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: {HEADERS['Authorization']}\r\n\r\n"
).encode()


def damage(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, removed or inserted, or the end cut off, often near the head."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(max(1, min(len(out), rng.choice((40, 400, len(out) + 1)))))
        new = rng.choice((b"", rng.randbytes(rng.randint(1, 9)), bytes([rng.choice((0, 0x7F, 0xC1, 0xDD))])))
        out[place : place + rng.choice((0, 1, 1, rng.randint(2, 9), len(out)))] = new
    return bytes(out)


def anything(rng: random.Random, depth: int = 0) -> Any:
    """A value of any kind, including those that the codec rejects; arrays are maps, true or not."""
    shape = [rng.choice((0, 1, 3, 8, 64, -1, 2**31, 2**62)) for _ in range(rng.randrange(5))]
    data = rng.choice((rng.randbytes(rng.randrange(600)), bytes(32), b"\x00\x00\xc0\x7f" * 8))  # zeros, NaN
    array = {b"__ndarray__": True, b"data": data, b"dtype": rng.choice(("<f4", "|u1", "|O", ">f8", "x"))}
    values = [None, True, float("nan"), -1, 2**64 - 1, rng.randrange(100), "x" * rng.randrange(2000), b"\0"]
    values += [array | {b"shape": shape}, array | {b"shape": [8]}, msgpack.ExtType(1, b"x")]
    if depth < 4:
        names = ("id", "used", "images", "state", "s2robot", "actions")
        values.append([anything(rng, depth + 1) for _ in range(rng.randrange(4))])
        values += [{rng.choice(names): anything(rng, depth + 1) for _ in range(3)}] * 3
    return rng.choice(values)


def message(rng: random.Random, good: dict[str, Any]) -> bytes:
    """A message that is right, nearly right, or wrong throughout."""
    head, right = rng.choice((b"\x90", b"\x91", b"\x81\xa1a", b"\xc0", b"\xdd\xff\xff\xff\xff")), pack(good)
    wrong = msgpack.unpackb(right) | {rng.choice(list(good)): anything(rng)}  # arrays as maps
    noise, many = rng.randbytes(rng.randrange(1, 2000)), head * rng.randrange(1, 100_000)
    packed = [msgpack.packb(value) for value in (anything(rng), wrong)]
    return rng.choice((right, damage(rng, right), noise, many, *packed))


def attack_server(rng: random.Random, url: str, good: dict[str, Any]) -> None:
    """Send 20 times bytes of every wrong kind to the port, then up to 50 messages after a good handshake."""
    for _ in range(20):
        request = message(rng, good)[:60_000]
        frame = bytes([0x82, 0xFE]) + len(request).to_bytes(2, "big") + bytes(4) + request  # a mask of zeros
        token = rng.choice((b"", b"x", TOKEN[:-1].encode(), b"\xc3\xa9" * 9000))
        tails = (rng.randbytes(300), damage(rng, frame), rng.randbytes(2) + rng.randbytes(200))
        wrong = (rng.randbytes(2000), damage(rng, HANDSHAKE), HANDSHAKE.replace(TOKEN.encode(), token))
        port = int(url.rpartition(":")[2])
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as made:
            made.settimeout(0.05)
            made.sendall(rng.choice((*wrong, *(HANDSHAKE + tail for tail in tails))))
            made.recv(1 << 16)
    with contextlib.suppress(ConnectionClosed, InvalidHandshake):
        with connect(url, additional_headers=HEADERS, proxy=None, compression=None) as ws:
            for _ in range(50):
                ws.recv(timeout=PATIENCE)
                ws.send(message(rng, good))


def bad_server(rng: random.Random, metadata: bytes) -> str:
    """The URL of a server in this process most of whose messages are damaged."""

    def handle(ws: Any) -> None:
        with contextlib.suppress(Exception):
            ws.send(damage(rng, metadata) if rng.random() < 0.2 else metadata)
            for number in range(1, 20):
                ws.recv(timeout=3)
                good = {"actions": np.zeros((1, 8), np.float32), "s2robot": {"id": number}}
                sends = [partial(ws.send, message(rng, good))] * 4 + [partial(ws.send, "text")]
                noise = partial(ws.socket.sendall, rng.randbytes(100))
                rng.choice([*sends, ws.socket.close, noise, lambda: None])()

    server = serve(handle, "127.0.0.1", 0, compression=None)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"ws://127.0.0.1:{server.socket.getsockname()[1]}"


def attack_client(url: str, observation: dict[str, Any]) -> None:
    """Call a bad server: each call ends in time, with finite actions or one of the client's own errors."""

    def timed(call: Callable[[], Any], seconds: float) -> Any:
        begin, result = time.monotonic(), None
        with contextlib.suppress(RemoteError):
            result = call()
        if (took := time.monotonic() - begin) > seconds + GRACE:
            raise TimeoutError(f"a call of the client took {took:.1f} s")
        return result

    if client := timed(lambda: RemotePolicy(url, TOKEN, DEADLINE, 1.0), 1.0):
        with client:
            plans = [timed(lambda: client.plan(observation), DEADLINE) for _ in range(8)]
        if not all(np.isfinite(plan).all() for plan in plans if plan is not None):
            raise ValueError("the client returned an action that is not finite")


def check(process: Any, url: str, observation: dict[str, Any]) -> np.ndarray:
    """Return the plan that a good client receives, once sessions that are ending have made way."""
    end = time.monotonic() + PATIENCE
    while process.poll() is None:
        try:
            with RemotePolicy(url, TOKEN, PATIENCE, PATIENCE) as client:
                return client.plan(observation)
        except RemoteError as error:
            if time.monotonic() > end:
                raise TimeoutError(f"a good client got no plan: {error}") from error
            time.sleep(0.02)
    raise ValueError(f"the server ended with {process.returncode}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder of a trained policy")
    parser.add_argument("--seconds", type=float, default=600, help="how long (default 600)")
    parser.add_argument("--seed", type=int, default=0, help="of the sequence (default 0)")
    args = parser.parse_args()
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # the bad server breaks its connections
    rng, turns, failure = random.Random(args.seed), 0, ""
    with start(args.checkpoint, "serve.open_s=1", "serve.idle_s=20") as (process, url):
        with connect(url, additional_headers=HEADERS, proxy=None) as ws:
            metadata = ws.recv(timeout=PATIENCE)
        images = {name: np.full((*size, 3), 90, np.uint8) for name, size in unpack(metadata)["sizes"].items()}
        observation = {"images": images, "proprio": np.zeros(8, np.float32)}
        good = {"images": images, "state": observation["proprio"], "reset": True, "s2robot": {"id": 1}}
        bad, begin = bad_server(random.Random(args.seed + 1), metadata), time.monotonic()
        try:
            expected = check(process, url, observation)
            while time.monotonic() < begin + args.seconds:
                attack_server(rng, url, good)
                attack_client(bad, observation)
                if not np.array_equal(check(process, url, observation), expected):
                    raise ValueError("other actions for the same observation")
                turns += 1
        except Exception as error:
            traceback.print_exc()
            failure = "hang" if isinstance(error, TimeoutError) else "crash"
        process.terminate()
        failure = failure or ("crash" if process.wait(20) else "")
    counts = f"{int(failure == 'crash')} crashes, {int(failure == 'hang')} hangs"
    print(f"{counts} in {turns} turns and {time.monotonic() - begin:.0f} s, seed {args.seed}")
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
