"""The faults of benchmarks/faults.py: how each is made to happen, and the reaction that is designed for it."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fault_bench import Bench, Case
from benchmarks.fault_bridge import PATIENCE_S
from benchmarks.fault_processes import own_ports
from benchmarks.fault_server import make_checkpoint, served
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.xarm import XArmDriver
from s2robot.envs.real.emulator.emulator import launch

CONNECT_S = 1.0  # s that a new connection may take to be refused
SCENE = {"image_size": 64, "cameras": ["hand"]}  # small, so that two cores draw 30 a second beside the bridge
DROPPED = "connection (lost|to the arm broke)|command code|joint state is (stale|gone)"  # loop or supervisor


def benches(cases: list[Case], folder: Path) -> Iterator[tuple[Bench, list[Case]]]:
    """Each bench and its cases: an emulator for those without cameras, one with the scene for the others."""
    server = partial(served, make_checkpoint(folder)) if any(case.server for case in cases) else None
    for kind in sorted({"mujoco" if case.scene else "kinematic" for case in cases}):
        scene = kind == "mujoco"
        (folder / kind).mkdir()
        with launch(kind, **({"fps": 30, "env": SCENE} if scene else {})) as emulator:
            yield (
                Bench(emulator, folder / kind, scene=scene, server=server),
                [case for case in cases if case.scene == scene],
            )


def _fault(strike: Callable[..., float]) -> Callable[..., Callable[[Bench], float]]:
    """`strike(bench, ...)` as a function of what follows the bench, which returns the `inject` of a case."""
    return lambda *given, **named: lambda bench: strike(bench, *given, **named)


@_fault
def _policy(bench: Bench, bad: Callable[[], Any], once: bool = False) -> float:
    """From now on, or once, the policy does `bad`; the fault begins with its first call."""
    policy = bench.bridge.policy

    def act() -> Any:
        policy.bad = None if once else act
        return bad()

    policy.bad = act
    return _wait(lambda: policy.bad_at)


@_fault
def _wire(bench: Bench, change: Callable[[np.ndarray], np.ndarray]) -> float:
    """From now on every command is another than the filter let through."""
    driver = bench.bridge.driver
    driver.change = change
    return _wait(lambda: driver.changed_at)


@_fault
def _box(bench: Bench, name: str, seconds: float | None = None, **settings: Any) -> float:
    """A fault of the emulated box; `seconds` are times the bench's patience."""
    settings |= {} if seconds is None else {"seconds": seconds * bench.patience}
    return bench.emulator.side.fault(name, **settings)


def _wait(value: Callable[[], float | None]) -> float:
    end = time.monotonic() + PATIENCE_S
    while (found := value()) is None:
        if time.monotonic() > end:
            raise EnvError(f"faults: found no fault in {PATIENCE_S:g} s, expected one")
        time.sleep(0.001)
    return found


def _crash() -> None:
    raise RuntimeError("out of memory")


def _push(joint: int, delta: float) -> Callable[[], np.ndarray]:
    action = np.zeros(8)
    action[joint - 1] = delta
    return lambda: action


@_fault
def _late(bench: Bench, seconds: float) -> float:
    """One answer of the policy comes late."""

    def wait() -> np.ndarray:
        time.sleep(seconds * bench.patience)
        return np.zeros(8)

    return _policy(wait, once=True)(bench)


def _half_open(bench: Bench) -> float:
    """The link breaks; new connections are accepted but never answered."""
    side = bench.emulator.side
    side.fault("half_open")
    at = side.fault("drop")
    begin = time.monotonic()
    driver = XArmDriver("127.0.0.1")  # this process is redirected to the emulator already
    try:
        driver.connect(CONNECT_S)
        bench.notes["mismatch"] = "connected to a box that never answers"
    except EnvError:
        if (took := time.monotonic() - begin) > CONNECT_S + 1:
            bench.notes["mismatch"] = f"connecting took {took:.1f} s, expected {CONNECT_S:g} s"
    finally:
        driver.close()
    return at


def _kill_server(bench: Bench) -> float:
    at = time.monotonic()
    bench.server.kill()
    return at


def _cut(bench: Bench) -> float:
    """This process's connections break; the supervisor's do not."""
    return bench.emulator.side.fault("drop", clients=own_ports())


@_fault
def _end(bench: Bench, how: str) -> float:
    """The episode ends without a fault: by `request_end` or `request_stop` of the loop."""
    at = time.monotonic()
    getattr(bench.bridge.runtime.loop, how)()
    return at


def _end_pressing(bench: Bench) -> float:
    """The arm no longer follows, as one that presses on something, and the episode ends soon after."""
    at = bench.emulator.side.fault("freeze_joints")
    time.sleep(0.05)
    _end("request_end")(bench)
    return at


def _raise(bench: Bench) -> float:
    def beat() -> None:
        raise EnvError("an exception in the loop")

    bench.bridge.runtime._supervisor.beat = beat
    return time.monotonic()


CASES = (
    Case("nan", "NaN action", "FAULT", "policy: expected finite numbers", _policy(lambda: np.full(8, np.nan))),
    Case("inf", "inf action", "FAULT", "policy: expected finite numbers", _policy(lambda: np.full(8, np.inf))),
    Case("shape", "action of 7 numbers", "FAULT", "policy: expected [0-9]+ numbers", _policy(lambda: np.zeros(7))),
    Case("limit", "targets beyond a joint's range, from the policy", "FAULT", "safety stop: clamped",
         _policy(_push(7, 0.25)), start={7: 5.6}, watch_s=8.0),
    Case("limit_wire", "targets beyond a joint's range, behind the filter", "FAULT", "command code -1000",
         _wire(lambda q: np.append(q[:6], 7.0))),
    Case("jump", "one jump of 1 rad, from the policy", "RUNNING", "", _policy(_push(7, 1.0), once=True), watch_s=0.3,
         rests=False, commands_go_on=True),
    Case("jump_wire", "jump of 1 rad, behind the filter", "FAULT", "command code -1000", _wire(lambda q: q + np.eye(7)[0])),
    Case("workspace", "out of the workspace, to the left", "FAULT", "safety stop: clamped", _policy(_push(1, 0.25)), watch_s=8.0),
    Case("table", "into the table", "FAULT", "safety stop: clamped", _policy(_push(2, 0.1)), watch_s=8.0),
    Case("camera_frozen", "camera frozen", "FAULT", "camera hand is frozen", _box("camera_freeze"), scene=True),
    Case("camera_stale", "camera stale", "FAULT", "camera hand is (stale|gone)", _box("camera_stale"), scene=True),
    Case("joints_frozen", "joint state frozen", "FAULT", "safety stop: .* lags", _box("freeze_joints")),
    Case("joints_late", "joint state stale (answers 60 ms late)", "HOLD", "joint state is stale", _box("delay", seconds=0.06),
         watch_s=1.0, commands_go_on=True),
    Case("policy_late", "policy late by 0.9 s", "HOLD", "policy is late", _late(0.9), watch_s=0.8, released_s=0.8,
         commands_go_on=True),
    Case("policy_hung", "policy gives no answer", "FAULT", "policy is (late|gone)", _late(1.6)),
    Case("policy_crashed", "policy crashed", "FAULT", "policy: RuntimeError: out of memory", _policy(_crash)),
    Case("server_gone", "policy server killed", "FAULT", "policy: PolicyLost", _kill_server, server=True),
    Case("drop", "socket dropped", "FAULT", DROPPED, _box("drop")),
    Case("hang", "controller hung", "FAULT", "joint state is (stale|gone)|command code|arm reports nothing", _box("hang"),
         deaf=True),
    Case("stall", "controller stalls for 190 ms", "RUNNING", "", _box("stall", seconds=0.19), watch_s=0.6, rests=False,
         commands_go_on=True, passing="joint state is stale"),
    Case("stall_long", "controller stalls for 400 ms", "FAULT", "joint state is (stale|gone)|command code",
         _box("stall", seconds=0.4), deaf=True),
    Case("half_open", "dropped, and half-open for new connections", "FAULT", DROPPED, _half_open),
    Case("error_1", "controller error 1 (e-stop)", "FAULT", "arm error 1$|command code", _box("error", code=1)),
    Case("error_31", "controller error 31 (collision)", "FAULT", "arm error 31|command code", _box("error", code=31)),
    Case("error_24", "controller error 24 (overspeed)", "FAULT", "arm error 24|command code", _box("error", code=24)),
    Case("mode", "mode changed behind our back", "FAULT", "mode 0|command code", _box("mode", mode=0)),
    Case("cut", "the loop's connections cut, the supervisor's intact", "FAULT",
         "connection lost|command code|joint state is (stale|gone)", _cut, stopped=True),
    Case("end_steps", "end: all steps done", "IDLE", steps=14),
    Case("end_judged", "end: judged, discarded, or no more demonstrations", "IDLE", "", _end("request_end")),
    Case("end_stop", "end: the operator's stop", "IDLE", "", _end("request_stop")),
    Case("end_pressing", "end: while the arm does not follow", "IDLE", "", _end_pressing),
    Case("end_raised", "end: an exception in the loop", "FAULT", "an exception in the loop", _raise),
    Case("sigint", "SIGINT of the loop", "IDLE", process="SIGINT"),
    Case("sigkill", "SIGKILL of the loop", "STOPPED", process="SIGKILL"),
    Case("sigstop", "loop hangs (SIGSTOP), then goes on", "STOPPED", process="SIGSTOP"),
    Case("group_int", "SIGINT of the process group", "IDLE", process="group SIGINT"),
    Case("group_term", "SIGTERM of the process group", "IDLE", process="group SIGTERM"),
    Case("group_hup", "SIGHUP of the process group", "IDLE", process="group SIGHUP"),
    Case("group_quit", "SIGQUIT of the process group (Ctrl-\\)", "STOPPED", process="group SIGQUIT"),
    Case("group_kill", "SIGKILL of the process group", "STOPPED", process="group SIGKILL"),
    Case("suspended", "process group suspended (Ctrl-Z), then resumed", "STOPPED", process="group SIGTSTP"),
    Case("terminal", "terminal closed", "IDLE", process="terminal closed"),
)  # fmt: skip
