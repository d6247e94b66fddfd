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

from s2robot.deployment.live import LiveSession, check_settings
from s2robot.deployment.panel import WAITING, Board, keys
from s2robot.deployment.rig import Rig, Stop
from s2robot.deployment.trace import Trace
from s2robot.envs.real.control.watchdog import State

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
    check_settings(cfg)
    out = Path(cfg.run_dir)
    with ExitStack() as stack:
        rig = Rig.connect(cfg, stack)
        rig.check(out / "camera_check.png")
        if cfg.live:
            return 0 if LiveSession(rig, out).run() else FAULT_EXIT
        return 0 if dry_run(rig, out) else FAULT_EXIT


def dry_run(rig: Rig, out: Path) -> bool:
    """Everything but motion; draws what would have been sent. False after a fault."""
    steps = rig.cfg.dry_run_steps
    trace, board = Trace(rig.limits), Board(rig.readers, live=False, episodes=1, rate_hz=rig.limits.rate_hz)
    board.episode, board.max_steps, board.doing = 1, steps, WAITING

    def begin() -> None:
        board.doing = ""
        rig.policy.reset()

    def period(now: float, state: State, safe) -> None:
        trace.add(now, state, safe)
        board.period(now, state, safe)

    def step(values: dict) -> None:
        board.step += 1

    stop = Stop()
    loop = rig.loop(live=False, reset=begin, beat=board.beat, on_period=period, on_step=step)
    stop.stop = loop.request_stop
    with stop.on_signals(), board.shown(), keys(lambda key: stop.ask() if key in " q" else None):
        stop.moving = True  # Ctrl-C ends the loop in order
        result = loop.run(steps)
        stop.moving = False
    trace.write(
        out / "dry_run",
        f"dry run of {result.steps} decisions, each from where the arm stands: what would have been sent",
    )
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
    if stop.interrupted:
        raise KeyboardInterrupt
    return result.state != State.FAULT
