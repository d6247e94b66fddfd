"""`s2robot deploy` as on a real bench: an operator at a terminal, replayed cameras, a box that plans motion.

The box is the emulated one, but `deploy` treats it like a real one.
"""

import json
import os
import pty
import re
import select
import signal
import sys
import time

import numpy as np
import pytest

from s2robot.demos.store import EpisodeStore
from s2robot.envs.real.emulator.emulator import launch
from tests import forks
from tests.envs.real.home import HOME
from tests.envs.real.patience import PATIENCE, arrived

pytest.importorskip("xarm")

CAMERAS = ("hand", "left")
# the emulated box listens on other ports than the vendor's, which may be in use
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
    """A program on a pseudo-terminal and its user."""

    def __init__(self, command, folder):
        self._controller, terminal = pty.openpty()
        self.process = forks.Popen(
            command, cwd=folder, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
            env=os.environ | {"TERM": "xterm", "PYTHONFAULTHANDLER": "1"},
        )  # fmt: skip
        os.close(terminal)
        self.output = ""  # since the last answer

    def until(self, words):
        end = time.monotonic() + PATIENCE
        while words not in self.output:
            assert time.monotonic() < end and self._read(), f"{self.output[-2000:]!r} lacks {words!r}"

    def answer(self, words, keys):
        """Wait for the words, then type the keys."""
        self.until(words)
        self.output = ""
        os.write(self._controller, keys.encode())

    def end(self):
        """Wait for the end of the program; return its remaining output and exit code."""
        end = time.monotonic() + PATIENCE
        while self._read():
            if time.monotonic() > end:
                self.process.send_signal(signal.SIGABRT)  # prints a traceback of each thread
                end += PATIENCE
        return self.output, self.process.wait(PATIENCE)

    def hang_up(self):
        """Close the terminal, as by closing its window."""
        os.close(self._controller)
        self._controller = None

    def close(self):
        self.process.kill()
        self.process.wait()
        if self._controller is not None:
            os.close(self._controller)

    def _read(self):
        """Read available output; return False once the program's side is closed."""
        if select.select([self._controller], [], [], 1.0)[0]:
            try:
                data = os.read(self._controller, 1 << 16).decode(errors="replace")
            except OSError:  # the program's side of the terminal is closed
                return False
            self.output += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", data)
        return True


@pytest.fixture(scope="module")
def box():
    with launch("kinematic") as emulator:
        yield emulator


@pytest.fixture
def terminal(box, slow_policy, calm, pictures, tmp_path):
    """Start `s2robot deploy --live` on a terminal with replayed images."""
    opened = []
    box.side("clear")
    box.side("place_arm", joints=(HOME + 0.1).tolist())
    words = [f"checkpoint='{slow_policy}'", f"demos.path='{pictures}'", "robot.ip=127.0.0.1", *calm]
    for name in CAMERAS:
        words += [f"bridge.cameras.{name}.{key}" for key in ("kind=replay", f"device='{pictures}'", "fps=20")]

    def start(*more):
        command = [sys.executable, "-c", DEPLOY, box.ports.to_json(), "--live", "hydra.run.dir=run", *words]
        opened.append(Terminal([*command, "bridge.home.speed=0.3", "bridge.speed=0.1", *more], tmp_path))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


CONTINUE, JUDGE = "Enter: continue, q: quit. ", "Did the episode succeed? [y/n] "


def test_operator_prompts_and_answers_at_the_terminal(terminal, box, tmp_path):
    begin = time.monotonic()
    deploy = terminal("--episodes", "5", "--record", "my demos.zarr", "bridge.loop.max_steps=8")
    deploy.until("to continue: ")
    assert not arrived(box, begin)
    deploy.answer("to continue: ", "move\n")
    deploy.until(CONTINUE)
    assert not arrived(box, begin) and box.side("status")["state"] >= 4  # stopped while hands are near
    for words, keys in (
        (CONTINUE, "\n"), ("moving to the start", "y"),  # an episode that has not started cannot be judged
        (JUDGE, "maybe\n"), (JUDGE, "\x04"), (JUDGE, "n\n"),
        (CONTINUE, "\n"), ("step 1 of 8", "Y"),  # ends the episode and judges it
        (CONTINUE, "\n"), ("step 1 of 8", " "),
    ):  # fmt: skip
        deploy.answer(words, keys)
    output, status = deploy.end()
    assert status == 0 and "1 of 3 episodes succeeded" in output, output
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
    deploy.answer(CONTINUE, "\n")
    deploy.until(JUDGE)
    assert box.side("status")["mode"] == 6
    np.testing.assert_allclose(box.side("status")["joints"], HOME, atol=0.05)  # it has arrived there
    deploy.answer(JUDGE, "\x03")
    output, status = deploy.end()
    assert status == 130, output
    (record,) = json.loads((tmp_path / "run" / "summary.json").read_text())["records"]
    assert (record["cause"], record["steps"], record["success"]) == ("stopped", 2, False)
    found = arrived(box, begin)
    assert {c["name"] for c in found} == {"MOVE_JOINT"} and not any(c["unsafe"] for c in found)


def test_closing_the_terminal_in_an_episode_stops_the_arm(terminal, box, tmp_path):
    """As on a dropped connection or a closed pane: the arm stops long before the heartbeat limit (9 s)."""
    deploy = terminal("bridge.loop.max_steps=1000")
    deploy.answer("to continue: ", "move\n")
    deploy.answer(CONTINUE, "\n")
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
    """One in a hundred used to arrive after the prompt but before `input` read, and waited for the next line."""
    asking = Terminal([sys.executable, "-c", ASK], tmp_path)
    try:
        for _ in range(300):
            asking.answer("Well? ", "\x03")
            asking.until("heard")
    finally:
        asking.close()
