"""Load a checkpoint and act, in ten lines. Needs no simulator.

python examples/act.py runs/run/<date>/checkpoint
"""

import sys

import numpy as np

from s2robot.loading import load_actor


def main(argv: list[str] | None = None) -> np.ndarray:
    (checkpoint,) = sys.argv[1:] if argv is None else argv
    actor, encoder, contract = load_actor(
        checkpoint
    )  # the encoder that the policy was trained with comes along
    print(f"{contract['robot']} at {contract['rate_hz']} Hz, cameras {contract['cameras']}")
    actor.reset()  # a new episode
    for _ in range(3):
        frame = np.zeros((encoder.image_size, encoder.image_size, 3), np.uint8)  # your camera's, RGB
        proprio = np.zeros(8, np.float32)  # your arm's: seven joints in rad, gripper opening 0..1
        action = actor.act({"images": dict.fromkeys(contract["cameras"], frame), "proprio": proprio})
        print(np.round(action, 4))  # seven joint deltas in rad, gripper 0 open .. 1 close
    return action


if __name__ == "__main__":
    main()
