"""Roll a checkpoint out in the simulated world, step by step in Python. Needs the extra `sim`.

    python examples/evaluate.py runs/run/<date>/checkpoint --episodes 16

`s2robot evaluate` does this on several processes, with videos, controls and a report.
"""

import argparse

import gymnasium

import s2robot.envs  # noqa: F401 (registers the environments)
from s2robot.evaluation.records import wilson
from s2robot.loading import load_policy


def main(argv: list[str] | None = None) -> list[bool]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument(
        "--seed", type=int, default=20000, help="of the first episode; demos use seeds above 100000"
    )
    parser.add_argument("--steps", type=int, default=80, help="maximum steps per episode")
    args = parser.parse_args(argv)

    actor, encoder, contract = load_policy(args.checkpoint)
    env = gymnasium.make(
        "s2robot/CubePick-v0", robot=contract["robot"], cameras=tuple(contract["cameras"]),
        image_size=encoder.image_size, max_steps=args.steps,
    )  # fmt: skip
    outcomes = []
    for episode in range(args.episodes):
        observation, info = env.reset(seed=args.seed + episode)  # the seed determines cube and start
        actor.reset()
        done = False
        while not done:
            observation, _, terminated, truncated, info = env.step(actor.act(observation))
            done = terminated or truncated
        outcomes.append(bool(info["is_success"]))
        print(f"{args.seed + episode}: {'held' if outcomes[-1] else info['stage']}")
    low, high = wilson(sum(outcomes), len(outcomes))
    print(f"{sum(outcomes)} of {len(outcomes)} (95 % interval {100 * low:.0f}–{100 * high:.0f} %)")
    env.close()
    return outcomes


if __name__ == "__main__":
    main()
