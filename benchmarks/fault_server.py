"""A policy server that can be killed: `s2robot serve` with an untrained policy that swings the arm's first joint.

A process makes the checkpoint, so that no torch is loaded where the control loop runs.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s2robot.serving.remote import RemotePolicy

TOKEN = "faults-" + os.urandom(16).hex()
ROOT = Path(__file__).resolve().parents[1]


def make_checkpoint(folder: Path) -> Path:
    """An untrained policy whose actions turn joint 1 by about 0.05 rad each."""
    path = folder / "checkpoint"
    subprocess.run([sys.executable, "-m", "benchmarks.fault_server", str(folder)], cwd=ROOT, check=True)
    return path


@contextmanager
def served(checkpoint: Path, threads: int = 1) -> Iterator[tuple[subprocess.Popen, RemotePolicy]]:
    """`s2robot serve` on a free port, and a client; both end with the context."""
    paths = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    path = checkpoint.resolve()
    settings = [f"checkpoint='{path}'", "serve.port=0", "serve.device=cpu", f"serve.threads={threads}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "s2robot", "serve", *settings], cwd=checkpoint.parent, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"S2ROBOT_TOKEN": TOKEN, "PYTHONPATH": paths},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if "policy at ws://" not in line:
            raise RuntimeError("the policy server did not start")
        threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would stop it
        with RemotePolicy(line.split()[-1], TOKEN, deadline_s=2.0, connect_s=30.0) as policy:
            yield process, policy
    finally:
        process.kill()
        process.wait()


def _make(folder: Path) -> None:
    import numpy as np
    import torch

    from s2robot.backbones.vit import MVPViT, ViTSpec, save_encoder
    from s2robot.encoders.build import build_encoder
    from s2robot.policies import ChunkPolicy, PolicySpec, save_checkpoint

    torch.manual_seed(0)
    weights = folder / "tiny.safetensors"
    save_encoder(MVPViT(ViTSpec(img_size=32, patch_size=8, dim=64, depth=2, heads=2)), weights, {"seed": 0})
    settings = {"name": "mvp-tiny", "checkpoint": str(weights), "scales": [1, 2]}
    encoder = build_encoder(settings)
    spec = {
        "cameras": ["hand"], "dim": encoder.dim, "tokens": encoder.num_tokens, "chunk": 2, "execute": 1,
        "members": 1, "action_target": "delta",
        "network": {"image_dim": 8, "state_dim": 8, "hidden": [16]}, "pooling": {"keypoints": 4, "values": 2},
    }  # fmt: skip
    policy = ChunkPolicy(PolicySpec.from_dict(spec))
    rng = np.random.default_rng(0)
    mean = np.array([0.05, 0, 0, 0, 0, 0, 0])
    actions = np.append(rng.normal(mean, 0.001, (50, 7)), rng.integers(0, 2, (50, 1)), 1)
    moments = np.zeros((1, encoder.dim)), np.ones((1, encoder.dim))
    policy.fit_normaliser(rng.normal(size=(50, 8)), actions, np.repeat(actions[:, None], 2, 1), None, moments)
    contract = {
        "encoder": {
            "name": encoder.name, "fingerprint": encoder.fingerprint, "settings": settings,
            "features_dtype": "float16", "sizes": list(encoder.sizes),
        },
        "cameras": ["hand"], "robot": "xarm7", "joint_names": [f"joint{i}" for i in range(1, 8)],
        "action_frame": "joint_delta_commanded", "rate_hz": 10, "camera_geometry": {"hand": {"fovy": 75.0}},
        "dataset": {"name": "demos.zarr", "fingerprint": "d", "episodes": 1, "seeds": [0]},
    }  # fmt: skip
    save_checkpoint(folder / "checkpoint", policy, contract)


if __name__ == "__main__":
    _make(Path(sys.argv[1]))
