"""Train a policy in your own loop, from features and actions as arrays: no verb, no config, no store.

python examples/train_by_hand.py --steps 200 --out checkpoint
"""

import argparse

import numpy as np
import torch

from s2robot.policies import ChunkPolicy, PolicySpec, channel_moments, load_checkpoint, save_checkpoint

CHUNK = 4


def main(argv: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", default="checkpoint", help="folder to write")
    args = parser.parse_args(argv)

    # The features encode the goal; the arm moves there. One episode of 256 steps.
    rng = np.random.default_rng(0)
    goal = rng.normal(size=(256, 7)).astype(np.float32)
    features = (goal @ rng.normal(size=(7, 2 * 16 * 32)).astype(np.float32)).reshape(
        256, 2, 16, 32
    )  # (M, C, N, D)
    proprio = np.append(rng.normal(size=(256, 7)), rng.uniform(size=(256, 1)), 1).astype(np.float32)
    action = np.append(0.1 * goal, goal[:, :1] > 0, 1).astype(np.float32)  # (M, 8): seven deltas, gripper

    torch.manual_seed(0)
    shapes = {"cameras": ["hand", "left"], "dim": 32, "tokens": 16, "chunk": CHUNK, "execute": 2}
    plain = {"members": 1, "action_target": "delta", "network": {"hidden": [64]}}
    spec = PolicySpec.from_dict(shapes | plain)
    policy = ChunkPolicy(spec)
    chunks = np.repeat(action[:, None], CHUNK, 1)  # (M, K, 8): the same move K times
    policy.fit_normaliser(proprio, action, chunks, None, channel_moments(features))
    optimiser = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    losses = []
    for _ in range(args.steps):
        rows = rng.integers(0, len(action), 64)
        batch = {
            "features": features[rows, None],  # (B, T, C, N, D), a context of one step
            "proprio": proprio[rows, None],  # (B, T, 8)
            "actions": chunks[rows],  # (B, K, 8)
        }
        loss, scalars = policy.loss({key: torch.from_numpy(value) for key, value in batch.items()})
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, joint error {float(scalars['joint_error']):.4f} rad")
    contract = {  # facts that a deployment checks, and any others worth storing
        "encoder": {"name": "patches", "fingerprint": "of S2Encoder.fingerprint"}, "cameras": ["hand", "left"],
        "robot": "xarm7", "joint_names": [f"robot0_joint{i}" for i in range(1, 8)], "rate_hz": 10,
        "action_frame": "joint_delta_commanded", "dataset": {"name": "made up"},
    }  # fmt: skip
    save_checkpoint(args.out, policy.eval(), contract)
    loaded, contract = load_checkpoint(args.out)
    print(f"{args.out}: {sum(p.numel() for p in loaded.parameters())} parameters, for {contract['robot']}")
    return losses


if __name__ == "__main__":
    main()
