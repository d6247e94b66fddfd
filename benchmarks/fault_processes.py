"""Faults of processes, for benchmarks/faults.py: signals to a process group, a terminal that closes, a cut connection."""

import os
import socket
from contextlib import suppress


def own_ports() -> list[int]:
    """Return the ports of this process's connections over loopback."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError), socket.socket(fileno=os.dup(int(descriptor))) as connection:
            if connection.family == socket.AF_INET and connection.getpeername()[0] == "127.0.0.1":
                found.append(connection.getsockname()[1])
    return found
