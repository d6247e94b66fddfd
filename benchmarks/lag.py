"""How far the arm is behind its command in regular episodes: what `limits.lag_max` and `point_lag_max` leave room for.

    python benchmarks/lag.py runs/run/<date>/checkpoint --episodes 16 0.7,1.8,14,-4 1,2.6,20,-10
    python benchmarks/lag.py runs/run/<date>/checkpoint --episodes 4 --online 0.7,1.8,14,-4 0.3,0.8,4,-4

Settings and method are those of benchmarks/bridge_limits.py: virtual time, real interpolator, filter and scene; what a
wire and a busy machine add is not in it. With --online the box plans to each target (0.8 rad/s, 4 rad/s²), as in mode 6.
The limits themselves are set aside, so that what would be stopped shows its size.
"""


import bridge_limits  # beside this file
import numpy as np
import torch

from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.control.safety import Safe, SafetyFilter, Verdict
from s2robot.envs.real.emulator.motion import Motion, Plan
from s2robot.envs.real.emulator.scene import ScenePlant, SceneRenderer
from s2robot.loading import load_policy

GRIPPER_HOLD = 5  # bridge.loop's
SPEED, ACCELERATION = 0.8, 4.0  # rad/s, rad/s²: bridge.arm's, of mode online
lags: list[tuple[float, float, bool]] = []  # rad, m, clamped; of every call


class Noted(SafetyFilter):
    """A filter that notes how far the arm is behind."""

    def __call__(self, q_target: object, gripper: object, q_measured: np.ndarray, state_age: float) -> Safe:
        behind = np.linalg.norm(self.points.at(self.q_last) - self.points.at(q_measured), axis=1)
        lag = np.abs(self.q_last - q_measured).max()
        safe = super().__call__(q_target, gripper, q_measured, state_age)
        lags.append((float(lag), float(behind.max()), safe.verdict == Verdict.CLAMP))
        return safe


class Online(Motion):
    """The box in mode 6: every set point is planned to."""

    def servo(self, target: np.ndarray) -> None:
        self.plan(Plan(np.array(target, float), SPEED, ACCELERATION))


def main() -> None:
    parser = bridge_limits.arguments(__doc__.splitlines()[0], 16)
    parser.add_argument("--online", action="store_true", help="the box plans, as in mode 6")
    args = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    bridge_limits.SafetyFilter = Noted  # what its episodes are made of
    if args.online:
        bridge_limits.Motion = Online
    actor, encoder, contract = load_policy(args.checkpoint, "cpu")
    config = CubePickConfig(**contract["env_config"] | {"image_size": encoder.image_size})
    plant, points = ScenePlant(config), ArmPoints(config.robot)
    renderer = SceneRenderer(plant)
    print(
        f"{'speed,dq,ddq,clearance':<24}{'success':>9}{'rad: p99':>10}{'max':>7}{'mm: p99':>9}{'max':>7}{'clamped':>9}"
    )
    for text in args.settings:
        speed, limits = bridge_limits.parsed(text)
        limits = limits.replace(lag_max=9.0, point_lag_max=9.0)
        lags.clear()
        rows = [
            bridge_limits.episode(plant, renderer, actor, points, limits, speed, seed, GRIPPER_HOLD)
            for seed in range(args.seed, args.seed + args.episodes)
        ]
        rad, metres, clamped = np.array(lags, float).T
        print(
            f"{text:<24}{sum(r['success'] for r in rows):>5} / {len(rows)}{np.percentile(rad, 99):>10.3f}{rad.max():>7.3f}"
            f"{1000 * np.percentile(metres, 99):>9.0f}{1000 * metres.max():>7.0f}{clamped.mean():>9.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
