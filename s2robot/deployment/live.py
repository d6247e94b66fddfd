"""Episodes on the arm, one after the other: ready the scene, move to the start, act, judge, record."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console

from s2robot.common.errors import UserError
from s2robot.common.files import write_json
from s2robot.demos.store import EpisodeStore
from s2robot.deployment.arm import JOINT_NAMES
from s2robot.deployment.operator import check_operator
from s2robot.deployment.panel import WAITING, Board, keys
from s2robot.deployment.rig import Rig, Stop
from s2robot.deployment.settings import read_bridge
from s2robot.deployment.trace import Trace
from s2robot.envs.cube_config import ACTION_FRAME, ENV_VERSION
from s2robot.envs.errors import EnvError
from s2robot.envs.real.control.loop import Result
from s2robot.envs.real.control.move import move_slowly
from s2robot.envs.real.control.recorder import EpisodeRecorder
from s2robot.envs.real.control.safety import Safe
from s2robot.envs.real.control.supervisor import Supervisor
from s2robot.envs.real.control.watchdog import State
from s2robot.envs.real.people.operator import ask

WORD = "move"  # what the operator types before the arm moves
CAUSES = ("steps", "ended", "stopped", "fault")  # how an episode ended; recorded as its place here
_JUDGE_S = 0.2  # s between two looks at the emulated cube


def check_settings(cfg: DictConfig) -> None:
    """Refuse what cannot go well, before anything is connected."""
    if cfg.live and not cfg.confirm and cfg.bridge.emulator.port is None:
        raise UserError(
            "confirm: found false on a real arm, expected true: a person has to say that it may move"
        )
    for key in ("episodes", "dry_run_steps"):
        if cfg[key] < 1:
            raise UserError(f"{key}: found {cfg[key]}, expected 1 or more")
    if cfg.record is not None and not cfg.live:
        raise UserError("record: found a path without --live, expected both: a dry run has nothing to record")
    if cfg.live:
        check_operator(read_bridge(cfg.bridge))


class LiveSession:
    """`--live`: runs the episodes and writes `summary.json`, and each one's commands, to `out`."""

    def __init__(self, rig: Rig, out: Path):
        self.rig, self.cfg, self.out = rig, rig.cfg, out
        self.board = Board(rig.readers, True, self.cfg.episodes, rig.limits.rate_hz)
        self.board.max_steps = rig.bench.bridge.loop.max_steps
        self.stop = Stop()
        self.trace = Trace(rig.limits)
        self.records: list[dict[str, Any]] = []
        self.recorder: EpisodeRecorder | None = None
        self._verdict: bool | None = None  # of the operator, by key
        self._acting = False  # whether the policy acts: a verdict is of nothing else
        self._decisions: list[float] = []  # s, when each action of the episode was taken up
        self.loop = rig.loop(
            live=True, reset=self._begin, beat=self._beat, on_step=self._on_step, on_period=self._on_period
        )
        self.stop.stop = self.loop.request_stop
        self._supervisor: Supervisor | None = None

    def run(self) -> bool:
        """All episodes; False after a fault. Raises KeyboardInterrupt after Ctrl-C, with the arm stopped."""
        self._confirm()
        fault = ""
        with self.started():
            for i in range(self.cfg.episodes):
                fault = self.episode(i)
                if fault or self.stop.asked():
                    break
        if fault:
            print(f"FAULT: {fault}\nThe arm is stopped. Look at it before anything else.", flush=True)
        done = len(self.records)
        print(f"{self.board.successes} of {done} episodes succeeded: {self.out / 'summary.json'}", flush=True)
        if self.stop.interrupted:
            raise KeyboardInterrupt
        return not fault

    @contextmanager
    def started(self) -> Iterator[None]:
        """The arm is armed and watched, signals stop it; at the end it is stopped and `summary.json` written."""
        store = self._open_store()
        make = partial(self.rig.make_driver, gripper=False)
        try:
            with (
                self.stop.on_signals(),
                Supervisor(make, self.rig.bench.bridge.supervisor_s) as self._supervisor,
            ):
                self.rig.driver.arm()
                yield
        finally:
            self.rig.driver.stop("end of the session")
            if store is not None:
                store.close()
            self._write_summary()

    # ---------------------------------------------------------------- an episode

    def episode(self, i: int) -> str:
        """One episode; what the fault was, if there was one."""
        seed = self.cfg.seed + i
        board = self.board
        board.episode, board.step = i + 1, 0
        self._verdict, self.trace, self._decisions = None, Trace(self.rig.limits), []
        scene = self.rig.scene
        if scene is None and not self._ask_for_scene(i):
            self.stop.ask()
            return ""
        result, fault = None, ""
        try:
            with self._watched():
                if self._go_to_start(seed):
                    with self._judging():
                        result = self.loop.run(self.rig.bench.bridge.loop.max_steps)
        except EnvError as error:  # the arm has been stopped by who raised it
            fault = str(error)
        finally:
            self._acting = False
            self._rest()
        if result is None and not fault:  # stopped on the way to the start
            return ""
        if result is not None and result.state == State.FAULT:
            fault = "; ".join(result.reasons)
        cause = "fault" if fault or result is None else result.cause
        success = False
        try:
            success = self._judge(cause)
        finally:  # Ctrl-C at that question: the episode was run all the same
            self._note(i, seed, success, cause, fault, result)
        return fault

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """The panel is up and stops are a matter of braking."""
        with self.board.shown(), keys(self._on_key):
            self.stop.moving = True
            try:
                yield
            finally:
                self.stop.moving = False

    def _go_to_start(self, seed: int) -> bool:
        """Slowly to where the episode starts, the gripper open; on the emulator the cube is laid. False after a stop."""
        self.board.doing = "moving to the start"
        driver, safety, scene = self.rig.driver, self.loop.safety, self.rig.scene
        if driver.stopped:  # while the operator was at the table
            driver.arm()
        move = partial(
            move_slowly, driver, safety, opening=1.0, speed=self.rig.bench.bridge.home.speed, beat=self._beat,
            stopped=self.stop.asked,
        )  # fmt: skip
        there = move(self.rig.bench.robot.home)
        if there and scene is not None:
            self._rest()
            there = move(scene.reset(seed))
        self._rest()
        self.board.doing = WAITING
        return there

    @contextmanager
    def _judging(self) -> Iterator[None]:
        """On the emulator: end the episode when the cube has been held up."""
        scene = self.rig.scene
        if scene is None:
            yield
            return
        ended = threading.Event()

        def watch() -> None:
            # once the scene is gone there is nothing to judge, and the loop sees for itself that the arm is gone
            with suppress(EnvError):
                while not ended.wait(_JUDGE_S):
                    if scene.is_success():
                        self.loop.request_end()
                        return

        thread = threading.Thread(target=watch, daemon=True, name="judge")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(5.0)

    def _judge(self, cause: str) -> bool:
        """Whether the cube was picked: the operator's word, or the emulator's."""
        if cause in ("stopped", "fault"):
            return False
        if self.rig.scene is not None:
            return self.rig.scene.is_success()
        if self._verdict is not None:
            return self._verdict
        while sys.stdin.isatty():
            answer = ask("Did it succeed? [y/n] ")
            if answer in ("y", "yes", "n", "no"):
                return answer[0] == "y"
        return False  # the terminal has gone, and nobody says yes

    def _note(self, i: int, seed: int, success: bool, cause: str, fault: str, result: Result | None) -> None:
        self.board.judged += 1
        self.board.successes += success
        if self.recorder is not None:
            self.recorder.finish(success=success, seed=seed, cause=CAUSES.index(cause))
        self.trace.write(self.out / "episodes" / f"episode_{i:04d}", f"episode {i}, {cause}")
        record: dict[str, Any] = {
            "episode": i, "seed": seed, "success": success, "cause": cause, "fault": fault, "steps": self.board.step,
            "verdicts": self.trace.summary()["verdicts"], "reasons": self.trace.summary()["reasons"],
            "changes": [[s.value, list(why)] for _, s, why in self.loop.watchdog.history],
        }  # fmt: skip
        self.loop.watchdog.history.clear()
        if result is not None:
            periods = np.abs(result.periods - 1 / self.rig.limits.rate_hz)
            record["period_deviation_ms"] = percentiles(periods)
            record["latency_ms"] = percentiles(result.latencies)
            record["periods_s"] = result.periods.round(5).tolist()
            record["decision_periods_s"] = np.diff(self._decisions).round(5).tolist()
            record["latencies_s"] = result.latencies.round(5).tolist()
        self.records.append(record)
        words = "success" if success else "no success"
        print(
            f"episode {i + 1} of {self.cfg.episodes} (seed {seed}): {words}, {self.board.step} decisions, {cause}",
            flush=True,
        )

    # ---------------------------------------------------------------- called by the loop

    def _begin(self) -> None:
        """Before an episode's first command."""
        self.board.doing = ""
        self.rig.policy.reset()
        self._acting = True
        if self.stop.asked():  # asked for since the move to the start
            self.loop.request_stop()

    def _beat(self) -> None:
        assert self._supervisor is not None
        self._supervisor.beat()
        self.board.beat()

    def _rest(self) -> None:
        assert self._supervisor is not None
        try:
            self._supervisor.rest()
        except EnvError:
            pass  # told by the next beat, before the next motion

    def _on_step(self, values: dict) -> None:
        self.board.step += 1
        self._decisions.append(float(values["time_action"]))
        if self.recorder is not None:
            self.recorder.add(values)

    def _on_period(self, now: float, state: State, safe: Safe | None) -> None:
        self.trace.add(now, state, safe)
        self.board.period(now, state, safe)

    def _on_key(self, key: str) -> None:
        if key in " q":
            self.stop.ask()
        elif key in "yn" and self._acting and self.rig.scene is None:
            self._verdict = key == "y"
            self.loop.request_end()

    # ---------------------------------------------------------------- operator, files

    def _confirm(self) -> None:
        """Raises UserError unless the operator says that the arm may move."""
        if not self.cfg.confirm:
            return
        Console().print(
            f"[bold]The arm at {self.rig.driver.ip} is about to move.[/] Is its space clear, and the emergency stop "
            f"within reach?"
        )
        answer = ask(f"Type '{WORD}' to go on: ")
        if answer != WORD:
            raise UserError(f"confirmation: found '{answer}', expected '{WORD}'; nothing has moved")

    def _ask_for_scene(self, i: int) -> bool:
        """The operator readies the table; False to end the session."""
        self.rig.driver.stop("the operator is at the table")  # hands come near
        text = "Lay the cube. The arm then moves slowly to its start. Enter: go on, q: end. "
        return ask(f"episode {i + 1} of {self.cfg.episodes}. {text}", none="q") != "q"

    def _open_store(self) -> EpisodeStore | None:
        """The store of `record`, made if there is none, and what collects episodes for it.

        Raises:
            DatasetError, UserError: one that holds something else.
        """
        if self.cfg.record is None:
            return None
        path, contract = Path(self.cfg.record), self.rig.policy.contract
        rate, speed = contract["rate_hz"], self.rig.bench.bridge.speed
        size = self.rig.policy.image_size
        names = list(self.rig.readers)
        if path.exists():
            store = EpisodeStore.open(path, "a")
            store.check("xarm7", ACTION_FRAME, names, rate)
            for name, wanted in (("kind", "images"), ("speed", speed)):
                found = store.attrs.get(name)
                if found != wanted:
                    store.close()
                    raise UserError(f"{path}: found {name} {found}, expected {wanted} to append to it")
        else:
            fovy = {name: camera.fovy for name, camera in self.rig.cameras.facts.items()}
            attributes = {
                "robot": "xarm7", "joint_names": list(JOINT_NAMES), "rate_hz": rate, "cameras": names,
                "camera_geometry": {
                    name: {"size": [size, size]} | ({"fovy": fovy[name]} if fovy[name] else {}) for name in names
                },
                "action_frame": ACTION_FRAME, "env_version": ENV_VERSION, "env_config": {}, "seed": self.cfg.seed,
                "kind": "images", "source": "emulator" if self.rig.scene else "arm", "causes": list(CAUSES),
                "speed": speed,  # rate_hz is that of the steps at full speed, as in the demos
                "policy": contract["encoder"]["fingerprint"],
            }  # fmt: skip
            store = EpisodeStore.create(path, attributes)
        self.recorder = EpisodeRecorder(store)
        return store

    def _write_summary(self) -> None:
        write_json(
            self.out / "summary.json",
            {
                "robot": self.rig.bench.robot.name,
                "checkpoint": self.cfg.checkpoint or self.cfg.policy.url,
                "emulated": self.rig.scene is not None,
                "speed": self.rig.bench.bridge.speed,
                "episodes": len(self.records),
                "successes": self.board.successes,
                "records": self.records,
            },
        )


def percentiles(seconds: np.ndarray) -> dict[str, float] | None:
    """p50, p99 and max in ms; None of nothing."""
    if not len(seconds):
        return None
    p50, p99, most = np.percentile(seconds * 1000, (50, 99, 100))
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "max": round(float(most), 2)}
