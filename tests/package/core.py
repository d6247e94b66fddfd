"""What the light core does, run by `tests/test_package.py` with the wheel alone in an environment of its own.

    python core.py <work folder> <docs/s2.md>

Demos of our own (pictures, no simulator), an encoder of our own, a feature cache, a policy trained from it, its
checkpoint acting, and the same checkpoint behind a server.
"""

import doctest
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from s2robot.backbones.vit import MVPViT, ViTSpec, save_encoder
from s2robot.demos.store import EpisodeStore
from s2robot.loading import load_policy
from s2robot.serving.remote import RemotePolicy
from s2robot.serving.token import read_token

CAMERAS, SIDE, STEPS = ("hand", "left"), 64, 24


def demos(path: Path) -> None:
    """Three episodes of noise, as a camera and an arm would give them."""
    rng = np.random.default_rng(0)
    attributes = {
        "robot": "xarm7", "joint_names": [f"robot0_joint{i}" for i in range(1, 8)], "rate_hz": 10, "seed": 0,
        "cameras": list(CAMERAS), "camera_geometry": {}, "action_frame": "joint_delta_commanded", "env_version": "mine",
        "env_config": {}, "kind": "images",
    }  # fmt: skip
    with EpisodeStore.create(path, attributes) as store:
        for _ in range(3):
            episode = {f"images_{c}": rng.integers(0, 256, (STEPS, SIDE, SIDE, 3), np.uint8) for c in CAMERAS}
            action = np.append(rng.normal(0, 0.01, (STEPS, 7)), rng.integers(0, 2, (STEPS, 1)), 1)
            proprio = np.append(rng.normal(0, 1, (STEPS, 7)), rng.uniform(0, 1, (STEPS, 1)), 1)
            store.append({**episode, "action": action.astype("f4"), "proprio": proprio.astype("f4")})


def verb(*arguments: str) -> None:
    command = [sys.executable, "-m", "s2robot", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def main(work: Path, page: Path) -> None:
    for name in ("robosuite", "mujoco", "mink"):
        assert importlib.util.find_spec(name) is None, f"{name} is installed: this is no light core"
    print("numpy", np.__version__, "torch", torch.__version__)

    failed, tried = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert tried > 10 and not failed, (failed, tried)

    demos(work / "mine.zarr")
    save_encoder(MVPViT(ViTSpec(32, 8, dim=64, depth=2, heads=2)), work / "own.safetensors", {"seed": 0})
    common = [
        f"demos.path={work / 'mine.zarr'}", f"encoder.checkpoint={work / 'own.safetensors'}", f"env.cameras=[{','.join(CAMERAS)}]",
        "env.image_size=64", f"features.cache={work / 'cache'}",
    ]  # fmt: skip

    def written() -> list[int]:
        return sorted(p.stat().st_mtime_ns for p in (work / "cache").rglob("*") if p.is_file())

    verb("encode", *common, f"hydra.run.dir={work / 'encode'}")
    before = written()
    verb("train", *common, "train.steps=2", "train.batch_size=16", f"hydra.run.dir={work / 'train'}")
    assert before and before == written(), "the training encoded again"

    checkpoint = work / "train" / "checkpoint"
    actor, encoder, _ = load_policy(checkpoint, "cpu")
    images = {c: np.full((SIDE, SIDE, 3), 90, np.uint8) for c in CAMERAS}
    observation = {"images": images, "proprio": np.zeros(8, np.float32)}
    actor.reset()
    action = actor.act(observation)
    assert action.shape == (8,) and np.isfinite(action).all() and encoder.dim == 128

    os.environ["S2ROBOT_TOKEN"] = "a-token-for-this-test"
    server = subprocess.Popen(
        [sys.executable, "-m", "s2robot", "serve", f"checkpoint={checkpoint}", "serve.port=0", "serve.threads=1"],
        cwd=work, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        url = server.stdout.readline().split()[-1]
        with RemotePolicy(url, read_token(), deadline_s=30, connect_s=30) as policy:
            policy.reset()
            np.testing.assert_allclose(policy.act(observation), action, atol=1e-5)
    finally:
        server.terminate()
        server.communicate(timeout=30)
    loaded = sorted({name.split(".")[0] for name in sys.modules} & {"robosuite", "mujoco", "mink"})
    assert not loaded, loaded
    print("the light core works")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
