"""The status panel, the operator's keys, and the log of an episode."""

import os
import pty
import signal
import termios
import threading
import time
import types

import numpy as np
import pytest
from rich.console import Console

from s2robot.deployment.operator import keys, typed
from s2robot.deployment.panel import Board
from s2robot.deployment.trace import EpisodeLog
from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.control.safety import Safe, Verdict
from s2robot.envs.real.control.watchdog import State
from s2robot.envs.real.operator.prompts import ask
from tests.envs.real.patience import wait_for


@pytest.fixture
def clock(monkeypatch):
    """The panel's clock, advanced manually."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr("s2robot.deployment.panel.REAL", types.SimpleNamespace(now=lambda: clock.now))
    return clock


def board_of(live=True):
    board = Board({"hand": types.SimpleNamespace(age=lambda now: 0.031)}, live=live, episodes=3, rate_hz=100)
    board.episode, board.step, board.max_steps, board.successes, board.judged = 2, 7, 80, 1, 1
    return board


def run_loop(board, clock, seconds, state=State.RUNNING, verdict=Verdict.PASS, *reasons):
    for _ in range(round(100 * seconds)):
        clock.now += 0.01
        board.on_beat()
        board.on_period(clock.now, state, Safe(np.zeros(7), None, verdict, reasons))


def test_the_panel_shows_state_and_verdicts_with_their_age(clock):
    board, reason = board_of(), "table: [left] finger tip"
    assert board.rows()["loop"] == "paused"
    run_loop(board, clock, 0.5, State.HOLD, Verdict.CLAMP, reason)
    rows = board.rows()
    assert (rows["state"], rows["verdict"], rows["frames"]) == ("hold", f"CLAMP: {reason}", "hand 31 ms")
    console = Console(record=True, width=100, file=open(os.devnull, "w"))
    console.print(board.panel())
    assert reason in console.export_text()
    run_loop(board, clock, 1.2)
    assert board.rows()["verdict"] == f"PASS (1.2 s ago CLAMP: {reason})"
    run_loop(board, clock, 2.0)
    assert board.rows()["verdict"] == "PASS"
    board.doing = "moving to the start"  # not a state of the policy
    assert (board.rows()["state"], board.rows()["verdict"]) == ("moving to the start", "none")
    assert "successes" in board.rows() and "successes" not in board_of(live=False).rows()


def test_rate_covers_the_last_second(clock):
    board, shown = board_of(), []
    for seconds, pause in ((0.3, 7), (0.05, 0), (0.05, 0)):
        run_loop(board, clock, seconds)
        clock.now += pause
        shown.append(board.rows()["loop"])
    assert shown == ["paused", "paused", "100 of 100 Hz"]  # five periods are too few; pauses do not count


def test_plain_lines_are_printed_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("s2robot.deployment.panel._LINE_S", 0.05)
    with Board({}, live=False, episodes=1, rate_hz=100).shown(Console(force_terminal=False)):
        time.sleep(0.4)
    lines = capsys.readouterr().out.splitlines()
    assert lines and all("episode 0 of 1" in line for line in lines)


def test_keys_are_read_and_the_terminal_is_restored(monkeypatch):
    controller, terminal = pty.openpty()
    pressed = []
    with os.fdopen(terminal, "r") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        before = termios.tcgetattr(terminal)
        with keys(pressed.append):
            os.write(controller, b"\x1b[")
            time.sleep(0.5)  # not an escape sequence, as nothing follows in time
            os.write(controller, b"q ")
            wait_for(lambda: len(pressed) == 2)
        assert pressed == ["q", " "]
        assert termios.tcgetattr(terminal) == before
        monkeypatch.setattr(threading.Thread, "join", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt), keys(pressed.append):
            pass  # an impatient Ctrl-C
        assert termios.tcgetattr(terminal) == before
    os.close(controller)


def test_arrow_and_function_keys_are_not_letters():
    up, left, f3, f4, end, delete = "\x1b[A", "\x1b[D", "\x1bOR", "\x1bOS", "\x1b[F", "\x1b[3~"
    assert typed(f"w{up}{left} {f3}q{f4}{end}{delete}a") == ("w qa", "")
    assert typed("\x1b q") == (" q", "")  # the stop key works after a bare escape
    for cut in ("\x1b", "\x1b[", "\x1b[1;5", "\x1bO"):  # a sequence that the terminal sends in two parts
        assert typed("w" + cut) == ("w", cut)
    assert typed("\x1b[1;5" + "D ") == (" ", "")


def test_prompt_ignores_input_typed_before_it(monkeypatch):
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "r") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        os.write(controller, b"before\n\n")
        for typed, answer in ((b" Yes\n", "yes"), (b"\n", ""), (b"\x04", None)):
            timer = threading.Timer(0.3, os.write, (controller, typed))
            timer.start()
            assert ask("Enter: continue, q: quit. ") == answer
            timer.join()
    os.close(controller)
    monkeypatch.setattr("sys.stdin", open(os.devnull))
    assert ask("And without a terminal? ") is None


def test_log_summarises_verdicts_speeds_and_joint_margins(tmp_path):
    log = EpisodeLog(XARM7_LIMITS)
    log.write(tmp_path / "none", "nothing")
    assert not list(tmp_path.iterdir())
    for i in range(11):
        q = np.array([0, 0, 0, 0.7 - 0.01 * i, 0, 0.7, 0])  # 1 rad/s towards the joint's lower limit
        verdict, reasons = (Verdict.CLAMP, ("table",)) if i == 3 else (Verdict.PASS, ())
        log.on_period(i / 100, State.RUNNING, Safe(q, 1.0, verdict, reasons))
    summary = log.summary()
    assert summary["verdicts"] == {"PASS": 10, "CLAMP": 1} and summary["reasons"] == {"table": 1}
    assert summary["speed_max"] == pytest.approx(1.0) and summary["room_joint"] == 4
    assert summary["room_min"] == pytest.approx(0.6 - (XARM7_LIMITS.q_min[3] + XARM7_LIMITS.margin))
    log.write(tmp_path / "some", "a test")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["some.json", "some.png"]
