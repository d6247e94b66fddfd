"""A trained policy on an arm.

Space, q, Ctrl-C and any failure brake and stop the arm, through this process or the supervisor process.
All of this is software: a hardware emergency stop must be within reach.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from s2robot.core.errors import UserError
from s2robot.core.files import write_json
from s2robot.core.settings import Positions, from_yaml, read_some
from s2robot.demos.store import EpisodeStore
from s2robot.deployment.operator import check_operator, keys
from s2robot.deployment.panel import WAITING, Board
from s2robot.deployment.session import Outcome, Rig, reason_of
from s2robot.deployment.settings import read_bridge
from s2robot.deployment.store import CAUSES, open_store
from s2robot.deployment.trace import EpisodeLog, sampled
from s2robot.envs.real.control.subscriber import EpisodeRecorder
from s2robot.envs.real.control.watchdog import State
from s2robot.envs.real.operator.prompts import CONFIRM, WORD, ask


class DeploySettings(Positions, file="deploy"):
    check: bool = from_yaml()
    live: bool = from_yaml()
    confirm: bool = from_yaml()
    record: str | None = from_yaml()
    dry_run_steps: int = from_yaml(ge=1)

    def rules(self) -> Iterable[tuple[Any, ...]]:
        why = "null without --live, since a dry run records nothing"
        yield "record", self.record is None or self.live, why
        yield "check", not (self.check and self.live), "false with --live"


def deploy(cfg: DictConfig) -> int:
    """Run `s2robot deploy`; return its exit code, 1 after a fault, else 0. Raises KeyboardInterrupt after Ctrl-C.

    Raises UserError or EnvError for a wrong setting or a failed pre-flight check, before anything moves.
    """
    settings, out = read_some(DeploySettings, cfg), Path(cfg.run_dir)
    if settings.live:
        bridge = read_bridge(cfg)
        if not settings.confirm and not bridge.emulated:
            raise UserError("confirm: expected true on a real arm: its operator must confirm, got false")
        check_operator(bridge, required=settings.confirm)
        if (out / "summary.json").exists():
            raise UserError(f"hydra.run.dir: expected a folder without episodes, got {out}")
    with ExitStack() as stack:
        rig = Rig(cfg, stack)
        rig.check(out / "camera_check.png", settings.live)
        if settings.check:
            print("this policy fits this robot")
            return 0
        session = LiveSession(rig, settings, out) if settings.live else None  # its dataset may be unusable
        if settings.live and settings.confirm:
            bench = rig.arm.bench
            where = f"[bold]The arm {bench.name} ({bench.ip or bench.port or bench.type or 'simulated'}) is about to move.[/]"
            Console().print(f"{where} Is its workspace clear, and is the emergency stop within reach?")
            if rig.arm.driver.stop_effect:
                print(f"At each stop, {rig.arm.driver.stop_effect}.")
            if (answer := ask(CONFIRM) or "") != WORD:
                raise UserError(f"confirmation: expected '{WORD}', got '{answer}'; nothing has moved")
        return int(not (session.run() if session else dry_run(rig, settings, out)))


def dry_run(rig: Rig, settings: DeploySettings, out: Path) -> bool:
    """Run everything except motion and plot the unsent commands. Return False after a fault."""
    steps, arm = settings.dry_run_steps, rig.arm
    log, board = EpisodeLog(arm.limits), Board(arm.readers, False, 1, arm.limits.rate_hz)
    board.episode, board.max_steps, board.doing = 1, steps, WAITING
    session = rig.session([board, log], live=False)
    stop = session.stop
    with stop.on_signals(), board.shown(), keys(lambda key: stop.request() if key in " q" else None):
        stop.moving = True  # Ctrl-C ends the loop cleanly
        result = session.runtime.run(steps)
        stop.moving = False
    title = f"dry run: unsent commands of {result.steps} decisions, each starting at the measured joints"
    log.write(out / "dry_run", title)
    summary = log.summary()
    verdicts = ", ".join(f"{name} {count}" for name, count in summary["verdicts"].items())
    print(f"dry run: {result.steps} decisions, {summary['periods']} commands not sent ({verdicts})")
    for reason, count in summary["reasons"].items():
        print(f"    {count} times: {reason}")
    if summary["periods"]:
        nearest = f"joint {summary['room_joint']}, {summary['room_min']:.2f} rad"
        print(f"fastest {summary['speed_max']:.2f} rad/s; nearest to a limit: {nearest}")
        print(f"plot: {out / 'dry_run.png'}")
    if result.state == State.FAULT:
        print(f"FAULT: {'; '.join(result.reasons)}")
    if stop.interrupted:
        raise KeyboardInterrupt
    return result.state != State.FAULT


class LiveSession:
    """`--live`: runs the episodes on a checked rig and writes `summary.json` and each episode's commands to `out`."""

    def __init__(self, rig: Rig, settings: DeploySettings, out: Path):
        self.rig, self.settings, self.out, arm = rig, settings, out, rig.arm
        self.board = Board(arm.readers, True, settings.episodes, arm.limits.rate_hz)
        self.board.max_steps = arm.bridge.loop.max_steps
        self.log = EpisodeLog(arm.limits)
        self.records, self.moved = list[dict[str, Any]](), False  # `moved`: the arm may have moved
        self.store = self._open_store(settings.record) if settings.record else None
        self.recorder = [] if self.store is None else [EpisodeRecorder(self.store)]
        self.session = rig.session([self.board, self.log, *self.recorder])

    def run(self) -> bool:
        """Run all episodes; False after a fault. Raises KeyboardInterrupt after Ctrl-C, with the arm stopped."""
        stop, fault, summary = self.session.stop, "", self.out / "summary.json"
        try:
            with ExitStack() as stack:
                if self.store is not None:
                    stack.enter_context(self.store)
                stack.callback(self._write_summary, summary)
                stack.enter_context(self.session.started())
                for i in range(self.settings.episodes):
                    if fault := self.episode(i):
                        print(f"FAULT: {fault}", flush=True)
                    if fault or stop.requested:
                        break
        except UserError as error:
            if not self.moved:
                raise
            fault = str(error)
            print(f"FAULT: {fault}", flush=True)
        if fault and self.session.runtime.confirmed:
            print("The arm is stopped. Inspect the arm before doing anything else.", flush=True)
        print(f"{self.board.successes} of {len(self.records)} episodes succeeded: {summary}", flush=True)
        if stop.interrupted and not fault:
            raise KeyboardInterrupt
        return not fault

    def episode(self, i: int) -> str:
        """Run one episode; return its fault, or "" if there was none."""
        seed, session = self.settings.seed + i, self.session
        self.board.episode, self.board.step = i + 1, 0
        self.log.begin()
        session.begin()
        if session.operator.person:
            session.runtime.stop_for_operator("the operator is at the table")  # the operator may reach in
        if not session.operator.wait_to_start(i, self.settings.episodes):
            session.stop.request()
            return ""
        outcome, success = Outcome("stopped"), False
        try:
            acted = self._act(seed)
            if acted is None:  # stopped on the way to the start
                return ""
            outcome = acted._replace(cause="stopped")  # if the question is interrupted
            success = acted.cause in ("steps", "ended") and session.operator.success()
            outcome = acted
        finally:  # also after a second Ctrl-C, since the episode was run
            if session.began or outcome.fault:
                self._store(i, seed, success, outcome)
        return outcome.fault

    def _act(self, seed: int) -> Outcome | None:
        """Move to the start and let the policy act; return None if stopped before that."""
        session, operator, board = self.session, self.session.operator, self.board
        try:
            with board.shown():
                operator.watch()
                board.doing, self.moved = "moving to the start", True
                there = session.go_to(self.rig.arm.bench.start)
                if there and (start := operator.lay(seed)) is not None:  # with the emulator
                    there = session.go_to(start)
                board.doing = WAITING
                return session.act(board.max_steps) if there else None
        except Exception as error:
            session.runtime.driver.stop("fault")  # a reading may have failed between two moves
            return Outcome("fault", reason_of(error))
        finally:
            operator.rest()

    def _store(self, i: int, seed: int, success: bool, outcome: Outcome) -> None:
        log, actor, watchdog = self.log, self.rig.policy.actor, self.session.runtime.loop.watchdog
        self.board.judged += 1
        self.board.successes += success
        counts = log.summary()
        self.records.append({
            "episode": i, "seed": seed, "success": success, "cause": outcome.cause, "fault": outcome.fault,
            "steps": len(log.actions), "verdicts": counts["verdicts"], "reasons": counts["reasons"],
            "changes": [[s.value, list(why)] for _, s, why in watchdog.history],
            **(log.timing(outcome.result) if outcome.result is not None else {}), **sampled(actor),
        })  # fmt: skip
        watchdog.history.clear()
        try:
            for recorder in self.recorder:  # before anything that may fail or be interrupted
                self.session.store(recorder, success=success, seed=seed, cause=CAUSES.index(outcome.cause))
        finally:  # the dataset's disk may be full
            ended = f"{'success' if success else 'no success'}, {len(log.actions)} decisions, {outcome.cause}"
            print(f"episode {i + 1} of {self.settings.episodes} (seed {seed}): {ended}", flush=True)
            log.write(self.out / "episodes" / f"episode_{i:04d}", f"episode {i}, {outcome.cause}")

    def _open_store(self, path: str) -> EpisodeStore:
        """Open the store to which every episode is appended. Raises DatasetError, UserError: another dataset."""
        arm, contract = self.rig.arm, self.rig.policy.contract
        # rate_hz is the rate at full speed, as in the demos
        return open_store(
            Path(path), arm.bench, contract["rate_hz"], arm.cameras, self.rig.policy.image_size, {"speed": arm.bridge.speed},
            seed=self.settings.seed, source="emulator" if arm.scene else "arm", causes=list(CAUSES),
            policy=contract["encoder"]["fingerprint"],
        )  # fmt: skip

    def _write_summary(self, path: Path) -> None:
        arm = self.rig.arm
        write_json(path, {
            "robot": arm.bench.name, "checkpoint": self.rig.source.name, "emulated": arm.scene is not None,
            "speed": arm.bridge.speed, "episodes": len(self.records), "successes": self.board.successes,
            "records": self.records,
        })  # fmt: skip
