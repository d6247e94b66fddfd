"""A trained policy on an arm.

    s2robot robot check checkpoint=<folder> robot.ip=192.168.1.200        # does it fit? nothing moves
    s2robot deploy checkpoint=<folder> robot.ip=192.168.1.200             # a dry run: everything but motion
    s2robot deploy --live --episodes 5 --record demos.zarr checkpoint=<folder> robot.ip=192.168.1.200

Space, q and Ctrl-C brake and stop the arm; so does everything that goes wrong, in this process or by another one
that watches it. All of that is software: a hardware emergency stop has to be within reach.
"""

from contextlib import ExitStack
from pathlib import Path

from omegaconf import DictConfig

from s2robot.deployment.live import DeploySettings, LiveSession
from s2robot.deployment.panel import WAITING, Board, keys
from s2robot.deployment.policy import Policy
from s2robot.deployment.rig import Rig
from s2robot.deployment.trace import Trace
from s2robot.envs.real.control.loop import Result
from s2robot.envs.real.control.subscriber import Subscriber
from s2robot.envs.real.control.watchdog import State
from s2robot.envs.real.operator.stop import Stop

FAULT_EXIT = 1  # exit code


def check(cfg: DictConfig) -> None:
    """`s2robot robot check`: the pre-flight alone."""
    with ExitStack() as stack:
        Rig.connect(cfg, stack).check(Path(cfg.run_dir) / "camera_check.png")
    print("nothing speaks against this policy on this robot")


def deploy(cfg: DictConfig) -> int:
    """`s2robot deploy`: the exit code, 0 or that of a fault.

    Raises:
        UserError, EnvError: a wrong setting, or something that the pre-flight refuses; nothing has moved then.
        KeyboardInterrupt: Ctrl-C; the arm has been stopped.
    """
    settings = DeploySettings.of(cfg)
    out = Path(cfg.run_dir)
    with ExitStack() as stack:
        rig = Rig.connect(cfg, stack)
        rig.check(out / "camera_check.png", settings.live)
        good = LiveSession(rig, settings, out).run() if settings.live else dry_run(rig, settings, out)
        return 0 if good else FAULT_EXIT


class _Fresh(Subscriber):
    """A policy that begins anew with each episode."""

    def __init__(self, policy: Policy):
        self._policy = policy

    def on_begin(self) -> None:
        """See `Subscriber`."""
        self._policy.reset()


def dry_run(rig: Rig, settings: DeploySettings, out: Path) -> bool:
    """Everything but motion; draws what would have been sent. False after a fault."""
    steps, arm = settings.dry_run_steps, rig.arm
    trace, board = Trace(arm.limits), Board(arm.readers, False, 1, arm.limits.rate_hz)
    board.episode, board.max_steps, board.doing = 1, steps, WAITING
    stop = Stop()
    runtime = rig.runtime(False, [board, trace, _Fresh(rig.policy)], stop)
    with stop.on_signals(), board.shown(), keys(lambda key: stop.ask() if key in " q" else None):
        stop.moving = True  # Ctrl-C ends the loop in order
        result = runtime.run(steps)
        stop.moving = False
    title = f"dry run of {result.steps} decisions, each from where the arm stands: what would have been sent"
    trace.write(out / "dry_run", title)
    _tell(result, trace, out)
    if stop.interrupted:
        raise KeyboardInterrupt
    return result.state != State.FAULT


def _tell(result: Result, trace: Trace, out: Path) -> None:
    found = trace.summary()
    verdicts = ", ".join(f"{name} {count}" for name, count in found["verdicts"].items())
    print(f"dry run: {result.steps} decisions, {found['periods']} commands not sent ({verdicts})")
    for reason, count in found["reasons"].items():
        print(f"    {count} times: {reason}")
    if found["periods"]:
        print(
            f"fastest {found['speed_max']:.2f} rad/s; nearest to a limit: joint {found['room_joint']}, "
            f"{found['room_min']:.2f} rad\npicture: {out / 'dry_run.png'}"
        )
    if result.state == State.FAULT:
        print(f"FAULT: {'; '.join(result.reasons)}")
