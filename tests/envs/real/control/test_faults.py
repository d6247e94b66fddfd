"""Every fault of benchmarks/faults.py once: vendor's SDK, emulated box, loop, supervisor, recorder, policy server."""

import shutil
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("xarm")

from benchmarks.fault_bench import START, Bench, Case
from benchmarks.fault_cases import CASES, _wire
from benchmarks.fault_judge import digest, intact, unsafe
from benchmarks.fault_server import make_checkpoint, served
from benchmarks.faults import SCENE, attempt, cells, main, markdown, row
from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.emulator.emulator import launch

KNOWN = {case.name: case for case in CASES}
# of a fault that is run
TWINS = (
    "inf", "shape", "error_24", "error_31", "policy_crashed", "limit", "limit_wire", "table", "policy_hung", "group_int",
    "group_term", "group_hup", "group_kill", "end_judged", "end_stop",
)  # fmt: skip


@contextmanager
def calm():
    """A busy machine is no hung box."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("s2robot.envs.real.arms.xarm.WIRE_TIMEOUT", 0.5)
        yield


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")

    def server():
        path = folder / "checkpoint"
        return served(path if path.exists() else make_checkpoint(folder))

    with launch("kinematic") as emulator, calm():
        yield Bench(emulator, folder, patience=2.0, server=server)


@pytest.fixture(scope="module")
def scene_bench(tmp_path_factory):
    with launch(fps=30, env=SCENE) as emulator, calm():
        yield Bench(emulator, tmp_path_factory.mktemp("scene"), patience=2.0, scene=True)


def as_designed(bench: Bench, case: Case):
    outcomes = attempt(bench, case)
    assert sum(o.unsafe for o in outcomes) == 0 and all(o.record_intact for o in outcomes)
    assert outcomes[-1].valid and outcomes[-1].as_designed, outcomes[-1]
    assert outcomes[-1].speed > 0.2  # it was moving


@pytest.mark.parametrize(
    "name",
    [pytest.param(c.name, marks=pytest.mark.slow if c.name in TWINS else ()) for c in CASES if not c.scene],
)
def test_the_arm_stops_as_designed(bench, name):
    as_designed(bench, KNOWN[name])


@pytest.mark.parametrize("name", [c.name for c in CASES if c.scene])
def test_a_camera_fault_stops_the_arm_as_designed(scene_bench, name):
    as_designed(scene_bench, KNOWN[name])


def test_a_driver_without_its_check_is_found_out(bench, monkeypatch):
    unchecked = lambda self, q, gripper: np.asarray(q, float)  # noqa: E731
    monkeypatch.setattr("s2robot.envs.real.arms.xarm.XArmDriver._sendable", unchecked)
    outcome = bench.run(KNOWN["jump_wire"])
    assert outcome.unsafe > 0 and not outcome.as_designed
    assert cells(row(KNOWN["jump_wire"], [outcome]))[3] == str(outcome.unsafe)


def test_a_fault_that_is_none_is_a_mismatch(bench):
    harmless = Case("harmless", "nothing", "FAULT", "policy", _wire(lambda q: q), watch_s=0.2)
    outcome = bench.run(harmless)
    assert outcome.valid and not outcome.as_designed and outcome.state == "IDLE"
    assert "**mismatch**" in markdown([row(harmless, [outcome])])


@pytest.mark.parametrize(
    "change, count",
    [
        (lambda q: q, 0),
        (lambda q: q + 0.018, 0),
        (lambda q: q + 0.02, 1),  # a step of 2 rad/s
        (lambda q: np.append(q[:6], np.nan), 1),
        (lambda q: np.append(q[:6], 6.4), 1),
        (lambda q: np.append(1.2, q[1:]), 1),  # the hand leaves the workspace to the left
    ],
)
def test_unsafe_commands_are_counted(change, count):
    good = {"values": [*START, 0, 0, 0], "unsafe": False}
    changed = {"values": [*change(START), 0, 0, 0], "unsafe": False}
    points = ArmPoints("xarm7")
    assert unsafe([good, changed], START, XARM7_LIMITS, points) == count
    assert unsafe([good | {"unsafe": True}, good], START, XARM7_LIMITS, points) == 1
    assert unsafe([], START, XARM7_LIMITS, points) == 0


def test_a_changed_or_lost_record_is_noticed(bench, tmp_path):
    path = tmp_path / "copy.zarr"
    shutil.copytree(bench.path, path)
    before = digest(path)
    assert before[0] >= 1 and intact(path, before, grown=False)
    assert not intact(path, before, grown=True)
    assert not intact(path, (before[0], "0" * 64), grown=False)
    chunk = max((path / "data/action").rglob("*"), key=lambda file: file.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:-3])
    assert not intact(path, before, grown=False)


def test_bad_arguments_are_one_line(monkeypatch, capsys):
    for words, expected in (("--faults=nan,x", "found x, expected some of nan"), ("--repeat=0", "1 or more")):
        monkeypatch.setattr("sys.argv", ["faults.py", words])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert expected in capsys.readouterr().err.splitlines()[-1]
