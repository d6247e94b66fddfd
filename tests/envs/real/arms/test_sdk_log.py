"""What the vendor's SDK says goes into a file: the SDK itself, in a process of its own, without a box."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("xarm")

ROOT = Path(__file__).resolve().parents[4]
SPEAK = """
import sys
from pathlib import Path
from s2robot.envs.real.arms.sdk import log_to
{before}
print("ours before")
log_to(Path(sys.argv[1], "first.log"))
log_to(Path(sys.argv[1], "run", "second.log"))
from xarm.core.utils.log import logger, origin_logger
from xarm.x3 import base, gripper
logger.error("failed [%s]", "a call")
origin_logger.warning("ControllerWarning, code: 7")
base.print("ROBOT_IP:", 1, sep="=")
gripper.print("two\\nlines")
print("ours after")
"""


@pytest.mark.parametrize("before", ["", "import xarm.wrapper"])
def test_the_sdk_speaks_into_the_file_and_we_onto_the_screen(tmp_path, before):
    done = subprocess.run(
        [sys.executable, "-c", SPEAK.format(before=before), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    assert shown[-2:] == ["ours before", "ours after"] and done.stderr == ""
    assert len(shown) == (3 if before else 2)  # imported before us, it has said its version on the screen
    log = (tmp_path / "run" / "second.log").read_text()
    for text in (
        "MainProcess ERROR failed [a call]",
        "MainProcess WARNING ControllerWarning, code: 7",
        "ROBOT_IP:=1",
        "two\nlines\n",
    ):
        assert log.count(text) == 1, log
    assert "SDK_VERSION" in (tmp_path / "first.log").read_text() or before


RIVAL = """
import os, sys
from pathlib import Path
makedirs = os.makedirs
def rival(name, mode=0o777, exist_ok=False):  # another process makes the folder between the look for it and this
    makedirs(name, mode, exist_ok=True)
    makedirs(name, mode, exist_ok=exist_ok)
os.makedirs = rival
from s2robot.envs.real.arms.sdk import log_to
from s2robot.envs.real.arms.xarm import XArmDriver
from s2robot.envs.errors import EnvError
try:
    XArmDriver("127.0.0.1").connect(0.01)  # whether or not something listens there
except EnvError as error:
    assert "xarm.wrapper: expected" not in str(error), error
assert Path.home().joinpath(".UFACTORY").is_dir()
"""


def test_two_processes_on_a_fresh_machine_do_not_race_for_the_sdk_s_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", RIVAL, str(tmp_path / "a.log")], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env=os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
