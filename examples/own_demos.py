"""Import your own demos: images, joints and actions from any source as an episode store.

python examples/own_demos.py mine.zarr
s2robot train demos.path=mine.zarr encoder=dinov2_s
"""

import argparse
from collections.abc import Iterator

import numpy as np
from omegaconf import OmegaConf

from s2robot.core.files import configs_dir
from s2robot.core.parts import plain
from s2robot.core.settings import read
from s2robot.demos.store import EpisodeStore
from s2robot.envs.real.arms.description import ArmDescription

CAMERAS = ("hand", "left", "right")
ATTRIBUTES = {
    "kind": "images",  # frames are stored; demos from the simulator store its states instead
    "source": "my own program",  # the robot, rate and cameras below override those of a config
    "rate_hz": 10,  # actions per second
    "action_frame": "joint_delta_commanded",  # this step's commanded joints minus the last step's
    "cameras": list(CAMERAS),  # in the policy's order
    "camera_geometry": {},  # their poses, if known
    "env_version": "my bench, March",
    "env_config": {},
    "seed": 0,
}


def episodes(arm: ArmDescription, count: int, steps: int, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Stand in for your own source: the arm moves at random and the cameras show noise."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        joints = arm.start + np.cumsum(rng.normal(0, 0.01, (steps + 1, len(arm.start))), 0)  # (T + 1, N) rad
        gripper = (np.arange(steps) > steps // 2)[:, None]  # closes halfway
        gripper = gripper[:, : arm.gripper is not None]  # (T, 1), or (T, 0) for an arm without one
        yield {
            **{f"images_{c}": rng.integers(0, 256, (steps, size, size, 3), np.uint8) for c in CAMERAS},
            # both float32, (T, N + 1) with a gripper; proprio is what was measured before the action
            "proprio": np.column_stack([joints[:-1], 1.0 - gripper]).astype(np.float32),
            "action": np.column_stack([np.diff(joints, axis=0), gripper]).astype(np.float32),
        }


def main(argv: list[str] | None = None) -> EpisodeStore:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", help="folder to write, such as mine.zarr; an existing one is rejected")
    parser.add_argument("--arm", default=configs_dir() / "robot/xarm7.yaml", help="YAML of the arm")
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=256, help="side of the frames in pixels")
    args = parser.parse_args(argv)
    arm = read(ArmDescription, OmegaConf.load(args.arm))
    about = {"robot": arm.name, "joint_names": list(arm.joint_names)}
    parts = {f"{key}_parts": plain(arm.parts(key)) for key in ("action", "proprio")}  # meaning of the values
    with EpisodeStore.create(args.path, ATTRIBUTES | about | parts) as store:
        for episode in episodes(arm, args.episodes, args.steps, args.size):
            store.append(episode)  # atomic; wrong shapes and types are rejected by name
    store = EpisodeStore.open(args.path)
    print(f"{len(store)} episodes, {store.num_steps} steps: {store.path}")
    return store


if __name__ == "__main__":
    main()
