"""What all sides share: the budget of a training, the pipe through which a policy acts in our world, the clock of a loader.

Runs in a peer's environment: of s2robot only the messages of `s2robot serve` are used (numpy and msgpack). Messages come on
stdin and go out through a pipe of their own, whose number is in the environment: robomimic prints when it is imported.
Over the pipes goes one message after another, its length (4 bytes, little-endian) before it:

    policy  {"about": text, "cameras": [...]}              once, when it is loaded
    world   {"reset": seed}                                an episode begins; no answer
    world   {"images": {camera: uint8 (H, W, 3)}, "proprio": float32 (8,)}
    policy  {"action": float32 (8,), "seconds": wall, "cpu": s of its process}
"""

import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from s2robot.serving.wire import pack, unpack

CAMERAS = ["hand", "left", "right"]
ANSWERS = "PEER_ANSWERS"  # variable with the number of the pipe for answers


class BudgetSpent(Exception):
    """The training has used its CPU time."""


class Budget:
    """`minutes` of CPU time, user and system, of this process and its children from its start on, imports included.

    SIGTERM ends the training after its step, as a spent budget does.
    """

    def __init__(self, minutes: float):
        self.seconds, self.steps = minutes * 60, 0
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "seconds", 0))

    @staticmethod
    def used() -> float:
        """Core-seconds so far, of children that ended and of those that live."""
        import psutil  # both peers bring it

        own = sum(os.times()[:4])
        for child in psutil.Process().children(recursive=True):
            try:
                own += sum(child.cpu_times()[:2])
            except psutil.Error:
                pass  # it ended meanwhile, and is waited for
        return own

    def step(self) -> None:
        """A training step was made. Raises BudgetSpent when that was the last."""
        self.steps += 1
        if self.used() >= self.seconds:
            raise BudgetSpent

    def keep(self, out: str) -> None:
        """`budget.json`: what was reached."""
        Path(out, "budget.json").write_text(json.dumps({"steps": self.steps, "cpu_s": round(self.used(), 1)}))


def write(stream: BinaryIO, message: Any) -> None:
    """Send one message."""
    data = pack(message)
    stream.write(struct.pack("<I", len(data)) + data)
    stream.flush()


def read(stream: BinaryIO) -> Any:
    """The next message; None at the end."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    size = struct.unpack("<I", head)[0]
    data = stream.read(size)
    return unpack(data) if len(data) == size else None


def serve(load: Callable[[], Any]) -> None:
    """Answer what comes on stdin until it closes.

    load: gives a policy with `about`, `reset(seed)` and `act(images, proprio)` -> (8,).
    """
    source, sink = sys.stdin.buffer, os.fdopen(int(os.environ[ANSWERS]), "wb")
    policy = load()
    write(sink, {"about": policy.about, "cameras": CAMERAS})
    while (message := read(source)) is not None:
        if "reset" in message:
            policy.reset(message["reset"])
            continue
        start, cpu = time.perf_counter(), time.process_time()
        action = np.asarray(policy.act(message["images"], message["proprio"]), np.float32).reshape(-1)
        spent = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
        write(sink, {"action": action, **spent})


def clock(batches: Iterable[Any], seconds: float) -> None:
    """Print what batches a second cost, of this process alone: a row. The first two do not count."""
    taken = iter(batches)
    next(taken), next(taken)
    count, start, cpu = 0, time.perf_counter(), time.process_time()
    for _ in taken:
        count += 1
        if time.perf_counter() - start > seconds:
            break
    cpu, wall = time.process_time() - cpu, time.perf_counter() - start
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    row = {"per_cpu_s": count / cpu, "per_wall_s": count / wall, "peak_mb": int(peak.split()[1]) / 1000}
    print(json.dumps({"batches": count} | {key: round(value, 2) for key, value in row.items()}))
