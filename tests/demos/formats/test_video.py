"""Writing videos leaves the process as it was."""

import subprocess
import sys

import pytest

WRITE = """
import os, sys
from pathlib import Path
import numpy as np
from s2robot.demos.formats.video import VideoWriter
before = os.sched_getscheduler(0)
video = VideoWriter(Path(sys.argv[1]), sys.argv[2], 10, (64, 64), 30)
video.write(np.zeros((3, 64, 64, 3), np.uint8))
video.close()
print(before, {os.sched_getscheduler(int(task)) for task in os.listdir("/proc/self/task")})
"""


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_no_thread_is_left_at_a_realtime_priority(tmp_path, codec):
    """SVT-AV1 takes the highest one where it may, as root, for its threads and the caller's; nothing else ran then."""
    command = [sys.executable, "-c", WRITE, str(tmp_path / "video.mp4"), codec]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    before, after = told.split(maxsplit=1)
    assert after.strip() == f"{{{before}}}"
