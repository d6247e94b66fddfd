"""Episodes on the arm, one after the other: ready the scene, move to the start, act, judge, record."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from s2robot.common.errors import UserError
from s2robot.common.ranges import INFINITY, check_ranges
from s2robot.common.settings import read
from s2robot.demos.store import EpisodeStore
from s2robot.deployment.log import CAUSES, SessionLog
from s2robot.deployment.operator import DeployOperator, WatchingOperator, check_operator
from s2robot.deployment.panel import WAITING, Board
from s2robot.deployment.rig import Rig
from s2robot.deployment.settings import read_bridge
from s2robot.deployment.store import open_store
from s2robot.envs.errors import EnvError
from s2robot.envs.real.control.loop import Result
from s2robot.envs.real.control.subscriber import Subscriber
from s2robot.envs.real.operator.prompts import ask
from s2robot.envs.real.operator.stop import Stop

WORD = "move"  # what the operator types before the arm moves


@dataclass(frozen=True)
class DeploySettings:
    """What `s2robot deploy` does; configs/deploy.yaml says it of each."""

    live: bool
    confirm: bool
    episodes: int
    seed: int
    record: str | None
    dry_run_steps: int

    def __post_init__(self) -> None:
        for key in ("episodes", "dry_run_steps"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}: found {getattr(self, key)}, expected 1 or more")
        check_ranges(self, "", seed=(0, INFINITY))
        if self.record is not None and not self.live:
            raise UserError(
                "record: found a path without --live, expected both: a dry run has nothing to record"
            )

    @classmethod
    def of(cls, cfg: DictConfig) -> "DeploySettings":
        """Of the verb's config. Raises UserError for what cannot go well, before anything is connected."""
        if cfg.live and not cfg.confirm and cfg.bridge.emulator.port is None:
            raise UserError(
                "confirm: found false on a real arm, expected true: a person has to say that it may move"
            )
        settings = read(cls, {key: cfg[key] for key in cls.__dataclass_fields__}, "")
        if settings.live:
            check_operator(read_bridge(cfg.bridge), asked=settings.confirm)
        return settings


class LiveSession(Subscriber):
    """`--live`: runs the episodes and writes `summary.json`, and each one's commands, to `out`.

    Args:
        rig: connected and checked.
        settings: of the verb.
        out: run folder.
    """

    def __init__(self, rig: Rig, settings: DeploySettings, out: Path):
        self.rig, self.settings, self.out = rig, settings, out
        arm = rig.arm
        self.max_steps = arm.bridge.loop.max_steps
        self.board = Board(arm.readers, True, settings.episodes, arm.limits.rate_hz)
        self.board.max_steps = self.max_steps
        self.log = SessionLog(arm.limits, out)
        self.stop = Stop()
        self.runtime = rig.runtime(True, [self.board, self.log, self], self.stop)
        asked = arm.operator(DeployOperator)
        self.operator = WatchingOperator(asked, self.stop, on_verdict=self.runtime.loop.request_end)

    def run(self) -> bool:
        """All episodes; False after a fault. Raises KeyboardInterrupt after Ctrl-C, with the arm stopped."""
        self._confirm()
        fault = ""
        with self.started():
            for i in range(self.settings.episodes):
                fault = self.episode(i)
                if fault or self.stop.asked():
                    break
        if fault:
            print(f"FAULT: {fault}\n{self.runtime.known} Look at it before anything else.", flush=True)
        done = len(self.log.records)
        print(f"{self.board.successes} of {done} episodes succeeded: {self.out / 'summary.json'}", flush=True)
        if self.stop.interrupted:
            raise KeyboardInterrupt
        return not fault

    @contextmanager
    def started(self) -> Iterator[None]:
        """The arm is armed and watched, signals stop it; at the end it is stopped and `summary.json` written."""
        store = self._open_store()
        try:
            with (
                nullcontext() if store is None else store,
                self.rig.arm.watched(self.runtime),
            ):
                self.runtime.arm()
                yield
        finally:
            self._write_summary()

    # ---------------------------------------------------------------- an episode

    def episode(self, i: int) -> str:
        """One episode; what the fault was, if there was one."""
        seed = self.settings.seed + i
        self.board.episode, self.board.step = i + 1, 0
        self.log.begin()
        self.operator.begin()
        if self.operator.person:
            self.runtime.stand("the operator is at the table")  # hands come near
        if not self.operator.wait_to_start(i, self.settings.episodes):
            self.stop.ask()
            return ""
        result, fault = self._act(seed)
        if result is None and not fault:  # stopped on the way to the start
            return ""
        cause = "fault" if fault or result is None else result.cause
        success = False
        try:
            # of what was broken off nobody is asked
            success = cause not in ("stopped", "fault") and self.operator.success()
        finally:  # Ctrl-C at that question: the episode was run all the same
            self._note(i, seed, success, cause, fault, result)
        return fault

    def _act(self, seed: int) -> tuple[Result | None, str]:
        """To the start, and then the policy: how it ended (None: not begun), and the fault, if there was one."""
        result, fault = None, ""
        try:
            with self.board.shown(), self.operator.watching():
                if self._go_to_start(seed):
                    with (
                        nullcontext() if self.operator.person else self.runtime.ends_when(self.operator.ended)
                    ):
                        result = self.runtime.run(self.max_steps)
        except EnvError as error:  # the arm has been stopped by who raised it
            fault = str(error)
        if result is not None and self.runtime.fault:
            fault = "; ".join(result.reasons)
        return result, fault

    def _go_to_start(self, seed: int) -> bool:
        """Slowly to where the episode starts, the gripper open; on the emulator the cube is laid. False after a stop."""
        self.board.doing = "moving to the start"
        if self.rig.arm.driver.stopped:  # while the operator was at the table
            self.runtime.arm()
        there = self.runtime.go_to(self.rig.arm.bench.robot.home)
        if there and (start := self.operator.lay(seed)) is not None:
            there = self.runtime.go_to(start)
        self.board.doing = WAITING
        return there

    def _note(self, i: int, seed: int, success: bool, cause: str, fault: str, result: Result | None) -> None:
        self.board.judged += 1
        self.board.successes += success
        record = self.log.note(i, seed, success, cause, fault, result, self.runtime.loop.watchdog)
        record["policy_seed"] = self.rig.policy.seed()
        if (disagreement := self.rig.policy.mean_disagreement()) is not None:
            record["disagreement"] = round(disagreement, 6)
        print(
            f"episode {i + 1} of {self.settings.episodes} (seed {seed}): {'success' if success else 'no success'}, "
            f"{record['steps']} decisions, {cause}",
            flush=True,
        )

    def on_begin(self) -> None:
        """See `Subscriber`."""
        self.rig.policy.reset()
        self.operator.judging = True  # a verdict is of nothing else
        if self.stop.asked():  # asked for since the move to the start
            self.runtime.loop.request_stop()

    # ---------------------------------------------------------------- operator, files

    def _confirm(self) -> None:
        """Raises UserError unless the operator says that the arm may move."""
        if not self.settings.confirm:
            return
        Console().print(
            f"[bold]The arm at {self.rig.arm.driver.ip} is about to move.[/] Is its space clear, and the emergency "
            f"stop within reach?"
        )
        answer = ask(f"Type '{WORD}' to go on: ")
        if answer != WORD:
            raise UserError(f"confirmation: found '{answer}', expected '{WORD}'; nothing has moved")

    def _open_store(self) -> EpisodeStore | None:
        """The store of `record`, made if there is none, which every episode is appended to.

        Raises:
            DatasetError, UserError: one that holds something else.
        """
        if self.settings.record is None:
            return None
        path, arm, contract = Path(self.settings.record), self.rig.arm, self.rig.policy.contract
        speed = arm.bridge.speed

        def same(store: EpisodeStore) -> None:
            for name, wanted in (("kind", "images"), ("speed", speed)):
                found = store.attrs.get(name)
                if found != wanted:
                    raise UserError(f"{path}: found {name} {found}, expected {wanted} to append to it")

        own = {
            "source": "emulator" if arm.scene else "arm", "causes": list(CAUSES),
            "speed": speed,  # rate_hz is that of the steps at full speed, as in the demos
            "policy": contract["encoder"]["fingerprint"],
        }  # fmt: skip
        store = open_store(
            path,
            "xarm7",
            contract["rate_hz"],
            arm.cameras.facts,
            self.rig.policy.image_size,
            self.settings.seed,
            own,
            same,
        )
        self.log.record_to(store)
        return store

    def _write_summary(self) -> None:
        arm = self.rig.arm
        self.log.write(
            robot=arm.bench.robot.name,
            checkpoint=self.rig.source.name,
            emulated=arm.scene is not None,
            speed=arm.bridge.speed,
            episodes=len(self.log.records),
            successes=self.board.successes,
        )
