"""A policy in another process, or on another machine: start `s2robot serve` and request an action.

python examples/serve_and_call.py runs/run/<date>/checkpoint
"""

import argparse
import os
import secrets
import subprocess
import sys

import numpy as np

from s2robot.envs.frames import size_of
from s2robot.serving.remote import RemotePolicy
from s2robot.serving.token import read_token


def main(argv: list[str] | None = None) -> np.ndarray:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--deadline", type=float, default=1.0, help="maximum seconds per call")
    args = parser.parse_args(argv)

    os.environ.setdefault("S2ROBOT_TOKEN", secrets.token_urlsafe(32))  # shared by both sides
    server = subprocess.Popen(
        [sys.executable, "-m", "s2robot", "serve", f"checkpoint='{args.checkpoint}'", "serve.port=0"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        words = server.stdout.readline().split()  # printed once the server is ready
        if not words:
            sys.exit(server.wait())  # the server has printed why
        url = words[-1]
        with RemotePolicy(url, read_token(), deadline_s=args.deadline) as policy:
            policy.reset()
            images = {c: np.zeros((*size_of(policy.image_size, c), 3), np.uint8) for c in policy.cameras}
            # an action before the deadline, or a RemoteError
            action = policy.act({"images": images, "proprio": np.zeros(8, np.float32)})
            print(f"{url}: {np.round(action, 4)}, {1000 * policy.server_s:.0f} ms on the server")
    finally:
        server.terminate()
        server.communicate()
    return action


if __name__ == "__main__":
    main()
