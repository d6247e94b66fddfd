"""`s2robot deploy` as on a bench: a person at a terminal, cameras that are no emulator's, a box that plans the way.

The box is the emulated one, of which deploy knows no more than it would of a real one.
"""

import json
import os
import pty
import re
import select
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from s2robot.demos.store import EpisodeStore
from s2robot.envs.real.emulator.emulator import launch
from tests import forks
from tests.envs.real.home import HOME
from tests.envs.real.patience import PATIENCE

pytest.importorskip("xarm")

ROOT = Path(__file__).resolve().parents[3]
CAMERAS = ("hand", "left")
# the vendor's own port numbers are not ours to take: the box listens elsewhere
DEPLOY = """
import sys
from functools import partial
from s2robot.envs.real.emulator.side import Ports
from s2robot.deployment import arm
from s2robot.cli import main
ports, make = Ports.from_json(sys.argv[1]), arm.driver_maker
arm.driver_maker = lambda *settings: partial(make(*settings), ports=ports)
sys.exit(main(["deploy", *sys.argv[2:]]))
"""


class Terminal:
    """A program on a terminal, and who sits there."""

    def __init__(self, command, folder):
        self._ours, theirs = pty.openpty()
        self.process = forks.Popen(
            command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm", "PYTHONFAULTHANDLER": "1"},
        )  # fmt: skip
        os.close(theirs)
        self.said = ""  # since the last answer

    def until(self, words):
        end = time.monotonic() + PATIENCE
        while words not in self.said:
            assert time.monotonic() < end and self._read(), f"found {self.said[-2000:]!r}, expected {words!r}"

    def answer(self, words, keys):
        """Wait until it says so, then type."""
        self.until(words)
        self.said = ""
        os.write(self._ours, keys.encode())

    def end(self):
        """All that it says until it ends, and its exit code."""
        end = time.monotonic() + PATIENCE
        while self._read():
            if time.monotonic() > end:
                self.process.send_signal(signal.SIGABRT)  # it says where each of its threads is
                end += PATIENCE
        return self.said, self.process.wait(PATIENCE)

    def hang_up(self):
        """The terminal goes, as a window that is closed."""
        os.close(self._ours)
        self._ours = None

    def close(self):
        self.process.kill()
        self.process.wait()
        if self._ours is not None:
            os.close(self._ours)

    def _read(self):
        """False once nobody can say anything any more."""
        if select.select([self._ours], [], [], 1.0)[0]:
            try:
                data = os.read(self._ours, 1 << 16).decode(errors="replace")
            except OSError:  # its end of the terminal is closed
                return False
            self.said += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", data)
        return True


@pytest.fixture(scope="module")
def box():
    with launch("kinematic") as emulator:
        yield emulator


@pytest.fixture
def terminal(box, slow_policy, calm, pictures, tmp_path):
    """Starts `s2robot deploy --live` on a terminal, before the arm, with replayed pictures."""
    opened = []
    box.side("clear")
    box.side("place_arm", joints=(HOME + 0.1).tolist())
    words = [f"checkpoint='{slow_policy}'", f"demos.path='{pictures}'", "robot.ip=127.0.0.1", *calm]
    for name in CAMERAS:
        words += [f"bridge.cameras.{name}.{key}" for key in ("kind=replay", f"device='{pictures}'", "fps=20")]

    def start(*more):
        command = [sys.executable, "-c", DEPLOY, box.ports.to_json(), "--live", "hydra.run.dir=run", *words]
        opened.append(Terminal([*command, "bridge.home.speed=0.3", *more], tmp_path))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def arrived(box, begin):
    return [c for c in box.side("commands", since=begin)["commands"] if c["kind"] == "motion"]


ASKED, JUDGED = "Enter: continue, q: quit. ", "Did the episode succeed? [y/n] "


def test_operator_prompts_and_answers_at_the_terminal(terminal, box, tmp_path):
    begin = time.monotonic()
    deploy = terminal("--episodes", "5", "--record", "my demos.zarr", "bridge.loop.max_steps=8")
    deploy.until("to continue: ")
    assert not arrived(box, begin)
    deploy.answer("to continue: ", "move\n")
    deploy.until(ASKED)
    assert not arrived(box, begin) and box.side("status")["state"] >= 4  # hands are near: stopped
    for words, keys in (
        (ASKED, "\n"), ("moving to the start", "y"),  # of what has not begun there is no outcome
        (JUDGED, "maybe\n"), (JUDGED, "\x04"), (JUDGED, "n\n"),
        (ASKED, "\n"), ("step 1 of 8", "y"),  # ends it, and is the answer
        (ASKED, "\n"), ("step 1 of 8", " "),
    ):  # fmt: skip
        deploy.answer(words, keys)
    said, status = deploy.end()
    assert status == 0 and "1 of 3 episodes succeeded" in said, said
    records = json.loads((tmp_path / "run" / "summary.json").read_text())["records"]
    outcomes = [(False, "steps"), (True, "ended"), (False, "stopped")]
    assert [(r["success"], r["cause"]) for r in records] == outcomes
    store = EpisodeStore.open(tmp_path / "my demos.zarr")
    assert store.meta("success").tolist() == [0, 1, 0] and store.attrs["source"] == "arm"
    assert store["images_hand"].std() > 5
    assert not any(c["unsafe"] for c in arrived(box, begin)) and box.side("status")["state"] >= 4


def test_box_plans_in_online_mode_and_ctrl_c_at_a_prompt_loses_nothing(terminal, box, tmp_path):
    begin = time.monotonic()
    deploy = terminal("bridge.arm.mode=online", "bridge.loop.max_steps=2", "bridge.home.speed=0.7")
    deploy.answer("to continue: ", "move\n")
    deploy.answer(ASKED, "\n")
    deploy.until(JUDGED)
    assert box.side("status")["mode"] == 6
    np.testing.assert_allclose(box.side("status")["joints"], HOME, atol=0.05)  # it has come there
    deploy.answer(JUDGED, "\x03")
    said, status = deploy.end()
    assert status == 130, said
    (record,) = json.loads((tmp_path / "run" / "summary.json").read_text())["records"]
    assert (record["cause"], record["steps"], record["success"]) == ("steps", 2, False)
    found = arrived(box, begin)
    assert {c["name"] for c in found} == {"MOVE_JOINT"} and not any(c["unsafe"] for c in found)


def test_closing_the_terminal_in_an_episode_stops_the_arm(terminal, box, tmp_path):
    """A dropped connection to the machine, a closed pane: long before a beat is missed (9 s)."""
    deploy = terminal("bridge.loop.max_steps=1000")
    deploy.answer("to continue: ", "move\n")
    deploy.answer(ASKED, "\n")
    deploy.until("step 3 of 1000")
    assert box.side("status")["ready"]
    begin = time.monotonic()
    deploy.hang_up()
    while box.side("status")["ready"]:
        assert time.monotonic() < begin + 6
    assert deploy.process.wait(PATIENCE) == 130
    assert not any(c["unsafe"] for c in arrived(box, begin)) and not box.side("status")["ready"]
    (record,) = json.loads((tmp_path / "run" / "summary.json").read_text())["records"]
    assert record["cause"] == "stopped"


ASK = """
from s2robot.envs.real.operator.prompts import ask
while True:
    try:
        ask("Well? ")
    except KeyboardInterrupt:
        print("heard", flush=True)
"""


def test_early_ctrl_c_at_a_prompt_is_not_lost(tmp_path):
    """One in a hundred came while `input` had asked and not yet begun to read, and waited for the next line."""
    asking = Terminal([sys.executable, "-c", ASK], tmp_path)
    try:
        for _ in range(300):
            asking.answer("Well? ", "\x03")
            asking.until("heard")
    finally:
        asking.close()
