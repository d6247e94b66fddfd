"""Provenance of a result: package versions, the command and hashes of settings and weights."""

import hashlib
import json
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_VERSIONS = ("s2robot", "torch", "timm", "mujoco", "robosuite", "gymnasium", "numpy", "zarr")


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def command() -> str:
    """Return the command line, with `s2robot` for `python -m s2robot`."""
    name = Path(sys.argv[0]).name
    return shlex.join(["s2robot" if name == "__main__.py" else name, *sys.argv[1:]])


def short_hash(value: Any) -> str:
    """Return 16 hexadecimal digits of the hash of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def policy_sha256(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / "policy.safetensors").read_bytes()).hexdigest()
