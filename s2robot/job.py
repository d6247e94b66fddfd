"""One job of a comparison in its own process: `python -m s2robot.job <verb> <arguments>`.

It is `s2robot <verb> <arguments>` that ends with the process that started it.
"""

import os
import sys
from threading import Thread

from s2robot import cli


def main() -> int:
    """The verb's exit code."""
    Thread(target=_end_with_parent, daemon=True).start()
    sys.argv[0] = "s2robot"
    return cli.main(sys.argv[1:])


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing is ever written: it returns when the other end is closed
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
