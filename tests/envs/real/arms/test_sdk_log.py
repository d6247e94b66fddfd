"""What the vendor's SDK says goes into a file: the SDK itself, in a process of its own, without a box."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("xarm")

ROOT = Path(__file__).resolve().parents[4]
SPEAK = """
import sys
from s2robot.envs.real.arms.sdk_log import log_to
{before}
print("ours before")
log_to(sys.argv[1] + "/first.log")
log_to(sys.argv[1] + "/run/second.log")
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
        "MainProcess INFO ROBOT_IP:=1",
        "MainProcess INFO two\n",
        "MainProcess INFO lines\n",
    ):
        assert log.count(text) == 1, log
    assert "SDK_VERSION" in (tmp_path / "first.log").read_text() or before


def test_without_the_sdk_nothing_happens(tmp_path):
    hidden = "import sys; sys.modules['xarm'] = None; from s2robot.envs.real.arms.sdk_log import log_to; log_to(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", hidden, str(tmp_path / "a.log")],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
