"""Flags of the command line, the check of the cameras' views, the panel and the operator's keys."""

import os
import pty
import threading
import time
import types

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from s2robot.cli import VERBS, _translated
from s2robot.common.errors import UserError
from s2robot.common.paths import configs_dir, shipped_demos
from s2robot.demos.store import EpisodeStore
from s2robot.deployment import check as deploy_check
from s2robot.deployment import views as camera_check
from s2robot.deployment.panel import Board, keys
from s2robot.deployment.preflight import OK, WARNING
from s2robot.deployment.settings import read_bridge
from s2robot.deployment.trace import Trace
from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.arms.xarm import WIRE_TIMEOUT
from s2robot.envs.real.control.interpolate import Interpolator
from s2robot.envs.real.control.safety import Safe, Verdict
from s2robot.envs.real.control.watchdog import State
from s2robot.envs.real.emulator.motion import Motion, Plan
from s2robot.envs.real.people.operator import ask

CAMERAS = ("hand", "left", "right")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--live"], ["live=true"]),
        (["--episodes", "3"], ["episodes=3"]),
        (["--episodes=3", "a=b"], ["episodes=3", "a=b"]),
        (["--record", "my demos.zarr"], ["record='my demos.zarr'"]),
        (["--record", "it's"], ["record='it\\'s'"]),
        (["live=true", "--cfg", "job"], ["live=true", "--cfg", "job"]),
    ],
)
def test_flags_become_overrides(args, expected):
    assert _translated(VERBS["deploy"], args) == expected


def test_robot_takes_its_word():
    assert _translated(VERBS["robot"], ["check", "robot.ip=1.2.3.4"]) == ["robot.ip=1.2.3.4"]
    assert _translated(VERBS["robot"], ["--cfg", "job"]) == ["--cfg", "job"]


@pytest.mark.parametrize(
    ("verb", "args", "text"),
    [
        ("robot", ["chekc"], "found 'chekc', expected 'check'"),
        (
            "robot",
            [],
            "found nothing, expected 'check' and its settings: `robot check`: does this policy fit",
        ),
        ("deploy", ["--episodes"], "--episodes: found no value"),
        ("deploy", ["--record", "--live"], "--record: found no value"),
        ("deploy", ["--live=yes"], "--live: found a value 'yes'"),
    ],
)
def test_wrong_flags_are_refused(verb, args, text):
    with pytest.raises(UserError, match=text):
        _translated(VERBS[verb], args)


@pytest.fixture(scope="module")
def demos():
    return camera_check.demo_pictures(EpisodeStore.open(shipped_demos("xarm7_cube")), CAMERAS, 64, episodes=6)


def test_what_the_demos_saw_is_recognised(demos):
    assert {name: pictures.shape for name, pictures in demos.items()} == dict.fromkeys(
        CAMERAS, (6, 64, 64, 3)
    )
    for i in range(6):  # other cubes and start poses than the mean's
        found = camera_check.compare({name: demos[name][i] for name in CAMERAS}, demos)
        assert [f.level for f in found] == [OK] * 3, [str(f) for f in found]


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda x: x[::-1, ::-1], "rotate: 2 mends it"),
        (lambda x: x[::-1], "flipped"),
        (lambda x: np.rot90(x), "rotate: 3 mends it"),
        (lambda x: np.full_like(x, 128), "unlike"),
    ],
)
def test_a_camera_that_is_mounted_wrongly_is_told(demos, camera, change, word):
    for i in range(6):
        (found,) = camera_check.compare({camera: np.ascontiguousarray(change(demos[camera][i]))}, demos)
        assert found.level == WARNING and found.check == f"view {camera}"
        # a symmetric view, as the hand's, may be told as another turn: a warning it is
        assert word in found.text or camera == "hand" and "looks" in found.text, found.text


def test_exchanged_cameras_are_told(demos):
    for a, b in (("left", "right"), ("right", "left"), ("hand", "left")):
        (found,) = camera_check.compare({a: demos[b][0]}, demos)
        assert found.level == WARNING and f"looks like what '{b}' saw" in found.text


def test_the_picture_is_drawn_with_and_without_demos(demos, tmp_path):
    frames = {name: demos[name][0] for name in CAMERAS}
    camera_check.draw(frames, demos, tmp_path / "both.png")
    camera_check.draw(frames, {}, tmp_path / "alone.png")
    assert (tmp_path / "both.png").stat().st_size > (tmp_path / "alone.png").stat().st_size > 5000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone.png", "both.png"]


class Reader:
    def age(self, now):
        return 0.031


def safe(verdict, *reasons):
    return Safe(np.zeros(7), None, verdict, reasons)


@pytest.fixture
def clock(monkeypatch):
    """The panel's clock, moved by hand."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr("s2robot.deployment.panel.time", types.SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def board_of(live=True):
    board = Board({"hand": Reader()}, live=live, episodes=3, rate_hz=100)
    board.episode, board.step, board.max_steps, board.successes, board.judged = 2, 7, 80, 1, 1
    return board


def run_loop(board, clock, seconds, state, answer):
    for _ in range(round(100 * seconds)):
        clock.now += 0.01
        board.on_beat()
        board.on_period(clock.now, state, answer)


def text_of(board):
    console = Console(record=True, width=100, file=open(os.devnull, "w"))
    console.print(board.panel())
    return console.export_text()


def test_the_panel_says_what_goes_on(clock):
    board = board_of()
    run_loop(board, clock, 0.5, State.HOLD, safe(Verdict.CLAMP, "table: [left] finger tip"))
    text = text_of(board)
    for part in (
        "LIVE",
        "HOLD",
        "2 of 3, step 7 of 80",
        "100 of 100 Hz",
        "hand 31 ms",
        "CLAMP: table: [left] finger tip",
        "1 of 1",
    ):
        assert part in text, text
    expected = "episode 2/3, step 7/80 hold, 100 Hz, oldest frame 31 ms, CLAMP: table: [left] finger tip, 1 of 1 succeeded"
    assert board.line() == expected


def test_a_verdict_that_is_over_is_told_with_its_age_and_then_forgotten(clock):
    board = board_of()
    run_loop(board, clock, 0.1, State.RUNNING, safe(Verdict.CLAMP, "jump: joint 2"))
    run_loop(board, clock, 1.2, State.RUNNING, safe(Verdict.PASS))
    assert "PASS (1.2 s ago CLAMP: jump: joint 2)" in text_of(board)
    run_loop(board, clock, 2.0, State.RUNNING, safe(Verdict.PASS))
    assert board.line().split(", ")[4] == "PASS"
    board.on_period(clock.now, State.IDLE, None)  # the episode is over
    assert board.verdict(clock.now) == "none"


def test_the_rate_is_that_of_the_last_second(clock):
    board = board_of()
    assert "pauses" in text_of(board) and "loop pauses" in board.line()
    run_loop(board, clock, 0.3, State.RUNNING, safe(Verdict.PASS))
    assert board.rate(clock.now) == pytest.approx(100)  # not of the second that has not passed yet
    clock.now += 7
    assert board.rate(clock.now) is None
    run_loop(board, clock, 0.05, State.RUNNING, safe(Verdict.PASS))
    assert board.rate(clock.now) is None  # five periods say nothing yet
    run_loop(board, clock, 0.05, State.RUNNING, safe(Verdict.PASS))
    assert board.rate(clock.now) == pytest.approx(100)  # and the pause is no part of it
    for _ in range(40):
        clock.now += 0.04
        board.on_beat()
    assert board.rate(clock.now) == pytest.approx(25)


def test_on_the_way_to_the_start_no_state_of_the_policy_is_told(clock):
    board = board_of()
    run_loop(board, clock, 0.2, State.IDLE, safe(Verdict.HOLD, "operator"))
    board.doing = "moving to the start"
    assert "IDLE" not in text_of(board) and "HOLD" not in text_of(board)
    assert board.line() == "episode 2/3, moving to the start, 100 Hz, oldest frame 31 ms, 1 of 1 succeeded"


def test_a_dry_run_counts_no_successes(clock):
    board = board_of(live=False)
    run_loop(board, clock, 0.2, State.RUNNING, safe(Verdict.PASS))
    assert "nothing is sent" in text_of(board) and "succe" not in text_of(board) + board.line()


def test_without_a_terminal_there_are_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr("s2robot.deployment.panel._LINE_S", 0.05)
    board = Board({}, live=False, episodes=1, rate_hz=100)
    with board.shown(Console(force_terminal=False)):
        time.sleep(0.4)
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.startswith("episode 0/1") for line in lines)


def test_keys_are_heard_and_the_terminal_is_as_before(monkeypatch):
    import termios

    ours, theirs = pty.openpty()
    heard = []
    with os.fdopen(theirs, "r") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        before = termios.tcgetattr(theirs)
        with keys(heard.append):
            os.write(ours, b"q ")
            end = time.monotonic() + 20
            while len(heard) < 2 and time.monotonic() < end:
                time.sleep(0.01)
        assert heard == ["q", " "]
        assert termios.tcgetattr(theirs) == before
    os.close(ours)


def test_a_question_is_not_answered_by_what_was_typed_before_it(monkeypatch):
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        os.write(ours, b"before\n\n")
        for typed, answer in ((b" Yes\n", "yes"), (b"\n", ""), (b"\x04", "q")):
            timer = threading.Timer(0.3, os.write, (ours, typed))
            timer.start()
            assert ask("Enter: go on, q: end. ", none="q") == answer
            timer.join()
    os.close(ours)
    monkeypatch.setattr("sys.stdin", open(os.devnull))
    assert ask("And without a terminal? ", none="q") == "q"


# ---------------------------------------------------------------- a box that plans


def configured(*overrides):
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        return read_bridge(compose("deploy", [*overrides, "run_dir=none"]).bridge)


def lag(limits, bridge, episode):
    """How far a box that plans falls behind the stream of a demo's actions, rad."""
    box, path = Motion(episode["proprio"][0, :7]), Interpolator(limits)
    path.reset(box.joints)
    goal, most, periods = box.joints, 0.0, round(10 / bridge.speed)  # of the stream, between two actions
    for i in range(periods * len(episode["action"])):
        now = i / 100
        if i % periods == 0:
            goal = goal + episode["action"][i // periods, :7]
            path.push(now, now + periods / 100, goal)
        target = path.step(now)[0]
        box.plan(Plan(target, bridge.arm.speed, bridge.arm.acceleration), replace=True)
        box.advance(0.005)
        box.advance(0.005)
        most = max(most, float(np.abs(target - box.joints).max()))
    return most


def test_a_box_that_plans_keeps_up_with_the_stream():
    servo, online = configured(), configured("bridge.arm.mode=online")
    episodes = EpisodeStore.open(shipped_demos("xarm7_cube"))
    fast, slow = servo.arm_limits(), online.arm_limits()
    assert set(fast.dq_max) == {1.8} and set(slow.dq_max) == {0.8} and set(slow.ddq_max) == {4.0}
    lags = [[lag(limits, online, episodes.episode(i)) for i in range(4)] for limits in (fast, slow)]
    assert max(lags[0]) > fast.lag_max  # a fault, were the stream as fast as in mode servo
    assert max(lags[1]) < slow.lag_max / 2


def test_a_policy_that_asks_for_more_speed_than_is_allowed_is_told():
    def found(*overrides):
        bridge = configured(*overrides)
        return [str(f) for f in deploy_check._pace(bridge, bridge.arm_limits(), 10 * bridge.speed)]

    assert found() == found("bridge.arm.mode=online", "bridge.speed=0.32") == []
    (line,) = found("bridge.arm.mode=online")
    assert (
        line.startswith(WARNING) and "1.75 rad/s, the limits allow 0.80; bridge.speed=0.32 keeps up" in line
    )
    assert found("bridge.limits.dq_max=[2,2,2,2,2,2,1]")


def test_a_trace_counts_speeds_and_room(tmp_path):
    trace = Trace(XARM7_LIMITS)
    trace.write(tmp_path / "none", "nothing")
    assert not list(tmp_path.iterdir())
    q = np.array([0, 0, 0, 0.7, 0, 0.7, 0])
    for i in range(11):
        verdict = Verdict.CLAMP if i == 3 else Verdict.PASS
        step = np.zeros(7)
        step[3] = -0.01 * i  # 1 rad/s towards the joint's lower limit
        trace.on_period(i / 100, State.RUNNING, Safe(q + step, 1.0, verdict, ("table",) if i == 3 else ()))
    found = trace.summary()
    assert found["verdicts"] == {"PASS": 10, "CLAMP": 1} and found["reasons"] == {"table": 1}
    assert found["speed_max"] == pytest.approx(1.0)
    assert found["room_joint"] == 4
    assert found["room_min"] == pytest.approx(0.6 - (XARM7_LIMITS.q_min[3] + XARM7_LIMITS.margin))
    trace.write(tmp_path / "some", "a test")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["some.json", "some.png"]


@pytest.mark.parametrize(
    ("overrides", "dq", "ddq"),
    [
        ((), (1.8,) * 7, (14.0,) * 7),
        (("bridge.arm.mode=online",), (0.8,) * 7, (4.0,) * 7),
        (
            ("bridge.arm.mode=online", "bridge.limits.dq_max=[1,1,1,1,1,1,0.5]"),
            (*(0.8,) * 6, 0.5),
            (4.0,) * 7,
        ),
        (("bridge.arm.mode=online", "bridge.arm.acceleration=20"), (0.8,) * 7, (14.0,) * 7),
    ],
)
def test_the_stream_never_runs_away_from_a_box_that_plans(overrides, dq, ddq):
    limits = configured(*overrides).arm_limits()
    assert (limits.dq_max, limits.ddq_max) == (dq, ddq)


def test_a_stall_that_the_driver_waits_for_is_no_missing_heartbeat():
    bridge = configured()
    assert 0.19 < WIRE_TIMEOUT <= bridge.watchdog.state_fault
    assert WIRE_TIMEOUT + 3 / bridge.limits.rate_hz <= bridge.supervisor_s
