"""Fuzz a policy server, and the client, with damaged messages: no crash, no hang.

    python benchmarks/serve_fuzz.py runs/run/<date>/checkpoint
    python benchmarks/serve_fuzz.py runs/run/<date>/checkpoint --seconds 5 --seed 1

Starts `s2robot serve` as a process of its own and treats it, in turn and at random, to

* bytes that are no HTTP, HTTP that is damaged, and handshakes with wrong tokens and versions,
* after a good handshake: bytes that are no websocket frame, frames of wrong kinds and lengths,
* good websocket messages that hold random bytes, damaged requests, or requests with wrong types, shapes, sizes,
  numbers and orders.

After each attack on the connection, and after every 50 messages, a good client connects and must get the very
actions that it got at the start, by a deadline of 20 s. A server process that has ended is a crash, a good client
without an answer is a hang. The client is fuzzed beside it: a server in this process sends it damaged greetings
and answers, and each call must end by its deadline with an action or one of its typed errors. Exit code 1 if
anything failed; the seed repeats the sequence.
"""

import argparse
import contextlib
import logging
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from s2robot.serving.remote import PolicyLost, PolicyMalformed, RemoteError, RemotePolicy
from s2robot.serving.wire import ARRAY, PROTOCOL, encode

TOKEN = "fuzz-" + os.urandom(16).hex()
PATIENCE = 20.0  # s, for the good client
DEADLINE, GRACE = 0.3, 2.0  # s, of a fuzzed client's call, and what a busy machine may add


class Found(Exception):
    """A crash or a hang."""


def observation(cameras: tuple[str, ...], size: int, proprio: int) -> dict[str, Any]:
    """Always the same frames, so that always the same actions come back."""
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (size, size, 3), np.uint8) for name in cameras}
    return {"images": images, "proprio": rng.normal(size=proprio).astype(np.float32)}


def handshake(token: str = TOKEN, version: str = str(PROTOCOL)) -> bytes:
    """The HTTP request that opens a websocket."""
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    return (
        f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
        f"Sec-WebSocket-Version: 13\r\nAuthorization: Bearer {token}\r\nS2robot-Protocol: {version}\r\n\r\n"
    ).encode()


def frame(
    data: bytes, opcode: int = 2, fin: bool = True, masked: bool = True, length: int | None = None
) -> bytes:
    """A websocket frame, true or not: `length` is what it claims."""
    size = len(data) if length is None else length
    head = bytes([opcode | (0x80 if fin else 0)])
    mark = 0x80 if masked else 0
    if size < 126:
        head += bytes([mark | size])
    elif size < 1 << 16:
        head += bytes([mark | 126]) + struct.pack(">H", size)
    else:
        head += bytes([mark | 127]) + struct.pack(">Q", size)
    return head + (b"\0\0\0\0" if masked else b"") + data  # a mask of zeros leaves the data as it is


def damage(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, taken out or put in, or the end cut off."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        near = rng.choice((40, 400, len(out) + 1))  # mostly near the head
        place = rng.randrange(max(1, min(len(out), near)))
        kind = rng.randrange(4)
        if kind == 0 and out:
            out[place % len(out)] = rng.choice((0, 1, 0x7F, 0x80, 0xC1, 0xDD, 0xDF, 0xFF, rng.randrange(256)))
        elif kind == 1:
            out[place:place] = rng.randbytes(rng.randint(1, 9))
        elif kind == 2:
            del out[place : place + rng.randint(1, 9)]
        else:
            del out[rng.randint(0, len(out)) :]
    return bytes(out)


def anything(rng: random.Random, depth: int = 0) -> Any:
    """A value of any kind, also such as the codec refuses."""
    kind = rng.randrange(12 if depth < 4 else 8)
    if kind == 0:
        return rng.choice((None, True, False, float("nan"), float("inf"), -0.0, 1e308))
    if kind == 1:
        return rng.choice((0, 1, -1, 2**31, 2**63 - 1, -(2**63), 2**64 - 1, rng.randrange(100)))
    if kind == 2:
        return rng.choice(("", "id", "hand", "\0", "é" * 50, "x" * rng.randrange(2000)))
    if kind == 3:
        return rng.randbytes(rng.randrange(200))
    if kind < 7:  # an array, true or not
        shape = [rng.choice((0, 1, 2, 3, 8, 64, -1, 2**31, 2**62)) for _ in range(rng.randrange(5))]
        head = struct.pack(f"<BB{len(shape)}q", rng.choice((1, 2, 3, 4, 0, 79, 255)), len(shape), *shape)
        return msgpack.ExtType(
            rng.choice((ARRAY, ARRAY, ARRAY, 0, 2, 127)), head + rng.randbytes(rng.randrange(600))
        )
    if kind == 7:
        return msgpack.Timestamp(rng.randrange(2**40), rng.randrange(10**9))
    if kind < 10:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(("id", "after", "images", "proprio", "x")): anything(rng, depth + 1) for _ in range(3)}


def request(rng: random.Random, good: dict[str, Any], number: int) -> bytes:
    """A message for the server: right, nearly right, or wrong from end to end."""
    body: Any = {"id": number, "after": rng.choice((0, 0, number - 1, number, 2**63)), **good}
    kind = rng.randrange(8)
    if kind == 0:
        return encode(body | {"after": 0})
    if kind == 1:
        return damage(rng, encode(body))
    if kind == 2:
        return rng.randbytes(rng.randrange(1, 2000))
    if kind == 3:
        return msgpack.packb(anything(rng))
    if kind == 4:
        start = rng.choice((b"\x90", b"\x91", b"\x81\xa1a", b"\xc0", b"\xdd\xff\xff\xff\xff"))
        return start * rng.randrange(1, 100_000)
    if kind == 5:
        name = rng.choice(list(body["images"]))
        shape = tuple(rng.choice((0, 1, 3, 7, 64, 4097)) for _ in range(rng.randrange(5)))
        if np.prod(shape, dtype=float) > 1e6:
            shape = shape[:1]
        picture = np.zeros(shape, rng.choice((np.uint8, np.float32, np.int64)))
        return encode(body | {"images": body["images"] | {name: picture}})
    if kind == 6:
        values = rng.choice((np.nan, np.inf, -np.inf, 3e38, 0.0))
        return encode(body | {"proprio": np.full(rng.choice((8, 7, 0, 1)), values, np.float32)})
    part = rng.choice(("id", "after", "images", "proprio", "other"))
    return msgpack.packb({**{k: v for k, v in body.items() if k in ("id", "after")}, part: anything(rng)})


class Server:
    """`s2robot serve` in a process, and the good client that looks after it."""

    def __init__(self, checkpoint: Path, folder: Path):
        env = os.environ | {"S2ROBOT_TOKEN": TOKEN}
        options = ["serve.port=0", "serve.device=cpu", "serve.open_s=1", "serve.idle_s=20", "serve.send_s=1"]
        self.log = open(folder / "server.log", "w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "s2robot", "serve", f"checkpoint='{checkpoint.resolve()}'", *options],
            cwd=folder, env=env, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if "policy at ws://" not in line:
            raise SystemExit(f"the server did not start: {line}{(folder / 'server.log').read_text()}")
        self.url = line.split()[-1]
        self.port = int(self.url.rpartition(":")[2])
        threading.Thread(target=self.process.stdout.read, daemon=True).start()  # a full pipe would stop it
        with self.client() as client:
            self.observation = observation(client.cameras, min(64, client.image_size), 8)
            self.cameras = client.cameras
            self.expected = client.plan(self.observation)

    def client(self) -> RemotePolicy:
        """A good client; a session that is being ended may still be in its way for a moment."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return RemotePolicy(self.url, TOKEN, PATIENCE, PATIENCE)
            except RemoteError as error:
                self.alive()
                if time.monotonic() > end:
                    raise Found(f"hang: no connection in {PATIENCE:g} s: {error}") from error
                time.sleep(0.02)

    def alive(self) -> None:
        if self.process.poll() is not None:
            raise Found(f"crash: the server ended with {self.process.returncode}")

    def check(self) -> None:
        """It lives, and gives the actions that it gave at the start."""
        self.alive()
        with self.client() as client:
            try:
                found = client.plan(self.observation)
            except RemoteError as error:
                self.alive()
                raise Found(f"hang: no actions: {error}") from error
        if not np.array_equal(found, self.expected):
            raise Found("crash: other actions for the same observation")

    def memory_mb(self) -> float:
        """Resident memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def stop(self) -> None:
        self.process.terminate()
        try:
            code = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Found("hang: the server did not end on SIGTERM") from None
        finally:
            self.log.close()
        if code != 0:
            raise Found(f"crash: the server ended with {code} on SIGTERM")


def attack_connection(rng: random.Random, server: Server) -> None:
    """Bytes of every wrong kind on the server's port."""
    good = handshake()
    hello = frame(request(rng, server.observation, 1))
    kind = rng.randrange(7)
    data = [
        rng.randbytes(rng.randrange(1, 3000)),
        damage(rng, good),
        handshake(token=rng.choice(("", "x", TOKEN[:-1], TOKEN + "é"))),
        handshake(version=rng.choice(("", "0", "2", "1 1", "x" * 9000))),
        good + rng.randbytes(rng.randrange(1, 300)),
        good + damage(rng, hello),
        good
        + b"".join(
            frame(
                rng.randbytes(rng.randrange(200)),
                rng.randrange(16),
                rng.random() < 0.5,
                rng.random() < 0.8,
                rng.choice((None, None, 0, 125, 70_000, 2**31, 2**63 - 1)),
            )
            for _ in range(rng.randrange(1, 5))
        ),
    ][kind]
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        connection.settimeout(0.05)
        for start in range(0, len(data), 1 << 14):
            connection.sendall(data[start : start + (1 << 14)])
        if rng.random() < 0.5:
            connection.recv(1 << 16)
        if rng.random() < 0.3:  # gone without a word
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def attack_messages(rng: random.Random, server: Server) -> int:
    """Up to 50 messages after a good handshake; how many were sent."""
    sent = 0
    with server.client() as client:
        for number in range(1, 51):
            until = time.monotonic() + PATIENCE
            try:
                client._link.send(request(rng, server.observation, number), until)
                sent += 1
                if rng.random() < 0.8:
                    client._message(until)
            except (PolicyLost, PolicyMalformed):  # the session has ended, as it should for some of them
                break
            except RemoteError as error:
                server.alive()
                raise Found(f"hang: a message got no answer: {error}") from error
    return sent


class BadServer:
    """A server in this process whose every message is damaged."""

    def __init__(self, rng: random.Random, server: Server):
        from websockets.sync.server import serve

        self.rng = rng
        with server.client() as client:
            self.hello = {
                "protocol": PROTOCOL, "contract": client.contract, "cameras": list(client.cameras),
                "actions": client.actions, "action_dim": client._action_dim, "image_size": 64, "max_bytes": 10**7,
            }  # fmt: skip
        self.server = serve(self.handle, "127.0.0.1", 0, compression=None)
        self.url = f"ws://127.0.0.1:{self.server.socket.getsockname()[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def handle(self, ws: Any) -> None:
        rng = self.rng
        with contextlib.suppress(Exception):
            hello = encode(self.hello)
            ws.send(damage(rng, hello) if rng.random() < 0.2 else hello)
            for number in range(1, 20):
                ws.recv(timeout=3)
                self.answer(ws, number)

    def answer(self, ws: Any, number: int) -> None:
        rng = self.rng
        key, endless = rng.choice(("actions", "error")), rng.choice((np.nan, np.inf))
        good: dict[str, Any] = {
            "id": number,
            "actions": np.zeros((self.hello["actions"], 8), np.float32),
            "seconds": 0.1,
        }
        rng.choice(
            (
                lambda: ws.send(encode(good)),
                lambda: None,
                lambda: ws.socket.sendall(rng.randbytes(rng.randrange(1, 200))),  # no websocket frame
                lambda: ws.send(damage(rng, encode(good))),
                lambda: ws.send(msgpack.packb(anything(rng))),
                lambda: ws.send(msgpack.packb({"id": number, key: anything(rng)})),
                lambda: ws.send(encode(good | {"actions": np.full((1, 8), endless, np.float32)})),
                lambda: ws.send("text"),
                ws.socket.close,
            )
        )()


def attack_client(bad: BadServer, good: dict[str, Any]) -> int:
    """A client of the bad server: every call ends in time with an action or a typed error; how many calls."""
    calls = 0
    start, allowed = time.monotonic(), 1.0 + GRACE
    try:
        with RemotePolicy(bad.url, TOKEN, DEADLINE, 1.0) as client:
            for _ in range(8):
                start, allowed = time.monotonic(), DEADLINE + GRACE
                calls += 1
                with contextlib.suppress(RemoteError):
                    actions = client.plan(good)
                    if not np.isfinite(actions).all() or actions.shape[1] != 8:
                        raise Found(f"crash: the client gave {actions}")
                if time.monotonic() - start > allowed:
                    break
    except RemoteError:
        pass
    except Found:
        raise
    except Exception as error:  # a KeyError, a numpy warning: the client let something through
        raise Found(f"crash: the client raised {type(error).__name__}: {error}") from error
    if time.monotonic() - start > allowed:
        raise Found(f"hang: a call of the client took {time.monotonic() - start:.1f} s")
    return calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder of a trained policy")
    parser.add_argument("--seconds", type=float, default=600, help="how long (default 600)")
    parser.add_argument("--seed", type=int, default=0, help="of the sequence (default 0)")
    args = parser.parse_args()
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # the bad server breaks its connections
    rng = random.Random(args.seed)
    counts = {"connections": 0, "messages": 0, "client calls": 0, "checks": 0}
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        server = Server(args.checkpoint, Path(folder))
        bad = BadServer(random.Random(args.seed + 1), server)
        before = server.memory_mb()
        start = time.monotonic()
        try:
            while time.monotonic() - start < args.seconds:
                for _ in range(20):
                    attack_connection(rng, server)
                    counts["connections"] += 1
                counts["messages"] += attack_messages(rng, server)
                counts["client calls"] += attack_client(bad, server.observation)
                server.check()
                counts["checks"] += 1
        except Found as error:
            failures.append(str(error))
        grown = server.memory_mb() - before if server.process.poll() is None else float("nan")
        try:
            server.stop()
        except Found as error:
            failures.append(str(error))
        if failures:
            print((Path(folder) / "server.log").read_text()[-3000:])
    crashes, hangs = (sum(f.startswith(kind) for f in failures) for kind in ("crash", "hang"))
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    print(f"{crashes} crashes, {hangs} hangs in {time.monotonic() - start:.0f} s, seed {args.seed}")
    print(f"memory of the server: {before:.0f} MB at first, {grown:+.0f} MB")
    for failure in failures:
        print(failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
