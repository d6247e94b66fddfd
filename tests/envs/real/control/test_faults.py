"""Each fault of benchmarks/faults.py once: vendor's SDK, emulated box, loop, supervisor, recorder, policy server."""

import shutil

import numpy as np
import pytest

pytest.importorskip("xarm")

from benchmarks.fault_bench import START, Bench, Case, Outcome, digest, intact, unfiltered, unsafe
from benchmarks.fault_cases import CASES
from benchmarks.fault_server import make_checkpoint, served
from benchmarks.faults import SCENE, attempt, cells, markdown, row
from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.arms.geometry import XArm7Points
from s2robot.envs.real.emulator.emulator import launch

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
    result = row(case, [outcome])
    assert cells(result)[2] == "3" and "**mismatch**" in markdown([result]) and not result["good"]


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
