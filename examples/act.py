"""Load a checkpoint and act, in ten lines. Needs no simulator.

python examples/act.py runs/run/<date>/checkpoint
"""

import sys

import numpy as np

from s2robot import load_policy
from s2robot.envs.frames import size_of


def main(argv: list[str] | None = None) -> np.ndarray:
    (checkpoint,) = sys.argv[1:] if argv is None else argv
    policy = load_policy(checkpoint)  # includes the encoder of its training
    about = policy.contract
    print(f"{about['robot']} at {about['rate_hz']} Hz, cameras {about['cameras']}")
    policy.reset()  # a new episode
    for _ in range(3):
        # from your cameras, RGB
        images = {c: np.zeros((*size_of(policy.image_size, c), 3), np.uint8) for c in policy.spec.cameras}
        proprio = np.zeros(8, np.float32)  # from your arm: seven joints in rad, gripper opening 0..1
        action = policy.act({"images": images, "proprio": proprio})
        print(np.round(action, 4))  # seven joint deltas in rad, gripper 0 open .. 1 close
    return action


if __name__ == "__main__":
    main()
