"""`python -m s2robot` is the same as `s2robot`; with $S2ROBOT_JOB set, it ends when its parent process ends."""

import os
import sys
from threading import Thread

from s2robot.cli import main


def _end_with_parent() -> None:
    os.read(0, 1)  # the parent never writes; this returns when the parent's end of the pipe closes
    os._exit(1)


if __name__ == "__main__":
    if os.environ.pop("S2ROBOT_JOB", None):
        Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(main())
