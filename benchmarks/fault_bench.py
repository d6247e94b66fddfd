"""Run one fault in a live bridge and measure the reaction, for benchmarks/faults.py.

The box's own journal decides which commands reached the arm. The store already holds an episode, which must not change.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fault_bridge import MOVING, PATIENCE_S, SIZE, Swing, assemble
from benchmarks.fault_processes import Victim
from s2robot.demos.store import EpisodeStore
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import OK, XARM7_LIMITS, ArmLimits
from s2robot.envs.real.arms.geometry import ArmPoints, XArm7Points
from s2robot.envs.real.control.loop import ControlLoop
from s2robot.envs.real.control.watchdog import State
from s2robot.envs.real.emulator.emulator import Launched
from s2robot.envs.real.emulator.stand_in import EmulatedCamera

START = np.array((-0.4, 0.0115, 0.0, 0.7031, 0.0, 0.6916, 0.0))  # rad, 0.4 to the right of home
STILL = 0.01  # rad/s
# reasons that a busy machine alone can cause; error 256: two readings of servos failed
BY_LOAD = re.compile(
    r"is stale|is late|is gone|reports nothing|held for more than|command code 3$|arm error 256$"
)
STOP_S = 0.5  # s that a stop may take to reach the box: the supervisor's limit of 0.3 s, and its way there
ATTRIBUTES = {
    "robot": "xarm7", "joint_names": [f"joint{i}" for i in range(1, 8)], "rate_hz": 10, "cameras": ["hand"],
    "camera_geometry": {"hand": {"size": [SIZE, SIZE]}}, "action_frame": "joint_delta_commanded",
    "env_version": "CubePick-v0", "env_config": {}, "seed": 0, "kind": "images", "source": "emulator",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One fault."""

    name: str
    what: str  # for the table
    designed: str  # the state afterwards
    reason: str = ""  # pattern that the watchdog's reason must match; empty: no reason is expected
    inject: Callable[["Bench"], float] = lambda bench: time.monotonic()  # returns when it struck, s
    rests: bool = True  # expected: the arm comes to rest
    watch_s: float = 3.0  # how long the reaction is waited for; an episode that goes on is ended after it
    scene: bool = False  # needs the emulator's cameras
    start: Mapping[int, float] | None = None  # joints that start elsewhere
    process: str = ""  # how a loop in a process of its own is hit, see benchmarks/fault_processes.py
    stopped: bool = False  # the box itself is to be stopped afterwards
    server: bool = False  # needs a policy server
    released_s: float | None = None  # s after the fault, from when on motion is allowed again
    commands_go_on: bool = False  # expected: the stream goes on and repeats the arm's position
    passing: str = ""  # pattern of reasons for which the watchdog may hold meanwhile
    steps: int = 10_000  # of the episode
    deaf: bool = False  # the box receives commands only after the fault: use the sender's times
    # SO-101 only
    bus: str = ""  # evaluated beside the servos
    stop: str = "hold"  # robot.stop


@dataclass
class Outcome:
    """Measurements of one run: times in s after the fault, speeds of the fastest joint in rad/s."""

    case: str
    speed: float = np.nan  # when the fault came
    unsafe: int = 0  # commands on the wire outside limits or past the filter, in the whole run
    last_command: float | None = None  # the last motion; of a stream that goes on, the last that changes
    stop_command: float | None = None  # the first stop on the wire
    standstill: float | None = None  # until all joints stood for good; None: they never did
    state: str = ""
    reasons: tuple[str, ...] = ()
    as_designed: bool = False
    record_intact: bool = False
    load_holds: int = 0  # times that the watchdog held for another reason than the fault
    problem: str = ""  # why this run says nothing about the fault

    @property
    def valid(self) -> bool:
        return not self.problem


class Bench:
    """Runs cases against one emulator, launched with the scene for cases that need it.

    Args:
        folder: for the store, which is made here with one good episode in it.
        patience: times the watchdog's limits; 1 for figures.
        server: context of a fresh policy server.
    """

    def __init__(self, emulator: Launched, folder: Path, patience: float = 1.0, scene: bool = False, server: Any = None):  # fmt: skip
        self.emulator, self.path, self.patience, self.scene = emulator, folder / "real.zarr", patience, scene
        self.make_server = server
        self.points = XArm7Points()
        self.rng = np.random.default_rng(0)
        # of the run under way
        self.bridge: Any = None
        self.server: Any = None
        self.notes: dict[str, Any] = {}
        if scene:  # the first picture waits for the renderer
            EmulatedCamera(emulator.ports.side, "hand", PATIENCE_S).close()
        EpisodeStore.create(self.path, ATTRIBUTES).close()
        for _ in range(4):  # load
            first = self.run(Case("none", "", "IDLE", watch_s=0.3))
            if first.as_designed:
                break
        if not first.as_designed or not first.record_intact:
            raise EnvError(f"faults: found {first} without a fault, expected an episode")

    def run(self, case: Case) -> Outcome:
        """One episode with one fault."""
        side = self.emulator.side
        side("clear")
        side("place_arm", joints=self._start(case).tolist())
        return self._run_process(case) if case.process else self._run_here(case)

    def _run_here(self, case: Case) -> Outcome:
        out, side = Outcome(case.name), self.emulator.side
        begin, before = time.monotonic(), digest(self.path)
        fault_at: list[float] = []
        failed: list[BaseException] = []
        self.notes = {}
        with ExitStack() as stack:
            stack.callback(side, "clear")
            policy = Swing()
            if case.server:
                self.server, remote = stack.enter_context(self.make_server())
                policy = Swing(remote.act)
            ripe = threading.Event()
            rig = self.emulator.ports, self.path, policy, self.patience, self.points, self.scene
            try:
                bridge = assemble(stack, *rig, on_ripe=ripe.set)
            except EnvError as error:  # the wire's time-outs are those of an operation
                out.problem, out.record_intact = f"no bridge: {error}", True
                return out
            self.bridge, loop, recorder = bridge, bridge.runtime.loop, bridge.recorder

            def strike() -> None:
                try:
                    if not ripe.wait(PATIENCE_S):
                        return
                    time.sleep(self.rng.uniform(0, 0.1))  # at any moment of the policy's period
                    fault_at.append(case.inject(self))
                    end = fault_at[0] + case.watch_s * self.patience
                    while time.monotonic() < end and loop.watchdog.state != State.FAULT:
                        time.sleep(0.005)
                except BaseException as error:
                    failed.append(error)
                finally:
                    self.notes["history"] = list(loop.watchdog.history)
                    loop.request_stop()

            striker = threading.Thread(target=strike)
            striker.start()
            try:
                result = bridge.runtime.run(case.steps)
                cause, out.reasons = result.cause, result.reasons
            except EnvError as error:
                cause, out.reasons = "raised", (str(error),)
                ripe.set()
            striker.join()
            whole = cause in ("stopped", "ended", "steps") and loop.watchdog.state != State.FAULT
            if whole:
                recorder.finish(success=False, seed=0)
            else:
                recorder.discard()
            time.sleep(0.25)  # wait for commands still in flight
            if rushed := bridge.driver.rushed:
                self.notes["mismatch"] = f"{rushed} commands sooner than a period after the last"
            if case.stopped and side("status")["ready"]:
                self.notes["mismatch"] = f"the box is not stopped; acknowledged: {bridge.runtime.confirmed}"
            self._latched(out, loop)
            if cause == "raised" and bridge.driver.stopped:
                out.state = out.state if out.state == "FAULT" else "STOPPED"
        end = time.monotonic()
        out.record_intact = intact(self.path, before, grown=whole)
        if failed or not fault_at:
            out.unsafe = unsafe(self._motions(begin), self._start(case), XARM7_LIMITS, self.points)
            out.problem = f"no fault: {failed or out.reasons}"
            return out
        self._measure(out, case, begin, fault_at[0], end)
        self._judge(out, case)
        return out

    def _run_process(self, case: Case) -> Outcome:
        """The loop in a process of its own, which is hit as a whole."""
        out, side = Outcome(case.name), self.emulator.side
        begin, before = time.monotonic(), digest(self.path)
        words = [self.emulator.ports.to_json(), str(self.path), str(self.patience)]
        with Victim(words, terminal=case.process == "terminal closed") as victim:
            assert victim.stdout is not None
            if not victim.stdout.readline():
                out.problem = f"no fault: the loop's process ended with {victim.wait(PATIENCE_S)}"
                return out
            time.sleep(self.rng.uniform(0, 0.1))
            fault = time.monotonic()
            victim.hit(case.process)
            end = fault + case.watch_s * self.patience
            while time.monotonic() < end and side("status")["ready"]:
                time.sleep(0.005)
            time.sleep(0.25)
            victim.hit("group SIGCONT")  # a loop that comes back finds the arm stopped
            said = json.loads(victim.stdout.readline() or "{}")
            victim.wait(PATIENCE_S)
        end = time.monotonic()
        # a dead loop reports no state: use the box's
        out.state = "STOPPED" if case.designed == "STOPPED" else said.get("state", "gone")
        out.state = "READY" if side("status")["ready"] else out.state
        out.reasons = tuple(said.get("reasons", ()))
        self.notes = {"history": []}
        out.record_intact = intact(self.path, before, grown=False)
        self._measure(out, case, begin, fault, end)
        if (out.stop_command or 0) > (limit := STOP_S * self.patience**2):  # a starved supervisor
            self.notes["mismatch"] = f"stopped after {out.stop_command:.2f} s, expected {limit:g} s at most"
        self._judge(out, case)
        return out

    def _start(self, case: Case) -> np.ndarray:
        return np.array([(case.start or {}).get(joint, value) for joint, value in enumerate(START, 1)])

    def _latched(self, out: Outcome, loop: ControlLoop) -> None:
        """The state after the episode, and whether a fault stays one."""
        out.state = loop.watchdog.state.name
        if loop.watchdog.state == State.FAULT:
            with suppress(EnvError):
                loop.run(1)
                out.state = "FAULT, not latched"
            now = np.array(self.emulator.side("status")["joints"])
            if self.bridge.driver.command(now, None).code == OK:
                out.state = "FAULT, driver not stopped"

    def _motions(self, begin: float) -> list[dict]:
        """Motion commands that reached the box."""
        return [c for c in self.emulator.side("commands", since=begin)["commands"] if c["kind"] == "motion"]

    def _measure(self, out: Outcome, case: Case, begin: float, fault: float, end: float) -> None:
        """What the box's journal says."""
        commands, side = self._motions(begin), self.emulator.side
        stops = [c["time"] - fault for c in side("commands", since=fault)["commands"] if c["kind"] == "stop"]
        out.stop_command = min(stops, default=None)
        motion = side("motion", since=fault - 0.1)["motion"]
        until = end if case.released_s is None else fault + case.released_s * self.patience
        out.unsafe = unsafe(commands, self._start(case), XARM7_LIMITS, self.points)
        if not case.process:
            out.unsafe += unfiltered(commands, self.bridge.passed)
        times = np.array([m["time"] for m in motion])
        speeds = np.abs([m["velocities"] for m in motion]).max(1)
        out.speed = float([0.0, *speeds[times <= fault]][-1])  # an emulator that had no processor is load
        sent = [(c["time"], np.array(c["values"][:7])) for c in commands if c["time"] <= until]
        if case.commands_go_on:
            sent = [b for a, b in zip(sent, sent[1:], strict=False) if np.abs(b[1] - a[1]).max() > 1e-5]
        out.last_command = max([t - fault for t, _ in sent], default=0.0)
        if case.deaf:
            out.last_command = self.bridge.driver.sent_at - fault
            out.stop_command = self.bridge.driver.stopped_at - fault
        out.last_command = max(out.last_command, 0.0)
        self._trace(out, times, speeds, fault, until)

    def _trace(self, out: Outcome, times: np.ndarray, speeds: np.ndarray, fault: float, until: float) -> None:
        """Set the standstill from the fastest joint's speeds (N,)."""
        window = (times >= fault) & (times <= until)
        moving = times[window & (speeds > STILL)]
        out.standstill = float(moving[-1] - fault) if len(moving) else 0.0
        if speeds[window][-1] > STILL:
            out.standstill = None
        if out.speed < MOVING:
            out.problem = f"the arm was at {out.speed:.2f} rad/s"

    def _judge(self, out: Outcome, case: Case) -> None:
        """Compare with the design."""
        history = self.notes["history"]
        named = [why for _, state, reasons in history for why in reasons if state != State.IDLE]
        expected = [why for why in named if case.reason and re.search(case.reason, why)]
        held = [reasons[0] for _, state, reasons in history if reasons and state == State.HOLD]
        meant = "|".join(filter(None, (case.reason, case.passing)))
        out.load_holds = sum(not (meant and re.search(meant, why)) for why in held)
        if case.designed in ("HOLD", "RUNNING"):  # as it was when the episode was ended
            out.state, out.reasons = history[-1][1].name, history[-1][2]
        by_load = out.reasons and all(map(BY_LOAD.search, out.reasons))
        if out.state == case.designed and (expected or not case.reason):
            out.as_designed = out.standstill is not None or not case.rests
        elif out.state in ("FAULT", "HOLD") and by_load and not expected:
            out.problem = f"{out.state} because of load: {out.reasons[0]}"
        if extra := self.notes.get("mismatch"):
            out.as_designed, out.reasons = False, (*out.reasons, extra)


def unsafe(commands: list[dict], start: np.ndarray, limits: ArmLimits, points: ArmPoints) -> int:
    """How many of the motion commands on the wire were outside limits: what the box flags, joints out of range, a
    step faster than the joints may be, a watched point outside the workspace. Floats of 32 bits: 1e-5 is allowed.
    """
    if not commands:
        return 0
    q = np.array([c["values"][:7] for c in commands])  # (N, 7)
    bad = np.array([c["unsafe"] for c in commands])
    with np.errstate(invalid="ignore"):
        bad |= ~((q >= np.array(limits.q_min)) & (q <= np.array(limits.q_max))).all(1)
        steps = np.abs(np.diff(q, axis=0, prepend=start[None]))
        bad |= ~(steps <= np.array(limits.dq_max) / limits.rate_hz + 1e-5).all(1)
    places = points.along(np.nan_to_num(q))  # (N, P, 3)
    box, radius = np.array(limits.box), points.radius[:, None]
    inside = (places >= box[:, 0] + radius - 1e-5) & (places <= box[:, 1] - radius + 1e-5)
    bad |= ~(inside.all(2) | ~points.in_box).all(1)
    bad |= ~(places[..., 2] >= limits.table_z + limits.table_clearance + points.radius - 1e-5).all(1)
    return int(bad.sum())


def unfiltered(commands: list[dict], passed: list[np.ndarray]) -> int:
    """How many of the motion commands on the wire are not, in order, joints (7,) that the filter has let through."""
    at = bad = 0
    for command in commands:
        q = np.asarray(command["values"][:7], np.float32)
        rest = range(at, len(passed))
        found = next((i for i in rest if np.array_equal(q, passed[i].astype(np.float32))), None)
        at, bad = (at, bad + 1) if found is None else (found + 1, bad)
    return bad


def digest(path: Path, episodes: int | None = None) -> tuple[int, str]:
    """How many episodes a store holds, and a hash of all bytes of the first `episodes` (None: of all)."""
    store, found = EpisodeStore.open(path), hashlib.sha256()
    count = len(store.episode_ends) if episodes is None else episodes
    for key in sorted(store.keys) if count else ():
        found.update(key.encode() + np.asarray(store[key][: int(store.episode_ends[count - 1])]).tobytes())
    return len(store.episode_ends), found.hexdigest()


def intact(path: Path, before: tuple[int, str], grown: bool) -> bool:
    """Whether the store opens and its earlier episodes are the same bytes, with one more if one was completed."""
    try:
        after = digest(path, before[0])
    except Exception:
        return False
    return after == (before[0] + grown, before[1])
