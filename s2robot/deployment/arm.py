"""The arm of a deployment: what makes its drivers, and what the pre-flight knows of it."""

from collections.abc import Callable
from functools import partial

from s2robot.common.errors import UserError
from s2robot.deployment.preflight import Robot
from s2robot.deployment.scene import Scene
from s2robot.deployment.settings import Bench
from s2robot.envs.cube_config import ACTION_FRAME
from s2robot.envs.real.arms.driver import ArmLimits
from s2robot.envs.real.arms.sdk import LOG_FILE
from s2robot.envs.real.arms.xarm import XArmDriver

JOINT_NAMES = tuple(f"joint{i}" for i in range(1, 8))


def driver_maker(bench: Bench, limits: ArmLimits, scene: Scene | None) -> Callable[..., XArmDriver]:
    """Makes unconnected drivers, with `gripper=False` for one that only stops; picklable.

    In whatever process it makes one, the SDK's own lines go to `LOG_FILE` in the run's folder; the name is printed.
    """
    ip = bench.robot.ip or (scene.host if scene is not None else None)
    if scene is not None and ip != scene.host:
        raise UserError(
            f"robot.ip: found {ip} with bridge.{scene.name}.port, expected {scene.host}: no arm is meant"
        )
    arm, log = bench.bridge.arm, bench.run_dir / LOG_FILE
    print(f"what the arm's SDK says: {log}", flush=True)
    return partial(XArmDriver, str(ip), limits, arm, scene.ports if scene else None, log=log)


def robot_of(limits: ArmLimits, rate_hz: float) -> Robot:
    """The arm as the pre-flight compares it; `rate_hz` is of the policy's steps at full speed."""
    return Robot("xarm7", JOINT_NAMES, rate_hz, ACTION_FRAME, limits.q_min, limits.q_max)
