"""Break an SO-101 behind LeRobot, on emulated servos, and measure the reaction, for benchmarks/faults.py.

Each run has new servos on a pseudo-terminal, in a process; LeRobot's `SOFollower`, the live loop with its default limits and
a supervisor run in others, as in `s2robot deploy`. The bus logs every goal and torque that arrives, from any sender.
"""

import fcntl
import os
import pty
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import cache, partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fault_bench import STOP_S, Bench, Case, Outcome
from benchmarks.fault_bridge import PATIENCE_S, Ripe, Swing
from benchmarks.fault_processes import Victim
from s2robot.core.settings import yaml_defaults
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.description import ArmDescription
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.arms.lerobot import LeRobotArm
from s2robot.envs.real.control.loop import LoopConfig
from s2robot.envs.real.control.watchdog import State
from s2robot.envs.real.emulator import servos
from s2robot.envs.real.emulator.servos import GOAL, POSITION, STEP_S, TICKS, TORQUE, ServoBus
from s2robot.envs.real.runtime import ArmRuntime

FORK = get_context("fork")  # LeRobot takes seconds to import
FAST = 0.4  # rad/s, from which on a fault strikes
WATCH_S, SETTLE_S = 1.5, 0.7  # s that the loop may take to end, and the arm then
JOINTS, RAD = 5, 2 * np.pi / TICKS  # rad per tick
MARGIN, MIDDLE = 700, (TICKS - 1) / 2  # ticks: the calibrated range and its zero
SO101 = {"type": "so101_follower", "id": "emulated", "units": "degrees"}


class FaultBus(ServoBus):
    """Servos that can be broken, and a journal.

    Attributes: `wire`, (s, kind, servo -> value) of each packet: kind "motion" or "hold" (goals to all servos or to one) or
    "torque"; `trace`, (s, ticks of each joint) of each step; `late`, s by which answers are; `frozen`, positions do not change.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wire: list[tuple[float, str, dict[int, int]]] = []
        self.trace: list[tuple[float, list[float]]] = []
        self.late, self.frozen, self._due = 0.0, False, list[tuple[float, bytes]]()

    def take(self, received: bytes) -> tuple[bytes, bytes]:
        answer, rest = super().take(received)
        now, due = time.monotonic(), self._due
        self._due = [*due, (now + self.late, answer)] if answer else due
        ready = [each for each in self._due if each[0] <= now]
        self._due = self._due[len(ready) :]
        return b"".join(answer for _, answer in ready), rest

    def advance(self, seconds: float) -> None:
        before = self.values(POSITION)
        super().advance(seconds)
        for servo, position in zip(self.servos.values(), before, strict=True):
            servo[POSITION] = position if self.frozen else servo[POSITION]
        self.trace.append((time.monotonic(), [servo.place for servo in self.servos.values()]))

    def pull(self) -> None:
        """Unplug the port; the servos have their own power."""
        silent_end, self._other_end = os.pipe()
        os.dup2(silent_end, self._terminal)

    def _answer(self, number: int, instruction: int, data: bytes) -> bytes:
        kinds = {(servos.SYNC_WRITE, GOAL[0]): "motion", (servos.WRITE, GOAL[0]): "hold"}
        kinds |= dict.fromkeys([(servos.SYNC_WRITE, TORQUE[0]), (servos.WRITE, TORQUE[0])], "torque")
        if kind := kinds.get((instruction, data[0] if data else 0)):
            each = [bytes([number]) + data[1:]]
            if instruction == servos.SYNC_WRITE:
                each = [data[at : at + data[1] + 1] for at in range(2, len(data), data[1] + 1)]
            values = {one[0]: int.from_bytes(one[1:3], "little") for one in each}
            self.wire.append((time.monotonic(), kind, values))
        return super()._answer(number, instruction, data)


def speeds(trace: list) -> np.ndarray:
    """Return the fastest joint's speed in each step, rad/s.  # (N - 1,)"""
    return np.abs(np.diff([places[:JOINTS] for _, places in trace], axis=0)).max(1) * RAD / STEP_S


def serve(pipe: Any, calibration: Path) -> None:
    """Serve servos, and evaluate what the pipe brings; in its own session, to which the scheduler gives its own share."""
    os.setsid()
    with FaultBus() as bus:
        bus.calibrate(calibration, MARGIN)
        pipe.send(bus.port)
        while True:
            pipe.send(eval(pipe.recv(), globals() | vars(servos) | {"bus": bus}))


def retried(call: Callable[[], None]) -> None:
    """Call until it succeeds: on a busy machine some of the many answers at the start come late."""
    for _ in range(20):
        with suppress(EnvError):
            return call()


def act_out(said: Any, about: ArmDescription) -> None:
    """Run the loop until it ends; say `moving` once it moves, then the watchdog's history."""
    make, swing = partial(LeRobotArm, about, about.limits()), Swing()
    act = lambda seen: swing(seen)[[6, 1, 2, 3, 4, 7]]  # noqa: E731
    with make() as arm:
        retried(lambda: arm.connect(PATIENCE_S))
        runtime = ArmRuntime(arm, {}, act, ArmPoints(), LoopConfig(live=True, gripper="continuous"))
        moving = cache(lambda: said.send("moving"))  # once
        runtime.loop.subscribers.append(Ripe(runtime.loop, swing, moving))
        runtime.stop.moving = True
        with runtime.watched(partial(make, gripper=False), 0.3):
            retried(runtime.arm)
            with suppress(EnvError):  # the watchdog has it too
                runtime.run(10_000)
    said.send(runtime.loop.watchdog.history)


class Loop(FORK.Process):  # type: ignore[name-defined]
    """The control loop in a process group of its own, or with `terminal` on a terminal of its own."""

    hit = Victim.hit

    def __init__(self, about: ArmDescription, terminal: bool):
        self._terminal, self._theirs = pty.openpty()
        self.said, self._says = FORK.Pipe(False)
        super().__init__(target=self._live, args=(about, terminal))

    def _live(self, about: ArmDescription, terminal: bool) -> None:
        os.close(self._terminal)
        if terminal:
            os.setsid()
            fcntl.ioctl(self._theirs, termios.TIOCSCTTY, 0)
        else:  # a group that leads its session would not be suspended by SIGTSTP
            os.setpgid(0, 0)
        for descriptor in range(3):
            os.dup2(self._theirs, descriptor)
        try:
            act_out(self._says, about)
        except Exception as error:
            self._says.send(f"{error}")

    def heard(self) -> Any:
        """Return what it says; None if it has ended."""
        with suppress(EOFError):
            return self.said.recv() if self.said.poll(PATIENCE_S) else None

    def __enter__(self) -> "Loop":
        self.start()
        os.close(self._theirs)
        self._says.close()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.join()
        if self._terminal >= 0:
            os.close(self._terminal)


class ServoBench(Bench):
    """Runs cases; `folder` is for the calibration file."""

    def __init__(self, folder: Path):
        self.folder, self.rng = folder, np.random.default_rng(0)
        for module in ("draccus", "lerobot.robots.so_follower"):  # for the forks
            import_module(module)

    def run(self, case: Case) -> Outcome:
        """One episode with one fault."""
        out = Outcome(case.name, record_intact=True)
        pipe, remote = FORK.Pipe()
        serving = FORK.Process(target=serve, args=(remote, self.folder / "emulated.json"), daemon=True)

        def ask(code: str) -> Any:
            pipe.send(code)
            return pipe.recv()

        with ExitStack() as stack:
            serving.start()
            stack.callback(serving.kill)
            options = {"calibration_dir": str(self.folder)}
            own = {**SO101, "port": pipe.recv(), "options": options, "stop": case.stop}
            about = ArmDescription(**{**yaml_defaults("robot/lerobot"), **own})
            loop = stack.enter_context(Loop(about, case.process == "terminal closed"))
            if (said := loop.heard()) != "moving":
                out.problem = f"no fault: the loop said {said}"
                return out
            time.sleep(self.rng.uniform(0, 0.1))
            while (speed := ask("speeds(bus.trace[-11:]).mean()")) < FAST and loop.is_alive():
                time.sleep(0.01)  # a busy machine has paused it
            fault = time.monotonic()
            loop.hit(case.process) if case.process else ask(case.bus)
            loop.said.poll(WATCH_S)  # until it ends
            time.sleep(SETTLE_S)
            at_rest = time.monotonic()
            ask("setattr(bus, 'mute', False)")  # a supervisor that still tries may stop the arm now
            loop.hit("group SIGCONT")  # a loop that comes back finds the arm stopped
            said = loop.heard()
            loop.join(PATIENCE_S)
            wire, trace, deaf = ask(
                "(bus.wire[:], bus.trace[:], [i for i in bus.servos if bus.servos[i].silent])"
            )
        history = said if isinstance(said, list) else [(fault, State.IDLE, (str(said),))]
        out.state, out.reasons = history[-1][1].name, history[-1][2]
        out.state = "STOPPED" if case.designed == "STOPPED" else out.state if said else "gone"
        out.speed, self.notes, out.unsafe = float(speed), {"history": history}, unsafe(wire, trace, about)
        self._trace(out, np.array([at for at, _ in trace[1:]]), speeds(trace), fault, at_rest)
        self._check_stop(out, case, wire, fault, at_rest, deaf)
        self._judge(out, case)
        return out

    def _check_stop(
        self, out: Outcome, case: Case, wire: list, fault: float, until: float, deaf: list[int]
    ) -> None:
        """Find in the bus log the last motion command, and the stop of every servo that still receives commands."""
        out.last_command = max([0.0, *(at - fault for at, kind, _ in wire if kind == "motion")])
        since = [packet for packet in wire[armed_at(wire) :] if fault <= packet[0] < until]
        stops = [(at, values) for at, kind, values in since if kind != "motion"]
        out.stop_command = min([at - fault for at, _ in stops], default=None)
        running = {*range(1, JOINTS + 1)}.difference(deaf, *(values for _, values in stops))
        if not case.deaf and (running or (out.stop_command or 0) > STOP_S):
            self.notes["mismatch"] = f"stopped after {out.stop_command} s, but not servos {running or '{}'}"


def armed_at(wire: list) -> int:
    """Index of the packet after the one that last completed the torque of all servos."""
    on, at = set[int](), len(wire)
    for i, (_, kind, values) in enumerate(wire):
        on |= {servo for servo, value in values.items() if kind == "torque" and value}
        if len(on) == JOINTS + 1:
            on, at = set(), i + 1
    return at


def unsafe(wire: list, trace: list, about: ArmDescription) -> int:
    """How many packets hold an unsafe goal: outside the joint's range, or the servo's; a step faster than the joint may be; any
    motion after a stop; a hold, or a goal before the torque is on, beyond the joint's allowed lag. Rounding: a tick.
    """
    limits, armed, stopped, bad = about.limits(), armed_at(wire), False, 0
    ends = np.array([MARGIN] * 4 + [0, MARGIN])
    low = np.maximum(MIDDLE + np.append(limits.q_min, -9) / RAD - 1, ends)
    high = np.minimum(MIDDLE + np.append(limits.q_max, 9) / RAD + 1, TICKS - 1 - ends)
    times, places = np.array([at for at, _ in trace]), np.array([places for _, places in trace])
    last, step = places[0], np.append(np.array(limits.dq_max) / limits.rate_hz / RAD + 1, np.inf)
    for i, (at, kind, values) in enumerate(wire):
        if kind == "torque":
            stopped |= i >= armed and not all(values.values())
            continue
        joints, goals = np.array([*values]) - 1, np.array([*values.values()], float)
        near, most = last[joints], step[joints]
        if kind == "hold" or i < armed:
            near, most = places[max(0, np.searchsorted(times, at) - 1), joints], limits.lag_max / RAD + most
        last[joints] = goals
        outside = (goals < low[joints]) | (goals > high[joints]) | (np.abs(goals - near) > most)
        bad += bool(outside.any() or (kind == "motion" and stopped))
        stopped |= i >= armed and kind == "hold"
    return bad


def benches(cases: list[Case], folder: Path) -> Iterator[tuple[ServoBench, list[Case]]]:
    yield ServoBench(folder), cases


GONE = "arm error|joint state is (stale|gone)"
CASES = (
    Case("mute", "bus silent", "FAULT", GONE, bus="setattr(bus, 'mute', True)", deaf=True),
    Case("silent", "one servo silent", "FAULT", GONE, bus="setattr(bus.servos[3], 'silent', True)"),
    Case("frozen", "positions no longer change", "FAULT", "lags", bus="setattr(bus, 'frozen', True)"),
    Case("late", "answers 60 ms late", "FAULT", GONE, bus="setattr(bus, 'late', 0.06)", deaf=True),
    Case("noise", "every answer corrupt", "FAULT", GONE, bus="setattr(bus, 'noise', 1.0)", deaf=True),
    Case("jammed", "a joint jammed", "FAULT", "lags", bus="setattr(bus.servos[1], 'jammed', True)"),
    Case("hot", "a servo over temperature", "FAULT", "arm error 4|mode 0", bus="bus.servos[1].__setitem__(TEMPERATURE, 80)"),
    Case("limp", "a servo's torque off", "FAULT", "mode|lags", bus="bus.servos[1].__setitem__(TORQUE, 0)"),
    Case("unplugged", "unplugged", "FAULT", "connection lost|" + GONE, bus="bus.pull()", deaf=True),
    Case("sigkill", "SIGKILL of the loop", "STOPPED", process="SIGKILL"),
    Case("sigkill_off", "SIGKILL of the loop, `stop=torque_off`", "STOPPED", process="SIGKILL",
         rests=False, stop="torque_off"),
    Case("suspended", "process group suspended (Ctrl-Z), then resumed", "STOPPED", process="group SIGTSTP"),
    Case("terminal", "terminal closed", "IDLE", process="terminal closed"),
)  # fmt: skip
