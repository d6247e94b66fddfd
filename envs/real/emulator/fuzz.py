"""Structure-aware fuzzing of a running emulator's ports.

python -m s2robot.envs.real.emulator.fuzz --seconds 600

A fresh emulator gets well-formed requests of every function with odd payloads, broken headers, cut and glued
frames, odd RS485 frames, JSON lines that are none, and connections dropped at any moment. After each round, and
at the end, it has to answer a proper request within ``ANSWER_S``. Prints what was sent and found; status 1 for
any crash, hang, or wrong answer.
"""

import argparse
import json
import random
import socket
import struct
import sys
import time
from collections import Counter
from typing import Any

from s2robot.envs.errors import EnvError
from s2robot.envs.real.emulator import wire
from s2robot.envs.real.emulator.faults import NAMES
from s2robot.envs.real.emulator.launch import Launched, launch
from s2robot.envs.real.emulator.ports import HOST
from s2robot.envs.real.emulator.side import SideChannel

ANSWER_S = 5.0  # longer than this without an answer is a hang, even on a busy machine
_FLOATS = (0.0, -0.0, 1.0, -1.0, 3.2, -7.0, 1e-40, 1e30, -1e30, float("inf"), float("-inf"), float("nan"))
_OPS = (
    "status",
    "commands",
    "motion",
    "after",
    "hand",
    "place_arm",
    "scene",
    "reset_scene",
    "clear",
    "fault",
    "no",
)


def a_payload(rng: random.Random) -> bytes:
    """Bytes that look like arguments."""
    kind = rng.randrange(5)
    if kind == 0:
        return b""
    if kind == 1:
        return rng.randbytes(rng.choice((1, 2, 3, 4, 27, 28, 40, 200)))
    if kind == 2:
        values = [
            rng.choice(_FLOATS) if rng.random() < 0.3 else rng.uniform(-1, 1)
            for _ in range(rng.randrange(1, 18))
        ]
        return struct.pack(f"<{len(values)}f", *values) + rng.randbytes(rng.choice((0, 0, 1, 5)))
    if kind == 3:
        return bytes(rng.choice((0, 1, 2, 3, 4, 5, 6, 8, 255)) for _ in range(rng.randrange(1, 4)))
    register = rng.choice((0, 0x0F, 0x100, 0x101, 0x303, 0x700, 0x702, 0xFFFF))
    frame = struct.pack(
        ">BBBHH",
        rng.choice((9, 9, 9, 11)),
        rng.choice((8, 8, 1)),
        rng.choice((3, 0x10, 6)),
        register,
        rng.choice((0, 1, 2, 200)),
    )
    return frame + rng.choice((b"", b"\x02\x00\x01", b"\x04\x00\x00\x00\xc8", rng.randbytes(6)))


def a_control_stream(rng: random.Random) -> bytes:
    """Requests, some of them broken, for a control port."""
    stream = b""
    for _ in range(rng.randrange(1, 12)):
        function = rng.choice(list(wire.Fn)) if rng.random() < 0.85 else rng.randrange(256)
        frame = wire.request(
            rng.randrange(65536), function, a_payload(rng), rng.choice((2, 2, 2, 3, 3, 0, 1))
        )
        breakage = rng.random()
        if breakage < 0.05:
            frame = frame[: rng.randrange(len(frame))]
        elif breakage < 0.10:
            where = rng.randrange(len(frame))
            frame = frame[:where] + bytes([frame[where] ^ 1 << rng.randrange(8)]) + frame[where + 1 :]
        elif breakage < 0.12:
            frame = rng.randbytes(rng.randrange(1, 400))
        stream += frame
    return stream


def a_json_line(rng: random.Random, faults: bool) -> bytes:
    """A line for the side channel or the frames port."""
    odd: tuple[Any, ...] = (None, True, -1, 0.5, 6.0, 1e400, "x", [], {}, [0] * 7, [1e9] * 7, float("nan"))
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(1, 100)) + b"\n"
    request: dict[str, Any] = (
        {"op": rng.choice(_OPS)} if rng.random() < 0.9 else {"camera": rng.choice(("hand", "no", None))}
    )
    for name in ("name", "since", "joints", "number", "seed", "cube_xy", "code", "seconds", "after", "mode"):
        if rng.random() < 0.2:
            request[name] = rng.choice(odd)
    if request.get("op") == "fault" and faults:
        request = {"op": "fault", "name": rng.choice(NAMES)}
        request |= {"code": 31, "seconds": 0.01, "mode": rng.choice((6, 6.0))}
        for name in rng.sample(("code", "seconds", "mode"), rng.randrange(4)):
            del request[name]
    return (
        json.dumps(request).encode() + b"\n"
        if rng.random() < 0.95
        else json.dumps([request]).encode() + b"\n"
    )


class Fuzzer:
    """Sends to one emulator and counts what came of it."""

    def __init__(self, emulator: Launched, seed: int):
        self.emulator, self.rng = emulator, random.Random(seed)
        self.count: Counter[str] = Counter()
        self.failures: list[str] = []

    def round(self) -> None:
        """One connection with one stream to one port, and sometimes a look whether the emulator still answers."""
        rng, p = self.rng, self.emulator.ports
        port = rng.choice(
            (p.control, p.control, p.control, p.gripper, p.report_rich, p.report_real, p.side, p.frames)
        )
        if port in (p.side, p.frames):
            data = b"".join(a_json_line(rng, faults=port == p.side) for _ in range(rng.randrange(1, 6)))
        else:
            data = a_control_stream(rng)
        try:
            with socket.create_connection((HOST, port), timeout=ANSWER_S) as s:
                s.settimeout(0.02)
                while data:
                    size = rng.choice((1, 3, 7, 8, 64, 4096))
                    s.sendall(data[:size])
                    self.count["bytes"] += len(data[:size])
                    data = data[size:]
                    if rng.random() < 0.02:
                        break
                if rng.random() < 0.5:
                    self.count["answered bytes"] += len(s.recv(65536))
        except ConnectionRefusedError:
            if port != p.frames:  # a kinematic emulator has no cameras
                self.failures.append(f"port {port} refused a connection")
        except OSError:
            self.count["closed or silent"] += 1
        self.count["connections"] += 1
        if self.count["connections"] % 20 == 0:
            self.check()

    def check(self) -> None:
        """The emulator lives, and answers on its side channel and its control port."""
        began = time.monotonic()
        if self.emulator.process.poll() is not None:
            self.failures.append(f"the emulator ended with status {self.emulator.process.returncode}")
            return
        p = self.emulator.ports
        try:
            with SideChannel(p.side, ANSWER_S) as side:
                side("clear")
            with socket.create_connection((HOST, p.control), timeout=ANSWER_S) as s:
                s.settimeout(ANSWER_S)
                s.sendall(wire.request(41, wire.Fn.GET_STATE))
                answer = b""
                while len(answer) < 9 and (more := s.recv(64)):
                    answer += more
            if answer[:7] != bytes.fromhex("0029 0002 0003 0d"):
                self.failures.append(f"get_state was answered by {answer.hex(' ')}")
        except (OSError, EnvError) as error:
            self.failures.append(f"no answer within {ANSWER_S} s: {error}")
        self.count["checks"] += 1
        self.count["slowest check, ms"] = max(
            self.count["slowest check, ms"], round((time.monotonic() - began) * 1000)
        )


def fuzz(seconds: float, seed: int, plant: str = "kinematic") -> Fuzzer:
    """Fuzz a fresh emulator; the fuzzer holds counts and failures."""
    with launch(plant) as emulator:
        fuzzer = Fuzzer(emulator, seed)
        end = time.monotonic() + seconds
        while time.monotonic() < end and len(fuzzer.failures) < 5 and emulator.process.poll() is None:
            fuzzer.round()
        fuzzer.check()
    if emulator.process.returncode != 0 and not fuzzer.failures:
        fuzzer.failures.append(f"the emulator ended with status {emulator.process.returncode}")
    return fuzzer


def main() -> int:
    """The exit status: 1 if anything failed."""
    parser = argparse.ArgumentParser(
        prog="python -m s2robot.envs.real.emulator.fuzz", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plant", choices=["kinematic", "mujoco"], default="kinematic")
    a = parser.parse_args()
    fuzzer = fuzz(a.seconds, a.seed, a.plant)
    print(json.dumps({"seconds": a.seconds, "seed": a.seed, **fuzzer.count, "failures": fuzzer.failures}))
    return 1 if fuzzer.failures else 0


if __name__ == "__main__":
    sys.exit(main())
