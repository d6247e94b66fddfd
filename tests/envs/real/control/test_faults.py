"""Each fault of benchmarks/faults.py once: vendor's SDK, emulated box, loop, supervisor, recorder, policy server."""

import shutil

import numpy as np
import pytest

pytest.importorskip("xarm")

from benchmarks.fault_bench import START, Bench, Case, Outcome, digest, intact, unfiltered, unsafe
from benchmarks.fault_cases import CASES, SCENE
from benchmarks.fault_server import make_checkpoint, served
from benchmarks.fault_so101 import ServoBench
from benchmarks.fault_so101 import unsafe as unsafe_goals
from benchmarks.faults import attempt, good, row, stored
from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.arms.geometry import XArm7Points
from s2robot.envs.real.control.watchdog import State
from s2robot.envs.real.emulator.emulator import launch
from s2robot.envs.real.emulator.servos import REST
from tests.envs.real.home import described

# One case of each kind that needs the wire, the box or a process. The others run in virtual time (test_loop.py,
# test_runtime.py), in `s2robot deploy` (signals, a closed terminal, an arm error), or are variants of these.
RUN = ("jump_wire", "stall", "stall_long", "half_open", "mode", "cut", "sigkill", "suspended")


@pytest.fixture(scope="module", autouse=True)
def calm():
    """Do not take a busy machine for a hung box."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("s2robot.envs.real.arms.xarm.WIRE_TIMEOUT", 0.5)
        yield


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")

    def server():
        path = folder / "checkpoint"
        return served(path if path.exists() else make_checkpoint(folder))

    with launch("kinematic") as emulator:
        yield Bench(emulator, folder, patience=3.0, server=server)


@pytest.fixture(scope="module")
def scene_bench(tmp_path_factory):
    with launch(fps=30, env=SCENE) as emulator:
        yield Bench(emulator, tmp_path_factory.mktemp("scene"), patience=3.0, scene=True)


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=() if c.name in RUN else pytest.mark.slow) for c in CASES]
)
def test_the_arm_stops_as_designed(request, case):
    outcomes = attempt(request.getfixturevalue("scene_bench" if case.scene else "bench"), case)
    assert sum(o.unsafe for o in outcomes) == 0 and all(o.record_intact for o in outcomes)
    assert outcomes[-1].valid and outcomes[-1].as_designed, outcomes[-1]
    assert outcomes[-1].speed > 0.2  # it was moving


def test_unsafe_or_unexpected_outcomes_appear_in_the_table(bench):
    case = Case("harmless", "nothing", "FAULT", "policy")
    outcome, bench.notes = Outcome(case.name, unsafe=3, state="IDLE", standstill=0.1), {"history": []}
    bench._judge(outcome, case)
    assert outcome.valid and not outcome.as_designed
    fault = stored(case, [outcome])
    assert row(fault)["unsafe"] == "3" and "**mismatch**" in row(fault)["as designed"] and not good(fault)


@pytest.mark.parametrize(
    "change, count",
    [
        (lambda q: q, 0), (lambda q: q + 0.018, 0), (lambda q: q + 0.02, 1),  # a step of 2 rad/s
        (lambda q: np.append(q[:6], np.nan), 1), (lambda q: np.append(q[:6], 6.4), 1),
        (lambda q: np.append(1.2, q[1:]), 1),  # the hand leaves the workspace to the left
    ],
)  # fmt: skip
def test_unsafe_commands_are_counted(change, count):
    good = {"values": [*START, 0, 0, 0], "unsafe": False}
    changed = {"values": [*change(START), 0, 0, 0], "unsafe": False}
    points = XArm7Points()
    assert unsafe([good, changed], START, XARM7_LIMITS, points) == count
    assert unsafe([good | {"unsafe": True}, good], START, XARM7_LIMITS, points) == 1
    assert unsafe([], START, XARM7_LIMITS, points) == 0
    assert unfiltered([good], [START]) == 0 and unfiltered([good, changed], [START]) == 1


SERVOS = dict(enumerate(REST, 1))
ON, STILL = (0.0, "torque", dict.fromkeys(SERVOS, 1)), [(at, [*REST]) for at in np.arange(0, 3, 0.005)]


@pytest.mark.parametrize(
    "kind, values, count, after",
    [
        ("motion", {1: REST[0] + 10, 2: REST[1]}, 0, 1), ("motion", {1: REST[0] + 20}, 1, 1), ("motion", {6: 3000}, 0, 1),
        ("motion", {6: 3500}, 1, 1), ("hold", {2: REST[1] + 90}, 0, 0), ("hold", {2: REST[1] + 200}, 1, 1),
        ("hold", {5: 4095}, 1, 1),
    ],
)  # fmt: skip
def test_unsafe_goals_of_servos_are_counted(kind, values, count, after):
    goals, off = (1.0, kind, values), (0.5, "torque", dict.fromkeys(SERVOS, 0))
    assert unsafe_goals([ON, goals], STILL, described("lerobot")) == count
    assert unsafe_goals([ON, off, goals], STILL, described("lerobot")) == after


@pytest.mark.parametrize("stopped, silent, good", [(5, [], 1), (4, [5], 1), (4, [], 0), (0, [], 0)])
def test_servos_that_no_stop_reached_are_a_mismatch(stopped, silent, good):
    bench, case = object.__new__(ServoBench), Case("harmless", "nothing", "FAULT", "lags")
    bench.notes = {"history": [(0.0, State.FAULT, ("joint 1 lags",))]}
    holds = [(1.0, "hold", {servo: REST[servo - 1]}) for servo in range(1, stopped + 1)]
    outcome = Outcome(case.name, state="FAULT", standstill=0.1)
    bench._check_stop(outcome, case, [ON, *holds], 0.9, 2.5, silent)
    bench._judge(outcome, case)
    assert outcome.as_designed == good


def test_changed_or_lost_record_is_detected(bench, tmp_path):
    path = tmp_path / "copy.zarr"
    shutil.copytree(bench.path, path)
    before = digest(path)
    assert before[0] >= 1 and intact(path, before, grown=False)
    assert not intact(path, before, grown=True)
    assert not intact(path, (before[0], "0" * 64), grown=False)
    chunk = max((path / "data/action").rglob("*"), key=lambda file: file.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:-3])
    assert not intact(path, before, grown=False)
